"""Real steps on a real batch before the first one, to learn what a choice costs on this machine."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from carnet.config import ResolvedConfig
from carnet.models.summary import summarize
from carnet.models.weights import TrainedModel, on_threads
from carnet.prefetch import available_cores
from carnet.spec import ModelSpec
from carnet.training import measurements, memory
from carnet.training.depthwise import num_depthwise
from carnet.training.measurements import MatrixRates, Numbers, kept_matrix_rates, physical_cores
from carnet.training.pipeline import Batch
from carnet.training.step import TrainingStep, arrange, compiler_problem, end_compiling


class Rehearsal:
    """Measures this machine by steps on a batch: an `autotune.Measure`. `undo` puts the weights back.

    Args:
        network: which is trained.
        spec: of its images.
        batch: with images of full side.
        initial_batch: as the run begins, which may be with smaller ones.
        started: when the command began, by `time.monotonic`.
        seconds_to_prepare: what one thread takes to prepare one image.
        is_decoded: whether that only means to change it.
    """

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
        self.cores, self.physical_cores = available_cores(), physical_cores()
        self.has_depthwise = num_depthwise(network) > 0

    @classmethod
    def on_random_pixels(cls, network: nn.Module, spec: ModelSpec, num_images: int, *, started: float) -> Rehearsal:
        """Without images, before they are decoded: a batch of random pixels and labels."""
        shape = (num_images, spec.image_size, spec.image_size, spec.in_channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        batch = Batch(torch.from_numpy(pixels), torch.arange(num_images) % spec.num_classes)
        return cls(network, spec, batch, batch, started=started)

    def undo(self) -> None:
        """Weights, buffers and gradients as they were, and no longer on a GPU, where another process may train."""
        self.network.load_state_dict(self.weights)
        self.network.zero_grad()
        self.network.train()
        self.network.cpu()

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self.started

    def used_bytes(self, *, settled: bool = False) -> int:
        """Anonymous memory of this process; `settled`: once what is free was given back."""
        if settled:
            gc.collect()
            memory.trim_memory()
        return memory.anonymous_bytes()

    def free_bytes(self) -> int:
        """Memory that may still be taken."""
        return memory.free_bytes()

    def keep_freed_memory(self) -> bool:
        """Let freed memory stay with the process from now on; whether that is possible."""
        return memory.keep_freed_memory()

    def hold_memory_below(self, limit: str, device: str) -> None:
        """Take no more of a device's memory from now on."""
        memory.hold_memory_below(limit, device)

    def compiler_problem(self, device: str) -> str:
        """Why compiling cannot work here: a phrase; empty where nothing is known."""
        return compiler_problem(device)

    def matrix_rates(self, config: ResolvedConfig) -> MatrixRates:
        """Rates of matrix products, as they were measured first."""
        with on_threads(config.threads):
            return kept_matrix_rates(config.device)

    def recall(self) -> Mapping[str, Numbers]:
        """What was measured on this machine before, by its name."""
        return measurements.recall()

    def remember(self, what: str, numbers: Numbers) -> None:
        """Keep a measurement."""
        measurements.remember(what, numbers)

    def seconds(self, config: ResolvedConfig, *, initial: bool = False) -> float:
        """Median time of a step, after one to warm up (which compiles, if the config says so).

        Args:
            config: what to measure.
            initial: with images as the run begins, instead of those of full side.
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

    def seconds_in_turns(self, configs: Mapping[str, ResolvedConfig], num_images: int) -> dict[str, float]:
        """Median time of a step in each of several ways, in turns, so that what disturbs one disturbs all.

        Args:
            configs: what to compare, by name.
            num_images: of the batch, at most all.
        """
        batch = self.batch if num_images >= len(self.batch) else next(self.batch.parts(num_images))
        times: dict[str, list[float]] = {name: [] for name in configs}
        try:
            steps = {name: self._step(replace(config, micro_batch=num_images)) for name, config in configs.items()}
            for _ in range(_ROUNDS):
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
        """The most anonymous memory during a step of so many images."""
        step = self._step(replace(config, compile=False))
        part = Batch(self.batch.images[:num_images], self.batch.labels[:num_images])
        with memory.PeakMemory() as peak:
            step(part, 0, lambda _: None)
        return peak.peak_bytes

    def least_bytes(self, config: ResolvedConfig) -> int:
        """What a step holds of one image at least: the outputs of convolutions and batch norms, for the way back."""
        spec = self.spec
        summary = summarize(
            self.network,
            spec.model,
            num_classes=spec.num_classes,
            image_size=config.image_size,
            in_channels=spec.in_channels,
        )
        # Counted there as the published tables do: each output twice, of four bytes.
        return summary.activations_bytes // 8 * (4 if config.precision == "fp32" else 2)

    def seconds_to_evaluate(self, num_images: int) -> float:
        """Time of one image in validation, of so many at a time."""
        images = self.batch.images[:num_images].numpy()
        started = time.perf_counter()
        TrainedModel(self.network, self.spec).logits(images)
        return (time.perf_counter() - started) / len(images)

    def _step(self, config: ResolvedConfig) -> TrainingStep:
        self.network.train()
        return TrainingStep(self.network, self.spec, config)

    def _take(self, step: TrainingStep, batch: Batch) -> None:
        step(batch, 0, lambda _: None)
        if step.fabric.device.type == "cuda":
            torch.cuda.synchronize()


_ROUNDS = 3
"""Steps of each way that are timed in turns, each after one that is not."""
_MOST_SECONDS = 4.0
"""After which no more steps are measured."""
