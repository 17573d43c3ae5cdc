"""Ctrl-C and SIGTERM end training at a step's end, with a checkpoint; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequestError(Exception):
    """Someone asked for the end. Internal: the trainer turns it into a checkpoint and a `StoppedError`."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal.Signals(signal_number).name)


class StopFlag:
    """Remembers a signal until it is convenient."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def check(self) -> None:
        """Raise `StopRequestError` if a signal has come."""
        if self.signal_number is not None:
            raise StopRequestError(self.signal_number)


@contextmanager
def catch_stop_signals() -> Iterator[StopFlag]:
    """Turn SIGINT and SIGTERM into a flag while the block runs; outside the main thread signals stay as they are."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, frame: FrameType | None) -> None:
        flag.signal_number = number
        signal.signal(number, previous[signal.Signals(number)])
        # A handler may interrupt a print, so it must not print itself.
        os.write(2, b"\nstopping after this step; once more to stop at once\n")

    for number in previous:
        signal.signal(number, remember)
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
