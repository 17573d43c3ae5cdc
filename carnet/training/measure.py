"""Measure this machine by trial steps, and keep measurements so that later runs need not repeat them.

Kept measurements lie in the cache, by processor, instruction set and PyTorch version.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from carnet import files
from carnet.config import MuonPrecision, ResolvedConfig
from carnet.data.cache import cache_root
from carnet.errors import OutputError, RunError
from carnet.machine import available_cores, processor_name, take_turns
from carnet.models.registry import create_model
from carnet.models.summary import summarize
from carnet.models.weights import TrainedModel, on_threads
from carnet.spec import ModelSpec
from carnet.text import counted
from carnet.training import memory
from carnet.training.depthwise import depthwise_convolutions
from carnet.training.pipeline import Batch
from carnet.training.step import TrainingStep, arrange, compiler_problem, end_compiling

Numbers = dict[str, float]

MARGIN = 1.1
"""An alternative is chosen where it is at least this many times as fast, so that noise does not decide."""
_MATRIX_SIDE = 128
"""As in the middle of our networks. An emulated bf16 product of this size takes two milliseconds."""
_MATRIX_ROUNDS = 7
_STEP_ROUNDS = 3
"""Steps of each alternative that are timed in turns, each after one that is not."""
_MOST_SECONDS = 4.0
"""After this time no more steps are measured."""


def processor_features() -> str:
    """Return the instruction set that PyTorch's kernels use here, for example AVX512."""
    return torch.backends.cpu.get_cpu_capability()


def recall() -> dict[str, Numbers]:
    """Return every measurement kept for this processor, its instruction set and this PyTorch, by its name."""
    _, _, known = _kept()
    # Another program may have written something else into the file.
    return {
        what: numbers
        for what, numbers in known.items()
        if isinstance(numbers, dict) and all(type(number) in (int, float) and number > 0 for number in numbers.values())
    }


def remember(what: str, numbers: Numbers) -> None:
    """Keep a measurement, if the cache can be written.

    Args:
        what: the measurement's name, which says everything that it depends on besides machine and PyTorch.
        numbers: positive numbers by name.
    """
    path, content, known = _kept()
    known[what] = numbers
    with suppress(OutputError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, content)


def _kept() -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return the file of kept measurements, its content, and the part of it that is about this machine."""
    path, content = cache_root() / "measurements.json", None
    with suppress(OSError, RunError):
        content = files.read_json(path)
    content = content if isinstance(content, dict) else {}
    machine = f"{processor_name()}, {processor_features()}, torch {torch.__version__}"
    if not isinstance(content.get(machine), dict):
        content[machine] = {}
    return path, content, content[machine]


def measure_matrix_rates(
    device: str = "cpu",
    *,
    side: int = _MATRIX_SIDE,
    rounds: int = _MATRIX_ROUNDS,
    timed: Callable[[Mapping[str, Callable[[], object]], int], Mapping[str, list[float]]] = take_turns,
) -> Numbers:
    """Return the GFLOP/s of matrix products in fp32 and bf16, on the threads that PyTorch uses now.

    Some processors compute bf16 products in hardware, others emulate them a hundred times slower than float32. No flag
    of the processor tells which of the two is faster for small matrices, so it is measured.

    Args:
        device: cpu, cuda or mps.
        side: of the square matrices. A larger one comes closer to the device's limit and takes longer.
        rounds: products of each precision that are timed; the median counts.
        timed: returns the milliseconds of calls that take turns.

    Returns:
        Rates with three significant digits.
    """
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    matrix = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
    matrices = {"fp32": matrix.to(device), "bf16": matrix.to(device, torch.bfloat16)}

    def multiply(x: torch.Tensor) -> None:
        torch.mm(x, x)
        wait()

    times = timed({name: partial(multiply, x) for name, x in matrices.items()}, rounds)
    return {name: float(f"{2 * side**3 / (1e6 * statistics.median(ms)):.3g}") for name, ms in times.items()}


def faster_precision(rates: Mapping[str, float]) -> MuonPrecision:
    """Return bf16 where it wins by the margin, otherwise fp32, which is more exact."""
    return "bf16" if rates["bf16"] >= MARGIN * rates["fp32"] else "fp32"


class Measure:
    """Measures this machine by trial steps on a batch; `undo` restores the weights.

    Args:
        network: the network that will be trained.
        spec: of its images.
        batch: with images of full side.
        initial_batch: as at the beginning of the run, possibly with smaller images.
        started: when the command began, by `time.monotonic`.
        seconds_to_prepare: time that one thread takes to prepare one image.
        is_decoded: whether images are decoded already, and preparing only means augmenting them.

    Attributes:
        micro_batch: what a step came down to where a GPU's memory ran out; None: it never did.
        cores: that this process may use.
        physical_cores: the same, with cores that run two threads counted once.
        has_depthwise: whether the network has convolutions whose gradient can be computed in two ways.
    """

    free_bytes = staticmethod(memory.free_bytes)
    keep_freed_memory = staticmethod(memory.keep_freed_memory)
    hold_memory_below = staticmethod(memory.hold_memory_below)
    compiler_problem = staticmethod(compiler_problem)
    recall = staticmethod(recall)
    remember = staticmethod(remember)

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        batch: Batch,
        initial_batch: Batch,
        *,
        started: float,
        seconds_to_prepare: float = 0.0,
        is_decoded: bool = True,
    ) -> None:
        self.network, self.spec, self.batch, self.initial_batch = network, spec, batch, initial_batch
        self.started, self.seconds_to_prepare, self.is_decoded = started, seconds_to_prepare, is_decoded
        self.weights = copy.deepcopy(network.state_dict())
        self.micro_batch: int | None = None
        self.cores = available_cores()
        self.physical_cores = min(self.cores, psutil.cpu_count(logical=False) or self.cores)
        self.has_depthwise = bool(depthwise_convolutions(network))

    @classmethod
    def on_random_pixels(cls, spec: ModelSpec, num_images: int, *, started: float) -> Measure:
        """Measure a new network on random pixels and labels, before any image is decoded."""
        network = create_model(spec.model, num_classes=spec.num_classes, in_channels=spec.in_channels)
        shape = (num_images, spec.image_size, spec.image_size, spec.in_channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        batch = Batch(torch.from_numpy(pixels), torch.arange(num_images) % spec.num_classes)
        return cls(network, spec, batch, batch, started=started)

    def undo(self) -> None:
        """Restore weights, buffers and gradients, and leave the GPU, where another process may train."""
        self.network.load_state_dict(self.weights)
        self.network.zero_grad()
        self.network.train()
        self.network.cpu()

    def once(self, what: str, names: Iterable[str], work: Callable[[], Mapping[str, float]]) -> Numbers:
        """Return a measurement as it was kept, or take and keep it, so that equal runs choose the same.

        Args:
            what: the measurement's name, as for `remember`.
            names: of its numbers.
            work: takes it, if it is not kept yet; three significant digits count.
        """
        numbers = self.recall().get(what, {})
        if set(numbers) != set(names):
            numbers = {name: float(f"{number:.3g}") for name, number in work().items()}
            self.remember(what, numbers)
        return numbers

    def elapsed(self) -> float:
        """Return the seconds since the command began."""
        return time.monotonic() - self.started

    def used_bytes(self) -> int:
        """Return the anonymous memory of this process, once everything that is free was returned to the system."""
        gc.collect()
        memory.trim_memory()
        return memory.anonymous_bytes()

    def matrix_rates(self, config: ResolvedConfig) -> Numbers:
        """Return the rates of matrix products, as they were measured first."""
        name = torch.cuda.get_device_name() if config.device == "cuda" else config.device
        what = f"products of matrices on {name}, {counted(config.threads, 'thread')}"
        with on_threads(config.threads):
            return self.once(what, ("fp32", "bf16"), lambda: measure_matrix_rates(config.device))

    def seconds(self, config: ResolvedConfig, *, initial: bool = False) -> float:
        """Return the median time of a step, after one to warm up (which compiles, if the config says so).

        Args:
            config: the config to measure.
            initial: take images as at the beginning of the run, instead of those of full side.
        """
        step, batch = self._step(config), self.initial_batch if initial else self.batch
        self._take(step, batch)
        times: list[float] = []
        while len(times) < 5 and (sum(times) < _MOST_SECONDS or len(times) < 2):
            started = time.perf_counter()
            self._take(step, batch)
            times.append(time.perf_counter() - started)
        self.micro_batch = step.micro_batch if step.micro_batch < config.micro_batch else None
        return float(np.median(times))

    def seconds_in_turns(self, configs: Mapping[str, ResolvedConfig], num_images: int) -> Mapping[str, float]:
        """Return the median times of steps that take turns, so that other work on the machine slows all of them.

        Args:
            configs: to compare, by name.
            num_images: of the batch, at most all.
        """
        batch = self.batch if num_images >= len(self.batch) else next(self.batch.parts(num_images))
        times: dict[str, list[float]] = {name: [] for name in configs}
        try:
            steps = {name: self._step(replace(config, micro_batch=num_images)) for name, config in configs.items()}
            for _ in range(_STEP_ROUNDS):
                for name, step in steps.items():
                    arrange(self.network, configs[name])
                    self._take(step, batch)
                    started = time.perf_counter()
                    self._take(step, batch)
                    times[name].append(time.perf_counter() - started)
        except BaseException:
            end_compiling()
            raise
        return {name: float(np.median(seconds)) for name, seconds in times.items()}

    def peak_bytes(self, config: ResolvedConfig, num_images: int) -> int:
        """Return the most anonymous memory during a step of so many images."""
        step = self._step(replace(config, compile=False))
        part = Batch(self.batch.images[:num_images], self.batch.labels[:num_images])
        return memory.peak_anonymous_bytes(lambda: step(part, 0, lambda _: None))

    def least_bytes(self, config: ResolvedConfig) -> int:
        """Return a lower bound of a step's memory for each image.

        It is that of the outputs of convolutions and batch norms, which the backward pass needs.
        """
        spec = self.spec
        summary = summarize(
            self.network,
            spec.model,
            num_classes=spec.num_classes,
            image_size=config.image_size,
            in_channels=spec.in_channels,
        )
        # The summary counts as the published tables do: each output twice, of four bytes.
        return summary.activations_bytes // 8 * (4 if config.precision == "fp32" else 2)

    def seconds_to_evaluate(self, num_images: int) -> float:
        """Return the time of one image in validation, of so many at a time."""
        images = self.batch.images[:num_images].numpy()
        started = time.perf_counter()
        TrainedModel(self.network, self.spec).logits(images)
        return (time.perf_counter() - started) / len(images)

    def _step(self, config: ResolvedConfig) -> TrainingStep:
        step = TrainingStep(self.network, self.spec, config)
        step.begin()
        return step

    def _take(self, step: TrainingStep, batch: Batch) -> None:
        step(batch, 0, lambda _: None)
        if step.fabric.device.type == "cuda":
            torch.cuda.synchronize()
