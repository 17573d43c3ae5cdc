"""`carnet benchmark`: measure the latency of networks and exported models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from carnet.cli.main import console, print_json, table, words
from carnet.errors import ConfigError
from carnet.text import counted, printable

if TYPE_CHECKING:
    from carnet.comparison.latency import Benchmark


@dataclass(frozen=True)
class Command:
    """Measure the latency of networks and exported models, from pixels to logits, all of them in turns.

    A MODEL is the name of a network (carnet_s, resnet18, timm/NAME; at another image size: NAME@SIZE), which gets
    random weights, the folder of a run, or a .onnx file written by carnet export. A .onnx file needs no PyTorch.

    Examples:
      carnet benchmark carnet_s carnet18 timm/mobilenetv3_small_050
      carnet benchmark carnet_s@96 carnet_s@128 --batch-sizes 1,32 --threads 2
      carnet benchmark model.onnx model-int8.onnx --runtimes openvino --json
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Networks, run folders or .onnx files; the others are compared with the first one."""
    runtimes: str = "onnxruntime,pytorch"
    """Runtimes, separated by commas: onnxruntime, openvino, pytorch (not for .onnx files)."""
    batch_sizes: str = "1"
    """Batch sizes, separated by commas."""
    threads: int = 1
    """Number of compute threads."""
    rounds: int = 50
    """Number of measurements of each."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """Device for PyTorch; copying images to it and logits back is included."""
    num_classes: int = 100
    """Number of classes of networks given by name."""
    json: bool = False
    """Print the results as one JSON document."""

    def run(self) -> int:
        from carnet.comparison.latency import benchmark

        sizes = words(self.batch_sizes)
        if not all(size.isdecimal() for size in sizes):
            raise ConfigError(f"--batch-sizes must be numbers separated by commas, got {self.batch_sizes!r}")
        with console(as_json=True) as progress:
            result = benchmark(
                self.models,
                runtimes=words(self.runtimes),
                batch_sizes=[int(size) for size in sizes],
                threads=self.threads,
                rounds=self.rounds,
                device=self.device,
                num_classes=self.num_classes,
                progress=progress,
            )
        if self.json:
            print_json(result.to_json())
        else:
            print(printable(_text(result), keep="\n"))
        return 0


def _text(result: Benchmark) -> str:
    rows = [("model", "image", "runtime", "batch", "median", "middle half", "95% below", "images/s", "times")]
    for timing in result.timings:
        size, speed = f"{timing.image_size} px", f"{timing.images_per_second:,.0f}"
        half = f"{timing.percentile(25):.2f} to {timing.percentile(75):.2f} ms"
        median, high = f"{timing.median_ms:.2f} ms", f"{timing.percentile(95):.2f} ms"
        times = f"{result.times_the_first(timing):.2f}"
        rows.append((timing.model, size, timing.runtime, str(timing.batch_size), median, half, high, speed, times))
    machine = result.to_json()["machine"]
    names = (f"{name} {number}" for name, number in machine["versions"].items() if name in ("torch", "onnxruntime"))
    about = (
        f"{counted(result.rounds, 'measurement')} of each, on {counted(result.threads, 'thread')} of "
        f"{counted(machine['cores'], 'core')} ({machine['processor']}, {machine['instruction_set']}); "
        f"{', '.join(names)}."
    )
    device = [] if result.device == "cpu" else [f"PyTorch ran on {result.device} ({result.device_name})."]
    return "\n".join([*table(rows, left=(0, 2)), "", about, *device])
