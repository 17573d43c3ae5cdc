"""The training loop: read `Trainer.fit` from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor, nn

from carnet import files
from carnet.data.sources import Sample
from carnet.errors import DataError, LostProcessError, OutOfMemoryError, OutputError, StoppedError
from carnet.evaluation import EvaluationReport, evaluate
from carnet.models.trained import TrainedModel, normalize_on, save_model
from carnet.preprocess import Images
from carnet.progress import Progress
from carnet.report.plots import draw_curves
from carnet.training import narration
from carnet.training.augment import Augmentation
from carnet.training.checkpoint import save_checkpoint
from carnet.training.dataset import EpochBatches, ShuffledBatches, TrainingImages, load_batches, step_seed
from carnet.training.preparation import Job
from carnet.training.processes import Processes
from carnet.training.state import EpochMetrics, TrainingState
from carnet.training.stop import StopFlag, StopRequestError

MEASURED_STEPS, MEASURED_SECONDS = 5, 5.0
"""Work, at least, after which the remaining time is foretold from its second half; the first steps are slower."""


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
        self.decode, self.batches = _training_images(job, processes)
        self.fabric = processes.fabric(job.plan, self._loggers())
        self.network = job.network.to(memory_format=torch.channels_last)
        if processes.size > 1 and job.plan.device == "cuda":
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)  # type: ignore[no-untyped-call]
        optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        self.wrapped, self.optimizer = self.fabric.setup(self.network, optimizer)
        self.state = TrainingState()
        self.session_steps: list[float] = []
        self.has_foretold = False
        self.last_checkpoint = time.monotonic()

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
            while state.epoch < self.config.epochs and not state.finished:
                self.network.train()
                started = time.perf_counter()
                for images, labels in self._batches(stop):
                    loss, num_correct, num_images = self._train_step(images, labels)
                    now = time.perf_counter()
                    state.add_step(loss, num_correct, num_images, now - started)
                    self._after_step(loss, now - started)
                    started = now
                valid = self._validate(stop)
                state.seconds += time.perf_counter() - started
                self._end_epoch(state.end_epoch(valid, lr=self.config.lr))
        except StopRequestError as request:
            self._checkpoint()
            raise StoppedError(
                narration.stopped(self.job, state, self.batches.steps_per_epoch), request.signal_number
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
            self._checkpoint()
            return
        checkpoint.restore(self.network, self.optimizer)
        state = dict(checkpoint.state)
        self.fabric.strategy.precision.load_state_dict(state.pop("precision"))
        self.state = TrainingState.from_json(state)
        # Cuts off what a later, damaged checkpoint has left behind, and what a killed writer has.
        if self.processes.is_first:
            files.remove_temporary(self.run.path)
        self._write_history()

    def _batches(self, stop: StopFlag) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of the epoch; it ends in every process at the same step, whichever is asked to stop or fails."""
        self.batches.epoch, self.batches.first_step = self.state.epoch, self.state.step
        batches = load_batches(self.decode, self.batches, self.job.plan.workers)
        while True:
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

    def _train_step(self, images: Tensor, labels: Tensor) -> tuple[float, int, int]:
        """This process's uint8 images (N, S, S, C) and labels (N,) -> mean loss, hits and images of the whole batch

        Loss and hits are those before the step's update.
        """
        torch.manual_seed(step_seed(self.config.seed, self.state.epoch, self.state.step, self.processes.rank))
        device = self.fabric.device
        labels = labels.to(device)
        with self._explaining_out_of_memory(), self.processes.noticing_loss():
            logits = self.wrapped(normalize_on(device, images, self.spec))
        loss = F.cross_entropy(logits.float(), labels)
        hits = (logits.argmax(dim=1) == labels).sum()
        mean, num_correct = torch.stack([loss.detach(), hits.float()]).tolist()
        total, num_correct, num_images = self.processes.sum(mean * len(labels), num_correct, len(labels))
        mean = total / num_images if self.processes.size > 1 else mean
        narration.require_finite(mean, f"step {self.state.step + 1}", self.job, self.state)
        # Gradients are averaged over processes, which may hold unequal numbers of images; 1.0 in a single one.
        share = len(labels) * self.processes.size / num_images
        with self._explaining_out_of_memory(), self.processes.noticing_loss():
            self.fabric.backward(loss * share)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean, int(num_correct), int(num_images)

    def _validate(self, stop: StopFlag) -> EvaluationReport:
        """Judge the weights as they are, in float32, each image once; every process gets the whole report."""
        self.processes.share_buffers(self.network)
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
        model = TrainedModel(self.network, self.spec)

        def predict(images: Images) -> NDArray[np.float32]:
            stop.check()
            return model.logits(images)

        if not samples:
            return np.empty((0, self.spec.num_classes), np.float32)
        what = f"epoch {self.state.epoch + 1}/{self.config.epochs} validation"
        return evaluate(
            predict, samples, self.spec, progress=lambda done, total: self.progress.bar(what, done, total)
        ).logits

    def _after_step(self, loss: float, seconds: float) -> None:
        state = self.state
        what = f"epoch {state.epoch + 1}/{self.config.epochs}"
        note = f"loss {state.loss_sum / state.num_images:.3f}, top-1 {100 * state.num_correct / state.num_images:.1f} %"
        self.progress.bar(what, state.step, self.batches.steps_per_epoch, note)
        if not self.has_foretold:
            self.session_steps.append(seconds)
            if len(self.session_steps) >= MEASURED_STEPS and sum(self.session_steps) >= MEASURED_SECONDS:
                self.has_foretold = True
                self.progress.say(narration.forecast(self.session_steps, self.job, state, self.batches.steps_per_epoch))
        global_step = state.epoch * self.batches.steps_per_epoch + state.step
        self.fabric.log("loss/step", loss, step=global_step)
        every = self.config.checkpoint_steps
        late = time.monotonic() - self.last_checkpoint > 60 * self.config.checkpoint_minutes
        if late or (every and global_step % every == 0):
            self._checkpoint()

    def _end_epoch(self, epoch: EpochMetrics) -> None:
        state = self.state
        state.finished = bool(self.config.patience) and state.epochs_since_best >= self.config.patience
        if self.processes.is_first and (not self.config.patience or state.best is epoch):
            with self._explaining_lost_output():
                save_model(self.run, self.network, self.spec, model_info(self.network, epoch))
        self._checkpoint()
        self._write_history()
        self.fabric.log_dict(
            {
                "loss/train": epoch["train_loss"],
                "loss/valid": epoch["valid_loss"],
                "top1/train": epoch["train_top1"],
                "top1/valid": epoch["valid_top1"],
            },
            step=int(epoch["epoch"]) * self.batches.steps_per_epoch,
        )
        self.progress.say(narration.epoch_line(epoch, self.config, is_best=state.best is epoch))

    def _write_history(self) -> None:
        if not self.processes.is_first:
            return
        history = self.state.history
        with self._explaining_lost_output():
            if not history:
                self.run.metrics.unlink(missing_ok=True)
                self.run.curves.unlink(missing_ok=True)
                return
            files.write_csv(self.run.metrics, history)
            files.write_bytes(self.run.curves, draw_curves(history, title=f"{self.spec.model}, {self.run.path.name}"))

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
            )
        self.last_checkpoint = time.monotonic()

    def _loggers(self) -> list[Logger]:
        if self.config.logger != "tensorboard" or not self.processes.is_first:
            return []
        return [TensorBoardLogger(self.run.path, name="tensorboard", version="")]

    @contextmanager
    def _explaining_lost_output(self) -> Iterator[None]:
        try:
            yield
        except OutputError as error:
            if not self.run.path.exists():
                raise OutputError(f"the run folder {self.run.path} has gone, and what it held with it") from error
            raise OutputError(
                f"{error}; what was there is whole: mend that, then {narration.go_on(self.job)}"
            ) from error

    @contextmanager
    def _explaining_out_of_memory(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            # On a GPU torch has a class for it; the processor's allocator only says so.
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            smaller = max(1, self.config.batch_size // 2)
            raise OutOfMemoryError(
                f"a step of {self.config.batch_size} images of {self.config.image_size} px does not fit into memory; "
                f"try --batch-size {smaller} or a smaller --image-size"
            ) from error


def _training_images(job: Job, processes: Processes) -> tuple[Callable[[Any], tuple[Images, int]], EpochBatches[Any]]:
    """What decodes a training image, and the batches of what it decodes."""
    config, train = job.config, job.images.data.splits["train"]
    augmentation, place = Augmentation.from_config(config), {"rank": processes.rank, "num_processes": processes.size}
    if job.stream is None:
        batches = ShuffledBatches(len(train), config.batch_size, config.seed, **place)
        return TrainingImages(train, job.spec, augmentation, config.seed).__getitem__, batches
    from carnet.data.stream import ImageStream
    from carnet.training.streaming import StreamedBatches, StreamedTrainingImages

    streamed = StreamedBatches(ImageStream(job.stream), train, config.batch_size, config.seed, **place)
    return StreamedTrainingImages(job.spec.classes, job.spec, augmentation, config.seed).__getitem__, streamed


def model_info(network: nn.Module, epoch: EpochMetrics) -> dict[str, Any]:
    """What `model.json` says beside the spec."""
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"params": params, "epoch": epoch["epoch"], "metrics": epoch}
