"""The built-in callbacks, which observe a run: progress lines, checkpoints, CSV, curves, TensorBoard."""

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

FORECAST_STEPS, FORECAST_SECONDS = 5, 5.0
"""The remaining time is forecast after so much training, from its second half: the first steps are slower."""
_DRAW_SECONDS = 10.0
"""Time between drawings of the curves; drawing takes as long as an epoch of few images."""


def built_in_callbacks() -> list[Callback]:
    """Return the callbacks of every run, in order: the checkpoint comes before CSV and curves, which it contains."""
    return [TensorBoard(), Checkpoints(), History(), ProgressLines()]


class ProgressLines(Callback):
    """Shows a progress bar, one forecast of the remaining time, and a line per epoch."""

    def __init__(self, forecast_seconds: float = FORECAST_SECONDS) -> None:
        self.forecast_seconds = forecast_seconds
        self.step_seconds: list[float] | None = []

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """Move the bar; forecast the remaining time from the first steps."""
        state = run.state
        run.progress.bar(
            f"epoch {state.epoch + 1}/{run.num_epochs}",
            state.step,
            run.steps_per_epoch,
            f"loss {state.loss_sum / state.num_images:.3f}, top-1 {100 * state.num_correct / state.num_images:.1f}%",
        )
        if self.step_seconds is None:
            return
        self.step_seconds.append(seconds)
        if len(self.step_seconds) < FORECAST_STEPS or sum(self.step_seconds) < self.forecast_seconds:
            return
        step_seconds = float(np.median(self.step_seconds[len(self.step_seconds) // 2 :]))
        self.step_seconds = None
        # Progressive resizing may make the remaining steps slower.
        cost = step_cost(run.view(run.steps_done).side, run.config)
        rest = run.steps_left * step_seconds * mean_cost(run.config, state.progress(run.steps_done)) / cost
        run.progress.say(
            f"{step_seconds:.2f} s per step, {run.config.batch_size / step_seconds:.1f} images/s: "
            f"about {duration(run.steps_per_epoch * step_seconds)} per epoch and {duration(rest)} to the end, "
            "without validation"
        )

    def on_epoch_end(self, run: Training) -> None:
        """Show the metrics, and the remaining time including validation."""
        state, config = run.state, run.config
        epoch = state.history[-1]
        left = f", about {duration(run.steps_left * run.seconds_per_step)} left" if run.steps_left > 0 else ""
        reason = "the loss" if state.epochs_since_best else "top-1"
        best = f" (best so far, by {reason})" if state.best is epoch else ""
        side = f"{epoch['image_size']:.0f} px, " if initial_side(config) < config.image_size else ""
        run.progress.say(
            f"epoch {epoch['epoch']:.0f}/{run.num_epochs}: "
            f"train loss {epoch['train_loss']:.3f}, top-1 {100 * epoch['train_top1']:.1f}%; "
            f"valid loss {epoch['valid_loss']:.3f}, top-1 {100 * epoch['valid_top1']:.1f}%, "
            f"macro recall {100 * epoch['valid_macro_recall']:.1f}%{best}; "
            f"{side}{epoch['images_per_second']:.1f} images/s, {duration(epoch['seconds'])} so far{left}"
        )


class Checkpoints(Callback):
    """Saves the model after an epoch, and a checkpoint after an epoch, on interruption, and by time or steps."""

    def __init__(self) -> None:
        self.written, self.micro_batch = 0.0, 0

    def on_fit_start(self, run: Training) -> None:
        """Write the first checkpoint of a new run."""
        self.written, self.micro_batch = time.monotonic(), run.state.micro_batch
        if run.job.checkpoint is None:
            self._write(run)

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """Write a checkpoint where one is due, or where the micro-batch has become smaller."""
        every = run.config.checkpoint_steps
        is_due = time.monotonic() - self.written > 60 * run.config.checkpoint_minutes
        is_smaller = run.state.micro_batch != self.micro_batch
        if is_smaller:
            run.progress.say(f"Note: {run.state.notes[-1]}.")
            self.micro_batch = run.state.micro_batch
        if is_due or is_smaller or (every and run.steps_done % every == 0):
            self._write(run)

    def on_epoch_end(self, run: Training) -> None:
        """Save the model, with patience only if it is the best; then the checkpoint, which records that."""
        epoch = run.state.history[-1]
        if not run.config.patience or run.state.best is epoch:
            params = sum(parameter.numel() for parameter in run.network.parameters())
            info = {"params": params, "epoch": epoch["epoch"], "metrics": epoch}
            with explaining_lost_output(run):
                save_model(run.folder, run.evaluated, run.spec, info)
        self._write(run)

    def on_interrupt(self, run: Training) -> None:
        """Write a checkpoint."""
        self._write(run)

    def _write(self, run: Training) -> None:
        # fp16 has an adaptive loss scale; the other precisions have no state.
        state = asdict(run.state) | {"precision": run.step.fabric.strategy.precision.state_dict()}
        with explaining_lost_output(run):
            save_checkpoint(
                run.folder.checkpoint,
                run.network,
                run.step.optimizer,
                state,
                run.job.record,
                previous=run.folder.previous_checkpoint,
                average=None if run.ema is None else run.ema.network,
            )
        self.written = time.monotonic()


class History(Callback):
    """Writes metrics.csv and draws curves.png."""

    def __init__(self) -> None:
        self.drawn, self.epochs_drawn = -_DRAW_SECONDS, 0

    def on_fit_start(self, run: Training) -> None:
        """Remove the epochs after the checkpoint, which a later, damaged checkpoint has left behind."""
        if run.job.checkpoint is not None:
            self.on_fit_end(run)

    def on_epoch_end(self, run: Training) -> None:
        """Add the epoch; draw the curves only now and then if epochs are short."""
        with explaining_lost_output(run, is_optional=True):
            self._write(run, draw_every=_DRAW_SECONDS)

    def on_fit_end(self, run: Training) -> None:
        """Draw the curves of all epochs."""
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
    """Logs losses and accuracies for TensorBoard if the config says so."""

    def __init__(self) -> None:
        self.logger: TensorBoardLogger | None = None

    def on_fit_start(self, run: Training) -> None:
        """Open the log."""
        if run.config.logger == "tensorboard":
            self.logger = TensorBoardLogger(run.folder.path, name="tensorboard", version="")

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """Log the loss of the step."""
        if self.logger is not None:
            self.logger.log_metrics({"loss/step": result.loss}, step=run.steps_done)

    def on_epoch_end(self, run: Training) -> None:
        """Log the losses and accuracies of the epoch."""
        if self.logger is not None:
            epoch = run.state.history[-1]
            names = [(metric, split) for metric in ("loss", "top1") for split in ("train", "valid")]
            metrics = {f"{metric}/{split}": epoch[f"{split}_{metric}"] for metric, split in names}
            self.logger.log_metrics(metrics, step=int(epoch["epoch"]) * run.steps_per_epoch)


@contextmanager
def explaining_lost_output(run: Training, *, is_optional: bool = False) -> Iterator[None]:
    """Name the command that resumes the run where its folder cannot be written.

    Args:
        run: the run.
        is_optional: continue on Windows while a spreadsheet has the file open, because the checkpoint contains it.

    Raises:
        OutputError: instead of one that names only the file.
    """
    try:
        yield
    except OutputError as error:
        if is_optional and os.name == "nt" and isinstance(error.__cause__, PermissionError):
            run.progress.say(f"Note: {error}; close it, and the next epoch writes it.")
            return
        if not run.folder.path.exists():
            raise OutputError(f"the run folder {run.folder.path} has disappeared") from error
        raise OutputError(
            f"{error}; the last checkpoint is whole: correct this, then go on with {run.job.resume_command}"
        ) from error
