"""What compiling a network costs on this machine, by what it took before."""

from __future__ import annotations

from carnet.training.measurements import recall, remember

PRIOR_SECONDS = 65.0
"""Where nothing was compiled on this machine yet: the usual time on two processor cores, see docs/speed.md."""
_COMPILING = "compiling with summed batch norms "
"""What was measured of other compiled code does not count."""


def expected_seconds(what: str) -> float:
    """Seconds that compiling takes, as far as is known.

    Args:
        what: names network and batch. If it was never compiled here, the longest time of others counts.
    """
    known = {name: numbers.get("seconds", 0.0) for name, numbers in recall().items() if name.startswith(_COMPILING)}
    return known.get(_COMPILING + what) or max(known.values(), default=0.0) or PRIOR_SECONDS


def known_speedup(what: str) -> float | None:
    """How many times as fast the compiled network was on this machine; None: that was never measured."""
    return recall().get(_COMPILING + what, {}).get("speedup")


def remember_compiling(what: str, seconds: float, speedup: float | None = None) -> None:
    """Keep how long compiling took, and how many times as fast the network was then."""
    numbers = {"seconds": round(seconds, 1)}
    remember(_COMPILING + what, numbers if speedup is None else numbers | {"speedup": round(speedup, 3)})
