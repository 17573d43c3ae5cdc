"""Measuring memory, and keeping or returning it."""

import ctypes
import mmap
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from children import finished

from carnet.training.memory import (
    allowed_bytes,
    anonymous_bytes,
    free_bytes,
    keep_freed_memory,
    peak_anonymous_bytes,
)

MEGABYTE = 2**20


def groups(root: Path, limit: str, used: int, cached: int) -> Path:
    folder = root / "sys" / "fs" / "cgroup"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(str(used))
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    return root


def test_a_control_group_limits_the_free_memory(tmp_path: Path) -> None:
    everything = free_bytes(tmp_path)
    assert everything > 100 * MEGABYTE
    small = groups(tmp_path / "small", str(90 * MEGABYTE), 60 * MEGABYTE, 20 * MEGABYTE)
    assert free_bytes(small) == 50 * MEGABYTE
    over = groups(tmp_path / "over", str(9 * MEGABYTE), 60 * MEGABYTE, 0)
    assert free_bytes(over) == 0
    endless = groups(tmp_path / "endless", "max\n", 60 * MEGABYTE, 0)
    assert free_bytes(endless) > 50 * MEGABYTE


def test_a_peak_counts_memory_and_not_mapped_files(tmp_path: Path) -> None:
    def map_file() -> None:
        mapped = np.memmap(tmp_path / "file", np.uint8, "r")
        assert int(mapped[::4096].sum()) == 0

    def take_memory() -> None:
        # Straight from the system, because memory that the process has kept would not show.
        private = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        with mmap.mmap(-1, 64 * MEGABYTE, **private) as block:
            block.write(b"1" * 64 * MEGABYTE)
            time.sleep(0.05)

    (tmp_path / "file").write_bytes(bytes(64 * MEGABYTE))
    before = peak_anonymous_bytes(lambda: None)
    if sys.platform == "linux":
        assert peak_anonymous_bytes(map_file) - before < 32 * MEGABYTE
    assert peak_anonymous_bytes(take_memory) - before > 48 * MEGABYTE


def test_an_error_in_the_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        peak_anonymous_bytes(lambda: 1 / 0)


KEEPING = """
import ctypes, resource
from carnet.training.memory import keep_freed_memory
def faults():
    block = bytearray(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = ctypes.create_string_buffer(32 * 2**20)
        ctypes.memset(block, 1, len(block))
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
assert keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can")
def test_kept_memory_is_not_fetched_again() -> None:
    answer = finished([sys.executable, "-c", KEEPING], check=True).stdout
    given_back, kept = map(int, answer.split())
    assert given_back > 10 * kept


def test_a_limit_is_that_of_the_whole_process() -> None:
    limit = anonymous_bytes() + 10**8
    assert 0.5e8 < allowed_bytes(f"{limit / 1e9:.6f}GB", "cpu") < 1.5e8
    assert allowed_bytes("1MB", "cpu") == 0
    # There it is the limit of the GPU.
    assert allowed_bytes("1MB", "cuda") > 1e6
    assert allowed_bytes(None, "cpu") > 1e6


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how the C library keeps memory is only known of glibc")
@pytest.mark.parametrize("returned", [True, False])
def test_freed_blocks_are_returned_where_memory_is_limited(returned: bool) -> None:
    code = (
        "import numpy as np; from carnet.training.memory import anonymous_bytes, return_freed_memory\n"
        f"if {returned}: return_freed_memory()\n"
        "block = np.ones(2**23, np.uint8); del block; before = anonymous_bytes()\n"
        "blocks = [np.ones(2**23, np.uint8) for _ in range(16)]; del blocks[:-1]\n"
        "print(anonymous_bytes() - before)"
    )
    left = int(finished([sys.executable, "-c", code], check=True).stdout)
    # Otherwise the remaining block lies behind the others in the heap, so that none of it can be returned.
    assert (left < 16 * MEGABYTE) == returned
