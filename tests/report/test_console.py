"""Progress on terminals with and without rich, and in files."""

import io
import sys

import pytest

from carnet.report.console import Console


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = Console(stream, clock=clock)
    for done in range(900, 1001):  # resumed at step 900, one second per step
        shown.bar("epoch 1/2", done, 1000, "loss 1.0")
        clock.now += 1
    assert stream.getvalue().splitlines() == [
        "epoch 1/2: 930 of 1000, loss 1.0, about 1 min 10 s left",
        "epoch 1/2: 960 of 1000, loss 1.0, about 40 s left",
        "epoch 1/2: 990 of 1000, loss 1.0, about 10 s left",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_are_escaped() -> None:
    stream = io.StringIO()
    with Console(stream) as shown:
        shown.say("class \x1b[2Jcat\nNote: two lines.")
    assert stream.getvalue() == "class \\x1b[2Jcat\nNote: two lines.\n"


def test_a_terminal_without_rich_gets_one_line() -> None:
    stream, clock = Terminal(), Clock()
    with Console(stream, has_rich=False, clock=clock) as shown:
        for done in range(4):
            shown.bar("predicting", done, 4)
            clock.now += 1
        shown.say("one")
        shown.bar("predicting", 4, 4)
    written = stream.getvalue()
    assert "\rpredicting: 3 of 4, about 1 s left" in written
    # The message has a line of its own, and nothing is left behind it.
    assert written.endswith(" \rone\n")


def test_a_terminal_gets_bars() -> None:
    stream = Terminal()
    with Console(stream) as shown:
        shown.bar("epoch 1/2", 1, 4, "loss 2.5")
        shown.say("class :cat: and [bold]")
        shown.bar("epoch 1/2", 2, 4, "loss 2.5")
        shown.bar("epoch 1/2", 4, 4)
    assert "class :cat: and [bold]" in stream.getvalue()
    assert "/4" in stream.getvalue()
    assert "loss 2.5" in stream.getvalue()


def test_other_streams_are_left_alone_while_a_bar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Terminal()
    with Console(stream) as shown:
        shown.bar("predicting", 1, 4)
        print("an answer")
        print("a warning", file=sys.stderr)
    assert capsys.readouterr() == ("an answer\n", "a warning\n")
    assert "answer" not in stream.getvalue()
