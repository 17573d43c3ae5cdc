"""What numbers were measured on is told with them."""

from pathlib import Path

import pytest

from carnet.machine import instruction_set, take_turns


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


def test_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert instruction_set(tmp_path / "missing")


def test_calls_take_turns_and_the_first_of_each_is_not_counted() -> None:
    order: list[object] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    found = take_turns(calls, rounds=3, progress=lambda done, total: order.append((done, total)))
    turn = ["a", "a", "b", "b"]
    assert order == [*turn, (1, 3), *turn, (2, 3), *turn, (3, 3)]
    assert [len(times) for times in found.values()] == [3, 3]
    assert all(time >= 0 for times in found.values() for time in times)
