"""What was measured on this machine, kept in the cache: later runs need not measure it again, and choose the same."""

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

Numbers = dict[str, float]


def recall() -> dict[str, Numbers]:
    """Every measurement kept for this processor, its instruction set and this PyTorch, by its name."""
    return _read().get(_machine(), {})


def remember(what: str, numbers: Numbers) -> None:
    """Keep a measurement. A cache that cannot be written is no reason to stop.

    Args:
        what: the measurement's name, which says everything that it depends on besides machine and PyTorch.
        numbers: positive numbers by name.
    """
    known = _read()
    known.setdefault(_machine(), {})[what] = numbers
    with suppress(OutputError, OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        files.write_json(_file(), known)


def _machine() -> str:
    return f"{processor_name()}, {processor_features()}, torch {torch.__version__}"


def _file() -> Path:
    return cache_root() / "measurements.json"


def _read() -> dict[str, dict[str, Numbers]]:
    """Only what is a measurement; another program may have written into the file."""
    try:
        content = files.read_json(_file())
    except (OSError, RunError):
        return {}
    return {
        machine: {what: numbers for what, numbers in known.items() if _is_measurement(numbers)}
        for machine, known in (content.items() if isinstance(content, dict) else ())
        if isinstance(known, dict)
    }


def _is_measurement(numbers: object) -> bool:
    return isinstance(numbers, dict) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < math.inf
        for number in numbers.values()
    )
