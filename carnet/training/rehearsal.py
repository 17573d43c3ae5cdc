"""Real steps on a real batch before the first one, to learn what a choice costs on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from carnet.config import TrainingConfig
from carnet.models.summary import summarize
from carnet.models.weights import TrainedModel
from carnet.spec import ModelSpec
from carnet.training.depthwise import num_depthwise
from carnet.training.distributed import Processes
from carnet.training.memory import PeakMemory
from carnet.training.pipeline import Batch, Feed
from carnet.training.resolve import Plan
from carnet.training.schedule import first_side, first_view, last_view
from carnet.training.step import TrainingStep, arrange


@dataclass
class Rehearsal:
    """Steps on the first batch of the run; `undo` puts the weights back.

    Attributes:
        batch: with images of full side.
        first_batch: as the run begins, which may be with smaller ones.
        seconds_to_load: what one thread takes to prepare one image.
        is_decoded: whether that only means to change it.
        micro_batch: what a step came down to where a GPU's memory ran out; 0: it never did.
    """

    network: nn.Module
    spec: ModelSpec
    config: TrainingConfig
    batch: Batch
    first_batch: Batch
    seconds_to_load: float
    is_decoded: bool
    weights: Mapping[str, Tensor]
    micro_batch: int = 0

    @classmethod
    def begin(cls, network: nn.Module, spec: ModelSpec, config: TrainingConfig, feed: Feed) -> Rehearsal:
        """Read the first batch, and remember the weights."""
        started = time.perf_counter()
        batch = next(feed.read(0, 0, workers=0, view=last_view(config)))
        seconds = (time.perf_counter() - started) / len(batch)
        grows = first_side(config) < config.image_size
        first_batch = next(feed.read(0, 0, workers=0, view=first_view(config))) if grows else batch
        weights = copy.deepcopy(network.state_dict())
        return cls(network, spec, config, batch, first_batch, seconds, feed.is_decoded, weights)

    @classmethod
    def on_random_pixels(
        cls, network: nn.Module, spec: ModelSpec, config: TrainingConfig, num_images: int
    ) -> Rehearsal:
        """Without images, before they are decoded: a batch of random pixels and labels."""
        size = config.image_size
        pixels = np.random.default_rng(0).integers(0, 256, (num_images, size, size, spec.in_channels), np.uint8)
        batch = Batch(torch.from_numpy(pixels), torch.arange(num_images) % spec.num_classes)
        return cls(network, spec, config, batch, batch, 0.0, True, copy.deepcopy(network.state_dict()))

    @property
    def has_depthwise(self) -> bool:
        """Whether the network has convolutions whose gradient can be computed our way."""
        return num_depthwise(self.network) > 0

    def undo(self) -> None:
        """Weights, buffers and gradients as they were, and no longer on a GPU, where another process may train."""
        self.network.load_state_dict(self.weights)
        self.network.zero_grad()
        self.network.train()
        self.network.cpu()

    def seconds(self, plan: Plan, *, first: bool = False, limit: float = 4.0) -> float:
        """Median time of a step, after one to warm up (which compiles, if the plan says so).

        Args:
            plan: what to measure.
            first: with images as the run begins, instead of those of full side.
            limit: seconds after which no more steps are measured.
        """
        step, batch = self._step(plan), self.first_batch if first else self.batch
        self._take(step, batch)
        times: list[float] = []
        while len(times) < 5 and (sum(times) < limit or len(times) < 2):
            started = time.perf_counter()
            self._take(step, batch)
            times.append(time.perf_counter() - started)
        if step.micro_batch < plan.micro_batch:
            self.micro_batch = step.micro_batch
        return float(np.median(times))

    def seconds_in_turns(self, plans: Mapping[str, Plan], num_images: int, *, rounds: int = 3) -> dict[str, float]:
        """Median time of a step by each of several plans, in turns, so that what disturbs one disturbs all.

        Args:
            plans: what to compare, by name.
            num_images: of the batch, at most all.
            rounds: steps of each that are timed, each after one that is not.
        """
        batch = self.batch if num_images >= len(self.batch) else next(self.batch.parts(num_images))
        steps = {name: self._step(replace(plan, micro_batch=num_images)) for name, plan in plans.items()}
        times: dict[str, list[float]] = {name: [] for name in plans}
        for _ in range(rounds):
            for name, step in steps.items():
                arrange(self.network, plans[name])
                self._take(step, batch)
                started = time.perf_counter()
                self._take(step, batch)
                times[name].append(time.perf_counter() - started)
        return {name: float(np.median(seconds)) for name, seconds in times.items()}

    def peak_bytes(self, plan: Plan, num_images: int) -> int:
        """The most anonymous memory during a step of so many images."""
        step = self._step(replace(plan, compile=False))
        part = Batch(self.batch.images[:num_images], self.batch.labels[:num_images])
        with PeakMemory() as memory:
            step(part, 0, lambda _: None)
        return memory.peak_bytes

    def least_bytes(self, plan: Plan) -> int:
        """What a step holds of one image at least: the outputs of convolutions and batch norms, for the way back."""
        spec = self.spec
        summary = summarize(
            self.network,
            spec.model,
            num_classes=spec.num_classes,
            image_size=self.config.image_size,
            in_channels=spec.in_channels,
        )
        # Counted there as the published tables do: each output twice, of four bytes.
        return summary.activations_bytes // 8 * (4 if plan.precision == "fp32" else 2)

    def seconds_to_judge(self, num_images: int) -> float:
        """Time of one image in validation, of so many at a time."""
        images = self.batch.images[:num_images].numpy()
        started = time.perf_counter()
        TrainedModel(self.network, self.spec).logits(images)
        return (time.perf_counter() - started) / len(images)

    def _step(self, plan: Plan) -> TrainingStep:
        self.network.train()
        processes = Processes()
        fabric = processes.fabric(plan, [])
        return TrainingStep(self.network, self.spec, self.config, plan=plan, processes=processes, fabric=fabric)

    def _take(self, step: TrainingStep, batch: Batch) -> None:
        step(batch, 0, lambda _: None)
        if step.fabric.device.type == "cuda":
            torch.cuda.synchronize()
