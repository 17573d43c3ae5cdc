"""What every converter takes, a network from pixels to calibrated probabilities, and how its result compares."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from carnet import Classifier
from carnet.evaluation import select_of_run
from carnet.machine import take_turns
from carnet.models.weights import TrainedModel, load
from carnet.run_folder import RunFolder

Answer = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
"""One image, uint8 (1, S, S, C) -> probabilities (1, classes)."""


class FromPixels(nn.Module):
    """Pixels from 0 to 255, float32 (1, C, S, S), red first -> calibrated probabilities (1, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: TrainedModel, temperature: float) -> None:
        super().__init__()
        # Converters see layouts other than this one as steps of the network.
        self.network = trained.network.to(memory_format=torch.contiguous_format)
        self.temperature = temperature
        mean, std = (255 * torch.tensor(values)[:, None, None] for values in (trained.spec.mean, trained.spec.std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify one image."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return (logits / self.temperature).softmax(dim=1)


class Job:
    """What the command line asks for.

    Attributes:
        exported: the model that `carnet export RUN` has written.
        network: the same network for a converter.
        example: an image as `network` takes it.
        output: where the result goes.
    """

    def __init__(self, description: str | None) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("run", type=Path, help="a run that carnet export has exported to model.onnx")
        parser.add_argument("output", type=Path, help="file or folder that the converter writes")
        parser.add_argument("--data", type=Path, help="images of the run, if they have moved")
        self._words = parser.parse_args()
        self.output: Path = self._words.output
        if not (self._words.run / "model.onnx").is_file():
            parser.error(f"{self._words.run} has no model.onnx; run carnet export {self._words.run} first")
        self.exported = Classifier(self._words.run / "model.onnx", threads=1)
        spec = self.exported.spec
        if spec.in_channels != 3:
            parser.error(f"{self._words.run} takes images of {spec.in_channels} channels; these recipes are for three")
        self.network = FromPixels(load(self._words.run), self.exported.document["temperature"]).eval()
        self.example = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size)

    def compare(self, answer: Answer, rounds: int = 200) -> None:
        """Print how a converted model compares with the exported one on held-out images, one image at a time."""
        held_out = select_of_run(RunFolder.open(self._words.run), "valid", self.exported.classes, self._words.data)
        report = partial(held_out.evaluate, spec=self.exported.spec, batch_size=1, skip_unreadable=True)
        ours, theirs = report(self.exported.calibrated_logits), report(lambda image: np.log(answer(image) + 1e-30))
        side, channels = self.exported.spec.image_size, self.exported.spec.in_channels
        image = np.random.default_rng(0).integers(0, 256, (1, side, side, channels), np.uint8)
        times = take_turns({"onnx": partial(self.exported.logits, image), "converted": partial(answer, image)}, rounds)
        numbers = {
            "num_images": ours.num_images,
            "top1": theirs.top1,
            "top1_onnx": ours.top1,
            "top1_agreement": float((ours.predictions == theirs.predictions).mean()),
            "largest_probability_difference": float(np.abs(ours.probabilities - theirs.probabilities).max()),
            "latency_ms": statistics.median(times["converted"]),
            "latency_ms_onnx": statistics.median(times["onnx"]),
        }
        print(json.dumps(numbers))
