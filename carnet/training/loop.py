"""The training loop: read `fit` from top to bottom, and `TrainingStep.__call__` for what a step does.

What decides (a budget, patience, a stop) is here, and of several processes the first one's word counts. What only looks
on (progress lines, checkpoints, tables, curves, loggers) is a callback, see `carnet.training.hooks`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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
    """Train to the last planned step, or to the end of budget or patience.

    Raises:
        StoppedError: on Ctrl-C or SIGTERM, after a checkpoint.
        NonFiniteLossError: before the step that would spoil the weights.
        OutOfMemoryError: if a step does not fit.
        ImageError: if an image has gone or changed since it was checked, after a checkpoint.
        OutputError: if the run folder cannot be written.
        LostProcessError: if another process of the run has died.
    """
    config, state, step, average = run.config, run.state, run.step, run.average
    run.tell("on_fit_start")
    with run.ending_in_order():
        # Steps that no validation has followed yet may be the last ones.
        while run.steps_left > 0 or state.step:
            run.network.train()
            started = clock()
            for batch in run.batches(stop):
                # Taken in the middle of the step, so that neither the first nor the last one is lost.
                ratio = lr_ratio(state.progress(run.steps_done + 0.5), config)
                seed = step_seed(config.seed, state.epoch, state.step, run.processes.rank)
                with explaining_out_of_memory(config.image_size, step.micro_batch):
                    result = step(batch, seed, run.require_finite, lr_ratio=ratio)
                if average is not None:
                    average.update(run.steps_done)
                now = clock()
                seconds, started = now - started, now
                run.end_step(result, seconds)
                run.tell("on_step_end", result, seconds)
            valid = run.validate(stop)
            now = clock()
            run.end_epoch(valid, now - started)
            run.tell("on_epoch_end")
            # Writing takes time too, which counts where there is a budget.
            state.seconds += clock() - now
    run.tell("on_fit_end")
    return state


@explaining_lack_of_memory("training", MEMORY_WAY_OUT)
def fit_job(
    job: Job, processes: Processes, progress: Progress, stop: StopFlag, callbacks: Sequence[Callback]
) -> TrainingState:
    """Train as one of the processes of a run; the first one tells the callbacks."""
    return fit(Training(job, processes, progress, callbacks), stop)


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


class Training:
    """A run under way, in one of the processes that train it; callbacks read it.

    Attributes:
        state: where the run stands.
        step: takes the steps.
        network: which is trained.
        average: of its weights; None: the run keeps none.
        evaluated: the network that is validated and kept.
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
        self.average = WeightAverage(self.network, config.ema) if config.ema else None
        self.evaluated = self.network if self.average is None else self.average.network
        self.state = TrainingState(num_steps=config.num_steps)
        if job.checkpoint is not None:
            self.state = self._restored(job.checkpoint)

    def _restored(self, checkpoint: Checkpoint) -> TrainingState:
        """Put weights and optimizer back, and return the state that the checkpoint has.

        Raises:
            RunError: if the checkpoint is of a run of another length, network or optimizer.
        """
        checkpoint.restore(self.network, self.step.optimizer, None if self.average is None else self.average.network)
        values = checkpoint.state
        self.step.fabric.strategy.precision.load_state_dict(values["precision"])
        state = TrainingState.from_json(values)
        most = self.config.num_steps
        if self.config.training_seconds is not None:
            # A budget may have shortened it, or made it longer than expected.
            most = self.config.max_steps or max(most, state.num_steps)
        fits = state.num_steps <= most and state.step <= self.steps_per_epoch
        if not fits or state.epoch > -(-state.num_steps // self.steps_per_epoch):
            raise RunError(f"{self.folder.checkpoint} is of a run of another length; --init starts from its weights")
        steps_done = state.epoch * self.steps_per_epoch + state.step
        if "progress" in values:
            # Versions before 0.2 recorded it, and not where the length of the run was planned.
            state.planned_at, state.planned_progress = min(steps_done, state.num_steps), values["progress"]
        if values.get("finished"):
            # They said so of a run that ended early, and kept the steps that were planned.
            state.plan(steps_done, steps_done)
        state.notes += [note for note in self.job.notes if note not in state.notes]
        self.step.micro_batch = state.micro_batch or self.step.micro_batch
        return state

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole run, as it is planned now; the last one may be cut short."""
        return -(-self.state.num_steps // self.steps_per_epoch)

    @property
    def steps_done(self) -> int:
        """Steps of the whole run that are done."""
        return self.state.epoch * self.steps_per_epoch + self.state.step

    @property
    def steps_left(self) -> int:
        """Steps of the whole run that are to come; below 0 once an epoch that was cut short is closed."""
        return self.state.num_steps - self.steps_done

    @property
    def position(self) -> str:
        """Where it stands, in words."""
        where = f"epoch {self.state.epoch + 1} of {self.num_epochs}"
        return f"{where}, step {self.state.step} of {self.steps_per_epoch}"

    def tell(self, event: str, *about: object) -> None:
        """Call one method of every callback, in their order; of none in any process but the first.

        Args:
            event: the method's name.
            about: what it takes besides the run.
        """
        for callback in self.callbacks:
            getattr(callback, event)(self, *about)

    @contextmanager
    def ending_in_order(self) -> Iterator[None]:
        """Have a run that ends between two steps write a checkpoint, and say how to go on.

        Raises:
            StoppedError: instead of `StopRequestError`.
        """
        try:
            yield
        except StopRequestError as request:
            self.tell("on_interrupt")
            raise StoppedError(
                f"stopped in {self.position}; go on with {self.job.resume_command}", request.signal_number
            ) from None
        except DataError:
            self.tell("on_interrupt")
            raise
        except LostProcessError as error:
            # Somewhere inside a step: what the last checkpoint holds is the last that is certain.
            raise LostProcessError(f"{error}; go on with {self.job.resume_command}") from error

    def require_finite(self, loss: float, where: str = "") -> None:
        """End a run that diverges, while its last checkpoint is good.

        Raises:
            NonFiniteLossError: if the loss is infinite or not a number.
        """
        if math.isfinite(loss):
            return
        where = where or f"step {self.state.step + 1}"
        lr = self.config.lr
        raise NonFiniteLossError(
            f"the loss became {loss} in epoch {self.state.epoch + 1}, {where}, at learning rate {lr:g}; "
            f"try a smaller one, --lr {lr / 10:g}"
            + (", or --precision fp32" if self.config.precision != "fp32" else "")
            + f"; the last good checkpoint is {self.folder.checkpoint}"
        )

    def view(self, num_steps: int) -> View:
        """How images are shown in the step that comes after so many."""
        return view_at(self.state.progress(num_steps), self.config, self.state.num_steps)

    def batches(self, stop: StopFlag) -> Iterator[Batch]:
        """The rest of the epoch; it ends in every process at the same step, whichever is asked to stop or fails."""
        state, processes = self.state, self.processes
        done = state.epoch * self.steps_per_epoch
        ahead = self.job.pipeline.batches(
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
            problem: Exception | None = stop.request
            try:
                batch = next(ahead, None) if problem is None else None
            except DataError as error:
                problem = error
            processes.agree(problem)
            if batch is None:
                return
            yield batch

    def end_step(self, result: StepResult, seconds: float) -> None:
        """Count a step; note it if a GPU's memory ran out; end the run there if the budget is spent."""
        state, config = self.state, self.config
        state.add_step(result.loss, result.num_correct, result.num_images, seconds)
        allowed = self.budget_seconds
        if allowed is not None and self.steps_left > 0:
            # The first process's clock counts.
            (late,) = self.processes.sum(self.processes.is_first and state.seconds > allowed)
            if late:
                state.notes.append(f"the budget of {config.budget} was spent in {self.position}")
                state.plan(self.steps_done, self.steps_done)
        if (size := self.step.micro_batch) < (state.micro_batch or config.micro_batch):
            state.micro_batch = size
            state.notes.append(
                f"out of memory in epoch {state.epoch + 1}, step {state.step}: from there on {size} images go through "
                f"the network at a time, and batch-norm statistics are those of {size}"
            )

    def validate(self, stop: StopFlag) -> EvaluationReport:
        """Evaluate the weights as they are, in float32, each image once; every process gets the whole report."""
        samples, (rank, size) = self.job.images.data.splits["valid"], (self.processes.rank, self.processes.size)
        self.processes.share_buffers(self.evaluated)
        shares = self.processes.gather(lambda: self._logits(samples[rank::size], stop))
        logits = np.empty((len(samples), self.spec.num_classes), np.float32)
        for number, share in enumerate(shares):
            logits[number::size] = share
        report = EvaluationReport.from_logits(self.spec.classes, samples, logits)
        # The epoch's last step may have spoilt the weights, which no training loss has seen yet.
        self.require_finite(report.loss, "validation")
        return report

    def _logits(self, samples: Sequence[Sample], stop: StopFlag) -> NDArray[np.float32]:
        """Logits (N, classes) of some images."""
        # The unwrapped network: evaluation leaves the mixed precision of training out.
        model = TrainedModel(self.evaluated, self.spec)

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
            batch_size=self.config.evaluation_batch,
            read=pixel_loader(self.job.scan.decoded, self.spec),
            progress=lambda done, total: self.progress.bar(what, done, total),
        ).logits

    def end_epoch(self, valid: EvaluationReport, seconds: float) -> None:
        """Record the epoch and the memory it took; then a budget may allow other steps, and patience may be over."""
        state, config = self.state, self.config
        state.seconds += seconds
        lr, side = self.step.optimizer.param_groups[0]["lr"], self.view(self.steps_done - 1).side
        state.end_epoch(valid, lr=lr, image_size=side)
        if self.budget_seconds is not None:
            self._keep_budget(self.budget_seconds)
        if 0 < config.patience <= state.epochs_since_best and self.steps_left > 0:
            assert state.best is not None
            first, kept = state.epoch - state.epochs_since_best, round(state.best["epoch"])
            state.notes.append(
                f"stopped early: {counted(config.patience, 'epoch')} without a better validation accuracy than the "
                f"{100 * state.best['valid_top1']:.1f} % of epoch {first}"
                + (f"; kept is epoch {kept}, as accurate and with a lower loss" if kept != first else ", which is kept")
            )
            state.plan(self.steps_done, self.steps_done)
        peaks = self.processes.gather(lambda: (peak_resident_bytes(), peak_device_bytes(config.device)))
        state.peak_memory_bytes = max(state.peak_memory_bytes, *(resident for resident, _ in peaks))
        state.peak_device_bytes = max(state.peak_device_bytes, *(on_device for _, on_device in peaks))

    def _keep_budget(self, allowed: float) -> None:
        """Plan as many steps as fit at the pace of the last epoch, so that the learning rate comes down in time."""
        state, config = self.state, self.config
        if self.steps_left > 0:
            fitting = self.steps_done + int((allowed - state.seconds) / self.seconds_per_step)
            (fitting,) = map(int, self.processes.sum(fitting if self.processes.is_first else 0))
            fitting = max(self.steps_done, min(fitting, config.max_steps or fitting))
            if fitting != state.num_steps:
                state.plan(fitting, self.steps_done)
            ends_here = fitting == self.steps_done
        else:
            # Unless the time was up, which has been said.
            ends_here = state.planned_at < state.num_steps != config.num_steps
        if ends_here:
            state.notes.append(
                f"{counted(config.epochs, 'epoch')} were planned from a short measurement; at the pace of the run "
                f"{state.num_steps / self.steps_per_epoch:.1f} fitted into {config.budget}"
            )

    @property
    def seconds_per_step(self) -> float:
        """Of the steps to come, at the pace of the last epoch, whose validation is part of it."""
        state = self.state
        before = state.history[-2]["seconds"] if len(state.history) > 1 else 0.0
        seconds = (state.seconds - before) / self.steps_per_epoch
        # Images may still grow.
        start, now = (state.progress(done) for done in (self.steps_done - self.steps_per_epoch, self.steps_done))
        return seconds * mean_cost(self.config, min(1.0, now)) / mean_cost(self.config, max(0.0, start), min(1.0, now))
