"""`carnet benchmark`: how fast networks answer on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from carnet.cli.main import console, print_json, words
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
            print(printable(_table(result), keep="\n"))
        return 0


def _table(result: Benchmark) -> str:
    wide = max(5, *(len(timing.model) for timing in result.timings)) + 2
    head = f"{'model':{wide}}{'image':>7}  {'runtime':13}{'batch':>5}{'median':>12}{'middle half':>20}"
    rows = [f"{head}{'95 % below':>14}{'images/s':>11}{'times':>8}"]
    for timing in result.timings:
        half = f"{timing.percentile(25):.2f} to {timing.percentile(75):.2f} ms"
        rows.append(
            f"{timing.model:{wide}}{timing.image_size:>4} px  {timing.runtime:13}{timing.batch_size:>5}"
            f"{timing.median_ms:>9.2f} ms{half:>20}{timing.percentile(95):>11.2f} ms"
            f"{timing.images_per_second:>11,.0f}{result.times_the_first(timing):>8.2f}"
        )
    machine = result.to_json()["machine"]
    names = (f"{name} {number}" for name, number in machine["versions"].items() if name in ("torch", "onnxruntime"))
    processor = f"{machine['processor']}, {machine['instruction_set']}"
    rows.append(
        f"\n{counted(result.rounds, 'turn')} of each, on {counted(result.threads, 'thread')} of "
        f"{counted(machine['cores'], 'core')} ({processor}); {', '.join(names)}."
    )
    if result.device != "cpu":
        rows.append(f"PyTorch computed on {result.device} ({result.device_name}).")
    return "\n".join(rows)
