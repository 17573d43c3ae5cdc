"""What numbers were measured on: processor and versions. Without PyTorch.

How long compute threads wait for each other before they give their core away. Without PyTorch.

PyTorch on Linux computes with threads of the GNU OpenMP library. After each piece of work they wait for the slowest
one, and by default keep their cores busy with that for a millisecond or more. Beside another program this is the wrong
thing to do: the thread that is waited for has lost its core, and those that wait use up their share of the others.
Short waiting leaves the time to whoever has work (`benchmarks/busy_cores.py`).

How long calls take, compared fairly: in turns, so that other work on the machine slows all of them alike.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from carnet.text import OnProgress

Key = TypeVar("Key", bound=Hashable)
_PACKAGES = ("carnet", "torch", "torchvision", "lightning-fabric", "numpy", "pillow", "timm")


def versions(*others: str) -> dict[str, str]:
    """Versions of what the numbers depend on.

    Args:
        others: packages to name as well.
    """
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in (*_PACKAGES, *others):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


_INSTRUCTION_SETS = {
    "AMX": {"amx_tile", "amx_bf16"},
    "AVX512 with bf16": {"avx512f", "avx512_bf16"},
    "AVX512": {"avx512f"},
    "AVX2": {"avx2"},
    "SVE with bf16": {"sve", "bf16"},
    "NEON": {"asimd"},
}
"""Name -> the flags of /proc/cpuinfo that it needs; the newest first."""


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The newest instructions for vectors that the processor has, such as AVX2, as far as the system tells.

    Args:
        cpuinfo: where Linux lists them; tests have their own.
    """
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                there = set(flags.split())
                return next((name for name, needed in _INSTRUCTION_SETS.items() if needed <= there), "scalar")
    return platform.machine()


def processor_name() -> str:
    """The processor's model, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            # A Raspberry Pi has no model name, and tells which board it is instead.
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Either says how threads wait."""
SPINS = 20_000
"""Turns of an empty loop; PyTorch's own are 300,000. Fewer slow down a machine that has nothing else to do."""


def wait_briefly() -> None:
    """Have threads wait briefly, unless the user has said how. Has an effect only before PyTorch is imported."""
    if not is_waiting_chosen():
        os.environ[_VARIABLES[0]] = str(SPINS)


def is_waiting_chosen() -> bool:
    """Whether somebody said how threads wait, or the system has no such threads."""
    return sys.platform != "linux" or any(name in os.environ for name in _VARIABLES)


def take_turns(
    calls: Mapping[Key, Callable[[], object]], rounds: int, progress: OnProgress | None = None
) -> dict[Key, list[float]]:
    """Milliseconds of every call, once in each round, right after one that is not counted."""
    milliseconds: dict[Key, list[float]] = {name: [] for name in calls}
    for done in range(rounds):
        for name, call in calls.items():
            call()
            started = time.perf_counter()
            call()
            milliseconds[name].append(1000 * (time.perf_counter() - started))
        if progress is not None:
            progress(done + 1, rounds)
    return milliseconds
