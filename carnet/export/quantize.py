"""Eight-bit arithmetic, by ONNX Runtime's static quantisation: what is small and fast, chosen by what it does.

Activations are uint8, weights int8 with seven bits: with eight, processors without VNNI add up pairs of products in 16
bits, which overflow. Several ways to find the ranges are tried, and layers that suffer most stay in float32. All of
that is decided on training images; the gate judges on others.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from carnet.edge.runtimes import LOGITS, PIXELS, start_session
from carnet.export.graph import Graph, quiet, serialized
from carnet.machine import take_turns
from carnet.preprocess import Images
from carnet.text import OnProgress

QUANTIZED = ("Conv", "Gemm", "MatMul")
"""Operators that are worth it."""
MOST_FLOAT_LAYERS = 6
MAX_ERROR = 0.05
"""Of the logits, root mean square, as a share of their spread."""
_BATCH = 32


@dataclass(frozen=True)
class Variant:
    """One way to quantise."""

    per_channel: bool
    """Whether each output channel of a weight has a scale of its own."""
    moving_average: bool
    """Whether ranges are averages over batches, instead of the outermost values."""
    float_layers: tuple[str, ...] = ()
    """Nodes that stay in float32."""

    def __str__(self) -> str:
        scales = "per channel" if self.per_channel else "per tensor"
        ranges = "moving average" if self.moving_average else "min-max"
        kept = f", {len(self.float_layers)} layers in float" if self.float_layers else ""
        return f"{scales}, {ranges}{kept}"


@dataclass(frozen=True)
class Tried:
    """A variant and what it does.

    Attributes:
        error: root mean square of its logits' error, as a share of the logits' spread.
        latency_ms: of one image, one thread; the median.
    """

    variant: Variant
    graph: Graph
    error: float
    latency_ms: float


@dataclass(frozen=True)
class Quantized:
    """The outcome.

    Attributes:
        chosen: what is taken.
        tried: all that was.
        sensitivity: of each layer, the error where it alone is quantised, the largest first.
        float_latency_ms: of the network in float32, measured in turns with the others.
    """

    chosen: Tried
    tried: tuple[Tried, ...]
    sensitivity: tuple[tuple[str, float], ...]
    float_latency_ms: float


def quantize(graph: Graph, images: Images, *, progress: OnProgress | None = None) -> Quantized:
    """Find the fastest variant whose logits stay close to those of float32; where none do, the closest one.

    Args:
        graph: in float32.
        images: uint8 (N, S, S, C), of training; half of them give the ranges, the others judge.
        progress: told how many variants are done, of about how many.
    """
    calibrating, judging = images[::2], images[1::2]
    expected = _logits(graph.model, judging)
    layers = [node.name for node in graph.model.graph.node if node.op_type in QUANTIZED]
    total, done = len(layers) + 4 + MOST_FLOAT_LAYERS, 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total)

    def error_of(variant: Variant) -> tuple[ModelProto, float]:
        model = _quantized(graph.model, calibrating, variant)
        advance()
        return model, relative_error(_logits(model, judging), expected)

    sensitivity = []
    for layer in layers:
        others = tuple(name for name in layers if name != layer)
        sensitivity.append((layer, error_of(Variant(True, False, others))[1]))
    sensitivity.sort(key=lambda pair: -pair[1])
    candidates = []
    for per_channel, moving_average in ((True, False), (True, True), (False, False), (False, True)):
        variant = Variant(per_channel, moving_average)
        candidates.append((variant, *error_of(variant)))
    best = min(candidates, key=lambda candidate: candidate[2])[0]
    for number in range(1, min(MOST_FLOAT_LAYERS, len(layers) - 1) + 1):
        kept = tuple(name for name, _ in sensitivity[:number])
        variant = Variant(best.per_channel, best.moving_average, kept)
        candidates.append((variant, *error_of(variant)))
    tried, float_latency = _timed(graph, candidates, images[:1])
    good = [one for one in tried if one.error <= MAX_ERROR]
    chosen = min(good, key=lambda one: one.latency_ms) if good else min(tried, key=lambda one: one.error)
    if progress is not None:
        progress(total, total)
    return Quantized(chosen, tried, tuple(sensitivity), float_latency)


def _timed(
    graph: Graph, candidates: Sequence[tuple[Variant, ModelProto, float]], image: Images
) -> tuple[tuple[Tried, ...], float]:
    """Variants with their errors, timed in turns with each other and with the graph in float32, whose time is last."""
    models = (graph.model, *(model for _, model, _ in candidates))
    sessions = [start_session(serialized(model), threads=1) for model in models]
    calls = {place: partial(session.run, None, {PIXELS: image}) for place, session in enumerate(sessions)}
    float_latency, *latencies = (statistics.median(times) for times in take_turns(calls, rounds=60).values())
    tried = tuple(
        Tried(variant, Graph(model, graph.map_centres), error, latency)
        for (variant, model, error), latency in zip(candidates, latencies, strict=True)
    )
    return tried, float_latency


def relative_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Root mean square of the error, as a share of the logits' own spread within an image: (N, classes) twice"""
    # What is added to all logits of an image alike changes no answer.
    centred, wanted = (values - values.mean(axis=1, keepdims=True) for values in (logits, expected))
    return float(np.sqrt(((centred - wanted) ** 2).mean() / (wanted**2).mean()))


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self._batches: Iterator[Images] = iter(
            [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        )

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._batches, None)
        return None if batch is None else {PIXELS: batch}


def _quantized(model: ModelProto, images: Images, variant: Variant) -> ModelProto:
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "model.onnx", Path(folder) / "quantized.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            target,
            _Batches(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=list(variant.float_layers),
            per_channel=variant.per_channel,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": variant.moving_average, "WeightSymmetric": True},
        )
        quantized = onnx.load(target)
    quantized.producer_name, quantized.producer_version = model.producer_name, ""
    quantized.ir_version = model.ir_version
    del quantized.metadata_props[:], quantized.graph.value_info[:]
    return quantized


def _logits(model: ModelProto, images: Images) -> NDArray[np.float32]:
    session = start_session(serialized(model), threads=0)
    batches = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    return np.concatenate([session.run([LOGITS], {PIXELS: batch})[0] for batch in batches])
