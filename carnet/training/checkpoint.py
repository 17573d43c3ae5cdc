"""Everything needed to go on, in one safetensors file: tensors, and the rest as JSON in its header.

Loading such a file executes no code from it, unlike a pickle.

Where a run stands: what a checkpoint keeps besides tensors, in plain values.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from carnet import files
from carnet.documents import CHECKSUM, Count, DocumentError, Range, Seconds, Share, build, conform, parse
from carnet.errors import RunError, is_out_of_memory
from carnet.evaluation import EvaluationReport
from carnet.files import read_file
from carnet.models.weights import pack, read_metadata, unpack
from carnet.run_folder import current_record
from carnet.training.optim import state_names

FORMAT = "carnet checkpoint 7"
_READABLE = (FORMAT, "carnet checkpoint 6")
"""The last one of version 0.1 says the same in older words, see `carnet.config.from_format_1`."""
_MAX_BYTES = 32 * 2**30
"""Of a checkpoint, which holds weights, their average, and what the optimizer keeps of each of them."""


class _SavedState(TypedDict):
    """What a checkpoint says besides the fields of `TrainingState`."""

    precision: dict[str, Any]
    progress: NotRequired[Annotated[float, Range(0, 1.001)]]
    """Of versions before 0.2, like the next one."""
    finished: NotRequired[bool]


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
        record: what `config.json` says: the config, versions and data.
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
            if (found := metadata.get("format")) not in _READABLE:
                raise DamagedCheckpointError(f"written by another version of carnet ({found})")
            if CHECKSUM not in metadata:
                raise DamagedCheckpointError("it has no checksum")
            state, record, param_groups = (parse(metadata.get(key, "")) for key in ("state", "record", "optimizer"))
            conform(state, _SavedState, "state")
            TrainingState.from_json(state)
            record = current_record(record)
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


EpochMetrics = dict[str, float]
"""What `_Epoch` says."""


class _Epoch(TypedDict):
    epoch: Count
    seconds: Seconds
    """Since the run began."""
    train_loss: _Ordinary
    train_top1: Share
    valid_loss: _Ordinary
    valid_top1: Share
    valid_top5: Share
    lr: _Ordinary
    image_size: Count
    images_per_second: _Ordinary


_Ordinary = Annotated[float, Range(0, 1e30)]
_Progress = Annotated[float, Range(0, 1.001)]
"""A share, as sums of many small ones come out."""


@dataclass
class TrainingState:
    """Epoch and step that come next, what this epoch has summed up so far, and the finished epochs."""

    epoch: Count = 0
    step: Count = 0
    """Steps of this epoch that are done."""
    loss_sum: float = 0.0
    """Over this epoch's images so far."""
    num_correct: Count = 0
    num_images: Count = 0
    seconds: Seconds = 0.0
    """Spent on steps and validation in all sessions of the run, without the preparations."""
    step_seconds: Seconds = 0.0
    """The part of it that this epoch's steps took."""
    best: EpochMetrics | None = None
    """The epoch with the highest validation accuracy; of equal ones, the one with the lower loss."""
    epochs_since_best: Count = 0
    """Since the highest validation accuracy was reached first: patience does not wait for the loss."""
    history: list[EpochMetrics] = field(default_factory=list)
    num_steps: Count = 0
    """Steps of the whole run: those of the config, or what a budget or patience has made of them."""
    planned_at: Count = 0
    """Steps that were done when `num_steps` was planned anew."""
    planned_progress: _Progress = 0.0
    """What `progress` was then, so that nothing jumps where a run is made shorter or longer."""
    micro_batch: Count = 0
    """Where a GPU's memory ran out: images at a time from then on; 0: as planned."""
    peak_memory_bytes: Count = 0
    """The most that a process of the run has had in use at once, as of the last finished epoch."""
    peak_device_bytes: Count = 0
    """The same of a GPU's memory."""
    notes: list[str] = field(default_factory=list)
    """What went otherwise than planned, a sentence each."""

    def progress(self, num_steps: float) -> float:
        """Share of the run that is done after so many steps of it; learning rate and views follow it."""
        if num_steps < self.planned_at:
            return self.planned_progress * num_steps / self.planned_at
        share = (num_steps - self.planned_at) / max(1, self.num_steps - self.planned_at)
        return self.planned_progress + (1 - self.planned_progress) * share

    def plan(self, num_steps: int, steps_done: int) -> None:
        """Let the run have another length from here on."""
        progress = self.progress(steps_done)
        self.num_steps, self.planned_at, self.planned_progress = num_steps, steps_done, progress

    def add_step(self, loss: float, num_correct: int, num_images: int, seconds: float) -> None:
        """Count a step; `loss` is the mean over its images."""
        self.step += 1
        self.loss_sum += loss * num_images
        self.num_correct += num_correct
        self.num_images += num_images
        self.seconds += seconds
        self.step_seconds += seconds

    def end_epoch(self, valid: EvaluationReport, *, lr: float, image_size: int) -> EpochMetrics:
        """Close the epoch with its validation; afterwards the state stands at the start of the next one."""
        epoch: EpochMetrics = {
            "epoch": self.epoch + 1,
            "seconds": round(self.seconds, 3),
            "train_loss": self.loss_sum / self.num_images,
            "train_top1": self.num_correct / self.num_images,
            "valid_loss": valid.loss,
            "valid_top1": valid.top1,
            "valid_top5": valid.top5,
            "lr": lr,
            "image_size": image_size,
            "images_per_second": round(self.num_images / self.step_seconds, 3),
        }
        self.history.append(epoch)
        before = None if self.best is None else _rank(self.best)
        if before is None or _rank(epoch) > before:
            self.best = epoch
        self.epochs_since_best = 0 if before is None or _rank(epoch)[0] > before[0] else self.epochs_since_best + 1
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.num_correct, self.num_images, self.step_seconds = 0.0, 0, 0, 0.0
        return epoch

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values, the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingState:
        """Rebuild a state from `to_json`'s dictionary; keys it does not know are left alone.

        Raises:
            RunError: if a field is not what it should be, or two contradict each other.
        """
        try:
            state = build(cls, values)
            conform(state.history, list[_Epoch], "history")
            conform(state.best, _Epoch | None, "best")
        except DocumentError as error:
            raise RunError(f"the state of the run cannot be read: {error}") from error
        contradictions = (
            state.epoch != len(state.history),
            bool(state.step) != bool(state.num_images),
            bool(state.step) != bool(state.step_seconds),
            state.num_correct > state.num_images,
            state.epoch > 0 and state.best is None,
            state.planned_at > state.num_steps,
            state.epochs_since_best > state.epoch,
            state.num_steps == 0,
        )
        if any(contradictions):
            raise RunError("the state of the run cannot be read: it contradicts itself")
        return state


def _rank(epoch: EpochMetrics) -> tuple[float, float]:
    return epoch["valid_top1"], -epoch["valid_loss"]
