"""How long compute threads wait for each other before they give their core away. Without PyTorch.

PyTorch on Linux computes with threads of the GNU OpenMP library. After each piece of work they wait for the slowest
one, and by default keep their cores busy with that for a millisecond or more. Beside another program this is the wrong
thing to do: the thread that is waited for has lost its core, and those that wait use up their share of the others.
Short waiting leaves the time to whoever has work (`benchmarks/busy_cores.py`).
"""

from __future__ import annotations

import os
import sys

_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Either says how threads wait."""
SPINS = 20_000
"""Turns of an empty loop; PyTorch's own are 300,000. Fewer slow down a machine that has nothing else to do."""


def wait_briefly() -> None:
    """Have threads wait briefly, unless the user has said how. Has an effect only before PyTorch is imported."""
    if not is_waiting_chosen():
        os.environ[_VARIABLES[0]] = str(SPINS)


def is_waiting_chosen() -> bool:
    """Whether somebody said how threads wait, or the system has no such threads."""
    return sys.platform != "linux" or any(name in os.environ for name in _VARIABLES)
