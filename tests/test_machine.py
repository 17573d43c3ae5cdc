"""What numbers were measured on is told with them."""

from pathlib import Path

import pytest

from carnet.machine import instruction_set


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
