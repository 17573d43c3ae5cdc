"""Eight-bit arithmetic by ONNX Runtime's static quantisation: try several ways, and take what is small, fast and exact.

Activations are uint8, weights int8 with seven bits: with eight, processors without VNNI add pairs of products in 16
bits, which overflow. Several ways to find the ranges are tried, and the most sensitive layers stay in float32. All of
that is decided on training images; the gate evaluates on others.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
"""Operators that gain from quantisation."""
MOST_FLOAT_LAYERS = 6
MAX_ERROR = 0.05
"""Largest acceptable error of the logits: root mean square, as a share of their spread."""
_BATCH = 32


@dataclass(frozen=True)
class Variant:
    """One way to quantise."""

    per_channel: bool
    """Whether each output channel of a weight has its own scale."""
    moving_average: bool
    """Whether ranges are averages over batches, instead of the extreme values."""
    float_layers: tuple[str, ...] = ()
    """Nodes that stay in float32."""

    def __str__(self) -> str:
        scales = "per channel" if self.per_channel else "per tensor"
        ranges = "moving average" if self.moving_average else "min-max"
        kept = f", {len(self.float_layers)} layers in float" if self.float_layers else ""
        return f"{scales}, {ranges}{kept}"


@dataclass(frozen=True)
class Tried:
    """A variant and its result.

    Attributes:
        error: root mean square of the logits' error, as a share of their spread.
        latency_ms: median time for one image on one thread.
    """

    variant: Variant
    graph: Graph
    error: float
    latency_ms: float = 0.0


@dataclass(frozen=True)
class Quantized:
    """The outcome.

    Attributes:
        chosen: the best of the variants.
        tried: all variants.
        sensitivity: of each layer, the error if it alone is quantised, the largest first.
        float_latency_ms: of the network in float32, measured in turns with the variants.
    """

    chosen: Tried
    tried: tuple[Tried, ...]
    sensitivity: tuple[tuple[str, float], ...]
    float_latency_ms: float


def quantize(graph: Graph, images: Images, *, progress: OnProgress = lambda done, total: None) -> Quantized:
    """Find the fastest variant whose logits stay close to those of float32; where none do, the closest one.

    Args:
        graph: the network in float32.
        images: training images, uint8 (N, S, S, C); half of them give the ranges, the others measure the error.
        progress: called with the number of variants done, and about how many there are.
    """
    calibrating, measuring = images[::2], images[1::2]
    expected = _logits(graph.model, measuring)
    layers = [node.name for node in graph.model.graph.node if node.op_type in QUANTIZED]
    total, done = len(layers) + 4 + MOST_FLOAT_LAYERS, 0

    def attempt(per_channel: bool, moving_average: bool, float_layers: tuple[str, ...] = ()) -> Tried:
        nonlocal done
        variant = Variant(per_channel, moving_average, float_layers)
        model = _quantized(graph.model, calibrating, variant)
        done += 1
        progress(min(done, total), total)
        return Tried(variant, Graph(model, graph.map_centres), relative_error(_logits(model, measuring), expected))

    errors = {}
    for layer in layers:
        others = tuple(name for name in layers if name != layer)
        errors[layer] = attempt(True, False, others).error
    sensitivity = sorted(errors.items(), key=lambda pair: -pair[1])
    tried = [attempt(*flags) for flags in ((True, False), (True, True), (False, False), (False, True))]
    best = min(tried, key=lambda one: one.error).variant
    for number in range(1, min(MOST_FLOAT_LAYERS, len(layers) - 1) + 1):
        kept = tuple(name for name, _ in sensitivity[:number])
        tried.append(attempt(best.per_channel, best.moving_average, kept))
    models = (graph.model, *(one.graph.model for one in tried))
    sessions = [start_session(serialized(model), threads=1) for model in models]
    calls = {place: partial(session.run, None, {PIXELS: images[:1]}) for place, session in enumerate(sessions)}
    float_latency, *latencies = (statistics.median(times) for times in take_turns(calls, rounds=60).values())
    timed = tuple(replace(one, latency_ms=latency) for one, latency in zip(tried, latencies, strict=True))
    good = [one for one in timed if one.error <= MAX_ERROR]
    chosen = min(good, key=lambda one: one.latency_ms) if good else min(timed, key=lambda one: one.error)
    progress(total, total)
    return Quantized(chosen, timed, tuple(sensitivity), float_latency)


def relative_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the root mean square error as a share of the logits' spread within an image: (N, classes) twice."""
    # Softmax ignores what is added to all logits of an image alike.
    centred, wanted = (values - values.mean(axis=1, keepdims=True) for values in (logits, expected))
    return float(np.sqrt(((centred - wanted) ** 2).mean() / (wanted**2).mean()))


def _batches(images: Images) -> Iterator[dict[str, Images]]:
    return ({PIXELS: images[start : start + _BATCH]} for start in range(0, len(images), _BATCH))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self._batches = _batches(images)

    def get_next(self) -> dict[str, Images] | None:
        return next(self._batches, None)


def _quantized(model: ModelProto, images: Images, variant: Variant) -> ModelProto:
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "model.onnx", Path(folder) / "quantized.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            target,
            _Reader(images),
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
    return np.concatenate([session.run([LOGITS], batch)[0] for batch in _batches(images)])
