"""Text for people: paths, names, sizes and durations."""

import os
import shlex
from pathlib import Path

import pytest

from carnet.errors import ConfigError
from carnet.text import parse_bytes, parse_seconds, printable, quoted, show_bytes


@pytest.mark.skipif(os.name == "nt", reason="another shell")
@pytest.mark.parametrize("name", ["runs/photos-carnet_s", "runs/my photos-carnet_s", "it's", "a;b", "$HOME"])
def test_a_quoted_path_can_be_pasted(name: str) -> None:
    assert shlex.split(f"carnet export {quoted(Path(name))}") == ["carnet", "export", name]
    assert quoted("runs/photos-carnet_s") == "runs/photos-carnet_s"


def test_a_name_cannot_control_a_terminal() -> None:
    assert printable("dög\x1b]52;c;\x07 \r\x9b a\nb") == r"dög\x1b]52;c;\x07 \r\x9b a\nb"
    assert printable("one\ntwo\t", keep="\n") == "one\ntwo\\t"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2GB", 2e9),
        ("800 MB", 8e8),
        ("1.5g", 1.5e9),
        ("512MiB", 2**29),
        ("1 TiB", 2**40),
        ("4096", 4096),
        ("3kb", 3000),
    ],
)
def test_sizes(text: str, number: float) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("90s", 90), ("1h30m", 5400), ("1.5 h", 5400), ("2 min 5 sec", 125)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "ten minutes", "-5m", "5m and more", "0s"])
def test_what_is_not_a_time(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2 gigs", "0", "1e9"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-memory"):
        parse_bytes(text)


def test_bytes_in_readable_units() -> None:
    assert [show_bytes(number) for number in (2.04e9, 1e9, 3.21e8)] == ["2.0 GB", "1.0 GB", "321 MB"]
