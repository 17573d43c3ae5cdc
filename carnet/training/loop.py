"""The training loop: read `Trainer.fit` from top to bottom."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from numpy.typing import NDArray
from torch import nn

from carnet import files
from carnet.data.samples import Sample
from carnet.errors import DataError, LostProcessError, OutputError, RunError, StoppedError
from carnet.evaluation import EvaluationReport, evaluate
from carnet.models.weights import TrainedModel, save_model
from carnet.preprocess import Images
from carnet.report.plots import draw_curves
from carnet.text import Progress
from carnet.training import hooks as narration
from carnet.training.checkpoint import EpochMetrics, TrainingState, save_checkpoint
from carnet.training.distributed import Processes
from carnet.training.memory import (
    forget_peak_device_bytes,
    hold_memory_below,
    keep_freed_memory,
    peak_device_bytes,
    peak_resident_bytes,
)
from carnet.training.optim import WeightAverage
from carnet.training.pipeline import Batch, pixels_from, step_seed
from carnet.training.preparation import Job
from carnet.training.schedule import View, lr_share, mean_cost, step_cost, view_at
from carnet.training.step import StepResult, TrainingStep, explaining_out_of_memory
from carnet.training.stop import StopFlag, StopRequestError

MEASURED_STEPS, MEASURED_SECONDS = 5, 5.0
"""Work, at least, after which the remaining time is foretold from its second half; the first steps are slower."""
_DRAW_SECONDS = 10.0
"""Between drawings of the curves, which take as long as an epoch of few images."""


class Trainer:
    """Trains a network on images that have been checked, and keeps its run folder.

    Of several processes that train together each has one; the first alone writes and speaks.

    Attributes:
        state: where the run stands.
    """

    def __init__(self, job: Job, processes: Processes, progress: Progress) -> None:
        self.job, self.processes, self.progress = job, processes, progress
        self.run, self.config, self.spec = job.run, job.config, job.spec
        self.valid = job.images.data.splits["valid"]
        if job.plan.keep_memory:
            keep_freed_memory()
        elif job.config.max_memory:
            hold_memory_below(job.config.max_memory, job.plan.device)
        forget_peak_device_bytes(job.plan.device)
        self.feed = job.feed(processes)
        self.steps_per_epoch = self.feed.batches.steps_per_epoch
        self.fabric = processes.fabric(job.plan, self._loggers())
        with explaining_out_of_memory(self.config, job.plan.micro_batch):
            self.step = TrainingStep(
                job.network, self.spec, self.config, plan=job.plan, processes=processes, fabric=self.fabric
            )
        self.network, self.optimizer = self.step.network, self.step.optimizer
        self.average = WeightAverage(self.network, self.config.ema) if self.config.ema else None
        self.state = TrainingState()
        self.session_steps: list[float] = []
        self.has_foretold = False
        self.last_checkpoint = time.monotonic()
        self.last_drawn, self.epochs_drawn = -_DRAW_SECONDS, 0

    def fit(self, stop: StopFlag) -> TrainingState:
        """Train to the last epoch, or to the end of patience.

        Args:
            stop: asks for the end at the next step.

        Raises:
            StoppedError: on Ctrl-C or SIGTERM, after a checkpoint.
            NonFiniteLossError: before the step that would spoil the weights.
            OutOfMemoryError: if a step does not fit.
            ImageError: if an image has gone or changed since it was checked, after a checkpoint.
            OutputError: if the run folder cannot be written.
            LostProcessError: if another process of the run has died.
        """
        self._take_up()
        state = self.state
        try:
            # An epoch whose steps are done may still have to be validated, after a stop.
            while (self.steps_left > 0 or state.step) and not state.finished:
                self.network.train()
                started = time.perf_counter()
                for batch in self._batches(stop):
                    result = self._train_step(batch)
                    now = time.perf_counter()
                    state.add_step(result.loss, result.num_correct, result.num_images, now - started)
                    self._after_step(result.loss, now - started)
                    started = now
                    if self._is_time_up():
                        break
                spent = self._is_time_up() and narration.time_is_up(self.config, state, self.steps_per_epoch)
                valid = self._validate(stop)
                state.seconds += time.perf_counter() - started
                if spent:
                    state.finished = True
                    state.notes.append(spent)
                lr, started = self.optimizer.param_groups[0]["lr"], time.perf_counter()
                self._end_epoch(state.end_epoch(valid, lr=lr, image_size=self.view.side))
                # Writing takes time too, which counts where there is a budget.
                state.seconds += time.perf_counter() - started
        except StopRequestError as request:
            self._checkpoint()
            raise StoppedError(
                narration.stopped(self.job, state, self.steps_per_epoch), request.signal_number
            ) from None
        except DataError:
            self._checkpoint()
            raise
        except LostProcessError as error:
            # Somewhere inside a step: what the last checkpoint holds is the last that is certain.
            raise LostProcessError(f"{error}; {narration.go_on(self.job)}") from error
        self._write_history()
        return state

    def _take_up(self) -> None:
        """Start where the checkpoint left off; a new run begins with its first one."""
        checkpoint = self.job.checkpoint
        if checkpoint is None:
            self.state.num_steps = self.steps_planned
            self._checkpoint()
            return
        checkpoint.restore(self.network, self.optimizer, None if self.average is None else self.average.network)
        state = dict(checkpoint.state)
        self.fabric.strategy.precision.load_state_dict(state.pop("precision"))
        self.state = TrainingState.from_json(state)
        self._require_length()
        self.state.notes += [note for note in self.job.notes if note not in self.state.notes]
        self.step.micro_batch = self.state.micro_batch or self.step.micro_batch
        # Cuts off what a later, damaged checkpoint has left behind.
        self._write_history()

    def _require_length(self) -> None:
        """Whether a checkpoint's state is of a run of this length.

        Raises:
            RunError: if it is not.
        """
        most = self.steps_planned
        if self.job.plan.training_seconds:
            # A budget may have shortened it, or made it longer than foretold.
            most = self.job.plan.most_steps or max(most, self.state.num_steps)
        fits = self.state.num_steps <= most and self.state.step <= self.steps_per_epoch
        if not fits or self.state.epoch > narration.num_epochs(self.state, self.steps_per_epoch):
            raise RunError(f"{self.run.checkpoint} is of a run of another length; --init starts from its weights")

    def _batches(self, stop: StopFlag) -> Iterator[Batch]:
        """The rest of the epoch; it ends in every process at the same step, whichever is asked to stop or fails."""
        state = self.state
        if state.step == 0:
            # Even a single epoch ends as the run does.
            state.began_at = 1.0 if self.steps_left <= self.steps_per_epoch else state.progress
        batches = self.feed.read(state.epoch, state.step, self.job.plan.workers, self.view)
        while self.steps_left > 0:
            batch = None
            problem: Exception | None = stop.request
            try:
                batch = next(batches, None) if problem is None else None
            except DataError as error:
                problem = error
            self.processes.agree(problem)
            if batch is None:
                return
            yield batch

    def _train_step(self, batch: Batch) -> StepResult:
        """Learn from this process's share of a batch."""
        state = self.state
        seed = step_seed(self.config.seed, state.epoch, state.step, self.processes.rank)

        def require_finite(loss: float) -> None:
            narration.require_finite(loss, f"step {state.step + 1}", self.job, state)

        step_share = (1 - state.progress) / self.steps_left
        # Taken in the middle of the step, so that neither the first nor the last one is lost.
        share = lr_share(state.progress + step_share / 2, self.config)
        with explaining_out_of_memory(self.config, self.step.micro_batch):
            result = self.step(batch, seed, require_finite, lr_share=share)
        if self.average is not None:
            self.average.update(self.steps_done)
        state.progress += step_share
        return result

    @property
    def view(self) -> View:
        """How this epoch's images are shown."""
        return view_at(self.state.began_at, self.config, self.state.num_steps)

    @property
    def steps_planned(self) -> int:
        """Steps of all epochs, or as many as a budget was foretold to leave time for."""
        return self.job.plan.training_steps or self.config.epochs * self.steps_per_epoch

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole run, as it is planned now."""
        return narration.num_epochs(self.state, self.steps_per_epoch)

    @property
    def steps_done(self) -> int:
        """Steps of the whole run that are done."""
        return self.state.epoch * self.steps_per_epoch + self.state.step

    @property
    def steps_left(self) -> int:
        """Steps of the whole run that are to come; below 0 once an epoch that was cut short is closed."""
        return self.state.num_steps - self.steps_done

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.network if self.average is None else self.average.network

    def _is_time_up(self) -> bool:
        """Whether the budget is spent; the first process's clock counts."""
        allowed = self.job.plan.training_seconds
        if not allowed:
            return False
        (late,) = self.processes.sum(self.processes.is_first and self.state.seconds > allowed)
        return bool(late)

    def _keep_budget(self) -> None:
        """Plan as many steps as fit at the pace of the last epoch, so that the learning rate comes down in time."""
        allowed, state = self.job.plan.training_seconds, self.state
        if not allowed:
            return
        if self.steps_left > 0:
            fitting = self.steps_done + int((allowed - state.seconds) / self._seconds_per_step)
            (fitting,) = map(int, self.processes.sum(fitting if self.processes.is_first else 0))
            state.num_steps = max(self.steps_done, min(fitting, self.job.plan.most_steps or fitting))
        if self.steps_left <= 0 and state.num_steps != self.steps_planned and not state.finished:
            state.finished = state.num_steps < self.steps_planned
            state.notes.append(narration.other_length(self.config, state, self.steps_per_epoch))

    @property
    def _seconds_per_step(self) -> float:
        """Of the steps to come, at the pace of the last epoch, whose validation is part of it."""
        state, first_cost = self.state, self.job.plan.first_cost
        before = state.history[-2]["seconds"] if len(state.history) > 1 else 0.0
        seconds = (state.seconds - before) / self.steps_per_epoch
        # Images may still grow.
        growth = mean_cost(state.progress, self.config, first_cost) / step_cost(self.view.side, self.config, first_cost)
        return seconds * growth

    def _validate(self, stop: StopFlag) -> EvaluationReport:
        """Judge the weights as they are, in float32, each image once; every process gets the whole report."""
        self.processes.share_buffers(self.judged)
        shares = self.processes.gather(lambda: self._judge(self.processes.share(self.valid), stop))
        logits = np.empty((len(self.valid), self.spec.num_classes), np.float32)
        for rank, share in enumerate(shares):
            logits[rank :: len(shares)] = share
        report = EvaluationReport.from_logits(self.spec.classes, self.valid, logits)
        # The epoch's last step may have spoilt the weights, which no training loss has seen yet.
        narration.require_finite(report.loss, "validation", self.job, self.state)
        return report

    def _judge(self, samples: Sequence[Sample], stop: StopFlag) -> NDArray[np.float32]:
        """Logits (N, classes) of some images."""
        # The unwrapped network: evaluation leaves the mixed precision of training out.
        model = TrainedModel(self.judged, self.spec)

        def predict(images: Images) -> NDArray[np.float32]:
            stop.check()
            return model.logits(images)

        if not samples:
            return np.empty((0, self.spec.num_classes), np.float32)
        what = f"epoch {self.state.epoch + 1}/{self.num_epochs} validation"
        return evaluate(
            predict,
            samples,
            self.spec,
            batch_size=self.job.plan.judging_batch,
            read=pixels_from(self.job.found.decoded, self.spec),
            progress=lambda done, total: self.progress.bar(what, done, total),
        ).logits

    def _after_step(self, loss: float, seconds: float) -> None:
        state = self.state
        what = f"epoch {state.epoch + 1}/{self.num_epochs}"
        note = f"loss {state.loss_sum / state.num_images:.3f}, top-1 {100 * state.num_correct / state.num_images:.1f} %"
        self.progress.bar(what, state.step, self.steps_per_epoch, note)
        if not self.has_foretold:
            self.session_steps.append(seconds)
            if len(self.session_steps) >= MEASURED_STEPS and sum(self.session_steps) >= MEASURED_SECONDS:
                self.has_foretold = True
                self.progress.say(narration.forecast(self.session_steps, self.job, state, self.steps_per_epoch))
        global_step = state.epoch * self.steps_per_epoch + state.step
        self.fabric.log("loss/step", loss, step=global_step)
        every = self.config.checkpoint_steps
        late = time.monotonic() - self.last_checkpoint > 60 * self.config.checkpoint_minutes
        shrunk = self.step.micro_batch < (state.micro_batch or self.job.plan.micro_batch)
        if shrunk:
            state.micro_batch = self.step.micro_batch
            state.notes.append(narration.less_at_a_time(state))
            self.progress.say(f"Note: {state.notes[-1]}.")
        if late or shrunk or (every and global_step % every == 0):
            self._checkpoint()

    def _end_epoch(self, epoch: EpochMetrics) -> None:
        state = self.state
        if 0 < self.config.patience <= state.epochs_since_best and self.steps_left > 0 and not state.finished:
            state.finished = True
            state.notes.append(narration.patience_is_over(self.config, state))
        if self.processes.is_first and (not self.config.patience or state.best is epoch):
            with self._explaining_lost_output():
                save_model(self.run, self.judged, self.spec, model_info(self.network, epoch))
        self._keep_budget()
        self._note_memory()
        self._checkpoint()
        self._write_history(draw_every=_DRAW_SECONDS, spare=True)
        self.fabric.log_dict(
            {
                "loss/train": epoch["train_loss"],
                "loss/valid": epoch["valid_loss"],
                "top1/train": epoch["train_top1"],
                "top1/valid": epoch["valid_top1"],
            },
            step=int(epoch["epoch"]) * self.steps_per_epoch,
        )
        seconds_left = 0.0 if state.finished else self.steps_left * self._seconds_per_step
        self.progress.say(narration.epoch_line(epoch, self.num_epochs, self.config, state, seconds_left=seconds_left))

    def _note_memory(self) -> None:
        device = self.job.plan.device
        peaks = self.processes.gather(lambda: (peak_resident_bytes(), peak_device_bytes(device)))
        state = self.state
        state.peak_memory_bytes = max(state.peak_memory_bytes, *(resident for resident, _ in peaks))
        state.peak_device_bytes = max(state.peak_device_bytes, *(on_device for _, on_device in peaks))

    def _write_history(self, *, draw_every: float = 0.0, spare: bool = False) -> None:
        if not self.processes.is_first:
            return
        history = self.state.history
        with self._explaining_lost_output(spare=spare):
            if not history:
                self.run.metrics.unlink(missing_ok=True)
                self.run.curves.unlink(missing_ok=True)
                return
            files.write_csv(self.run.metrics, history)
            if time.monotonic() - self.last_drawn >= draw_every and self.epochs_drawn != len(history):
                title = f"{self.spec.model}, {self.run.path.name}"
                files.write_bytes(self.run.curves, draw_curves(history, title=title))
                self.last_drawn, self.epochs_drawn = time.monotonic(), len(history)

    def _checkpoint(self) -> None:
        if not self.processes.is_first:
            return
        # Mixed fp16 scales the loss by a factor that adapts; the other precisions have no state.
        state = self.state.to_json() | {"precision": self.fabric.strategy.precision.state_dict()}
        with self._explaining_lost_output():
            save_checkpoint(
                self.run.checkpoint,
                self.network,
                self.optimizer,
                state,
                self.job.record,
                previous=self.run.previous_checkpoint,
                average=None if self.average is None else self.average.network,
            )
        self.last_checkpoint = time.monotonic()

    def _loggers(self) -> list[Logger]:
        if self.config.logger != "tensorboard" or not self.processes.is_first:
            return []
        return [TensorBoardLogger(self.run.path, name="tensorboard", version="")]

    @contextmanager
    def _explaining_lost_output(self, *, spare: bool = False) -> Iterator[None]:
        """`spare`: the checkpoint holds it as well."""
        try:
            yield
        except OutputError as error:
            if spare and os.name == "nt" and isinstance(error.__cause__, PermissionError):
                # Windows writes nothing that a spreadsheet has open.
                self.progress.say(f"Note: {error}; close it, and the next epoch writes it.")
                return
            if not self.run.path.exists():
                raise OutputError(f"the run folder {self.run.path} has gone, and what it held with it") from error
            raise OutputError(
                f"{error}; what was there is whole: mend that, then {narration.go_on(self.job)}"
            ) from error


def model_info(network: nn.Module, epoch: EpochMetrics) -> dict[str, Any]:
    """What `model.json` says beside the spec."""
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"params": params, "epoch": epoch["epoch"], "metrics": epoch}
