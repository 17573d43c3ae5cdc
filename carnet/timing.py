"""How long calls take, compared fairly: in turns, so that other work on the machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from carnet.progress import OnProgress


def take_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, progress: OnProgress | None = None
) -> dict[str, list[float]]:
    """Milliseconds of every call, once in each round, right after one that is not counted."""
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(rounds):
        for name, call in calls.items():
            call()
            started = time.perf_counter()
            call()
            milliseconds[name].append(1000 * (time.perf_counter() - started))
        if progress is not None:
            progress(done + 1, rounds)
    return milliseconds
