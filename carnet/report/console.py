"""Progress on a terminal: bars with rate and time left; plain lines where there is no terminal.

Where rich is not installed, as on a device that only runs models, a line that is written again stands in for the bars.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import TracebackType
from typing import Self, TextIO

from carnet.text import duration, printable

PLAIN_SECONDS = 30.0
"""Between two lines about the same work where there is no terminal."""
IN_PLACE_SECONDS = 0.2
"""The same on a terminal without rich."""


class Console:
    """Shows what a `carnet.text.Progress` is told, on a stream of its own choice.

    Use it in a `with` block, which leaves the terminal as it was.

    Args:
        stream: a terminal, a file or a pipe.
        has_rich: whether rich draws the bars on a terminal; None: where it is installed.
        clock: tells seconds.
    """

    def __init__(
        self, stream: TextIO, *, has_rich: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = stream
        draws = stream.isatty() and (find_spec("rich") is not None if has_rich is None else has_rich)
        self._bars = _RichBars(stream) if draws else _PlainBars(stream, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.close()

    def say(self, text: str) -> None:
        """Print lines, above any bar."""
        self._bars.say(printable(text, keep="\n"))

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show how far some work is; the bar goes when done == total."""
        self._bars.bar(printable(what), done, total, note)


def silence(stream: TextIO) -> None:
    """Send a stream whose reader has gone to nowhere; also what Python still writes to it at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_broken_pipe(error: OSError) -> bool:
    """Whether the reader of a stream has gone; Windows has another word for it."""
    return isinstance(error, BrokenPipeError) or (
        os.name == "nt" and error.errno == errno.EINVAL and error.filename is None
    )


class _PlainBars:
    """A line now and then, for logs and pipes; on a terminal one line, written again and again."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self.stream, self.clock = stream, clock
        self.in_place = stream.isatty()
        self.width = 0
        self.started: dict[str, tuple[float, int]] = {}
        self.shown: dict[str, float] = {}

    def say(self, text: str) -> None:
        self.close()
        self._write(f"{text}\n")

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        now = self.clock()
        # Work that is taken up again does not start at 0.
        started, first = self.started.setdefault(what, (now, done))
        shown = self.shown.setdefault(what, now)
        if done == total:
            del self.started[what], self.shown[what]
            self.close()
        elif now - shown >= (IN_PLACE_SECONDS if self.in_place else PLAIN_SECONDS) and done > first:
            self.shown[what] = now
            left = (now - started) / (done - first) * (total - done)
            line = f"{what}: {done} of {total}{', ' + note if note else ''}, about {duration(left)} left"
            if self.in_place:
                self._write(f"\r{line:{self.width}}")
                self.width = len(line)
            else:
                self.say(line)

    def close(self) -> None:
        """Wipe the line away."""
        if self.width:
            self._write(f"\r{'':{self.width}}\r")
            self.width = 0

    def _write(self, text: str) -> None:
        try:
            print(text, end="", file=self.stream, flush=True)
        except OSError as error:
            # Whoever listened has gone (`| head`); that is no reason to give up the work.
            if not is_broken_pipe(error):
                raise
            silence(self.stream)


class _RichBars:
    """One bar for each work under way."""

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
            # What a command prints goes where it was sent to; what comes onto the same terminal, above the bars.
            redirect_stdout=False,
            redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
        )
        self.tasks: dict[str, progress.TaskID] = {}

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
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

    def close(self) -> None:
        self.progress.stop()
