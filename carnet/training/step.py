"""One optimizer step: a batch in, weights changed; with everything that makes it fast on the machine at hand."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from carnet.config import ResolvedConfig
from carnet.errors import CarnetError, OutOfMemoryError, is_out_of_memory
from carnet.models.weights import normalize_on
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation
from carnet.training.batch_norm import sum_batch_norms
from carnet.training.depthwise import speed_up_depthwise
from carnet.training.distributed import Processes
from carnet.training.memory import trim_memory
from carnet.training.optim import make_optimizer, set_lr
from carnet.training.pipeline import Batch, cut_mix


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
        self,
        network: nn.Module,
        spec: ModelSpec,
        config: ResolvedConfig,
        *,
        processes: Processes,
        fabric: Fabric,
    ) -> None:
        self.spec, self.processes, self.fabric = spec, processes, fabric
        self.augmentation = Augmentation.from_config(config)
        self.network = network
        arrange(self.network, config)
        if processes.size > 1 and config.device == "cuda":
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)  # type: ignore[no-untyped-call]
        self.micro_batch = config.micro_batch
        self._is_compiled = config.compile
        self._sides: set[int] = set()
        compiled = (config.micro_batch, config.image_size) if config.compile else None
        forward = _Forward(self.network, compiled, config.recompute)
        self.config = config
        optimizer = make_optimizer(self.network, config)
        self.forward, self.optimizer = fabric.setup(forward, optimizer)

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
            OutOfMemoryError: if the smallest micro-batch does not fit.
            LostProcessError: if another process has died.
        """
        (num_images,) = self.processes.sum(len(batch))
        sums = self._within_memory(lambda: self._accumulate(batch, int(num_images), seed))
        loss, num_correct = self.processes.sum(*sums.tolist())
        require_finite(loss / num_images)
        set_lr(self.optimizer, lr_ratio)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._tidy_memory(batch.size)
        return StepResult(loss / num_images, int(num_correct), int(num_images))

    def _accumulate(self, batch: Batch, num_images: int, seed: int) -> Tensor:
        """Add up gradients over the micro-batches; return the sums of loss and hits of this process."""
        # What dropout drops does not depend on an attempt before this one.
        torch.manual_seed(seed)
        device = self.fabric.device
        batch = batch.to(device)
        images = batch.images
        if batch.changes is not None:
            images = self.augmentation.apply_to_batch(images, batch.changes, batch.size)
        # Apple's GPUs have no float64.
        sums = torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        batch = cut_mix(Batch(images, batch.labels), self.config.cutmix, np.random.default_rng(seed))
        parts = list(batch.parts(self.micro_batch))
        for number, part in enumerate(parts, start=1):
            with self.processes.detecting_lost_process(), self._sums_later(number < len(parts)):
                logits = self.forward(normalize_on(device, part.images, self.spec))
                loss = self._loss(logits.float(), part)
                # Gradients are averaged over processes, which may hold unequal numbers of images.
                self.fabric.backward(loss * (len(part) * self.processes.size / num_images))
            hits = (logits.argmax(dim=1) == part.labels).sum()
            sums += torch.stack([loss.detach() * len(part), hits.float()])
        return sums

    def _within_memory(self, backward: Callable[[], Tensor]) -> Tensor:
        """Do it again with half of the images at a time as long as a GPU's memory runs out.

        Raises:
            RuntimeError: where it does with the fewest, or one of several processes meets it: the others wait inside
                a sum of gradients, and cannot begin again.
        """
        while True:
            try:
                return backward()
            except RuntimeError as error:
                if not is_device_out_of_memory(error) or self.processes.size > 1 or self.micro_batch < 4:
                    raise
                self.micro_batch = -(-self.micro_batch // 2)
                self.optimizer.zero_grad()
                empty = torch.mps.empty_cache if "MPS" in str(error) else torch.cuda.empty_cache
                empty()

    def _tidy_memory(self, side: int) -> None:
        """After the first step of a side, which may have compiled the network, and leaves gaps in memory."""
        if side not in self._sides:
            if self._is_compiled:
                end_compiling()
                gc.collect()
            trim_memory()
            self._sides.add(side)

    def _loss(self, logits: Tensor, part: Batch) -> Tensor:
        """Mean cross entropy, with each label's share where images are mixed."""
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(logits, part.labels, label_smoothing=smoothing)
        if part.other_labels is None:
            return loss
        others = F.cross_entropy(logits, part.other_labels, label_smoothing=smoothing)
        return part.label_share * loss + (1 - part.label_share) * others

    def _sums_later(self, later: bool) -> Any:
        """Leave the sum of gradients over processes to the last micro-batch."""
        return self.fabric.no_backward_sync(self.forward, enabled=later) if self.processes.size > 1 else nullcontext()


_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def arrange(network: nn.Module, config: ResolvedConfig) -> None:
    """Lay a network's weights out, and compute its gradients, as the config has it; on as many threads."""
    torch.set_num_threads(config.threads)
    network.to(memory_format=_LAYOUTS[config.memory_format])
    speed_up_depthwise(network, fast=config.fast_depthwise)
    sum_batch_norms(network, compiled=config.compile and config.device == "cpu")


class _Forward(nn.Module):
    """A network that is compiled for so many images of one side, and runs as it is for others.

    Others are an epoch's last batch, and images that still grow, where compiling for each side would take too long.
    """

    def __init__(self, network: nn.Module, compiled: tuple[int, int] | None, recompute: float) -> None:
        super().__init__()
        self.network = network
        self._shape, self._recompute = compiled, recompute
        # Says that no CUDA runtime is found wherever a CUDA folder is, which is no news on a processor.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        # A plain function: as a module it would appear among the parameters twice.
        self._compiled = None if compiled is None else torch.compile(network.forward, dynamic=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, classes)"""
        if self._compiled is None or (len(images), images.shape[-1]) != self._shape or not self.training:
            logits: Tensor = self.network(images)
            return logits
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
        compiler = get_cpp_compiler()
    except (InvalidCxxCompiler, OSError, RuntimeError):
        return "there is no C++ compiler"
    return "" if shutil.which(compiler) else "there is no C++ compiler"


def end_compiling() -> None:
    """End the processes that PyTorch keeps for compiling more: there is nothing more, and they take memory."""
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()


def is_device_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU has no memory left; PyTorch has a class for it, which Apple's do not use."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


@contextmanager
def explaining_out_of_memory(image_size: int, micro_batch: int) -> Iterator[None]:
    """Say in one sentence that memory ran out.

    Raises:
        OutOfMemoryError: instead of PyTorch's error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, CarnetError) or not is_out_of_memory(error):
            raise
        way_out = f"--micro-batch {micro_batch // 2}" if micro_batch >= 4 else "a smaller --image-size"
        raise OutOfMemoryError(
            f"a step of {micro_batch} images of {image_size} px does not fit into memory; try {way_out}"
        ) from error
