"""How fast this device multiplies matrices in float32 and in bf16.

Some processors compute bf16 products in hardware, others emulate them a hundred times slower than float32. No flag of
the processor says which of the two is faster for small matrices, so it is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from carnet.progress import counted
from carnet.timing import take_turns
from carnet.training.config import MuonPrecision
from carnet.training.measurements import recall, remember

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
