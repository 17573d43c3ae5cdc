"""Ctrl-C and SIGTERM end training at a step's end, with a checkpoint; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from types import FrameType

_ONE_WISH_SECONDS = 1.0
"""Signals that come closer together are one: a launcher passes on what the terminal has sent already."""


STOP_SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
if sys.platform == "win32":
    # What else supervisors can send there, where SIGTERM never arrives.
    STOP_SIGNALS += (signal.SIGBREAK,)


class StopRequestError(Exception):
    """Someone asked for the end. Internal: the trainer turns it into a checkpoint and a `StoppedError`."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


class StopFlag:
    """Remembers a signal until it is convenient; the death of the process that started this one counts as SIGTERM."""

    received: int | None = None

    @property
    def signal_number(self) -> int | None:
        """The signal that has come, if one has."""
        parent = parent_process()
        if parent is not None and not parent.is_alive():
            return signal.SIGTERM
        return self.received

    @property
    def request(self) -> StopRequestError | None:
        """What to raise, if a signal has come."""
        number = self.signal_number
        return None if number is None else StopRequestError(number)

    def check(self) -> None:
        """Raise `StopRequestError` if a signal has come."""
        if (request := self.request) is not None:
            raise request


@contextmanager
def catch_stop_signals() -> Iterator[StopFlag]:
    """Turn SIGINT and SIGTERM into a flag while the block runs; outside the main thread signals stay as they are."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    first = 0.0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if flag.received is None:
            flag.received, first = number, time.monotonic()
            # A handler may interrupt a print, so it must not print itself.
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; once more to stop at once\n")
        elif time.monotonic() - first > _ONE_WISH_SECONDS:
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    for number in previous:
        signal.signal(number, remember)
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def leave_stop_signals_to(process: BaseProcess) -> Iterator[StopFlag]:
    """While the block runs, `process` alone heeds Ctrl-C and SIGTERM; outside the main thread signals stay as they are.

    A terminal sends Ctrl-C to both, so that only SIGTERM has to be passed on. The flag remembers that it was: a process
    that is still preparing dies of it and tells nothing.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        flag.received = number
        process.terminate()

    previous = {
        number: signal.signal(number, pass_on if number == signal.SIGTERM else signal.SIG_IGN)
        for number in STOP_SIGNALS
    }
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def how_it_ended(exit_code: int) -> str:
    """What became of a process, for the end of a sentence."""
    if exit_code < 0:
        return f"was killed ({signal.Signals(-exit_code).name})"
    return f"ended with exit code {exit_code}"
