"""Show progress: bars with rate and time left on a terminal, and plain lines where there is none.

Where rich is not installed, as on a device that only runs models, a line that is overwritten replaces the bars.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TextIO

from carnet.text import Progress, Silent, duration, printable

PLAIN_SECONDS = 30.0
"""Seconds between two lines about the same work where there is no terminal."""
IN_PLACE_SECONDS = 0.2
"""Seconds between two updates of the line on a terminal without rich."""


class Console(AbstractContextManager["Console"]):
    """A `carnet.text.Progress` that shows everything on one stream.

    Use it in a `with` block, which restores the terminal.

    Args:
        stream: a terminal, a file or a pipe.
        has_rich: whether rich draws the bars on a terminal; None: if it is installed.
        clock: returns seconds.
    """

    def __init__(
        self, stream: TextIO, *, has_rich: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream, self.clock = stream, clock
        self.in_place = stream.isatty()
        draws = self.in_place and (find_spec("rich") is not None if has_rich is None else has_rich)
        self.bars = _RichBars(stream) if draws else None
        self.width = 0
        self.shown: dict[str, tuple[float, int, float]] = {}
        """Work in progress -> when it began, at which step, and when it was last shown."""

    def __exit__(self, *error: object) -> None:
        self._wipe()
        if self.bars is not None:
            self.bars.progress.stop()

    def say(self, text: str) -> None:
        """Print lines, above any bar."""
        text = printable(text, keep="\n")
        if self.bars is not None:
            self.bars.console.print(text, markup=False)
        else:
            self._wipe()
            self._write(f"{text}\n")

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show the progress of some work; the bar disappears when done == total."""
        what, now = printable(what), self.clock()
        if self.bars is not None:
            self.bars.bar(what, done, total, note)
            return
        # Resumed work does not begin at 0.
        started, first, last = self.shown.setdefault(what, (now, done, now))
        if done == total:
            del self.shown[what]
            self._wipe()
        elif now - last >= (IN_PLACE_SECONDS if self.in_place else PLAIN_SECONDS) and done > first:
            self.shown[what] = (started, first, now)
            left = (now - started) / (done - first) * (total - done)
            line = f"{what}: {done} of {total}{', ' + note if note else ''}, about {duration(left)} left"
            self._write(f"\r{line:{self.width}}" if self.in_place else f"{line}\n")
            self.width = len(line) if self.in_place else 0

    def _wipe(self) -> None:
        """Erase the line that is overwritten."""
        if self.width:
            self._write(f"\r{'':{self.width}}\r")
            self.width = 0

    def _write(self, text: str) -> None:
        try:
            print(text, end="", file=self.stream, flush=True)
        except OSError as error:
            # The work goes on after the reader has gone (`| head`).
            if not is_broken_pipe(error):
                raise
            silence(self.stream)


def silence(stream: TextIO) -> None:
    """Discard whatever is still written to a stream whose reader has gone, also by Python at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def shown(progress: Progress | None) -> AbstractContextManager[Progress]:
    """Return the progress that was asked for; None: a console on standard error, or a silent one without it."""
    if progress is not None:
        return nullcontext(progress)
    return nullcontext(Silent()) if sys.stderr is None else Console(sys.stderr)


def is_broken_pipe(error: OSError) -> bool:
    """Return whether the reader of a stream has gone; Windows reports it as an invalid argument."""
    return isinstance(error, BrokenPipeError) or (
        os.name == "nt" and error.errno == errno.EINVAL and error.filename is None
    )


class _RichBars:
    """One bar for each work in progress, drawn by rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich import console, progress

        class Rate(progress.ProgressColumn):
            def render(self, task: progress.Task) -> str:
                return f"{task.speed:.1f}/s" if task.speed else ""

        self.console = console.Console(file=stream, highlight=False, soft_wrap=True, emoji=False)
        self.progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            Rate(),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            transient=True,
            speed_estimate_period=60,
            # What a command prints stays on its own stream; other messages on this terminal go above the bars.
            redirect_stdout=False,
            redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
        )
        self.tasks: dict[str, progress.TaskID] = {}

    def bar(self, what: str, done: int, total: int, note: str) -> None:
        if what not in self.tasks:
            if done == total:
                return
            self.progress.start()
            self.tasks[what] = self.progress.add_task(what, total=total, note=note)
        self.progress.update(self.tasks[what], completed=done, note=note)
        if done == total:
            self.progress.remove_task(self.tasks.pop(what))
            if not self.tasks:
                self.progress.stop()
