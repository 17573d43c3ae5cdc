"""What was measured on this machine, kept in the cache: later runs need not measure it again, and choose the same.

What compiling a network costs on this machine, by what it took before.

How fast this device multiplies matrices in float32 and in bf16.

Some processors compute bf16 products in hardware, others emulate them a hundred times slower than float32. No flag of
the processor says which of the two is faster for small matrices, so it is measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from carnet import files
from carnet.config import MuonPrecision, ResolvedConfig
from carnet.data.cache import cache_root
from carnet.errors import OutputError, RunError
from carnet.machine import available_cores, processor_name, take_turns
from carnet.text import counted

Numbers = dict[str, float]


def processor_features() -> str:
    """The instruction set PyTorch's kernels use here, for example AVX512."""
    return torch.backends.cpu.get_cpu_capability()


def recall() -> dict[str, Numbers]:
    """Every measurement kept for this processor, its instruction set and this PyTorch, by its name."""
    return _read().get(_machine(), {})


def remember(what: str, numbers: Numbers) -> None:
    """Keep a measurement. A cache that cannot be written is no reason to stop.

    Args:
        what: the measurement's name, which says everything that it depends on besides machine and PyTorch.
        numbers: positive numbers by name.
    """
    known = _read()
    known.setdefault(_machine(), {})[what] = numbers
    with suppress(OutputError, OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        files.write_json(_file(), known)


def _machine() -> str:
    return f"{processor_name()}, {processor_features()}, torch {torch.__version__}"


def _file() -> Path:
    return cache_root() / "measurements.json"


def _read() -> dict[str, dict[str, Numbers]]:
    """Only what is a measurement; another program may have written into the file."""
    try:
        content = files.read_json(_file())
    except (OSError, RunError):
        return {}
    return {
        machine: {what: numbers for what, numbers in known.items() if _is_measurement(numbers)}
        for machine, known in (content.items() if isinstance(content, dict) else ())
        if isinstance(known, dict)
    }


def _is_measurement(numbers: object) -> bool:
    return isinstance(numbers, dict) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < math.inf
        for number in numbers.values()
    )


PRIOR_SECONDS = 65.0
"""Where nothing was compiled on this machine yet: the usual time on two processor cores, see docs/speed.md."""
_COMPILING = "compiling with summed batch norms "
"""What was measured of other compiled code does not count."""


def compiling(what: str) -> str:
    """Name of the measurement of how long compiling took, and how many times as fast the network was then."""
    return _COMPILING + what


def expected_seconds(known: Mapping[str, Numbers], what: str) -> float:
    """Seconds that compiling takes, as far as is known.

    Args:
        known: what was measured on this machine.
        what: names network and batch. If it was never compiled here, the longest time of others counts.
    """
    seconds = {name: numbers.get("seconds", 0.0) for name, numbers in known.items() if name.startswith(_COMPILING)}
    return seconds.get(compiling(what)) or max(seconds.values(), default=0.0) or PRIOR_SECONDS


def known_speedup(known: Mapping[str, Numbers], what: str) -> float | None:
    """How many times as fast the compiled network was on this machine; None: that was never measured."""
    return known.get(compiling(what), {}).get("speedup")


MARGIN = 1.1
"""A challenger is chosen where it is at least this many times as fast, so that noise does not decide."""
_SIDE = 128
"""As in the middle of our networks. An emulated bf16 product of this size takes two milliseconds."""
_ROUNDS = 7


@dataclass(frozen=True)
class MatrixRates:
    """Measured rates of products of square matrices.

    Attributes:
        fp32: GFLOP/s in float32.
        bf16: GFLOP/s in bfloat16.
    """

    fp32: float
    bf16: float

    @property
    def faster_precision(self) -> MuonPrecision:
        """bf16 where it wins by the margin, else fp32, which is more exact."""
        return "bf16" if self.bf16 >= MARGIN * self.fp32 else "fp32"

    def __str__(self) -> str:
        return f"products of matrices run at {self.fp32:.3g} GFLOP/s in fp32 and {self.bf16:.3g} in bf16"

    def to_json(self) -> dict[str, float]:
        """GFLOP/s by precision, with three significant digits."""
        return {"fp32": float(f"{self.fp32:.3g}"), "bf16": float(f"{self.bf16:.3g}")}


def measure_matrix_rates(device: str = "cpu", *, side: int = _SIDE, rounds: int = _ROUNDS) -> MatrixRates:
    """Multiply two matrices in either precision, in turns, on the threads that PyTorch uses now.

    Args:
        device: cpu, cuda or mps.
        side: of the square matrices. A larger one comes closer to the device's limit and takes longer.
        rounds: products of each that are timed; the median counts.
    """
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(side, side, generator=generator)
    calls = {name: _product(matrix.to(device, dtype), device) for name, dtype in _DTYPES.items()}
    times = take_turns(calls, rounds)
    flops = 2 * side**3
    return MatrixRates(**{name: flops / (1e6 * statistics.median(ms)) for name, ms in times.items()})


def kept_matrix_rates(device: str) -> MatrixRates:
    """The rates that were measured on this device first, with as many threads.

    Runs that follow each other must not choose otherwise because something disturbed a measurement.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else device
    what = f"products of matrices on {name}, {counted(torch.get_num_threads(), 'thread')}"
    numbers = recall().get(what, {})
    if set(numbers) != set(_DTYPES):
        numbers = measure_matrix_rates(device).to_json()
        remember(what, numbers)
    return MatrixRates(**numbers)


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _product(matrix: torch.Tensor, device: str) -> Callable[[], object]:
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)

    def multiply() -> None:
        torch.mm(matrix, matrix)
        wait()

    return multiply


def physical_cores() -> int:
    """Cores of the machine, each counted once even if it runs two threads; as many as this process may use at most."""
    import psutil

    return min(available_cores(), psutil.cpu_count(logical=False) or available_cores())


class Images(Protocol):
    """What the choices need to know of the data."""

    @property
    def num_train(self) -> int:
        """Training images."""

    @property
    def num_valid(self) -> int:
        """Validation images."""

    @property
    def image_size(self) -> int:
        """Side of the decoded images, in pixels."""


class Measure(Protocol):
    """What tells how fast this machine is, and what it has. Seconds are those of a step with images of full side."""

    cores: int
    physical_cores: int
    has_depthwise: bool
    """Whether the network has convolutions whose gradient can be computed in two ways."""
    is_decoded: bool
    """Whether images only have to be changed."""
    seconds_to_prepare: float
    """What one thread takes to prepare one image."""
    micro_batch: int | None
    """What a step came down to where a GPU's memory ran out; None: it never did."""

    def elapsed(self) -> float:
        """Seconds since the command began."""

    def used_bytes(self, *, settled: bool = False) -> int:
        """Anonymous memory of this process; `settled`: once what is free was given back."""

    def free_bytes(self) -> int:
        """Memory that may still be taken."""

    def keep_freed_memory(self) -> bool:
        """Let freed memory stay with the process from now on; whether that is possible."""

    def hold_memory_below(self, limit: str, device: str) -> None:
        """Take no more of a device's memory from now on."""

    def compiler_problem(self, device: str) -> str:
        """Why compiling cannot work here: a phrase; empty where nothing is known."""

    def matrix_rates(self, config: ResolvedConfig) -> MatrixRates:
        """Rates of matrix products, as they were measured first."""

    def recall(self) -> Mapping[str, Numbers]:
        """What was measured on this machine before, by its name."""

    def remember(self, what: str, numbers: Numbers) -> None:
        """Keep a measurement."""

    def seconds(self, config: ResolvedConfig, *, initial: bool = False) -> float:
        """Of a step; `initial`: with images as the run begins."""

    def seconds_in_turns(self, configs: Mapping[str, ResolvedConfig], num_images: int) -> Mapping[str, float]:
        """Of steps of so many images in several ways, in turns, by name."""

    def peak_bytes(self, config: ResolvedConfig, num_images: int) -> int:
        """The most anonymous memory during a step of so many images."""

    def least_bytes(self, config: ResolvedConfig) -> int:
        """What a step holds of one image at least."""

    def seconds_to_evaluate(self, num_images: int) -> float:
        """Of one image in validation, of so many at a time."""
