"""Progress of long work, and text for people: counts, sizes, durations, paths. `carnet.report.console` shows it."""

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
"""Called with the number of steps done, and of all steps."""


class Progress(Protocol):
    """Receives messages and progress for a person."""

    def say(self, text: str) -> None:
        """Show one or more lines."""

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps of `what` are done; the last call has done == total."""


class Silent:
    """A `Progress` that shows nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """Do nothing."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2 images, 1,000 classes."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def is_control(character: str) -> bool:
    """Return whether a character is invisible and changes how others are shown.

    These are control characters, line and paragraph separators, and Unicode's format characters: writing directions,
    and characters without width.
    """
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")


def printable(text: str, keep: str = "") -> str:
    """Escape all control characters but those in `keep`, as in a Python string.

    Then a name cannot control a terminal, forge a line, or look like another name.
    """
    return "".join(c if c in keep or not is_control(c) else c.encode("unicode_escape").decode() for c in text)


def quoted(path: Path | str) -> str:
    """Return a path as a command line takes it: in quotation marks if it has spaces."""
    text = str(path)
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def first_few(items: Sequence[str], limit: int = 5) -> str:
    """Return the first items of a list that may be long: a, b, c and 1,000 more."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"


def duration(seconds: float) -> str:
    """Return a duration in readable units: 8 s, 3 min 20 s, 2 h 05 min, 4 days 6 h."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    if total < 48 * 3600:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86400} days {total % 86400 // 3600} h"


def show_bytes(number: float) -> str:
    """Return a size in readable units: 1.5 GB, 800 MB."""
    return f"{number / 1e9:.1f} GB" if number >= 0.95e9 else f"{number / 1e6:.0f} MB"


def parse_bytes(text: str, flag: str = "--max-memory") -> int:
    """Return the number of bytes of a size such as 2GB, 800 MB or 1.5G; GiB and the like count 1,024.

    Raises:
        ConfigError: if it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None or not float(match[1]):
        raise ConfigError(f"{flag} must be a size such as 2GB or 3MB, got {text!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def parse_milliseconds(text: str) -> float:
    """Return the milliseconds of a latency such as 5ms, 0.8 ms or 5.

    Raises:
        ConfigError: if it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:ms)?\s*", text.lower())
    if match is None or not float(match[1]):
        raise ConfigError(f"--max-latency must be a time such as 5ms or 0.8ms, got {text!r}")
    return float(match[1])


def parse_seconds(text: str) -> float:
    """Return the seconds of a duration such as 10m, 90s, 1h30m or 1.5 h.

    Raises:
        ConfigError: if it is not a duration.
    """
    part = r"(\d+(?:\.\d+)?)\s*([hms])[a-z]*\s*"
    if re.fullmatch(rf"\s*(?:{part})+", text.lower()) is None:
        raise ConfigError(f"--budget must be a time such as 10m, 90s or 1h30m, got {text!r}")
    units = {"h": 3600, "m": 60, "s": 1}
    seconds = sum(float(number) * units[unit] for number, unit in re.findall(part, text.lower()))
    if not seconds:
        raise ConfigError(f"--budget must be a time above 0, got {text!r}")
    return seconds
