"""The machine: its processor and versions, threads that load data ahead, and fair timing. Without PyTorch."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from carnet.text import OnProgress

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Loaded = TypeVar("Loaded")

_PACKAGES = ("carnet", "torch", "torchvision", "lightning-fabric", "numpy", "pillow", "timm")
_INSTRUCTION_SETS = {
    "AMX": {"amx_tile", "amx_bf16"},
    "AVX512 with bf16": {"avx512f", "avx512_bf16"},
    "AVX512": {"avx512f"},
    "AVX2": {"avx2"},
    "SVE with bf16": {"sve", "bf16"},
    "NEON": {"asimd"},
}
"""Name -> the flags of /proc/cpuinfo that it needs; the newest first."""
_WAIT_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Environment variables that each decide how OpenMP threads wait."""
_MOST_HANDED_OVER = 16
"""Items that a thread gets at once."""
SPINS = 20_000
"""Turns of an empty loop before a waiting thread sleeps; the default is 300,000. Fewer slow down an idle machine."""


def versions(*others: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that results depend on, and of `others` that are installed."""
    # Imported here, because it takes a twentieth of the time in which a small device predicts.
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in (*_PACKAGES, *others):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's newest vector instructions, such as AVX2, or its architecture where they are unknown."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                there = set(flags.split())
                return next((name for name, needed in _INSTRUCTION_SETS.items() if needed <= there), "scalar")
    return platform.machine()


def processor_name() -> str:
    """Return the processor's model, or its architecture where the model is unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            # A Raspberry Pi states no model name, but the model of the board.
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Return how many cores this process may use; in a container that can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_threads() -> int:
    """Return how many threads decode images: one per core, at most 8 because large photos take memory."""
    return min(8, available_cores())


def is_waiting_chosen() -> bool:
    """Return whether the user has chosen how OpenMP threads wait, or the system has no such threads."""
    return sys.platform != "linux" or any(name in os.environ for name in _WAIT_VARIABLES)


def wait_briefly() -> None:
    """Let OpenMP threads wait briefly for each other, unless the user has chosen how. Call before importing PyTorch.

    After each piece of work, PyTorch's threads on Linux wait for the slowest one, and by default keep their cores busy
    for a millisecond or more. Beside another program that costs the most: the slowest thread has lost its core, and the
    waiting ones use up the shares of the others (`benchmarks/busy_cores.py`).
    """
    if not is_waiting_chosen():
        os.environ[_WAIT_VARIABLES[0]] = str(SPINS)


def each_on_threads(
    work: Callable[[Item], Loaded], items: Sequence[Item], progress: OnProgress | None = None
) -> Iterator[Loaded]:
    """Yield `work(item)` of every item, in order, computed on several threads; `progress` is told after some of them.

    A thread gets several items at once, because handing over each one takes a part of the time in which a small image
    is decoded.
    """
    at_once = max(1, min(_MOST_HANDED_OVER, len(items) // (4 * loading_threads())))
    with ThreadPoolExecutor(max_workers=loading_threads()) as pool:
        try:
            done = 0
            starts = range(0, len(items), at_once)
            for answers in pool.map(lambda start: [work(item) for item in items[start : start + at_once]], starts):
                yield from answers
                done += len(answers)
                if progress is not None:
                    progress(done, len(items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def load_ahead(
    load: Callable[[Item], Loaded], batches: Iterable[Sequence[Item]], *, threads: int, ahead: int = 2
) -> Iterator[list[Loaded]]:
    """Apply `load` to every item, batch by batch, in order, on threads that work ahead of the batch in use.

    Threads suffice because Pillow decodes and resizes without holding the interpreter's lock. They start at once, share
    memory, and need neither pickling nor a guarded main module, as worker processes do.

    Args:
        load: depends on its item alone, so that neither `threads` nor `ahead` can change a result.
        batches: items to load together.
        threads: how many load at the same time; 0 loads every batch when it is asked for.
        ahead: number of batches under way beyond the one in use.

    Raises:
        Exception: whatever `load` raises, when its batch is due; whatever `batches` raises, after the batches before.
    """
    if threads == 0:
        for batch in batches:
            yield [load(item) for item in batch]
        return
    remaining, under_way = iter(batches), deque[list[Future[Loaded]]]()
    end: Exception | None = None
    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            while end is None:
                try:
                    under_way.append([pool.submit(load, item) for item in next(remaining)])
                except Exception as error:
                    end = error
                if len(under_way) > ahead:
                    yield [future.result() for future in under_way.popleft()]
            while under_way:
                yield [future.result() for future in under_way.popleft()]
            if not isinstance(end, StopIteration):
                raise end
        finally:
            # A caller that stops early does not wait for batches that nobody will use.
            pool.shutdown(wait=False, cancel_futures=True)


def take_turns(
    calls: Mapping[Key, Callable[[], object]], rounds: int, progress: OnProgress | None = None
) -> dict[Key, list[float]]:
    """Return the milliseconds of every call, once per round, each right after an untimed call of the same.

    The calls take turns, so that other work on the machine slows all of them alike.
    """
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
