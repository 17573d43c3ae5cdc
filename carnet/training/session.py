"""A run under way, in one of the processes that train it: where it stands, and what decides its length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import nn

from carnet.data.samples import Sample
from carnet.errors import DataError, RunError
from carnet.evaluation import EvaluationReport, evaluate
from carnet.models.weights import TrainedModel
from carnet.preprocess import Images
from carnet.text import Progress
from carnet.training import narration
from carnet.training.checkpoint import TrainingState
from carnet.training.distributed import Processes
from carnet.training.memory import (
    forget_peak_device_bytes,
    hold_memory_below,
    keep_freed_memory,
    peak_device_bytes,
    peak_resident_bytes,
)
from carnet.training.optim import WeightAverage
from carnet.training.pipeline import Batch, pixel_loader
from carnet.training.preparation import Job
from carnet.training.schedule import View, mean_cost, view_at
from carnet.training.step import TrainingStep, explaining_out_of_memory
from carnet.training.stop import StopFlag


class Training:
    """A run under way, in one of the processes that train it; callbacks read it.

    Attributes:
        state: where the run stands.
        step: takes the steps.
        network: which is trained.
        average: of its weights; None: the run keeps none.
    """

    def __init__(self, job: Job, processes: Processes, progress: Progress) -> None:
        self.job, self.processes, self.progress = job, processes, progress
        self.folder, self.config, self.spec = job.run, job.config, job.spec
        self.valid = job.images.data.splits["valid"]
        if self.config.keep_memory:
            keep_freed_memory()
        elif self.config.max_memory is not None:
            hold_memory_below(self.config.max_memory, self.config.device)
        forget_peak_device_bytes(self.config.device)
        self.steps_per_epoch = job.pipeline.steps_per_epoch(processes.size)
        fabric = processes.fabric(self.config, [])
        with explaining_out_of_memory(self.config.image_size, self.config.micro_batch):
            self.step = TrainingStep(job.network, self.spec, self.config, processes=processes, fabric=fabric)
        self.network = self.step.network
        self.average = WeightAverage(self.network, self.config.ema) if self.config.ema else None
        self.state = self._taken_up()

    def _taken_up(self) -> TrainingState:
        """The state that the checkpoint has, with weights and optimizer put back; a new run's first one.

        Raises:
            RunError: if the checkpoint is of a run of another length, network or optimizer.
        """
        checkpoint = self.job.checkpoint
        if checkpoint is None:
            return TrainingState(num_steps=self.config.num_steps)
        checkpoint.restore(self.network, self.step.optimizer, None if self.average is None else self.average.network)
        values = dict(checkpoint.state)
        self.step.fabric.strategy.precision.load_state_dict(values.pop("precision"))
        state = TrainingState.from_json(values)
        most = self.config.num_steps
        if self.config.training_seconds is not None:
            # A budget may have shortened it, or made it longer than expected.
            most = self.config.max_steps or max(most, state.num_steps)
        fits = state.num_steps <= most and state.step <= self.steps_per_epoch
        if not fits or state.epoch > narration.num_epochs(state, self.steps_per_epoch):
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

    def view(self, num_steps: int) -> View:
        """How images are shown in the step that comes after so many."""
        return view_at(self.state.progress(num_steps), self.config, self.state.num_steps)

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
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.network if self.average is None else self.average.network

    def require_finite(self, loss: float) -> None:
        """Whether the step under way can be taken.

        Raises:
            NonFiniteLossError: if its loss is no number.
        """
        narration.require_finite(loss, f"step {self.state.step + 1}", self.job, self.state)

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

    def note_micro_batch(self) -> None:
        """Keep it in mind, and in the checkpoint, if a GPU's memory ran out in the step just taken."""
        if self.step.micro_batch < (self.state.micro_batch or self.config.micro_batch):
            self.state.micro_batch = self.step.micro_batch
            self.state.notes.append(narration.less_at_a_time(self.state))

    def keep_time(self) -> None:
        """End the run with the step just taken if the budget is spent; the first process's clock counts."""
        allowed, state = self.config.training_seconds, self.state
        if allowed is None or self.steps_left <= 0:
            return
        (late,) = self.processes.sum(self.processes.is_first and state.seconds > allowed)
        if late:
            state.notes.append(narration.time_is_up(self.config, state, self.steps_per_epoch))
            state.plan(self.steps_done, self.steps_done)

    def validate(self, stop: StopFlag) -> EvaluationReport:
        """Evaluate the weights as they are, in float32, each image once; every process gets the whole report."""
        self.processes.share_buffers(self.evaluated)
        shares = self.processes.gather(partial(self._logits, self.processes.share(self.valid), stop))
        logits = np.empty((len(self.valid), self.spec.num_classes), np.float32)
        for rank, share in enumerate(shares):
            logits[rank :: len(shares)] = share
        report = EvaluationReport.from_logits(self.spec.classes, self.valid, logits)
        # The epoch's last step may have spoilt the weights, which no training loss has seen yet.
        narration.require_finite(report.loss, "validation", self.job, self.state)
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

    def plan_rest(self) -> None:
        """At the end of an epoch: patience may be over, a budget may allow other steps, memory may have peaked."""
        state = self.state
        self._keep_budget()
        if 0 < self.config.patience <= state.epochs_since_best and self.steps_left > 0:
            state.notes.append(narration.patience_is_over(self.config, state))
            state.plan(self.steps_done, self.steps_done)
        device = self.config.device
        peaks = self.processes.gather(lambda: (peak_resident_bytes(), peak_device_bytes(device)))
        state.peak_memory_bytes = max(state.peak_memory_bytes, *(resident for resident, _ in peaks))
        state.peak_device_bytes = max(state.peak_device_bytes, *(on_device for _, on_device in peaks))

    def _keep_budget(self) -> None:
        """Plan as many steps as fit at the pace of the last epoch, so that the learning rate comes down in time."""
        allowed, state = self.config.training_seconds, self.state
        if allowed is None:
            return
        if self.steps_left > 0:
            fitting = self.steps_done + int((allowed - state.seconds) / self.seconds_per_step)
            (fitting,) = map(int, self.processes.sum(fitting if self.processes.is_first else 0))
            fitting = max(self.steps_done, min(fitting, self.config.max_steps or fitting))
            if fitting != state.num_steps:
                state.plan(fitting, self.steps_done)
            ends_here = fitting == self.steps_done
        else:
            # Unless the time was up, which has been said.
            ends_here = state.planned_at < state.num_steps != self.config.num_steps
        if ends_here:
            state.notes.append(narration.other_length(self.config, state, self.steps_per_epoch))

    @property
    def seconds_per_step(self) -> float:
        """Of the steps to come, at the pace of the last epoch, whose validation is part of it."""
        state = self.state
        before = state.history[-2]["seconds"] if len(state.history) > 1 else 0.0
        seconds = (state.seconds - before) / self.steps_per_epoch
        # Images may still grow.
        start, now = (state.progress(done) for done in (self.steps_done - self.steps_per_epoch, self.steps_done))
        return seconds * mean_cost(self.config, min(1.0, now)) / mean_cost(self.config, max(0.0, start), min(1.0, now))
