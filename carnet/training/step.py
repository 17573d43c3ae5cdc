"""One optimizer step: a batch in, weights changed; with everything that makes it fast on the machine at hand."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carnet.config import ResolvedConfig
from carnet.errors import explaining_lack_of_memory
from carnet.models.weights import normalize_on
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation
from carnet.training.batch_norm import sum_batch_norms
from carnet.training.depthwise import speed_up_depthwise
from carnet.training.distributed import Processes
from carnet.training.memory import trim_memory
from carnet.training.optim import make_optimizer, set_lr
from carnet.training.pipeline import Batch, cut_mix

_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class StepResult:
    """What a step found, before its update."""

    loss: float
    """Mean over the images of all processes."""
    num_correct: int
    num_images: int


class TrainingStep:
    """Forward and backward through a network, micro-batch by micro-batch, and an update.

    Attributes:
        network: as it is saved and judged.
        optimizer: of its parameters.
        fabric: places them on the device.
        micro_batch: images that go through the network at a time; halved when a GPU's memory runs out.
    """

    def __init__(
        self, network: nn.Module, spec: ModelSpec, config: ResolvedConfig, processes: Processes | None = None
    ) -> None:
        self.spec, self.config, self.processes = spec, config, processes or Processes()
        self.fabric = self.processes.fabric(config)
        self.augmentation = Augmentation.from_config(config)
        arrange(network, config)
        if self.processes.size > 1 and config.device == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network = network
        self.micro_batch = config.micro_batch
        self._sides: set[int] = set()
        self.forward, self.optimizer = self.fabric.setup(_Forward(network, config), make_optimizer(network, config))

    def __call__(
        self, batch: Batch, seed: int, require_finite: Callable[[float], None], *, lr_ratio: float = 1.0
    ) -> StepResult:
        """Learn from this process's share of a batch.

        Args:
            batch: uint8 images and labels.
            seed: of what is mixed, and of what the network draws, such as dropout.
            require_finite: given the mean loss before the update; raises if the update would spoil the weights.
            lr_ratio: share of the recipe's learning rate.

        Raises:
            RuntimeError: if the smallest micro-batch does not fit into memory.
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
        """Add up gradients over the micro-batches; return the sums of loss and hits of this process."""
        # What dropout drops does not depend on an attempt before this one.
        torch.manual_seed(seed)
        device = self.fabric.device
        batch = batch.to(device)
        if batch.changes is not None:
            batch = Batch(self.augmentation.apply_to_batch(batch.images, batch.changes, batch.size), batch.labels)
        batch = cut_mix(batch, self.config.cutmix, np.random.default_rng(seed))
        # Apple's GPUs have no float64.
        sums = torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        parts = list(batch.parts(self.micro_batch))
        for number, part in enumerate(parts, start=1):
            # Gradients are summed over processes after the last micro-batch.
            summed_later = self.fabric.no_backward_sync(self.forward, enabled=number < len(parts))
            with self.processes.detecting_lost_process(), summed_later:
                logits = self.forward(normalize_on(device, part.images, self.spec))
                loss = cross_entropy(logits.float(), part, self.config.label_smoothing)
                # The sum is divided by the number of processes, which may hold unequal numbers of images.
                self.fabric.backward(loss * (len(part) * self.processes.size / num_images))
            hits = (logits.argmax(dim=1) == part.labels).sum()
            sums += torch.stack([loss.detach() * len(part), hits.float()])
        return sums

    def _halve_micro_batch(self, error: RuntimeError) -> None:
        """Let half as many images go through the network at a time, after a GPU's memory ran out.

        Raises:
            RuntimeError: the error, if it says something else or there are too few images; or if one of several
                processes met it: the others wait inside a sum of gradients, and cannot begin again.
        """
        # PyTorch has a class for it, which Apple's GPUs do not use.
        is_mps = "MPS backend out of memory" in str(error)
        is_lack_of_memory = is_mps or isinstance(error, torch.OutOfMemoryError)
        if not is_lack_of_memory or self.processes.size > 1 or self.micro_batch < 4:
            raise error
        self.micro_batch = -(-self.micro_batch // 2)
        self.optimizer.zero_grad()
        (torch.mps if is_mps else torch.cuda).empty_cache()

    def _tidy_memory(self, side: int) -> None:
        """After the first step of a side, which may have compiled the network, and leaves gaps in memory."""
        if side not in self._sides:
            if self.config.compile:
                end_compiling()
                gc.collect()
            trim_memory()
            self._sides.add(side)


def cross_entropy(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Mean cross entropy, with each label's share where images are mixed."""
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    if batch.other_labels is None:
        return loss
    others = F.cross_entropy(logits, batch.other_labels, label_smoothing=label_smoothing)
    return batch.label_share * loss + (1 - batch.label_share) * others


def arrange(network: nn.Module, config: ResolvedConfig) -> None:
    """Lay a network's weights out, and compute its gradients, as the config has it; on as many threads."""
    torch.set_num_threads(config.threads)
    network.to(memory_format=_LAYOUTS[config.memory_format])
    speed_up_depthwise(network, fast=config.fast_depthwise)
    sum_batch_norms(network, compiled=config.compile and config.device == "cpu")


class _Forward(nn.Module):
    """A network that is compiled for whole micro-batches of full side, and runs as it is for others.

    Others are an epoch's last batch, and images that still grow, where compiling for each side would take too long.
    """

    def __init__(self, network: nn.Module, config: ResolvedConfig) -> None:
        super().__init__()
        self.network = network
        self._shape, self._recompute = (config.micro_batch, config.image_size), config.recompute
        # Says that no CUDA runtime is found wherever a CUDA folder is, which is no news on a processor.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        # A plain function: as a module it would appear among the parameters twice.
        self._compiled = torch.compile(network.forward, dynamic=False) if config.compile else None

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, classes)"""
        if self._compiled is None or (len(images), images.shape[-1]) != self._shape or not self.training:
            return cast(Tensor, self.network(images))
        import torch._functorch.config

        # Read while the backward pass is compiled, which is at the first call.
        with torch._functorch.config.patch(activation_memory_budget=self._recompute):
            return cast(Tensor, self._compiled(images))


def compiler_problem(device: str) -> str:
    """Why `torch.compile` cannot work here: a phrase; empty where nothing is known."""
    if device == "cuda":
        return "" if find_spec("triton") else "Triton is missing"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = shutil.which(get_cpp_compiler())
    except (InvalidCxxCompiler, OSError, RuntimeError):
        compiler = None
    return "" if compiler else "there is no C++ compiler"


def end_compiling() -> None:
    """End the processes that PyTorch keeps for compiling more: there is nothing more, and they take memory."""
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()


def explaining_out_of_memory(image_size: int, micro_batch: int) -> AbstractContextManager[None]:
    """Say in one sentence that memory ran out, as an `OutOfMemoryError`, instead of PyTorch's error."""
    way_out = f"--micro-batch {micro_batch // 2}" if micro_batch >= 4 else "a smaller --image-size"
    return explaining_lack_of_memory(f"a step of {micro_batch} images of {image_size} px", f"try {way_out}")
