"""How long compiling takes is known from before, on this machine and with these versions."""

from pathlib import Path

import pytest

from carnet.training import measurements
from carnet.training.measurements import PRIOR_SECONDS, expected_seconds, known_speedup, remember_compiling


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_it_took_before_is_expected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expected_seconds("carnet_s") == PRIOR_SECONDS
    remember_compiling("carnet_s", 21.04)
    remember_compiling("carnet_m", 93.0)
    assert expected_seconds("carnet_s") == 21.0
    assert expected_seconds("carnet_n") == 93.0
    assert known_speedup("carnet_s") is None
    remember_compiling("carnet_s", 40.0, 1.25)
    assert expected_seconds("carnet_s") == 40.0
    assert known_speedup("carnet_s") == 1.25
    monkeypatch.setattr(measurements, "processor_features", lambda: "another instruction set")
    assert expected_seconds("carnet_s") == PRIOR_SECONDS


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1, 2]",
        '{"a": 3}',
        '{"%s": [1]}',
        '{"%s": {"compiling n": 5}}',
        '{"%s": {"compiling n": {}}}',
        '{"%s": {"compiling n": {"seconds": "long"}}}',
        '{"%s": {"compiling n": {"seconds": -1}}}',
        '{"%s": {"compiling n": {"seconds": 1e999}}}',
    ],
)
def test_a_file_that_says_nothing_of_use(content: str, empty_cache: Path) -> None:
    remember_compiling("n", 1.0)
    (file,) = empty_cache.iterdir()
    file.write_text(content.replace("%s", measurements._machine()))
    assert expected_seconds("n") == PRIOR_SECONDS
    remember_compiling("n", 7.0)
    assert expected_seconds("n") == 7.0


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "file" / "cache"))
    remember_compiling("n", 7.0)
    assert expected_seconds("n") == PRIOR_SECONDS
