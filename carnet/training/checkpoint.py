"""Everything needed to go on, in one safetensors file: tensors, and the rest as JSON in its header.

Loading such a file executes no code from it, unlike a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from carnet import files
from carnet.errors import RunError

FORMAT = "carnet checkpoint 1"


def save_checkpoint(path: Path, network: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Write weights, buffers, optimizer, random generator and `state` (plain values), whole or not at all.

    Raises:
        OutputError: if the folder cannot be written; the previous checkpoint stays.
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    optimizer_state = optimizer.state_dict()
    for index, values in optimizer_state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors["random.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    metadata = {
        "format": FORMAT,
        "state": json.dumps(dict(state)),
        "optimizer": json.dumps(optimizer_state["param_groups"]),
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write_bytes(path, save(contiguous, metadata=metadata))


def load_checkpoint(path: Path, network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Put everything back where `save_checkpoint` took it from.

    Tensors keep the memory layout and device they have in `network`.

    Returns:
        The `state` that was saved.

    Raises:
        RunError: if the file is missing, damaged, or of another network or optimizer.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read the checkpoint {path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise RunError(f"{path} is not a checkpoint of this version")
    try:
        network.load_state_dict(_below("network.", tensors))
        optimizer.load_state_dict(
            {"state": _optimizer_state(tensors, network), "param_groups": json.loads(metadata["optimizer"])}
        )
        state = json.loads(metadata["state"])
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise RunError(f"{path} does not fit this run: {error}") from error
    return dict(state)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[int, dict[str, Tensor]]:
    parameters = list(network.parameters())
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
