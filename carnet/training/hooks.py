"""What looks on while a network is trained: progress lines, checkpoints, tables, curves, loggers.

They are told what has happened, in the first process alone, and change nothing. What decides is in the loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from carnet import files
from carnet.errors import OutputError
from carnet.models.weights import save_model
from carnet.report.plots import draw_curves
from carnet.text import duration
from carnet.training.checkpoint import save_checkpoint
from carnet.training.loop import Callback, Training
from carnet.training.schedule import initial_side, mean_cost, step_cost
from carnet.training.step import StepResult

MEASURED_STEPS, MEASURED_SECONDS = 5, 5.0
"""Work, at least, after which the remaining time is foretold from its second half; the first steps are slower."""
_DRAW_SECONDS = 10.0
"""Between drawings of the curves, which take as long as an epoch of few images."""


def built_in_callbacks() -> list[Callback]:
    """Those that every run has, in the order in which they are told.

    The table and the curves come after the checkpoint, because it holds them as well, should they not be written.
    """
    return [TensorBoard(), Checkpoints(), History(), ProgressLines()]


class ProgressLines(Callback):
    """A bar that moves with every step, once the time that is left, and a line for every epoch."""

    def __init__(self, measured_seconds: float = MEASURED_SECONDS) -> None:
        self.measured_seconds = measured_seconds
        self.step_seconds: list[float] | None = []

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """Move the bar; say what the first steps of this session let expect."""
        state = run.state
        run.progress.bar(
            f"epoch {state.epoch + 1}/{run.num_epochs}",
            state.step,
            run.steps_per_epoch,
            f"loss {state.loss_sum / state.num_images:.3f}, top-1 {100 * state.num_correct / state.num_images:.1f} %",
        )
        if self.step_seconds is None:
            return
        self.step_seconds.append(seconds)
        if len(self.step_seconds) < MEASURED_STEPS or sum(self.step_seconds) < self.measured_seconds:
            return
        step_seconds = float(np.median(self.step_seconds[len(self.step_seconds) // 2 :]))
        self.step_seconds = None
        # Images may still grow.
        cost = step_cost(run.view(run.steps_done).side, run.config)
        rest = run.steps_left * step_seconds * mean_cost(run.config, state.progress(run.steps_done)) / cost
        run.progress.say(
            f"{step_seconds:.2f} s a step, {run.config.batch_size / step_seconds:.1f} images/s: "
            f"about {duration(run.steps_per_epoch * step_seconds)} an epoch and {duration(rest)} to the end, "
            f"validation not counted"
        )

    def on_epoch_end(self, run: Training) -> None:
        """Say how it went, and how long the rest takes, validation counted."""
        state, config = run.state, run.config
        epoch = state.history[-1]
        left = f", about {duration(run.steps_left * run.seconds_per_step)} left" if run.steps_left > 0 else ""
        reason = "the loss" if state.epochs_since_best else "top-1"
        best = f" (best so far, by {reason})" if state.best is epoch else ""
        growing = f"{epoch['image_size']:.0f} px, " if initial_side(config) < config.image_size else ""
        run.progress.say(
            f"epoch {epoch['epoch']:.0f}/{run.num_epochs}: "
            f"train loss {epoch['train_loss']:.3f}, top-1 {100 * epoch['train_top1']:.1f} %; "
            f"valid loss {epoch['valid_loss']:.3f}, top-1 {100 * epoch['valid_top1']:.1f} %{best}; "
            f"{growing}{epoch['images_per_second']:.1f} images/s, {duration(epoch['seconds'])} so far{left}"
        )


class Checkpoints(Callback):
    """A checkpoint at the end of every epoch and stop, and between them by time or by steps; the model to keep."""

    def __init__(self) -> None:
        self.written, self.micro_batch = 0.0, 0

    def on_fit_start(self, run: Training) -> None:
        """A new run begins with a checkpoint."""
        self.written, self.micro_batch = time.monotonic(), run.state.micro_batch
        if run.job.checkpoint is None:
            self._write(run)

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """Where one is due, or a GPU's memory ran out, which a later session need not find out again."""
        every = run.config.checkpoint_steps
        late = time.monotonic() - self.written > 60 * run.config.checkpoint_minutes
        shrunk = run.state.micro_batch != self.micro_batch
        if shrunk:
            run.progress.say(f"Note: {run.state.notes[-1]}.")
            self.micro_batch = run.state.micro_batch
        if late or shrunk or (every and run.steps_done % every == 0):
            self._write(run)

    def on_epoch_end(self, run: Training) -> None:
        """The model of the last epoch, or with patience that of the best; then the checkpoint, which says so."""
        epoch = run.state.history[-1]
        if not run.config.patience or run.state.best is epoch:
            params = sum(parameter.numel() for parameter in run.network.parameters())
            info = {"params": params, "epoch": epoch["epoch"], "metrics": epoch}
            with explaining_lost_output(run):
                save_model(run.folder, run.evaluated, run.spec, info)
        self._write(run)

    def on_interrupt(self, run: Training) -> None:
        """So that nothing is lost."""
        self._write(run)

    def _write(self, run: Training) -> None:
        # Mixed fp16 scales the loss by a factor that adapts; the other precisions have no state.
        state = asdict(run.state) | {"precision": run.step.fabric.strategy.precision.state_dict()}
        with explaining_lost_output(run):
            save_checkpoint(
                run.folder.checkpoint,
                run.network,
                run.step.optimizer,
                state,
                run.job.record,
                previous=run.folder.previous_checkpoint,
                average=None if run.average is None else run.average.network,
            )
        self.written = time.monotonic()


class History(Callback):
    """The table of the epochs, and their curves."""

    def __init__(self) -> None:
        self.drawn, self.epochs_drawn = -_DRAW_SECONDS, 0

    def on_fit_start(self, run: Training) -> None:
        """Cut off what a later, damaged checkpoint has left behind."""
        if run.job.checkpoint is not None:
            self.on_fit_end(run)

    def on_epoch_end(self, run: Training) -> None:
        """Add the epoch; the curves wait where epochs are short."""
        with explaining_lost_output(run, spare=True):
            self._write(run, draw_every=_DRAW_SECONDS)

    def on_fit_end(self, run: Training) -> None:
        """Draw what has waited."""
        with explaining_lost_output(run):
            self._write(run, draw_every=0.0)

    def _write(self, run: Training, *, draw_every: float) -> None:
        history = run.state.history
        if not history:
            run.folder.metrics.unlink(missing_ok=True)
            run.folder.curves.unlink(missing_ok=True)
            return
        files.write_text(run.folder.metrics, files.csv_text(history))
        if time.monotonic() - self.drawn >= draw_every and self.epochs_drawn != len(history):
            title = f"{run.spec.model}, {run.folder.path.name}"
            files.write_bytes(run.folder.curves, draw_curves(history, title=title))
            self.drawn, self.epochs_drawn = time.monotonic(), len(history)


class TensorBoard(Callback):
    """The same numbers for TensorBoard, where that is asked for."""

    def __init__(self) -> None:
        self.logger: TensorBoardLogger | None = None

    def on_fit_start(self, run: Training) -> None:
        """Open the log."""
        if run.config.logger == "tensorboard":
            self.logger = TensorBoardLogger(run.folder.path, name="tensorboard", version="")

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """The loss of the step."""
        if self.logger is not None:
            self.logger.log_metrics({"loss/step": result.loss}, step=run.steps_done)

    def on_epoch_end(self, run: Training) -> None:
        """Losses and accuracies of the epoch."""
        if self.logger is not None:
            epoch = run.state.history[-1]
            names = [(metric, split) for metric in ("loss", "top1") for split in ("train", "valid")]
            metrics = {f"{metric}/{split}": epoch[f"{split}_{metric}"] for metric, split in names}
            self.logger.log_metrics(metrics, step=int(epoch["epoch"]) * run.steps_per_epoch)


@contextmanager
def explaining_lost_output(run: Training, *, spare: bool = False) -> Iterator[None]:
    """Say how to go on where the run's folder cannot be written; `spare`: the checkpoint holds it as well.

    Raises:
        OutputError: instead of the one that names the file alone.
    """
    try:
        yield
    except OutputError as error:
        if spare and os.name == "nt" and isinstance(error.__cause__, PermissionError):
            # Windows writes nothing that a spreadsheet has open.
            run.progress.say(f"Note: {error}; close it, and the next epoch writes it.")
            return
        if not run.folder.path.exists():
            raise OutputError(f"the run folder {run.folder.path} has gone, and what it held with it") from error
        raise OutputError(
            f"{error}; what was there is whole: mend that, then go on with {run.job.resume_command}"
        ) from error
