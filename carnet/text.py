"""How work that takes long tells what it is doing. `carnet.report.console` shows it; the default keeps silent.

Sizes and times as people write them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from carnet.errors import ConfigError

OnProgress = Callable[[int, int], None]
"""Told how many of how many are done."""


class Progress(Protocol):
    """Receives what a person would like to see."""

    def say(self, text: str) -> None:
        """A line, or several."""

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `what`; called as often as it changes, and with done == total at the end."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """Nothing."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """1 image, 2 images, 1,000 classes."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def is_command(character: str) -> bool:
    """Whether a character shows nothing itself and changes how others are shown.

    These are control characters, separators of lines and paragraphs, and what Unicode calls format: writing directions,
    and what has no width.
    """
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")


def printable(text: str, keep: str = "") -> str:
    """Text without characters that command: a name must not rule a terminal, forge a line, or look like another.

    Args:
        text: to be shown on a terminal.
        keep: such characters that are meant; the others are spelled out, as in a Python string.
    """
    return "".join(c if c in keep or not is_command(c) else c.encode("unicode_escape").decode() for c in text)


def quoted(path: Path | str) -> str:
    """A path as a command that is shown takes it: with spaces, in quotation marks."""
    text = str(path)
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def first_few(items: Sequence[str], limit: int = 5) -> str:
    """Some of a list that may be long: a, b, c and 1,000 more."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would choose: 8 s, 3 min 20 s, 2 h 05 min, 4 days 6 h."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    if total < 48 * 3600:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86400} days {total % 86400 // 3600} h"


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SECONDS = {"h": 3600, "m": 60, "s": 1}


def parse_bytes(text: str) -> int:
    """2GB, 800 MB, 1.5G -> bytes, in units of a thousand; GiB and the like count 1,024.

    Raises:
        ConfigError: if it is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None or not float(match[1]):
        raise ConfigError(f"--max-memory must be a size such as 2GB or 800MB, got {text!r}")
    unit = 1024 ** list(_UNITS).index(match[2]) if match[3] else _UNITS[match[2]]
    return int(float(match[1]) * unit)


def parse_seconds(text: str) -> float:
    """10m, 90s, 1h30m, 1.5 h -> seconds.

    Raises:
        ConfigError: if it is none of these.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([hms])[a-z]*\s*", text.lower())
    if not parts or re.sub(r"\d+(?:\.\d+)?\s*[hms][a-z]*\s*", "", text.lower()).strip():
        raise ConfigError(f"--budget must be a time such as 10m, 90s or 1h30m, got {text!r}")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not seconds:
        raise ConfigError(f"--budget must be a time above 0, got {text!r}")
    return seconds


def show_bytes(number: float) -> str:
    """1.5 GB, 800 MB."""
    return f"{number / 1e9:.1f} GB" if number >= 0.95e9 else f"{number / 1e6:.0f} MB"
