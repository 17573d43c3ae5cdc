"""Instruction sets, fair timing, and batches that are loaded ahead."""

import platform
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carnet.machine import instruction_set, load_ahead, take_turns


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("flags\t\t: fpu sse2 avx avx2 fma", "AVX2"),
        ("flags\t\t: fpu avx2 avx512f avx512bw", "AVX512"),
        ("flags\t\t: avx2 avx512f avx512_bf16", "AVX512 with bf16"),
        ("flags\t\t: avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "AMX"),
        ("flags\t\t: fpu sse2", "scalar"),
        ("Features\t: fp asimd evtstrm", "NEON"),
        ("Features\t: fp asimd sve bf16", "SVE with bf16"),
    ],
)
def test_the_newest_instructions_are_named(line: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: any\n{line}\n")
    assert instruction_set(tmp_path / "cpuinfo") == name


def test_the_architecture_is_named_where_the_system_lists_no_instructions(tmp_path: Path) -> None:
    assert instruction_set(tmp_path / "missing") == platform.machine()


def test_calls_take_turns_and_the_first_of_each_is_not_timed() -> None:
    order: list[object] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    found = take_turns(calls, rounds=3, progress=lambda done, total: order.append((done, total)))
    turn = ["a", "a", "b", "b"]
    assert order == [*turn, (1, 3), *turn, (2, 3), *turn, (3, 3)]
    assert [len(times) for times in found.values()] == [3, 3]
    assert all(time >= 0 for times in found.values() for time in times)


@settings(max_examples=40)
@given(
    batches=st.lists(st.lists(st.integers(), max_size=4), max_size=6),
    threads=st.integers(0, 3),
    ahead=st.integers(0, 3),
)
def test_batches_come_in_order_with_any_number_of_threads(batches: list[list[int]], threads: int, ahead: int) -> None:
    doubled = [[2 * item for item in batch] for batch in batches]
    assert list(load_ahead(lambda item: 2 * item, batches, threads=threads, ahead=ahead)) == doubled


def test_reads_no_further_ahead_than_it_should() -> None:
    asked = []

    def batches() -> Iterator[list[int]]:
        for number in range(10):
            asked.append(number)
            yield [number]

    loading = load_ahead(lambda item: item, batches(), threads=2, ahead=3)
    assert next(loading) == [0]
    assert asked == [0, 1, 2, 3]
    loading.close()
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_when_its_batch_is_due(threads: int) -> None:
    loading = load_ahead(lambda item: 1 // item, [[1], [0], [1]], threads=threads)
    assert next(loading) == [1]
    with pytest.raises(ZeroDivisionError):
        next(loading)


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=30)
    assert list(load_ahead(lambda _: together.wait() >= 0, [[1, 2]], threads=2)) == [[True, True]]
