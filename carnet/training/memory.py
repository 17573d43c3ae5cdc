"""Measure the memory that there is and that this process takes, and control how freed memory is kept."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from carnet.text import parse_bytes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""From glibc's malloc.h."""
_LARGE_BLOCK = 4 * 2**20
_INTERVAL_SECONDS = 0.005
"""Time between two readings while a peak is measured."""


def free_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process may still take, by the system and by the control group it runs in.

    Args:
        root: of the file system in which the control group is looked up; tests have their own.
    """
    free = int(psutil.virtual_memory().available)
    folder = root / "sys/fs/cgroup"
    for limit, used, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        # There may be no such group, no limit ("max"), or a system without groups.
        with suppress(OSError, ValueError):
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            # Cached files count as used, but the system drops them when memory is needed.
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", (folder / statistics).read_text(), re.MULTILINE)
            free = min(free, left + (int(cached[1]) if cached else 0))
    return max(0, free)


def allowed_bytes(max_memory: str | None, device: str) -> int:
    """Return the memory that this process may still take, by the system and by the user's limit.

    Args:
        max_memory: of the whole process, such as "2GB"; None: there is no limit. Where training is on a GPU, it is the
            limit of that.
        device: that is trained on: cpu, cuda or mps.
    """
    free = free_bytes()
    if max_memory is None or device == "cuda":
        return free
    return max(0, min(free, parse_bytes(max_memory) - anonymous_bytes()))


def anonymous_bytes(pid: int | None = None) -> int:
    """Return the memory that no file backs, of a process (default: this one) and its children.

    Where the system does not tell it apart, all of their memory counts.
    """
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += _anonymous_bytes_of(one)
    return total


def peak_anonymous_bytes(work: Callable[[], object]) -> int:
    """Do some work and return the most anonymous memory that this process took meanwhile."""
    process, done = psutil.Process(), threading.Event()
    peak = _anonymous_bytes_of(process)

    def watch() -> None:
        nonlocal peak
        while not done.wait(_INTERVAL_SECONDS):
            peak = max(peak, _anonymous_bytes_of(process))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return max(peak, _anonymous_bytes_of(process))


def _anonymous_bytes_of(process: psutil.Process) -> int:
    info = process.memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def peak_resident_bytes() -> int:
    """Return the most memory that this process has had in use at once, shared libraries included."""
    try:
        import resource
    except ModuleNotFoundError:
        # Only Windows lacks this module, and psutil knows the answer there.
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    # Linux's `getrusage` also counts what the parent process had in use at the start; `VmHWM` does not.
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_bytes(device: str) -> int:
    """Return the most GPU memory that this process's tensors have taken at once; 0 on other devices."""
    if device != "cuda":
        return 0
    import torch

    return int(torch.cuda.max_memory_allocated())


def forget_peak_device_bytes(device: str) -> None:
    """Restart the count of `peak_device_bytes`, so that trial steps are not counted as training."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def keep_freed_memory() -> bool:
    """Have the C library keep the memory that a step frees, for the next step, until the process ends.

    Every step of a small network on large images takes and frees gigabytes. If they are returned to the system, they
    have to be fetched again page by page, each filled with zeros, which can take longer than the arithmetic. In return,
    gaps remain between the blocks in use, and the process takes more memory.

    Returns:
        Whether the C library (glibc) can do that.
    """
    if not _has_glibc():
        return False
    library = ctypes.CDLL(None)
    # No block gets a mapping of its own, and the top of the heap is never returned.
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))


def _has_glibc() -> bool:
    # On Windows `libc_ver` opens a file, which a Python from Microsoft's store does not allow.
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def return_freed_memory() -> None:
    """Return every large block to the system as soon as it is free, for runs with a memory limit.

    Linux is asked for pages of 2 MB, so that fewer have to be fetched anew, and only one process compiles the network.
    Both have an effect only before the process creates its first tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if _has_glibc():
        # By default glibc raises this threshold to 32 MB over time, and gaps remain between smaller blocks.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def hold_memory_below(limit: str, device: str) -> None:
    """Keep to a memory limit as far as this process can, besides choosing the micro-batch.

    Args:
        limit: such as "2GB"; on GPUs it is the limit of each.
        device: cpu, cuda or mps.
    """
    if device == "cuda":
        import torch

        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, parse_bytes(limit) / total))
    else:
        return_freed_memory()


def trim_memory() -> None:
    """Return to the system whatever is free now."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)
