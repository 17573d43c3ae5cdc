"""Where a run stands: what a checkpoint keeps besides tensors, in plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from carnet.evaluation import EvaluationReport

EpochMetrics = dict[str, float]
"""epoch, seconds, train_loss, train_top1, valid_loss, valid_top1, valid_top5, lr, image_size, images_per_second."""


@dataclass
class TrainingState:
    """Epoch and step that come next, what this epoch has summed up so far, and the finished epochs."""

    epoch: int = 0
    step: int = 0
    """Steps of this epoch that are done."""
    loss_sum: float = 0.0
    """Over this epoch's images so far."""
    num_correct: int = 0
    num_images: int = 0
    seconds: float = 0.0
    """Spent on steps and validation in all sessions of the run, without the preparations."""
    step_seconds: float = 0.0
    """The part of it that this epoch's steps took."""
    best: EpochMetrics | None = None
    """The epoch with the highest validation accuracy; of equal ones, the one with the lower loss."""
    epochs_since_best: int = 0
    """Since the highest validation accuracy was reached first: patience does not wait for the loss."""
    history: list[EpochMetrics] = field(default_factory=list)
    finished: bool = False
    """Ended before the last epoch."""
    num_steps: int = 0
    """Steps of the whole run: all of its epochs, or fewer where a budget leaves no time for them."""
    began_at: float = 0.0
    """What `progress` was when this epoch began: images are shown as it says."""
    progress: float = 0.0
    """Share of the run that is done, which the learning rate follows."""
    micro_batch: int = 0
    """Where a GPU's memory ran out: images at a time from then on; 0: as planned."""
    peak_memory_bytes: int = 0
    """The most that a process of the run has had in use at once, as of the last finished epoch."""
    peak_device_bytes: int = 0
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
        """Rebuild a state from `to_json`'s dictionary."""
        return cls(**values)


def _rank(epoch: EpochMetrics) -> tuple[float, float]:
    return epoch["valid_top1"], -epoch["valid_loss"]
