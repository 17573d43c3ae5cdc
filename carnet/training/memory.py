"""What memory there is, what this run takes of it, and how its freed memory is kept for the next step."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from carnet.text import parse_bytes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""From glibc's malloc.h."""
_LARGE_BLOCK = 4 * 2**20


def free_bytes(root: Path = Path("/")) -> int:
    """Memory that this process may still take, by the system and by the control group it runs in.

    Args:
        root: of the file system in which the control group is looked up; tests have their own.
    """
    free = int(psutil.virtual_memory().available)
    for limit, used, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        # No such group, no limit ("max"), or a system without groups.
        with suppress(OSError, ValueError):
            folder = root / "sys/fs/cgroup"
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            # Cached files count as used, and give way.
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", (folder / statistics).read_text(), re.MULTILINE)
            free = min(free, left + (int(cached[1]) if cached else 0))
    return max(0, free)


def anonymous_bytes(pid: int | None = None) -> int:
    """Memory that no file backs, of a process (this one) and those it started; where the system cannot tell, all."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += _anonymous_bytes_of(one)
    return total


_LOOK_SECONDS = 0.005


class PeakMemory:
    """The most anonymous memory that this process takes while the block runs, looked at every few milliseconds.

    Attributes:
        peak_bytes: so far.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._process = psutil.Process()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._look()
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, _anonymous_bytes_of(self._process))


def _anonymous_bytes_of(process: psutil.Process) -> int:
    info = process.memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def peak_resident_bytes() -> int:
    """The most memory that this process has had in use at once, shared libraries included."""
    try:
        import resource
    except ModuleNotFoundError:
        # Only Windows has none, and there psutil knows.
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    # Linux's answer also counts what the process that started this one had in use then; this one does not.
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_bytes(device: str) -> int:
    """The most memory of its GPU that this process's tensors have taken at once; 0 on other devices."""
    if device != "cuda":
        return 0
    import torch

    return int(torch.cuda.max_memory_allocated())


def forget_peak_device_bytes(device: str) -> None:
    """Count from here: what was measured before, to choose, is no part of what training takes."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _has_glibc() -> bool:
    # Elsewhere the question opens a file, which a Python from Microsoft's store does not allow.
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def keep_freed_memory() -> bool:
    """Have the C library keep the memory that a step frees, for the next step, until the process ends.

    Every step of a small network on large images takes and frees gigabytes. Given back to the system, they have to be
    fetched again page by page, each filled with zeros, which can take longer than the arithmetic. In return, gaps
    remain between what is in use, and memory grows.

    Returns:
        Whether the C library (glibc) can.
    """
    if not _has_glibc():
        return False
    library = ctypes.CDLL(None)
    # No block gets a mapping of its own, and the top of the heap is never given back.
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))


def return_freed_memory() -> None:
    """Have every large block go back to the system as soon as it is free: for runs whose memory is limited.

    Linux is asked for pages of 2 MB, of which fewer have to be fetched anew, and the network is compiled by one process
    at a time. Both have an effect only before the process's first tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if _has_glibc():
        # Else the library raises it to 32 MB by itself, and gaps remain between smaller blocks.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def hold_memory_below(limit: str, device: str) -> None:
    """Do what this process can to keep a limit, beyond images at a time.

    Args:
        limit: as in "2GB"; of a GPU it is for each.
        device: cpu, cuda or mps.
    """
    if device == "cuda":
        import torch

        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, parse_bytes(limit) / total))
    else:
        return_freed_memory()


def trim_memory() -> None:
    """Give back to the system what is free now, such as gaps of another use of memory."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)
