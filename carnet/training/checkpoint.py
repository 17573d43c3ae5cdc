"""Checkpoints: save and restore a run, and verify that it can go on here, with this config and these images.

A checkpoint is one safetensors file: tensors, and the rest as JSON in its header. Loading it executes no code.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from carnet import files
from carnet.config import FREE, OF_MACHINE, ResolvedConfig, TrainingConfig, change
from carnet.documents import CHECKSUM, Count, DocumentError, Range, Seconds, Share, build, conform, parse
from carnet.errors import ConfigError, RunError, is_out_of_memory
from carnet.evaluation import EvaluationReport
from carnet.files import read_file
from carnet.machine import available_cores, versions
from carnet.models.tensors import pack, read_metadata, unpack
from carnet.run_folder import RunFolder, current_record
from carnet.text import Progress, counted, quoted
from carnet.training.measure import processor_features
from carnet.training.optim import state_names
from carnet.training.resolve import device_and_number
from carnet.training.step import compiler_problem

FORMAT = "carnet checkpoint 7"
_READABLE = (FORMAT, "carnet checkpoint 6")
"""Format 6, of version 0.1, has other names for the same entries, see `carnet.older_records`."""
_MAX_BYTES = 32 * 2**30
"""Size limit of a checkpoint, which holds weights, their EMA and the optimizer's state."""


class _SavedState(TypedDict):
    """The entries of a checkpoint's state besides the fields of `TrainingState`."""

    precision: dict[str, Any]
    progress: NotRequired[Annotated[float, Range(0, 1.001)]]
    """Written by versions before 0.2 only, like the next one."""
    finished: NotRequired[bool]


class DamagedCheckpointError(Exception):
    """A checkpoint cannot be read. Internal: the previous one is used instead."""


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
    """Write a checkpoint, whole or not at all.

    It contains no state of a random generator, because everything random follows from (seed, epoch, index).

    Args:
        path: the file.
        network: its weights and buffers are saved.
        optimizer: its state is saved.
        state: the progress of the run, in plain values.
        record: the content of `config.json`.
        previous: new name of the checkpoint that `path` replaces.
        average: the network with the EMA of the weights; None: the run has none.

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
        DamagedCheckpointError: if it is cut off, changed, no ordinary file, or of another version of carnet.
        RunError: if it is missing or cannot be read now, which says nothing about its content.
    """
    try:
        content = read_file(path, _MAX_BYTES)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG):
            # A pipe, a device, or a file larger than any checkpoint.
            raise DamagedCheckpointError(error.strerror) from error
        raise RunError(f"cannot read {path}: {error.strerror or error}; allow it, or try again") from error
    try:
        metadata = read_metadata(content)
        if (found := metadata.get("format")) not in _READABLE:
            raise DamagedCheckpointError(f"written by another version of carnet ({found})")
        if CHECKSUM not in metadata:
            raise DamagedCheckpointError("it has no checksum")
        state, record, param_groups = (parse(metadata.get(key, "")) for key in ("state", "record", "optimizer"))
        conform(state, _SavedState, "state")
        TrainingState.from_json(state)
        conform(param_groups, list[dict[str, Any]], "optimizer")
        return Checkpoint(content, state, current_record(record), param_groups)
    except (DocumentError, RunError) as error:
        raise DamagedCheckpointError(str(error)) from error


def last_good_checkpoint(run: RunFolder, progress: Progress) -> Checkpoint | None:
    """Return the last checkpoint, or the previous one if the last is damaged, or None if there is none yet.

    Raises:
        RunError: if all checkpoints are damaged, or one cannot be read now.
    """
    reasons = []
    for path in (run.checkpoint, run.previous_checkpoint):
        # After a kill between the two renamings of `save_checkpoint`, only the previous one exists.
        if not path.exists():
            continue
        try:
            checkpoint = read_checkpoint(path)
        except DamagedCheckpointError as error:
            reasons.append(f"{path}: {error}")
            continue
        if reasons:
            progress.say(f"Note: {reasons[0]}; continues from the previous checkpoint, {path.name}.")
        if path != run.checkpoint:
            # Under its own name, the next checkpoint would overwrite it.
            run.promote_previous_checkpoint()
        return checkpoint
    if reasons:
        raise RunError(
            f"no checkpoint can be read ({'; '.join(reasons)}); --init starts from the weights of {run.path}"
        )
    return None


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        content: the bytes of the file.
        state: the progress of the run, in plain values.
        record: the content of `config.json`.
        param_groups: of the optimizer.
    """

    content: bytes
    state: dict[str, Any]
    record: dict[str, Any]
    param_groups: list[dict[str, Any]]

    def restore(self, network: nn.Module, optimizer: Optimizer, average: nn.Module | None = None) -> None:
        """Restore weights, buffers and optimizer state, on the device and in the memory layout of `network`.

        Raises:
            RunError: if they belong to another network or optimizer.
        """
        try:
            tensors = unpack(self.content)
            network.load_state_dict(_below("network.", tensors))
            if average is not None:
                average.load_state_dict(_below("average.", tensors))
            state = _optimizer_state(_below("optimizer.", tensors), optimizer)
            groups = _param_groups(self.param_groups, optimizer)
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(f"the checkpoint does not fit this run: {first_line}") from error


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _param_groups(saved: Sequence[Mapping[str, Any]], optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the saved groups, after comparing their parameters and the types of their settings with the optimizer's.

    Raises:
        KeyError, ValueError: if they differ.
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
    """Return the type of a setting, where all numbers are of one type; of a sequence, the types of its items."""
    if isinstance(value, list | tuple):
        return [_kind(item) for item in value]
    return float if type(value) in (int, float) else type(value)


def _optimizer_state(tensors: Mapping[str, Tensor], optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return the saved tensors by parameter number and name, in the memory layout and on the device of the parameter.

    Raises:
        KeyError, IndexError, ValueError: if they do not fit the optimizer.
    """
    # In the order of the optimizer, which may differ from that of the network.
    parameters = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        parameter, _ = parameters[int(index)]
        is_count = key == "step" and tensor.shape == () and tensor.dtype == torch.float32
        if not is_count and tensor.shape != parameter.shape:
            raise ValueError(f"optimizer.{name} has another shape or type")
        # Sums over a tensor depend on its memory layout, so exact resume needs the same layout. The count is cloned
        # because safetensors returns views of the file's content.
        placed = tensor.clone() if is_count else torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(index), {})[key] = placed
    for number, values in state.items():
        if values.keys() != state_names(parameters[number][1]):
            raise ValueError(f"optimizer.{number} has {', '.join(sorted(values))}")
    return state


EpochMetrics = dict[str, float]
"""The metrics of an epoch, see `_Epoch`."""


class _Epoch(TypedDict):
    epoch: Count
    seconds: Seconds
    """Training time since the beginning of the run."""
    train_loss: _Ordinary
    train_top1: Share
    valid_loss: _Ordinary
    valid_top1: Share
    valid_top5: Share
    valid_macro_recall: NotRequired[Share]
    """Runs of version 0.1 have none."""
    lr: _Ordinary
    image_size: Count
    images_per_second: _Ordinary


_Ordinary = Annotated[float, Range(0, 1e30)]
_Progress = Annotated[float, Range(0, 1.001)]
"""A share; a sum of many small ones may exceed 1 by rounding."""


@dataclass
class TrainingState:
    """The progress of a run: the finished epochs, and the sums over the steps of the current one."""

    epoch: Count = 0
    step: Count = 0
    """Steps taken in the current epoch."""
    loss_sum: float = 0.0
    """Sum over the images of the current epoch so far, like the next two."""
    num_correct: Count = 0
    num_images: Count = 0
    seconds: Seconds = 0.0
    """Time spent on steps, validation and writing, also before the run was resumed; without preparation."""
    step_seconds: Seconds = 0.0
    """Time spent on the steps of the current epoch."""
    best: EpochMetrics | None = None
    """The epoch with the highest validation accuracy, and among equal ones the lowest loss."""
    epochs_since_best: Count = 0
    """Epochs since the highest validation accuracy was first reached; a lower loss does not count for patience."""
    history: list[EpochMetrics] = field(default_factory=list)
    num_steps: Count = 0
    """Planned steps of the whole run: those of the config, unless a budget or patience has changed them."""
    planned_at: Count = 0
    """Steps taken when `num_steps` was last changed."""
    planned_progress: _Progress = 0.0
    """The progress at that step, so that the schedule does not jump when the length of the run changes."""
    micro_batch: Count = 0
    """The smaller micro-batch after a GPU has run out of memory; 0: that of the config."""
    peak_memory_bytes: Count = 0
    """Peak memory of a process of the run, up to the last finished epoch."""
    peak_device_bytes: Count = 0
    """Peak GPU memory of a process of the run, up to the last finished epoch."""
    notes: list[str] = field(default_factory=list)
    """What did not go as planned, a sentence each."""

    def progress(self, num_steps: float) -> float:
        """Return the share of the run that is done after `num_steps` steps; the schedules follow it."""
        if num_steps < self.planned_at:
            return self.planned_progress * num_steps / self.planned_at
        share = (num_steps - self.planned_at) / max(1, self.num_steps - self.planned_at)
        return self.planned_progress + (1 - self.planned_progress) * share

    def plan(self, num_steps: int, steps_done: int) -> None:
        """Change the planned length of the run after `steps_done` steps."""
        progress = self.progress(steps_done)
        self.num_steps, self.planned_at, self.planned_progress = num_steps, steps_done, progress

    def add_step(self, loss: float, num_correct: int, num_images: int, seconds: float) -> None:
        """Add the results of a step; `loss` is the mean over its images."""
        self.step += 1
        self.loss_sum += loss * num_images
        self.num_correct += num_correct
        self.num_images += num_images
        self.seconds += seconds
        self.step_seconds += seconds

    def end_epoch(self, valid: EvaluationReport, *, lr: float, image_size: int) -> None:
        """Record the metrics of the epoch, and begin the next one."""
        epoch: EpochMetrics = {
            "epoch": self.epoch + 1,
            "seconds": round(self.seconds, 3),
            "train_loss": self.loss_sum / self.num_images,
            "train_top1": self.num_correct / self.num_images,
            "valid_loss": valid.loss,
            "valid_top1": valid.top1,
            "valid_top5": valid.top5,
            "valid_macro_recall": valid.macro_recall,
            "lr": lr,
            "image_size": image_size,
            "images_per_second": round(self.num_images / self.step_seconds, 3),
        }
        self.history.append(epoch)
        rank, best = ((each["valid_top1"], -each["valid_loss"]) for each in (epoch, self.best or epoch))
        self.epochs_since_best = 0 if self.best is None or rank[0] > best[0] else self.epochs_since_best + 1
        if self.best is None or rank > best:
            self.best = epoch
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.num_correct, self.num_images, self.step_seconds = 0.0, 0, 0, 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingState:
        """Build a state from the plain values of its fields; ignore other keys.

        Raises:
            RunError: if a value has another type or is out of range, or two values contradict each other.
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


def resumed_config(
    run: RunFolder, requested: TrainingConfig, record: Mapping[str, Any], source: Path
) -> ResolvedConfig:
    """Return the config in `record`, with the fields of `requested` that do not change the result.

    Raises:
        RunError: if the record, which comes from the file `source`, cannot be read; if another result is requested;
            or if this machine cannot compute it.
    """
    before = TrainingConfig.from_json(record["requested"], source)
    resolved = ResolvedConfig.from_json(record["resolved"], source)
    changes = {
        name: change(name, getattr(resolved, name), getattr(requested, name))
        for name in (field.name for field in fields(TrainingConfig))
        if name not in FREE | {"keep_memory"}
        and getattr(requested, name) not in (None, getattr(before, name), getattr(resolved, name))
        and not (name == "model" and requested.model == "auto")
    }
    if recipe := [text for name, text in changes.items() if name not in OF_MACHINE]:
        way_out = f"carnet train DATA --init {quoted(run.path)} trains a new run with this recipe from its weights"
        if changes.keys() & {"model", "in_channels"}:
            way_out = "train a new run without --resume"
        raise RunError(
            f"--resume goes on with the recipe of {run.path}; it does not have {', '.join(recipe)}; {way_out}"
        )
    try:
        _, devices = device_and_number(replace(requested, device=resolved.device))
        if devices != resolved.devices:
            changes["devices"] = change("devices", resolved.devices, devices)
    except ConfigError as error:
        changes["device"] = str(error)
    if resolved.threads > (cores := available_cores()):
        changes["threads"] = f"{cores} cores (was --threads {resolved.threads})"
    if changes:
        raise RunError(f"{run.path} has other settings: {', '.join(changes.values())}; --init starts from its weights")
    if resolved.compile and (problem := compiler_problem(resolved.device)):
        raise RunError(f"{run.path} was trained compiled, but {problem}; --init starts from its weights")
    free = {name: getattr(requested, name) for name in FREE}
    kept = {name: getattr(resolved, name) for name in ("workers", "unlabeled") if free[name] is None}
    return replace(resolved, **free | kept)


def continuation(
    run: RunFolder, config: ResolvedConfig, checkpoint: Checkpoint | None, record: Mapping[str, Any]
) -> str:
    """Return a message: the progress of a resumed run, and the versions that have changed since it began."""
    if checkpoint is None:
        lines = [f"Goes on with {run.path}: it has no checkpoint yet and starts at the beginning."]
    else:
        epochs, steps = checkpoint.state["epoch"], counted(checkpoint.state["step"], "step")
        lines = [f"Goes on with {run.path}: {epochs} of {config.epochs} epochs and {steps} are done."]
    now = versions() | {"processor features": processor_features()}
    then = record["versions"] | {"processor features": record["processor_features"]}
    changes = [
        f"{name} {now.get(name)} (was {then.get(name)})" for name in now | then if now.get(name) != then.get(name)
    ]
    if changes:
        lines.append(f"Note: {', '.join(changes)}; the last digits may differ from those of an uninterrupted run.")
    return "\n".join(lines)
