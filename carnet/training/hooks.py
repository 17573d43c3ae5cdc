"""What looks on while a network is trained: progress lines, checkpoints, tables, curves, loggers; and users' callbacks.

Callbacks are told what has happened, in the first process alone, and change nothing. What decides is in the loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import nn

from carnet import files
from carnet.errors import OutputError
from carnet.models.weights import save_model
from carnet.report.plots import draw_curves
from carnet.training import narration
from carnet.training.checkpoint import EpochMetrics, save_checkpoint
from carnet.training.session import Training
from carnet.training.step import StepResult

MEASURED_STEPS, MEASURED_SECONDS = 5, 5.0
"""Work, at least, after which the remaining time is foretold from its second half; the first steps are slower."""
Event = Literal["on_fit_start", "on_step_end", "on_epoch_end", "on_interrupt", "on_fit_end"]
_DRAW_SECONDS = 10.0
"""Between drawings of the curves, which take as long as an epoch of few images."""


class Callback:
    """Told what happens in a run. Each method does nothing unless a subclass says otherwise.

    `run` has `config`, `state`, `folder` and `network`, to be read only. With several processes, callbacks live in the
    first one: they have to survive pickling, and what they keep stays there.
    """

    def on_fit_start(self, run: Training) -> None:
        """Before the first step of this session."""

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """After an update of the weights, which took so many seconds."""

    def on_epoch_end(self, run: Training) -> None:
        """After an epoch's validation; its metrics are the last of `run.state.history`."""

    def on_interrupt(self, run: Training) -> None:
        """Before a run ends that was asked to stop, or cannot read an image, between two steps."""

    def on_fit_end(self, run: Training) -> None:
        """After the last epoch."""


class Callbacks:
    """Tells all callbacks, in their order; nobody in any process but the first."""

    def __init__(self, run: Training, callbacks: Sequence[Callback]) -> None:
        self.run = run
        self.callbacks = callbacks if run.processes.is_first else ()

    def tell(self, event: Event, *about: Any) -> None:
        """Call one method of every callback.

        Args:
            event: its name.
            about: what it takes besides the run.
        """
        for callback in self.callbacks:
            getattr(callback, event)(self.run, *about)


def built_in_callbacks() -> list[Callback]:
    """Those that every run has, in the order in which they are told.

    The weights are kept before the checkpoint, which says that they are; the table and the curves come after it,
    because it holds them as well, should they not be written.
    """
    return [StepLines(), KeptWeights(), TensorBoard(), Checkpoints(), History(), EpochLines()]


class StepLines(Callback):
    """A bar that moves with every step, and once the time that is left."""

    def __init__(self) -> None:
        self.seconds: list[float] | None = []

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """Move the bar; say what the first steps of this session let expect."""
        state = run.state
        what = f"epoch {state.epoch + 1}/{run.num_epochs}"
        top1 = 100 * state.num_correct / state.num_images
        run.progress.bar(
            what, state.step, run.steps_per_epoch, f"loss {state.loss_sum / state.num_images:.3f}, top-1 {top1:.1f} %"
        )
        if self.seconds is None:
            return
        self.seconds.append(seconds)
        if len(self.seconds) >= MEASURED_STEPS and sum(self.seconds) >= MEASURED_SECONDS:
            run.progress.say(narration.forecast(self.seconds, run.job, state, run.steps_per_epoch))
            self.seconds = None


class EpochLines(Callback):
    """A line for every epoch."""

    def on_epoch_end(self, run: Training) -> None:
        """Say how it went, and how long the rest takes."""
        state = run.state
        left = run.steps_left * run.seconds_per_step
        run.progress.say(narration.epoch_line(state.history[-1], run.num_epochs, run.config, state, seconds_left=left))


class KeptWeights(Callback):
    """The model of the last epoch, or with patience that of the best."""

    def on_epoch_end(self, run: Training) -> None:
        """Write it into the run's folder."""
        epoch = run.state.history[-1]
        if not run.config.patience or run.state.best is epoch:
            with explaining_lost_output(run):
                save_model(run.folder, run.evaluated, run.spec, model_info(run.network, epoch))


class Checkpoints(Callback):
    """A checkpoint at the end of every epoch and stop, and between them by time or by steps."""

    def __init__(self) -> None:
        self.written, self.micro_batch = time.monotonic(), 0

    def on_fit_start(self, run: Training) -> None:
        """A new run begins with one."""
        self.micro_batch = run.state.micro_batch
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
        """Every epoch ends with one."""
        self._write(run)

    def on_interrupt(self, run: Training) -> None:
        """So that nothing is lost."""
        self._write(run)

    def _write(self, run: Training) -> None:
        # Mixed fp16 scales the loss by a factor that adapts; the other precisions have no state.
        state = run.state.to_json() | {"precision": run.step.fabric.strategy.precision.state_dict()}
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
            self._write(run)

    def on_epoch_end(self, run: Training) -> None:
        """Add the epoch; the curves wait where epochs are short."""
        self._write(run, draw_every=_DRAW_SECONDS, spare=True)

    def on_fit_end(self, run: Training) -> None:
        """Draw what has waited."""
        self._write(run)

    def _write(self, run: Training, *, draw_every: float = 0.0, spare: bool = False) -> None:
        history = run.state.history
        with explaining_lost_output(run, spare=spare):
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
        if self.logger is None:
            return
        epoch = run.state.history[-1]
        metrics = {"loss/train": "train_loss", "loss/valid": "valid_loss"}
        metrics |= {"top1/train": "train_top1", "top1/valid": "valid_top1"}
        step = int(epoch["epoch"]) * run.steps_per_epoch
        self.logger.log_metrics({name: epoch[key] for name, key in metrics.items()}, step=step)


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
        way_out = f"what was there is whole: mend that, then {narration.go_on(run.job)}"
        raise OutputError(f"{error}; {way_out}") from error


def model_info(network: nn.Module, epoch: EpochMetrics) -> dict[str, Any]:
    """What `model.json` says beside the spec."""
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"params": params, "epoch": epoch["epoch"], "metrics": epoch}
