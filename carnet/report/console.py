"""Progress on a terminal: bars with rate and time left; plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, TextIO

from carnet.errors import MissingExtraError
from carnet.progress import duration

PLAIN_SECONDS = 30.0
"""Between two lines about the same work where there is no terminal."""


class Console:
    """Shows what a `carnet.progress.Progress` is told, on a stream of its own choice.

    Use it in a `with` block, which leaves the terminal as it was.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._bars = _RichBars(stream) if stream.isatty() else _PlainBars(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.close()

    def say(self, text: str) -> None:
        """Print lines, above any bar."""
        self._bars.say(text)

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show how far some work is; the bar goes when done == total."""
        self._bars.bar(what, done, total, note)


class _PlainBars:
    """A line now and then, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.started: dict[str, float] = {}
        self.shown: dict[str, float] = {}

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        started = self.started.setdefault(what, now)
        shown = self.shown.setdefault(what, now)
        if done == total:
            del self.started[what], self.shown[what]
        elif now - shown >= PLAIN_SECONDS:
            self.shown[what] = now
            left = (now - started) / done * (total - done)
            self.say(f"{what}: {done} of {total}{', ' + note if note else ''}, about {duration(left)} left")

    def close(self) -> None:
        self.stream.flush()


class _RichBars:
    """One bar for each work under way."""

    def __init__(self, stream: TextIO) -> None:
        try:
            from rich import console, progress
        except ImportError:
            raise MissingExtraError("a progress bar", "rich", "train") from None

        class Rate(progress.ProgressColumn):
            def render(self, task: progress.Task) -> str:
                return f"{task.speed:.1f}/s" if task.speed else ""

        self.console = console.Console(file=stream, highlight=False, soft_wrap=True)
        self.progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            Rate(),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            speed_estimate_period=60,
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
