"""The training loop: read `Trainer.fit` from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor, nn

from carnet import files
from carnet.data.check import CheckedImages
from carnet.errors import DataError, NonFiniteLossError, OutOfMemoryError, RunError, StoppedError
from carnet.evaluation import EvaluationReport, evaluate
from carnet.models.device import compute_exactly
from carnet.models.trained import TrainedModel, normalize_on, save_model
from carnet.preprocess import Images
from carnet.progress import Progress, duration
from carnet.report.plots import draw_curves
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation
from carnet.training.checkpoint import load_checkpoint, save_checkpoint
from carnet.training.config import TrainingConfig
from carnet.training.dataset import EpochBatches, TrainingImages, load_batches
from carnet.training.plan import Plan
from carnet.training.state import EpochMetrics, TrainingState
from carnet.training.stop import StopFlag, StopRequestError, catch_stop_signals

CHECKPOINT_SECONDS = 300.0
"""Between checkpoints inside an epoch; each epoch's end has one besides."""
MEASURED_STEPS, MEASURED_SECONDS = 5, 5.0
"""Work, at least, after which the remaining time is foretold from its second half; the first steps are slower."""


class Trainer:
    """Trains a network on images that have been checked, and keeps its run folder.

    Attributes:
        state: where the run stands.
    """

    def __init__(
        self,
        *,
        run: RunFolder,
        config: TrainingConfig,
        plan: Plan,
        spec: ModelSpec,
        images: CheckedImages,
        network: nn.Module,
        progress: Progress,
    ) -> None:
        self.run, self.config, self.plan, self.spec = run, config, plan, spec
        self.fabric, self.progress = _fabric(run, config, plan), progress
        self.valid = images.data.splits["valid"]
        train = images.data.splits["train"]
        self.batches = EpochBatches(len(train), config.batch_size, config.seed)
        self.images = TrainingImages(train, spec, Augmentation.from_config(config), config.seed)
        self.network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.wrapped, self.optimizer = self.fabric.setup(self.network, optimizer)
        self.state = TrainingState()
        self.session_steps: list[float] = []
        self.has_foretold = False
        self.last_checkpoint = 0.0

    def resume(self) -> None:
        """Take up the run where its last checkpoint left it.

        Raises:
            RunError: if the checkpoint is missing, damaged, or of another network.
        """
        state = load_checkpoint(self.run.checkpoint, self.network, self.optimizer)
        try:
            self.fabric.strategy.precision.load_state_dict(state.pop("precision"))
            self.state = TrainingState.from_json(state)
        except (KeyError, TypeError) as error:
            raise RunError(f"{self.run.checkpoint} was written by another version of carnet") from error

    def fit(self) -> TrainingState:
        """Train to the last epoch, or to the end of patience.

        Raises:
            StoppedError: on Ctrl-C or SIGTERM, after a checkpoint.
            NonFiniteLossError: before the step that would spoil the weights.
            OutOfMemoryError: if a step does not fit.
            ImageError: if an image has gone or changed since it was checked, after a checkpoint.
            OutputError: if the run folder cannot be written.
        """
        state = self.state
        with catch_stop_signals() as stop:
            self._checkpoint()
            try:
                while state.epoch < self.config.epochs and not state.finished:
                    self.batches.epoch, self.batches.first_step = state.epoch, state.step
                    self.network.train()
                    started = time.perf_counter()
                    for images, labels in load_batches(self.images, self.batches, self.plan.workers):
                        loss, num_correct = self._train_step(images, labels)
                        now = time.perf_counter()
                        state.add_step(loss, num_correct, len(labels), now - started)
                        self._after_step(loss, now - started)
                        started = now
                        stop.check()
                    valid = self._validate(stop)
                    state.seconds += time.perf_counter() - started
                    self._end_epoch(state.end_epoch(valid, lr=self.config.lr))
            except StopRequestError as request:
                self._checkpoint()
                raise StoppedError(self._stopped_message(), request.signal_number) from None
            except DataError:
                self._checkpoint()
                raise
        self._write_history()
        return state

    def _train_step(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """uint8 images (N, S, S, 3) and labels (N,) -> mean loss and number of hits, before the step's update"""
        device = self.fabric.device
        labels = labels.to(device)
        with self._explaining_out_of_memory():
            logits = self.wrapped(normalize_on(device, images, self.spec))
        loss = F.cross_entropy(logits.float(), labels)
        hits = (logits.argmax(dim=1) == labels).sum()
        loss_value, num_correct = torch.stack([loss.detach(), hits.float()]).tolist()
        self._require_finite(loss_value, f"step {self.state.step + 1}")
        with self._explaining_out_of_memory():
            self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss_value, int(num_correct)

    def _validate(self, stop: StopFlag) -> EvaluationReport:
        """Judge the weights as they are, in float32."""
        # The unwrapped network: evaluation leaves the mixed precision of training out.
        model = TrainedModel(self.network, self.spec)

        def predict(images: Images) -> NDArray[np.float32]:
            stop.check()
            return model.logits(images)

        what = f"epoch {self.state.epoch + 1}/{self.config.epochs} validation"
        report = evaluate(
            predict, self.valid, self.spec, progress=lambda done, total: self.progress.bar(what, done, total)
        )
        # The epoch's last step may have spoilt the weights, which no training loss has seen yet.
        self._require_finite(report.loss, "validation")
        return report

    def _after_step(self, loss: float, seconds: float) -> None:
        state = self.state
        what = f"epoch {state.epoch + 1}/{self.config.epochs}"
        note = f"loss {state.loss_sum / state.num_images:.3f}, top-1 {100 * state.num_correct / state.num_images:.1f} %"
        self.progress.bar(what, state.step, self.batches.steps_per_epoch, note)
        if not self.has_foretold:
            self.session_steps.append(seconds)
            if len(self.session_steps) >= MEASURED_STEPS and sum(self.session_steps) >= MEASURED_SECONDS:
                self.has_foretold = True
                self.progress.say(self._forecast())
        global_step = state.epoch * self.batches.steps_per_epoch + state.step
        self.fabric.log("loss/step", loss, step=global_step)
        if time.monotonic() - self.last_checkpoint > CHECKPOINT_SECONDS:
            self._checkpoint()

    def _end_epoch(self, epoch: EpochMetrics) -> None:
        state = self.state
        state.finished = bool(self.config.patience) and state.epochs_since_best >= self.config.patience
        if not self.config.patience or state.best is epoch:
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
        self.progress.say(self._epoch_line(epoch))

    def _write_history(self) -> None:
        history = self.state.history
        files.write_csv(self.run.metrics, history)
        files.write_bytes(self.run.curves, draw_curves(history, title=f"{self.spec.model}, {self.run.path.name}"))

    def _checkpoint(self) -> None:
        # Mixed fp16 scales the loss by a factor that adapts; the other precisions have no state.
        state = self.state.to_json() | {"precision": self.fabric.strategy.precision.state_dict()}
        save_checkpoint(self.run.checkpoint, self.network, self.optimizer, state)
        self.last_checkpoint = time.monotonic()

    def _epoch_line(self, epoch: EpochMetrics) -> str:
        best = " (best so far)" if self.state.best is epoch else ""
        return (
            f"epoch {epoch['epoch']:.0f}/{self.config.epochs}: "
            f"train loss {epoch['train_loss']:.3f}, top-1 {100 * epoch['train_top1']:.1f} %; "
            f"valid loss {epoch['valid_loss']:.3f}, top-1 {100 * epoch['valid_top1']:.1f} %{best}; "
            f"{epoch['images_per_second']:.1f} images/s, {duration(epoch['seconds'])} so far"
        )

    def _forecast(self) -> str:
        step_seconds = float(np.median(self.session_steps[len(self.session_steps) // 2 :]))
        steps = self.batches.steps_per_epoch
        left = (self.config.epochs - self.state.epoch) * steps - self.state.step
        return (
            f"{step_seconds:.2f} s a step, {self.config.batch_size / step_seconds:.1f} images/s: "
            f"about {duration(steps * step_seconds)} an epoch and {duration(left * step_seconds)} to the end, "
            f"validation not counted"
        )

    def _require_finite(self, loss: float, where: str) -> None:
        if math.isfinite(loss):
            return
        raise NonFiniteLossError(
            f"the loss became {loss} in epoch {self.state.epoch + 1}, {where}, at learning rate {self.config.lr:g}; "
            f"try a smaller one, --lr {self.config.lr / 10:g}"
            + (", or --precision fp32" if self.plan.precision != "fp32" else "")
            + f"; the last good checkpoint is {self.run.checkpoint}"
        )

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

    def _stopped_message(self) -> str:
        state = self.state
        where = f"epoch {state.epoch + 1} of {self.config.epochs}, step {state.step} of {self.batches.steps_per_epoch}"
        return f"stopped in {where}; go on with carnet train --resume {self.run.path}"


def _fabric(run: RunFolder, config: TrainingConfig, plan: Plan) -> Fabric:
    loggers: list[Logger] = []
    if config.logger == "tensorboard":
        loggers.append(TensorBoardLogger(run.path, name="tensorboard", version=""))
    torch.set_num_threads(plan.threads)
    torch.backends.cudnn.deterministic = True
    compute_exactly()
    return Fabric(accelerator=plan.device, devices=1, precision=plan.fabric_precision, loggers=loggers)


def model_info(network: nn.Module, epoch: EpochMetrics) -> dict[str, Any]:
    """What `model.json` says beside the spec."""
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"params": params, "epoch": epoch["epoch"], "metrics": epoch}
