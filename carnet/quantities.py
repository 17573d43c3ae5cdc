"""Sizes and times as people write them."""

from __future__ import annotations

import re

from carnet.errors import ConfigError

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
