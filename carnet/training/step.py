"""One optimizer step: gradient accumulation over micro-batches, precision, memory layout, compilation."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carnet.config import ResolvedConfig
from carnet.errors import explaining_lack_of_memory
from carnet.models.summary import summarize
from carnet.models.weights import normalize_on
from carnet.spec import ModelSpec
from carnet.training import similarity
from carnet.training.answers import TEMPERATURE
from carnet.training.augment import Augmentation
from carnet.training.batch_norm import sum_batch_norms
from carnet.training.depthwise import speed_up_depthwise
from carnet.training.distributed import Processes
from carnet.training.memory import trim_memory
from carnet.training.optim import make_optimizer, set_lr
from carnet.training.pipeline import Batch, cut_mix

Compiler = Callable[..., Callable[[Tensor], Tensor]]
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class StepResult:
    """The result of a step, computed before its update."""

    loss: float
    """Mean cross-entropy over the images of all processes, with CutMix and label smoothing."""
    num_correct: int
    num_images: int


class TrainingStep:
    """Takes optimizer steps: forward and backward micro-batch by micro-batch, then an update.

    Attributes:
        network: without the wrappers that training needs: what is saved and evaluated.
        optimizer: its optimizer.
        fabric: places both on the device.
        micro_batch: images that go through the network at a time; halved when a GPU runs out of memory.

    Where the config asks for it, `compiler` compiles the network; None: `torch.compile`.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        config: ResolvedConfig,
        processes: Processes | None = None,
        *,
        compiler: Compiler | None = None,
    ) -> None:
        self.spec, self.config, self.processes = spec, config, processes or Processes()
        self.fabric = self.processes.fabric(config)
        self.augmentation = Augmentation.from_config(config)
        freeze_first(network, config)
        arrange(network, config)
        if self.processes.size > 1 and config.device == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network = network
        self.micro_batch = config.micro_batch
        weights = config.class_weights
        self._weights = None if weights is None else torch.tensor(weights, device=self.fabric.device)
        self._sides: set[int] = set()
        self._head = similarity.keep_features(network, config.model, wanted=config.teacher is not None)
        forward = _Forward(network, config, compiler or torch.compile)
        self.forward, self.optimizer = self.fabric.setup(forward, make_optimizer(network, config))

    def begin(self) -> None:
        """Put the network into training mode; batch norms of trained weights keep their statistics.

        A few batches of another data set would spoil statistics of a million images.
        """
        self.network.train()
        if self.config.is_fine_tuning:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def __call__(
        self, batch: Batch, seed: int, require_finite: Callable[[float], None], *, lr_ratio: float = 1.0
    ) -> StepResult:
        """Update the weights with this process's share of a batch.

        Args:
            batch: uint8 images (N, S, S, C) and labels (N,).
            seed: of CutMix, and of random layers such as dropout.
            require_finite: called with the mean loss before the update; raises if the loss is not finite.
            lr_ratio: learning rate as a share of `config.lr`.

        Raises:
            RuntimeError: if even the smallest micro-batch does not fit into memory.
            LostProcessError: if another process has died.
        """
        (num_images,) = self.processes.sum(len(batch))
        sums = None
        while sums is None:
            try:
                sums = self._accumulate_gradients(batch, num_images, seed)
            except RuntimeError as error:
                self._halve_micro_batch(error)
        loss, num_correct = self.processes.sum(*sums.tolist())
        require_finite(loss / num_images)
        set_lr(self.optimizer, lr_ratio)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._tidy_memory(batch.size)
        return StepResult(loss / num_images, int(num_correct), int(num_images))

    def _accumulate_gradients(self, batch: Batch, num_images: float, seed: int) -> Tensor:
        """Add up the gradients of all micro-batches; return this process's sums of losses and correct predictions."""
        # A second attempt, with smaller micro-batches, draws the same dropout.
        torch.manual_seed(seed)
        device = self.fabric.device
        batch = batch.to(device)
        if batch.changes is not None:
            images = self.augmentation.apply_to_batch(batch.images, batch.changes, batch.size)
            batch = replace(batch, images=images, changes=None)
        batch = cut_mix(batch, self.config.cutmix, np.random.default_rng(seed))
        # Apple's GPUs have no float64.
        sums = torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        parts = list(batch.parts(self.micro_batch))
        for number, part in enumerate(parts, start=1):
            # Only the last micro-batch averages gradients over processes.
            no_sync = self.fabric.no_backward_sync(self.forward, enabled=number < len(parts))
            with self.processes.detecting_lost_process(), no_sync:
                logits = self.forward(normalize_on(device, part.images, self.spec))
                loss = cross_entropy(logits.float(), part, self.config.label_smoothing, self._weights)
                minimized = loss + self._similarity_loss(part)
                # Gradients are averaged over processes, which may hold unequal numbers of images.
                self.fabric.backward(minimized * (len(part) * self.processes.size / num_images))
            num_correct = (logits.argmax(dim=1) == part.labels).sum()
            sums += torch.stack([loss.detach() * len(part), num_correct.float()])
        return sums

    def _similarity_loss(self, part: Batch) -> Tensor | float:
        """Return the weighted loss of the features that the forward pass has left, if a teacher gave some."""
        if self._head is None:
            return 0.0
        features = self._head.take()
        if part.features is None:
            return 0.0
        assert features is not None, "the last layer was not computed by its own class"
        return similarity.WEIGHT * similarity.similarity_loss(features, part.features)

    def _halve_micro_batch(self, error: RuntimeError) -> None:
        """Halve the micro-batch if `error` says that a GPU has run out of memory.

        Raises:
            RuntimeError: `error`, if it says something else, the micro-batch is too small, or there are several
                processes: the others wait for the gradients of this one, and cannot start again.
        """
        # PyTorch has a class for this error, but raises another one on Apple's GPUs.
        is_mps = "MPS backend out of memory" in str(error)
        is_out_of_memory = is_mps or isinstance(error, torch.OutOfMemoryError)
        if not is_out_of_memory or self.processes.size > 1 or self.micro_batch < 4:
            raise error
        if self._head is not None:
            self._head.take()
        self.micro_batch = -(-self.micro_batch // 2)
        self.optimizer.zero_grad()
        (torch.mps if is_mps else torch.cuda).empty_cache()

    def _tidy_memory(self, side: int) -> None:
        """Free memory after the first step with images of this side, which may have compiled the network."""
        if side not in self._sides:
            if self.config.compile:
                end_compiling()
                gc.collect()
            trim_memory()
            self._sides.add(side)


def cross_entropy(logits: Tensor, batch: Batch, label_smoothing: float, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy with the labels, or with a teacher's answers: (N, classes) -> ().

    With CutMix, both labels count by their shares. With weights (classes,), an image counts by that of its label; the
    sum is divided by the number of images, so that parts of a batch add up to the whole.
    """
    if batch.answers is not None:
        # Its scale is that of other losses; Muon and Adam take equal steps for any scale.
        return F.cross_entropy(logits / TEMPERATURE, batch.answers)

    def of(labels: Tensor) -> Tensor:
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
        return (losses * weights[labels]).mean()

    loss = of(batch.labels)
    if batch.other_labels is None:
        return loss
    others = of(batch.other_labels)
    return batch.label_share * loss + (1 - batch.label_share) * others


def arrange(network: nn.Module, config: ResolvedConfig) -> None:
    """Apply the config's memory layout, depthwise gradient, batch-norm summation and threads to a network."""
    torch.set_num_threads(config.threads)
    network.to(memory_format=_LAYOUTS[config.memory_format])
    speed_up_depthwise(network, fast=config.fast_depthwise)
    sum_batch_norms(network, compiled=config.compile and config.device == "cpu")


def freeze_first(network: nn.Module, config: ResolvedConfig) -> None:
    """Keep the weights of the first layers, up to the config's share of all multiply-adds; train all others."""
    network.requires_grad_(True)
    if not config.frozen_share:
        return
    summary = summarize(network, config.model, image_size=config.image_size, in_channels=config.in_channels)
    modules, done = dict(network.named_modules()), 0
    first = next(layer for layer in summary.layers if layer.macs)
    for layer in summary.layers:
        done += layer.macs
        if done > config.frozen_share * summary.macs:
            return
        if layer is first and config.in_channels == 4:
            # Pretrained weights have no filters for opacity yet.
            continue
        for parameter in modules[layer.name].parameters(recurse=False):
            parameter.requires_grad_(False)


class _Forward(nn.Module):
    """Runs the compiled network on whole micro-batches of full-size images, and the plain network otherwise.

    Otherwise means the last batch of an epoch, and the smaller images of progressive resizing: compiling for every
    shape would take too long.
    """

    def __init__(self, network: nn.Module, config: ResolvedConfig, compiler: Compiler) -> None:
        super().__init__()
        self.network = network
        self._shape, self._recompute = (config.micro_batch, config.image_size), config.recompute
        # It warns that no CUDA runtime is found wherever there is a CUDA folder, also on a CPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        # `network.forward` instead of `network`, whose parameters would be registered twice.
        self._compiled = compiler(network.forward, dynamic=False) if config.compile else None

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, classes)"""
        if self._compiled is None or (len(images), images.shape[-1]) != self._shape or not self.training:
            return cast(Tensor, self.network(images))
        import torch._functorch.config

        # The first call compiles the backward pass, which reads this setting.
        with torch._functorch.config.patch(activation_memory_budget=self._recompute):
            return self._compiled(images)


def compiler_problem(device: str) -> str:
    """Return why `torch.compile` cannot work on a device, as a phrase; or "" if no reason is known."""
    if device == "cuda":
        return "" if find_spec("triton") else "Triton is not installed (pip install triton)"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = shutil.which(get_cpp_compiler())
    except (InvalidCxxCompiler, OSError, RuntimeError):
        compiler = None
    return "" if compiler else "no C++ compiler found (apt install g++)"


def end_compiling() -> None:
    """End the processes that PyTorch keeps for further compilation, because they take memory."""
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()


def explaining_out_of_memory(image_size: int, micro_batch: int) -> AbstractContextManager[None]:
    """Raise an `OutOfMemoryError` of one sentence where a step runs out of memory."""
    way_out = f"--micro-batch {micro_batch // 2}" if micro_batch >= 4 else "a smaller --image-size"
    return explaining_lack_of_memory(f"a step of {micro_batch} images of {image_size} px", f"try {way_out}")
