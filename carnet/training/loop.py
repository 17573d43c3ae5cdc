"""The training loop: `fit` reads from top to bottom, and calls `TrainingStep.__call__` for each step.

`Training` makes the decisions (budget, patience, stopping); with several processes, the first one decides for all.
What only observes a run (progress lines, checkpoints, CSV, curves, loggers) is a `Callback`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet.data.samples import Sample
from carnet.errors import (
    DataError,
    LostProcessError,
    NonFiniteLossError,
    RunError,
    StoppedError,
    explaining_lack_of_memory,
)
from carnet.evaluation import EvaluationReport, evaluate
from carnet.models.weights import TrainedModel
from carnet.preprocess import Images
from carnet.text import Progress, counted
from carnet.training.checkpoint import Checkpoint, TrainingState
from carnet.training.distributed import Processes, StopFlag, StopRequestError
from carnet.training.memory import (
    forget_peak_device_bytes,
    hold_memory_below,
    keep_freed_memory,
    peak_device_bytes,
    peak_resident_bytes,
)
from carnet.training.optim import WeightAverage
from carnet.training.pipeline import Batch, pixel_loader, step_seed
from carnet.training.preparation import Job
from carnet.training.schedule import View, lr_ratio, mean_cost, view_at
from carnet.training.step import StepResult, TrainingStep, explaining_out_of_memory

MEMORY_WAY_OUT = "close other programs, or take a smaller --micro-batch or --image-size"


def fit(run: Training, stop: StopFlag, clock: Callable[[], float] = time.perf_counter) -> TrainingState:
    """Train until the last planned step, or until budget or patience are used up.

    Raises:
        StoppedError: on Ctrl-C or SIGTERM, after writing a checkpoint.
        DataError: if an image has disappeared or changed since the scan, after writing a checkpoint.
        NonFiniteLossError: before the update that would spoil the weights.
        OutOfMemoryError: if a step does not fit into memory.
        OutputError: if the run folder cannot be written.
        LostProcessError: if another process of the run has died.
    """
    config, state, step, ema = run.config, run.state, run.step, run.ema
    run.notify("on_fit_start")
    with run.handling_interruptions():
        # A run may have ended or stopped inside an epoch, which is still to be evaluated.
        while run.steps_left > 0 or state.step:
            step.begin()
            started = clock()
            for batch in run.batches(stop):
                # In the middle of the step, so that the learning rate of the first and the last step is not 0.
                ratio = lr_ratio(state.progress(run.steps_done + 0.5), config)
                seed = step_seed(config.seed, state.epoch, state.step, run.processes.rank)
                with explaining_out_of_memory(config.image_size, step.micro_batch):
                    result = step(batch, seed, run.require_finite, lr_ratio=ratio)
                if ema is not None:
                    ema.update(run.steps_done)
                now = clock()
                seconds, started = now - started, now
                run.end_step(result, seconds)
                run.notify("on_step_end", result, seconds)
            valid = run.validate(stop)
            now = clock()
            run.end_epoch(valid, now - started)
            run.notify("on_epoch_end")
            # The time it takes to write counts for the budget.
            state.seconds += clock() - now
    run.notify("on_fit_end")
    return state


@explaining_lack_of_memory("training", MEMORY_WAY_OUT)
def fit_job(
    job: Job, processes: Processes, progress: Progress, stop: StopFlag, callbacks: Sequence[Callback]
) -> TrainingState:
    """Train as one of the processes of a run; only the first one calls the callbacks."""
    run = Training(job, processes, progress, callbacks)
    if not job.config.freeze:
        return fit(run, stop)
    if (head := job.record.get("head")) is None:
        raise RunError(f"{job.run.config} lacks the record of the head that --freeze has fitted; train a new run")
    return evaluate_frozen(run, head, stop)


def evaluate_frozen(run: Training, head: Mapping[str, Any], stop: StopFlag) -> TrainingState:
    """Finish a run with --freeze, whose head was fitted before: evaluate it, as the only epoch.

    Raises:
        StoppedError, DataError, OutputError, LostProcessError: as `fit`.
    """
    run.notify("on_fit_start")
    with run.handling_interruptions():
        if not run.state.epoch:
            started = time.perf_counter()
            if not run.state.step:
                run.state.add_step(head["fitted_loss"], head["num_fitted_correct"], head["num_fitted"], head["seconds"])
            run.end_epoch(run.validate(stop), time.perf_counter() - started)
            run.notify("on_epoch_end")
    run.notify("on_fit_end")
    return run.state


class Callback:
    """Observes a run. Subclasses override the methods they need.

    `run` has `config`, `state`, `folder` and `network`, for reading only. With several processes, callbacks are pickled
    and called in the first process; what they store stays there.
    """

    def on_fit_start(self, run: Training) -> None:
        """Called before the first step, also of a resumed run."""

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """Called after an update of the weights; `seconds` is the duration of the step."""

    def on_epoch_end(self, run: Training) -> None:
        """Called after an epoch's validation; its metrics are `run.state.history[-1]`."""

    def on_interrupt(self, run: Training) -> None:
        """Called between two steps, before a run ends because it was stopped or cannot read an image."""

    def on_fit_end(self, run: Training) -> None:
        """Called after the last epoch."""


class Training:
    """A run in progress, in one of the processes that train it.

    Attributes:
        state: the progress so far.
        step: takes the optimizer steps.
        network: the network that is trained.
        ema: the exponential moving average of its weights; None: the run has none.
        evaluated: the network that is validated and saved: the EMA, if there is one.
    """

    def __init__(self, job: Job, processes: Processes, progress: Progress, callbacks: Sequence[Callback] = ()) -> None:
        self.job, self.processes, self.progress = job, processes, progress
        self.folder, self.config, self.spec = job.run, job.config, job.spec
        self.callbacks = callbacks if processes.is_first else ()
        config = self.config
        if config.keep_memory:
            keep_freed_memory()
        elif config.max_memory is not None:
            hold_memory_below(config.max_memory, config.device)
        forget_peak_device_bytes(config.device)
        self.steps_per_epoch = job.pipeline.steps_per_epoch(processes.size)
        budget = config.training_seconds
        self.budget_seconds = None if budget is None else budget - job.spent_seconds
        with explaining_out_of_memory(config.image_size, config.micro_batch):
            self.step = TrainingStep(job.network, self.spec, config, processes)
        self.network = self.step.network
        self.ema = WeightAverage(self.network, config.ema) if config.ema else None
        self.evaluated = self.network if self.ema is None else self.ema.network
        self.state = TrainingState(num_steps=config.num_steps)
        if job.checkpoint is not None:
            self.state = self._restored(job.checkpoint)

    def _restored(self, checkpoint: Checkpoint) -> TrainingState:
        """Restore weights and optimizer, and return the state, of a checkpoint.

        Raises:
            RunError: if the checkpoint belongs to a run of another length, network or optimizer.
        """
        checkpoint.restore(self.network, self.step.optimizer, None if self.ema is None else self.ema.network)
        values = checkpoint.state
        self.step.fabric.strategy.precision.load_state_dict(values["precision"])
        state = TrainingState.from_json(values)
        most = self.config.num_steps
        if self.config.training_seconds is not None:
            # The budget may have changed the length of the run.
            most = self.config.max_steps or max(most, state.num_steps)
        fits = state.num_steps <= most and state.step <= self.steps_per_epoch
        if not fits or state.epoch > -(-state.num_steps // self.steps_per_epoch):
            raise RunError(f"{self.folder.checkpoint} is of a run of another length; --init starts from its weights")
        steps_done = state.epoch * self.steps_per_epoch + state.step
        if "progress" in values:
            # Versions before 0.2 recorded this instead of the step at which the length was planned.
            state.planned_at, state.planned_progress = min(steps_done, state.num_steps), values["progress"]
        if values.get("finished"):
            # Those versions marked a run that ended early, and kept its planned number of steps.
            state.plan(steps_done, steps_done)
        state.notes += [note for note in self.job.notes if note not in state.notes]
        self.step.micro_batch = state.micro_batch or self.step.micro_batch
        return state

    @property
    def num_epochs(self) -> int:
        """Planned epochs of the whole run; the last one may be shorter."""
        return -(-self.state.num_steps // self.steps_per_epoch)

    @property
    def steps_done(self) -> int:
        """Steps taken so far in the whole run."""
        return self.state.epoch * self.steps_per_epoch + self.state.step

    @property
    def steps_left(self) -> int:
        """Planned steps that are not taken yet; negative after a last epoch that was shorter."""
        return self.state.num_steps - self.steps_done

    @property
    def position(self) -> str:
        """The current epoch and step, in words."""
        where = f"epoch {self.state.epoch + 1} of {self.num_epochs}"
        return f"{where}, step {self.state.step} of {self.steps_per_epoch}"

    def notify(self, event: str, *arguments: object) -> None:
        """Call one method of every callback, in their order; there are none except in the first process."""
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)

    @contextmanager
    def handling_interruptions(self) -> Iterator[None]:
        """Write a checkpoint if the run ends between two steps, and name the command that resumes it.

        Raises:
            StoppedError: instead of `StopRequestError`.
        """
        try:
            yield
        except StopRequestError as request:
            self.notify("on_interrupt")
            raise StoppedError(
                f"stopped in {self.position}; go on with {self.job.resume_command}", request.signal_number
            ) from None
        except DataError:
            self.notify("on_interrupt")
            raise
        except LostProcessError as error:
            # The error arises inside a step, when only the last checkpoint is consistent.
            raise LostProcessError(f"{error}; go on with {self.job.resume_command}") from error

    def require_finite(self, loss: float, where: str = "") -> None:
        """End a diverging run while its last checkpoint is still good.

        Raises:
            NonFiniteLossError: if the loss is infinite or not a number.
        """
        if math.isfinite(loss):
            return
        where = where or f"step {self.state.step + 1}"
        lr = self.config.lr
        raise NonFiniteLossError(
            f"the loss became {loss} in epoch {self.state.epoch + 1}, {where}, at learning rate {lr:g}; "
            f"try --lr {lr / 10:g}"
            + (", or --precision fp32" if self.config.precision != "fp32" else "")
            + f"; the last good checkpoint is {self.folder.checkpoint}"
        )

    def view(self, num_steps: int) -> View:
        """Return side and crop range of the images in the step after the first `num_steps`."""
        return view_at(self.state.progress(num_steps), self.config, self.state.num_steps)

    def batches(self, stop: StopFlag) -> Iterator[Batch]:
        """Yield the rest of the epoch's batches; an error or a stop in one process ends all before the same step."""
        state, processes = self.state, self.processes
        done = state.epoch * self.steps_per_epoch
        prefetched = self.job.pipeline.batches(
            state.epoch,
            state.step,
            lambda step: self.view(done + step),
            rank=processes.rank,
            num_processes=processes.size,
            threads=self.config.workers,
            augment=self.config.device != "cuda",
        )
        while self.steps_left > 0:
            batch = None
            error: Exception | None = stop.request
            try:
                batch = next(prefetched, None) if error is None else None
            except DataError as data_error:
                error = data_error
            processes.agree(error)
            if batch is None:
                return
            yield batch

    def end_step(self, result: StepResult, seconds: float) -> None:
        """Count a step; end the run if the budget is spent; record that a GPU has run out of memory."""
        state, config = self.state, self.config
        state.add_step(result.loss, result.num_correct, result.num_images, seconds)
        if self.budget_seconds is not None and self.steps_left > 0:
            # By the first process's clock.
            (late,) = self.processes.sum(self.processes.is_first and state.seconds > self.budget_seconds)
            if late:
                state.notes.append(f"the budget of {config.budget} ended in {self.position}")
                state.plan(self.steps_done, self.steps_done)
        if (size := self.step.micro_batch) < (state.micro_batch or config.micro_batch):
            state.micro_batch = size
            state.notes.append(
                f"out of memory in epoch {state.epoch + 1}, step {state.step}: micro-batches, and so batch-norm "
                f"statistics, have {size} images from there on"
            )

    def validate(self, stop: StopFlag) -> EvaluationReport:
        """Evaluate in float32, each image in one process, and return the whole report in every process."""
        samples, (rank, size) = self.job.scan.images.data.splits["valid"], (self.processes.rank, self.processes.size)
        self.processes.share_buffers(self.evaluated)
        shares = self.processes.gather(lambda: self._logits(samples[rank::size], stop))
        logits = np.empty((len(samples), self.spec.num_classes), np.float32)
        for number, share in enumerate(shares):
            logits[number::size] = share
        report = EvaluationReport.from_logits(self.spec.classes, samples, logits)
        # The last update may have spoiled the weights, which no training loss shows yet.
        self.require_finite(report.loss, "validation")
        return report

    def _logits(self, samples: Sequence[Sample], stop: StopFlag) -> NDArray[np.float32]:
        """Return the logits of some images: (N, classes)."""
        # The network without Fabric's wrapper, which would apply the mixed precision of training.
        model = TrainedModel(self.evaluated, self.spec)

        def predict(images: Images) -> NDArray[np.float32]:
            if (request := stop.request) is not None:
                raise request
            return model.logits(images)

        if not samples:
            return np.empty((0, self.spec.num_classes), np.float32)
        what = f"epoch {self.state.epoch + 1}/{self.num_epochs} validation"
        return evaluate(
            predict,
            samples,
            self.spec,
            batch_size=self.config.evaluation_batch,
            read=pixel_loader(self.job.scan.decoded, self.spec),
            progress=lambda done, total: self.progress.bar(what, done, total),
        ).logits

    def end_epoch(self, valid: EvaluationReport, seconds: float) -> None:
        """Record the metrics and the peak memory of an epoch; replan the run by its budget; end it by its patience."""
        state, config = self.state, self.config
        state.seconds += seconds
        lr, side = self.step.optimizer.param_groups[0]["lr"], self.view(self.steps_done - 1).side
        state.end_epoch(valid, lr=lr, image_size=side)
        if self.budget_seconds is not None:
            self._replan(self.budget_seconds)
        if 0 < config.patience <= state.epochs_since_best and self.steps_left > 0:
            assert state.best is not None
            first, kept = state.epoch - state.epochs_since_best, round(state.best["epoch"])
            state.notes.append(
                f"stopped early: {counted(config.patience, 'epoch')} without a better validation accuracy than the "
                f"{100 * state.best['valid_top1']:.1f}% of epoch {first}; "
                f"the weights of epoch {kept} are kept" + ("" if kept == first else ", which has a lower loss")
            )
            state.plan(self.steps_done, self.steps_done)
        peaks = self.processes.gather(lambda: (peak_resident_bytes(), peak_device_bytes(config.device)))
        state.peak_memory_bytes = max(state.peak_memory_bytes, *(resident for resident, _ in peaks))
        state.peak_device_bytes = max(state.peak_device_bytes, *(on_device for _, on_device in peaks))

    def _replan(self, budget_seconds: float) -> None:
        """Plan as many steps as fit into the budget at the pace of the last epoch; the schedule ends with them."""
        state, config = self.state, self.config
        if self.steps_left > 0:
            fitting = self.steps_done + int((budget_seconds - state.seconds) / self.seconds_per_step)
            (fitting,) = map(int, self.processes.sum(fitting if self.processes.is_first else 0))
            fitting = max(self.steps_done, min(fitting, config.max_steps or fitting))
            if fitting != state.num_steps:
                state.plan(fitting, self.steps_done)
            ends_here = fitting == self.steps_done
        else:
            # A note already says if the budget has ended inside the epoch.
            ends_here = state.planned_at < state.num_steps != config.num_steps
        if ends_here:
            state.notes.append(
                f"{counted(config.epochs, 'epoch')} were planned; at the measured pace, "
                f"{state.num_steps / self.steps_per_epoch:.1f} fitted into {config.budget}"
            )

    @property
    def seconds_per_step(self) -> float:
        """Expected duration of a remaining step, at the pace of the last epoch including its validation."""
        state = self.state
        before = state.history[-2]["seconds"] if len(state.history) > 1 else 0.0
        seconds = (state.seconds - before) / self.steps_per_epoch
        # Progressive resizing may make the remaining steps slower.
        start, now = (state.progress(done) for done in (self.steps_done - self.steps_per_epoch, self.steps_done))
        return seconds * mean_cost(self.config, min(1.0, now)) / mean_cost(self.config, max(0.0, start), min(1.0, now))
