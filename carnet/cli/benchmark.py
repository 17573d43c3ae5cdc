"""`carnet benchmark`: how fast networks answer on this machine."""

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
    """Time networks from the pixels of an image to its answer, all of them in turns.

    A MODEL is the name of a network (carnet_s, resnet18, timm/NAME), with random weights, at its own size or as
    NAME@SIZE; the folder of a run; or a .onnx file that carnet export has written. Files are timed without PyTorch, so
    this works on a device that has none.

    Examples:
      carnet benchmark carnet_s carnet18 timm/mobilenetv3_small_050
      carnet benchmark carnet_s@96 carnet_s@128 --batch-sizes 1,32 --threads 2
      carnet benchmark model.onnx model-int8.onnx --runtimes onnxruntime,openvino --json
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Names, run folders or model files; the first is what the others are compared with."""
    runtimes: str = "onnxruntime,pytorch"
    """Of onnxruntime, openvino and pytorch, separated by commas; files run in the first two only."""
    batch_sizes: str = "1"
    """Images at a time, separated by commas."""
    threads: int = 1
    """Threads of the arithmetic."""
    rounds: int = 50
    """Turns of each."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """Where PyTorch computes; copying images there and answers back is counted."""
    num_classes: int = 100
    """Classes of networks that are named."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        from carnet.comparison.latency import benchmark

        sizes = words(self.batch_sizes)
        if not all(size.isdecimal() for size in sizes):
            raise ConfigError(f"--batch-sizes are numbers separated by commas, got {self.batch_sizes!r}")
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
    rows = [("model", "image", "runtime", "batch", "median", "middle half", "95 % below", "images/s", "times")]
    for timing in result.timings:
        size, speed = f"{timing.image_size} px", f"{timing.images_per_second:,.0f}"
        half = f"{timing.percentile(25):.2f} to {timing.percentile(75):.2f} ms"
        median, high = f"{timing.median_ms:.2f} ms", f"{timing.percentile(95):.2f} ms"
        times = f"{result.times_the_first(timing):.2f}"
        rows.append((timing.model, size, timing.runtime, str(timing.batch_size), median, half, high, speed, times))
    machine = result.to_json()["machine"]
    names = (f"{name} {number}" for name, number in machine["versions"].items() if name in ("torch", "onnxruntime"))
    about = (
        f"{counted(result.rounds, 'turn')} of each, on {counted(result.threads, 'thread')} of "
        f"{counted(machine['cores'], 'core')} ({machine['processor']}, {machine['instruction_set']}); "
        f"{', '.join(names)}."
    )
    device = [] if result.device == "cpu" else [f"PyTorch computed on {result.device} ({result.device_name})."]
    return "\n".join([*table(rows, left=(0, 2)), "", about, *device])
