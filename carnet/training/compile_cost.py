"""What compiling a network costs on this machine: seconds it took before, kept in the cache."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import torch

from carnet import files
from carnet.data.cache import cache_root
from carnet.errors import OutputError, RunError
from carnet.machine import processor_name
from carnet.training.plan import processor_features

PRIOR_SECONDS = 65.0
"""Where nothing was compiled on this machine yet: the usual time on two processor cores, see docs/speed.md."""


def expected_seconds(what: str) -> float:
    """Seconds that compiling takes, as far as is known.

    Args:
        what: names network and batch. If it was never compiled here, the longest time of others counts.
    """
    here = _read().get(_machine(), {})
    return here.get(what) or max(here.values(), default=PRIOR_SECONDS)


def remember_seconds(what: str, seconds: float) -> None:
    """Keep how long compiling took. A cache that cannot be written is no reason to stop."""
    known = _read()
    known.setdefault(_machine(), {})[what] = round(seconds, 1)
    with suppress(OutputError, OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        files.write_json(_file(), known)


def _machine() -> str:
    return f"{processor_name()}, {processor_features()}, torch {torch.__version__}"


def _file() -> Path:
    return cache_root() / "compile_seconds.json"


def _read() -> dict[str, dict[str, float]]:
    """Only what is a time; another program may have written into the file."""
    try:
        content = files.read_json(_file())
    except (OSError, RunError):
        return {}
    return {
        machine: {what: float(seconds) for what, seconds in times.items() if _is_time(seconds)}
        for machine, times in (content.items() if isinstance(content, dict) else ())
        if isinstance(times, dict)
    }


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
