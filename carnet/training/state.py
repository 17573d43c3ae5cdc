"""Where a run stands: what a checkpoint keeps besides tensors, in plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypedDict

from carnet.documents import Count, DocumentError, Range, Seconds, Share, build, conform
from carnet.errors import RunError
from carnet.evaluation import EvaluationReport

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
    finished: bool = False
    """Ended before the last epoch."""
    num_steps: Count = 0
    """Steps of the whole run: all of its epochs, or fewer where a budget leaves no time for them."""
    began_at: _Progress = 0.0
    """What `progress` was when this epoch began: images are shown as it says."""
    progress: _Progress = 0.0
    """Share of the run that is done, which the learning rate follows."""
    micro_batch: Count = 0
    """Where a GPU's memory ran out: images at a time from then on; 0: as planned."""
    peak_memory_bytes: Count = 0
    """The most that a process of the run has had in use at once, as of the last finished epoch."""
    peak_device_bytes: Count = 0
    """The same of a GPU's memory."""
    notes: list[str] = field(default_factory=list)
    """What went otherwise than planned, a sentence each."""

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
            state.finished and not state.history,
            state.epochs_since_best > state.epoch,
            state.num_steps == 0,
        )
        if any(contradictions):
            raise RunError("the state of the run cannot be read: it contradicts itself")
        return state


def _rank(epoch: EpochMetrics) -> tuple[float, float]:
    return epoch["valid_top1"], -epoch["valid_loss"]
