"""Everything needed to go on, in one safetensors file: tensors, and the rest as JSON in its header.

Loading such a file executes no code from it, unlike a pickle.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from carnet import files
from carnet.documents import CHECKSUM, DocumentError, conform, parse
from carnet.errors import RunError, is_out_of_memory
from carnet.inputs import read_file
from carnet.models.tensors import pack, read_metadata, unpack
from carnet.run_folder import Record
from carnet.training.optimizers import state_names
from carnet.training.state import TrainingState

FORMAT = "carnet checkpoint 6"
_MAX_BYTES = 32 * 2**30
"""Of a checkpoint, which holds weights, their average, and what the optimizer keeps of each of them."""


class _SavedState(TypedDict):
    """What a checkpoint says besides the fields of `TrainingState`."""

    precision: dict[str, Any]


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
    }
    files.write_bytes(path, pack(tensors, metadata), previous=previous)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its checksum.

    Raises:
        DamagedCheckpointError: cut off, changed, no ordinary file, or of another version of carnet.
        RunError: missing, or not to be read just now, which says nothing of what it holds.
    """
    try:
        content = read_file(path, _MAX_BYTES)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG):
            # It is there, and no checkpoint: a pipe, a device, or a file larger than any.
            raise DamagedCheckpointError(error.strerror) from error
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
            metadata = read_metadata(content)
            if (found := metadata.get("format")) != FORMAT:
                raise DamagedCheckpointError(f"written by another version of carnet ({found})")
            if CHECKSUM not in metadata:
                raise DamagedCheckpointError("it has no checksum")
            state, record, param_groups = (parse(metadata.get(key, "")) for key in ("state", "record", "optimizer"))
            conform(state, _SavedState, "state")
            TrainingState.from_json(state)
            conform(record, Record, "record")
            conform(param_groups, list[dict[str, Any]], "optimizer")
        except (DocumentError, RunError) as error:
            raise DamagedCheckpointError(str(error)) from error
        return cls(content, state, record, param_groups)

    def restore(self, network: nn.Module, optimizer: Optimizer, average: nn.Module | None = None) -> None:
        """Put weights, buffers and optimizer state back; they keep the layout and device they have in `network`.

        Raises:
            RunError: if they are of another network or optimizer.
        """
        try:
            tensors = unpack(self.content)
            network.load_state_dict(_below("network.", tensors))
            if average is not None:
                average.load_state_dict(_below("average.", tensors))
            state = _optimizer_state(tensors, optimizer)
            groups = _groups(self.param_groups, optimizer)
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise RunError(f"the checkpoint does not fit this run: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _groups(saved: Sequence[Mapping[str, Any]], optimizer: Optimizer) -> list[dict[str, Any]]:
    """What a checkpoint says of groups of parameters, if it is of the kind that the recipe's optimizer takes.

    Raises:
        KeyError, ValueError: if it is not.
    """
    groups, first = [], 0
    for own, group in zip(optimizer.param_groups, saved, strict=True):
        number = len(own["params"])
        known = {**own, "initial_lr": own["lr"], "params": list(range(first, first + number))}
        if wrong := [name for name in group.keys() & known.keys() if _kind(group[name]) != _kind(known[name])]:
            raise ValueError(f"the optimizer's {wrong[0]} is {group[wrong[0]]!r}")
        if group["params"] != known["params"]:
            raise ValueError("the optimizer has other parameters")
        groups.append({**own, **group})
        first += number
    return groups


def _kind(value: Any) -> Any:
    """Whether it is a number, text, …; of several values, that of each."""
    if isinstance(value, list | tuple):
        return [_kind(item) for item in value]
    return float if type(value) in (int, float) else type(value)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: Mapping[str, Tensor], optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    # The order in which an optimizer counts them; not every one counts as the network does.
    parameters = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        parameter, _ = parameters[int(index)]
        is_count = key == "step" and tensor.shape == () and tensor.dtype == torch.float32
        if not is_count and tensor.shape != parameter.shape:
            raise ValueError(f"{name} has another shape or kind than the optimizer's")
        # Sums over a tensor depend on its layout, so resuming is exact only if the layout returns as well.
        # The others are copied as well: what safetensors gives is the file itself, mapped into memory.
        placed = tensor.clone() if is_count else torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(index), {})[key] = placed
    for number, values in state.items():
        if values.keys() != state_names(parameters[number][1]):
            raise ValueError(f"optimizer.{number} has {', '.join(sorted(values))}")
    return state
