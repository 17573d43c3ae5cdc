"""Everything needed to go on, in one safetensors file: tensors, and the rest as JSON in its header.

Loading such a file executes no code from it, unlike a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from carnet import files
from carnet.errors import RunError, is_out_of_memory

FORMAT = "carnet checkpoint 6"
_DIGEST = b'"sha256":"%s"'
_NO_DIGEST = b"0" * 64


class DamagedCheckpointError(Exception):
    """A checkpoint is cut off, or its checksum is wrong. Internal: the one before it is taken instead."""


def save_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    previous: Path | None = None,
    average: nn.Module | None = None,
) -> None:
    """Write weights, buffers, optimizer, `state` and `record`, whole or not at all.

    There is no random generator among them: what is random is drawn anew at every step, from (seed, epoch, index).

    Args:
        path: the file.
        network: gives weights and buffers.
        optimizer: gives its state.
        state: where the run stands, in plain values.
        record: what `config.json` says: recipe, plan, versions, data.
        previous: the name under which the checkpoint that was there until now stays.
        average: the network with averaged weights, where the run keeps one.

    Raises:
        OutputError: if the folder cannot be written; the previous checkpoint stays.
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    optimizer_state = optimizer.state_dict()
    for index, values in optimizer_state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    metadata = {
        "format": FORMAT,
        "state": json.dumps(dict(state)),
        "record": json.dumps(dict(record)),
        "optimizer": json.dumps(optimizer_state["param_groups"]),
        "sha256": _NO_DIGEST.decode(),
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write_bytes(path, _sealed(save(contiguous, metadata=metadata)), previous=previous)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its checksum.

    Raises:
        DamagedCheckpointError: cut off, changed, or of another version of carnet.
        RunError: missing, or not to be read just now, which says nothing of what it holds.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}; allow it, or try again") from error
    return Checkpoint.from_bytes(content)


@dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` wrote.

    Attributes:
        content: the bytes of the file.
        state: where the run stands.
        record: what `config.json` said.
    """

    content: bytes
    state: dict[str, Any]
    record: dict[str, Any]
    param_groups: list[dict[str, Any]]

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """Verify and open the bytes of a checkpoint file.

        Raises:
            DamagedCheckpointError: as `read_checkpoint`.
        """
        try:
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + length])["__metadata__"]
            if metadata["format"] != FORMAT:
                raise DamagedCheckpointError(f"written by another version of carnet ({metadata['format']})")
            if _digest(content, metadata["sha256"]) != metadata["sha256"]:
                raise DamagedCheckpointError("its checksum is wrong")
            state, record, param_groups = (json.loads(metadata[key]) for key in ("state", "record", "optimizer"))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpointError("it is cut off or not a checkpoint") from error
        return cls(content, state, record, param_groups)

    def restore(self, network: nn.Module, optimizer: Optimizer, average: nn.Module | None = None) -> None:
        """Put weights, buffers and optimizer state back; they keep the layout and device they have in `network`.

        Raises:
            RunError: if they are of another network or optimizer.
        """
        tensors = load(self.content)
        try:
            network.load_state_dict(_below("network.", tensors))
            if average is not None:
                average.load_state_dict(_below("average.", tensors))
            state = _optimizer_state(tensors, optimizer)
            optimizer.load_state_dict({"state": state, "param_groups": self.param_groups})
        except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise RunError(f"the checkpoint does not fit this run: {error}") from error


def _sealed(content: bytes) -> bytes:
    """The file with its own SHA-256 in the header; the digest counts as zeros while it is computed."""
    place, digest = _DIGEST % _NO_DIGEST, hashlib.sha256(content).hexdigest().encode()
    return content.replace(place, _DIGEST % digest, 1)


def _digest(content: bytes, recorded: str) -> str:
    header, rest = content[: 8 + int.from_bytes(content[:8], "little")], memoryview(content)
    unsealed = header.replace(_DIGEST % recorded.encode(), _DIGEST % _NO_DIGEST, 1)
    digest = hashlib.sha256(unsealed)
    digest.update(rest[len(header) :])
    return digest.hexdigest()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: Mapping[str, Tensor], optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    # The order in which an optimizer counts them; not every one counts as the network does.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        # Sums over a tensor depend on its layout, so resuming is exact only if the layout returns as well.
        # The others are copied as well: what safetensors gives is the file itself, mapped into memory.
        like_parameter = key != "step" and tensor.shape == parameter.shape
        placed = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if like_parameter else tensor.clone()
        state.setdefault(int(index), {})[key] = placed
    return state
