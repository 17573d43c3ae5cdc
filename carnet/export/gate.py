"""The gate: an exported model is judged with the edge's own code, on images held back from training, or not at all."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from carnet import metrics
from carnet.calibration import CrossFitted, cross_fit
from carnet.edge.classifier import Classifier
from carnet.evaluation import EvaluationReport
from carnet.machine import take_turns
from carnet.models.device import on_threads
from carnet.models.weights import TrainedModel

SAME_NETWORK = 1e-3
"""How much a probability may differ where nothing was made coarser on purpose."""


@dataclass(frozen=True)
class Judgement:
    """An exported model beside the one it was made from, on the same images.

    Attributes:
        bench: what PyTorch answers.
        edge: what the file answers, decoded and computed as it will be where it is used.
        leaked: how many of the images are training images; they judge nothing, and are left out of all below.
        agreement: share of the images that both name alike.
        difference: top-1 of the file less PyTorch's.
        interval: of the difference, 95 %, paired.
        largest_difference: of any probability of any image.
        crossed: temperature and threshold, judged on images they were not chosen on.
        latency_ms: of one image on one thread, from pixels; median.
        latency_p95_ms: the same, 95th percentile.
        bench_latency_ms: the median in PyTorch, on one thread, in turns with the file.
        size_bytes: of the file.
        max_drop: accuracy that may be lost, in points.
        is_quantized: whether it computes in eight bits.
    """

    bench: EvaluationReport
    edge: EvaluationReport
    leaked: int
    agreement: float
    difference: float
    interval: tuple[float, float]
    largest_difference: float
    crossed: CrossFitted
    latency_ms: float
    latency_p95_ms: float
    bench_latency_ms: float
    size_bytes: int
    max_drop: float
    is_quantized: bool

    @property
    def problem(self) -> str:
        """Why the file must not be used; empty where it may."""
        if -100 * self.difference > self.max_drop:
            return (
                f"top-1 falls by {-100 * self.difference:.1f} points, from {100 * self.bench.top1:.1f} to "
                f"{100 * self.edge.top1:.1f} %, and --max-drop allows {self.max_drop:g}"
            )
        if not self.is_quantized and self.largest_difference > SAME_NETWORK:
            return (
                f"probabilities differ from PyTorch's by up to {self.largest_difference:.4f}; "
                f"the same network differs by less than {SAME_NETWORK:g}"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """The numbers, in plain values."""
        return {
            "num_images": self.edge.num_images,
            "num_leaked_left_out": self.leaked,
            "top1": self.edge.top1,
            "top1_ci95": list(self.edge.top1_ci95),
            "top5": self.edge.top5,
            "top1_pytorch": self.bench.top1,
            "top1_agreement": self.agreement,
            "top1_difference": self.difference,
            "top1_difference_ci95": list(self.interval),
            "largest_probability_difference": self.largest_difference,
            **self.crossed.to_json(),
            "latency_ms": self.latency_ms,
            "latency_p95_ms": self.latency_p95_ms,
            "latency_ms_pytorch": self.bench_latency_ms,
            "size_bytes": self.size_bytes,
            "max_drop": self.max_drop,
            "problem": self.problem,
        }


def judge(
    bench: EvaluationReport,
    edge: EvaluationReport,
    *,
    model: TrainedModel,
    classifier: Classifier,
    size_bytes: int,
    max_drop: float,
    is_quantized: bool,
) -> Judgement:
    """Compare two reports on the same images, and time what made them.

    Args:
        bench: PyTorch's, knowing which images are training images; at least two are none.
        edge: the file's.
        model: what was exported.
        classifier: the file; on one thread.
        size_bytes: of the file.
        max_drop: accuracy that may be lost, in points.
        is_quantized: whether the file computes in eight bits.
    """
    leaked = bench.leaked
    bench, edge = bench.without(leaked), edge.without(leaked)
    difference, low, high = metrics.paired_difference(edge.correct, bench.correct)
    image = np.zeros((1, model.spec.image_size, model.spec.image_size, model.spec.in_channels), np.uint8)
    with on_threads(1):
        calls = {"edge": partial(classifier.logits, image), "bench": partial(model.logits, image)}
        milliseconds = take_turns(calls, rounds=100)
    return Judgement(
        bench=bench,
        edge=edge,
        leaked=int(leaked.sum()),
        agreement=float((bench.predictions == edge.predictions).mean()),
        difference=difference,
        interval=(low, high),
        largest_difference=float(np.abs(bench.probabilities - edge.probabilities).max()),
        crossed=cross_fit(edge.logits, edge.labels),
        latency_ms=statistics.median(milliseconds["edge"]),
        latency_p95_ms=float(np.percentile(milliseconds["edge"], 95)),
        bench_latency_ms=statistics.median(milliseconds["bench"]),
        size_bytes=size_bytes,
        max_drop=max_drop,
        is_quantized=is_quantized,
    )
