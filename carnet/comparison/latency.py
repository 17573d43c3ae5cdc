"""How fast networks answer: all of them in turns on one machine, from the pixels of an image to its answer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from carnet.edge.model_file import ModelFile, is_model_file
from carnet.edge.runtimes import Runtime, open_runtime
from carnet.errors import ConfigError
from carnet.machine import available_cores, instruction_set, processor_name, take_turns, versions
from carnet.preprocess import Images
from carnet.spec import ModelSpec
from carnet.text import Progress, Silent

if TYPE_CHECKING:
    from carnet.export.graph import Graph
    from carnet.models.weights import TrainedModel

PYTORCH = "pytorch"
RUNTIMES = (PYTORCH, *get_args(Runtime))

Answer = Callable[[Images], object]
"""uint8 images (N, S, S, C) -> whatever the runtime answers."""
ToGraph = Callable[["TrainedModel"], "Graph"]
"""Writes a trained network as ONNX."""


@dataclass(frozen=True)
class Timing:
    """How long one network in one runtime takes for a batch.

    Attributes:
        model: as it was named.
        runtime: one of `RUNTIMES`.
        image_size: side of an image, in pixels.
        batch_size: images at a time.
        milliseconds: of a whole batch, one number for each turn.
    """

    model: str
    runtime: str
    image_size: int
    batch_size: int
    milliseconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Half of the turns took less."""
        return statistics.median(self.milliseconds)

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return 1000 * self.batch_size / self.median_ms

    def percentile(self, share: float) -> float:
        """Milliseconds below which this share of the turns lies, in per cent."""
        return float(np.percentile(self.milliseconds, share))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model,
            "runtime": self.runtime,
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "median_ms": self.median_ms,
            "p25_ms": self.percentile(25),
            "p75_ms": self.percentile(75),
            "p95_ms": self.percentile(95),
            "images_per_second": self.images_per_second,
        }


@dataclass(frozen=True)
class Benchmark:
    """What was measured, on what.

    Attributes:
        timings: in the order in which models, runtimes and batches were named.
        threads: of the arithmetic.
        rounds: turns of each.
        device: where PyTorch computes: cpu, cuda or mps.
        device_name: what its maker calls it.
        matrix_gflops: rates of matrix products there in fp32 and bf16; None where PyTorch took no part.
    """

    timings: tuple[Timing, ...]
    threads: int
    rounds: int
    device: str
    device_name: str
    matrix_gflops: dict[str, float] | None = None

    def times_the_first(self, timing: Timing) -> float:
        """Its median, as a multiple of that of the first with batches as large."""
        first = next(other for other in self.timings if other.batch_size == timing.batch_size)
        return timing.median_ms / first.median_ms

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        timings = [timing.to_json() | {"times_the_first": self.times_the_first(timing)} for timing in self.timings]
        return {
            "machine": {
                "processor": processor_name(),
                "instruction_set": instruction_set(),
                "matrix_gflops": self.matrix_gflops,
                "cores": available_cores(),
                "versions": versions("onnxruntime", "openvino"),
            },
            "threads": self.threads,
            "rounds": self.rounds,
            "device": self.device,
            "device_name": self.device_name,
            "timings": timings,
        }


def benchmark(
    models: Sequence[str],
    *,
    runtimes: Sequence[str] = ("onnxruntime", PYTORCH),
    batch_sizes: Sequence[int] = (1,),
    threads: int = 1,
    rounds: int = 50,
    device: str = "cpu",
    num_classes: int = 100,
    progress: Progress | None = None,
) -> Benchmark:
    """Time networks, in turns, so that other work on the machine slows all of them down alike.

    Every turn is counted right after one that is not. Networks that are named have random weights, which do not change
    what there is to compute.

    Args:
        models: names of networks, NAME or NAME@SIZE; folders of runs; or model files, which PyTorch does not run.
        runtimes: some of `RUNTIMES`; networks and runs are exported for those that are not PyTorch.
        batch_sizes: images at a time.
        threads: of the arithmetic.
        rounds: turns of each.
        device: where PyTorch computes: cpu, cuda, mps or auto; the others take the processor.
        num_classes: of networks that are named.
        progress: shown what happens; None: nobody.

    Raises:
        ConfigError: unknown network, runtime or device, or a number below 1.
        RunError: if a folder holds no model.
        ModelFileError: if a file is damaged or none of ours.
    """
    _check(models, runtimes, {"threads": threads, "rounds": rounds, "batch-sizes": min(batch_sizes, default=0)})
    progress = progress or Silent()
    answers = _answers(models, runtimes, threads=threads, device=device, num_classes=num_classes, progress=progress)
    calls: dict[tuple[str, str, int, int], Callable[[], object]] = {}
    for (name, runtime), (spec, answer) in answers.items():
        for size in dict.fromkeys(batch_sizes):
            shape = (size, spec.image_size, spec.image_size, spec.in_channels)
            images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            calls[name, runtime, spec.image_size, size] = partial(answer, images)
    with_pytorch = any(runtime == PYTORCH for _, runtime in answers)
    where = _device(device) if with_pytorch else ("cpu", processor_name())
    with _pytorch_threads(threads) if with_pytorch else nullcontext():
        measured = take_turns(calls, rounds, partial(progress.bar, "taking turns"))
        rates = _matrix_gflops(where[0]) if with_pytorch else None
    timings = tuple(Timing(*kind, tuple(times)) for kind, times in measured.items())
    return Benchmark(timings, threads, rounds, *where, rates)


def _answers(
    models: Sequence[str],
    runtimes: Sequence[str],
    *,
    threads: int,
    device: str,
    num_classes: int,
    progress: Progress,
) -> dict[tuple[str, str], tuple[ModelSpec, Answer]]:
    """What is to be timed, by model and runtime."""
    answers: dict[tuple[str, str], tuple[ModelSpec, Answer]] = {}
    for name in dict.fromkeys(models):
        progress.say(f"Opens {name} …")
        opened = _open(name, num_classes, device)
        for runtime in dict.fromkeys(runtimes):
            if runtime != PYTORCH or not isinstance(opened, ModelFile):
                answers[name, runtime] = opened.spec, answerer(opened, runtime, threads)
    if not answers:
        raise ConfigError("PyTorch does not run model files; add --runtimes onnxruntime, or name a network or a run")
    return answers


def answerer(model: TrainedModel | ModelFile, runtime: str, threads: int, to_graph: ToGraph | None = None) -> Answer:
    """What a model answers in a runtime; a trained one is exported for those that are not PyTorch, by `to_graph`.

    Raises:
        ModelError: if it cannot be exported.
    """
    if isinstance(model, ModelFile):
        return open_runtime(model, cast(Runtime, runtime), threads)
    if runtime == PYTORCH:
        return model.logits
    if to_graph is None:
        from carnet.export import graph

        to_graph = graph.to_graph
    file = ModelFile.from_bytes(to_graph(model).sealed(model.spec.to_json()))
    return answerer(file, runtime, threads)


def latencies_in_turns(
    models: Mapping[str, TrainedModel], progress: Progress, to_graph: ToGraph | None = None
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Milliseconds of an image on one thread, median and 95th percentile, all in turns; and what is missing.

    Args:
        models: trained ones, by their labels.
        progress: shown how far that is.
        to_graph: exports them; None: as `carnet export` does.
    """
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    notes = []
    for label, model in models.items():
        image = np.zeros((1, model.spec.image_size, model.spec.image_size, model.spec.in_channels), np.uint8)
        for key, runtime, name in (("onnx", "onnxruntime", "ONNX Runtime"), ("pytorch", PYTORCH, "PyTorch")):
            try:
                call = partial(answerer(model, runtime, 1, to_graph), image)
                call()
            # Whatever export and runtime raise for a network that they cannot take.
            except Exception as error:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                notes.append(f"{label} has no latency in {name}: {reason[0]}")
            else:
                calls[label, key] = call
    with _pytorch_threads(1):
        measured = take_turns(calls, rounds=40, progress=partial(progress.bar, "measuring latencies"))
    latencies: dict[str, dict[str, float]] = {label: {} for label in models}
    for (label, key), times in measured.items():
        latencies[label] |= {f"{key}_p{share}": float(np.percentile(times, share)) for share in (50, 95)}
    return latencies, notes


def _check(models: Sequence[str], runtimes: Sequence[str], numbers: dict[str, int]) -> None:
    if not models:
        raise ConfigError("name at least one network, run or model file")
    if not runtimes or not set(runtimes) <= set(RUNTIMES):
        raise ConfigError(f"--runtimes must be some of {', '.join(RUNTIMES)}, got {', '.join(runtimes) or 'none'}")
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"--{name} must be at least 1, got {number}")


def _open(name: str, num_classes: int, device: str) -> TrainedModel | ModelFile:
    path = Path(name)
    if is_model_file(path):
        return ModelFile.read(path)
    from carnet.models.weights import TrainedModel, choose_device, compute_exactly, load

    if path.is_dir():
        return load(path, device=device)
    import torch

    from carnet.models.registry import create_model, default_image_size, normalization
    from carnet.models.summary import check_image_size

    name, _, size = name.partition("@")
    if not (size.isdecimal() or not size):
        raise ConfigError(f"{name}@{size}: the side of an image is a number of pixels")
    network = create_model(name, num_classes=num_classes)
    side = int(size or default_image_size(name))
    check_image_size(network, name, side)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            # Our blocks begin with a factor of zero, behind which a runtime may find nothing to do.
            torch.nn.init.ones_(module.weight)
    mean, std = normalization(network, 3)
    classes = tuple(map(str, range(num_classes)))
    spec = ModelSpec(model=name, classes=classes, image_size=side, mean=mean, std=std)
    compute_exactly()
    network = network.to(choose_device(device)).to(memory_format=torch.channels_last)
    return TrainedModel(network, spec)


def _device(wish: str) -> tuple[str, str]:
    from carnet.models.weights import choose_device, device_name

    device = choose_device(wish)
    return device, device_name(device)


def _matrix_gflops(device: str) -> dict[str, float]:
    from carnet.training.measure import measure_matrix_rates

    return measure_matrix_rates(device, side=512)


def _pytorch_threads(number: int) -> Any:
    from carnet.models.weights import on_threads

    return on_threads(number)
