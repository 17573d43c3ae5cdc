"""Time networks, all of them in turns on one machine, from the pixels of an image to its logits or probabilities."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
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
from carnet.text import Progress, Silent

if TYPE_CHECKING:
    from carnet.export.graph import Graph
    from carnet.models.weights import TrainedModel

PYTORCH = "pytorch"
RUNTIMES = (PYTORCH, *get_args(Runtime))

Answer = Callable[[Images], object]
"""uint8 images (N, S, S, C) -> what the runtime returns."""
ToGraph = Callable[["TrainedModel"], "Graph"]
"""Writes a trained network as ONNX."""
Calls = dict[tuple[str, str, int, int], Callable[[], object]]
"""What is timed, by model, runtime, image size and batch size."""


@dataclass(frozen=True)
class Timing:
    """How long one network in one runtime takes for a batch.

    Attributes:
        model: the model, as it was given.
        runtime: one of `RUNTIMES`.
        image_size: side of an image, in pixels.
        batch_size: images at a time.
        milliseconds: time for a whole batch, one number for each turn.
    """

    model: str
    runtime: str
    image_size: int
    batch_size: int
    milliseconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median of the turns."""
        return statistics.median(self.milliseconds)

    @property
    def images_per_second(self) -> float:
        """Images per second at the median."""
        return 1000 * self.batch_size / self.median_ms

    def percentile(self, percent: float) -> float:
        """Return the milliseconds below which this percentage of the turns lies."""
        return float(np.percentile(self.milliseconds, percent))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {key: value for key, value in vars(self).items() if key != "milliseconds"} | {
            "median_ms": self.median_ms,
            "p25_ms": self.percentile(25),
            "p75_ms": self.percentile(75),
            "p95_ms": self.percentile(95),
            "images_per_second": self.images_per_second,
        }


@dataclass(frozen=True)
class Benchmark:
    """What was measured, and on what.

    Attributes:
        timings: in the order in which models, runtimes and batch sizes were given.
        threads: compute threads.
        rounds: turns of each.
        device: where PyTorch computes: cpu, cuda or mps.
        device_name: its product name.
        matrix_gflops: rates of matrix products on that device in fp32 and bf16; None where PyTorch took no part.
    """

    timings: tuple[Timing, ...]
    threads: int
    rounds: int
    device: str
    device_name: str
    matrix_gflops: dict[str, float] | None = None

    def times_the_first(self, timing: Timing) -> float:
        """Return a timing's median as a multiple of that of the first with the same batch size."""
        first = next(other for other in self.timings if other.batch_size == timing.batch_size)
        return timing.median_ms / first.median_ms

    def to_json(self) -> dict[str, Any]:
        """Return the document that `carnet benchmark --json` prints."""
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
            "timings": [one.to_json() | {"times_the_first": self.times_the_first(one)} for one in self.timings],
        }


def benchmark(
    models: Sequence[str | Path] | str | Path,
    *,
    runtimes: Sequence[str] = ("onnxruntime", PYTORCH),
    batch_sizes: Sequence[int] = (1,),
    threads: int = 1,
    rounds: int = 50,
    device: str = "cpu",
    num_classes: int = 100,
    progress: Progress | None = None,
) -> Benchmark:
    """Time networks in turns, so that other work on the machine slows all of them down alike.

    Each timed call directly follows one that is not timed.

    Args:
        models: names of networks, NAME or NAME@SIZE, which get random weights; run folders; or model files, which
            PyTorch does not run.
        runtimes: some of `RUNTIMES`; networks and runs are exported for those that are not PyTorch.
        batch_sizes: images at a time.
        threads: compute threads.
        rounds: turns of each.
        device: where PyTorch computes: cpu, cuda, mps or auto; the others compute on the processor.
        num_classes: number of outputs of networks that are given by name.
        progress: shows what happens; None: nothing is shown.

    Raises:
        ConfigError: for an unknown network, runtime or device, or a number below 1.
        RunError: if a folder holds no model.
        ModelFileError: if a file is damaged or not ours.
    """
    names = [str(model) for model in ([models] if isinstance(models, str | Path) else models)]
    _check(names, runtimes, {"threads": threads, "rounds": rounds, "batch-sizes": min(batch_sizes, default=0)})
    progress = progress or Silent()
    calls: Calls = {}
    for name in dict.fromkeys(names):
        progress.say(f"Opening {name} …")
        opened = _open(name, num_classes, device)
        for runtime in dict.fromkeys(runtimes):
            calls |= _calls_of(name, opened, runtime, batch_sizes, threads)
    return _measure(calls, threads, rounds, device, progress)


def _calls_of(
    name: str, model: TrainedModel | ModelFile, runtime: str, batch_sizes: Sequence[int], threads: int
) -> Calls:
    if runtime == PYTORCH and isinstance(model, ModelFile):
        return {}
    calls: Calls = {}
    answer, spec = answerer(model, runtime, threads), model.spec
    for size in batch_sizes:
        shape = (size, spec.image_size, spec.image_size, spec.in_channels)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        calls[name, runtime, spec.image_size, size] = partial(answer, images)
    return calls


def _measure(calls: Calls, threads: int, rounds: int, device: str, progress: Progress) -> Benchmark:
    if not calls:
        raise ConfigError("PyTorch does not run model files; add --runtimes onnxruntime, or name a network or a run")
    measure = partial(take_turns, calls, rounds, partial(progress.bar, "taking turns"))
    rates = None
    if any(runtime == PYTORCH for _, runtime, _, _ in calls):
        from carnet.models.weights import choose_device, device_name, on_threads
        from carnet.training.measure import measure_matrix_rates

        device = choose_device(device)
        name = device_name(device)
        with on_threads(threads):
            measured = measure()
            rates = measure_matrix_rates(device, side=512)
    else:
        device, name, measured = "cpu", processor_name(), measure()
    timings = tuple(Timing(*key, tuple(times)) for key, times in measured.items())
    return Benchmark(timings, threads, rounds, device, name, rates)


def answerer(model: TrainedModel | ModelFile, runtime: str, threads: int, to_graph: ToGraph | None = None) -> Answer:
    """Open a model in a runtime; a trained one is exported by `to_graph` for those that are not PyTorch."""
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
    """Time trained models, by label, for one image on one thread, all in turns.

    Returns:
        Milliseconds, median and 95th percentile, by label; and notes on what could not be measured.
    """
    from carnet.models.weights import on_threads

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
    with on_threads(1):
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
    from carnet.models.registry import default_image_size
    from carnet.models.weights import load, untrained

    if path.is_dir():
        return load(path, device=device)
    name, _, size = name.partition("@")
    if not (size.isdecimal() or not size):
        raise ConfigError(f"{name}@{size}: the image size must be a number of pixels")
    return untrained(name, int(size or default_image_size(name)), num_classes=num_classes, device=device)
