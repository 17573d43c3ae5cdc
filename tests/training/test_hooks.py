"""Callbacks of users: when they are called, and with what."""

from pathlib import Path
from typing import Any

import pytest
from runs import SMALL, StopAt, small
from together import Losses

import carnet
from carnet.errors import ConfigError, StoppedError
from carnet.text import Silent
from carnet.training.run import train


class Diary(carnet.Callback):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_fit_start(self, run: Any) -> None:
        self.events.append(("start", run.steps_done))

    def on_step_end(self, run: Any, result: Any, seconds: float) -> None:
        assert result.loss > 0
        assert seconds > 0
        self.events.append(run.steps_done)

    def on_epoch_end(self, run: Any) -> None:
        # The built-in callbacks come first.
        assert (run.folder.path / "metrics.csv").exists()
        self.events.append(("epoch", len(run.state.history), round(run.state.history[-1]["valid_top1"], 6)))

    def on_interrupt(self, run: Any) -> None:
        self.events.append("interrupt")

    def on_fit_end(self, run: Any) -> None:
        self.events.append("end")


def test_callbacks_see_every_step_and_epoch(photos: Path, tmp_path: Path) -> None:
    diary = Diary()
    result = train(photos, SMALL, output=tmp_path / "run", callbacks=[diary], progress=Silent())
    first, second = (("epoch", n, round(result.history[n - 1]["valid_top1"], 6)) for n in (1, 2))
    assert diary.events == [("start", 0), 1, 2, 3, first, 4, 5, 6, second, "end"]


def test_callbacks_see_an_interruption_and_the_resumed_rest(photos: Path, tmp_path: Path) -> None:
    diary = Diary()
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=tmp_path / "run", callbacks=[diary], progress=StopAt("epoch 1/2", 2))
    assert diary.events == [("start", 0), 1, 2, "interrupt"]
    later = Diary()
    train(resume=tmp_path / "run", callbacks=[later], progress=Silent())
    assert (later.events[:2], later.events[-1]) == ([("start", 2), 3], "end")


@pytest.mark.usefixtures("quick_processes")
def test_callbacks_move_to_the_first_process_or_are_refused(photos: Path, tmp_path: Path) -> None:
    two = small(epochs=1, devices=2, threads=1)
    losses = Losses()
    train(photos, two, output=tmp_path / "run", callbacks=[losses], progress=Silent())
    assert not losses.seen, "what a callback stores stays in the other process"
    losses.out = open(tmp_path / "log", "w")  # type: ignore[attr-defined] # noqa: PTH123, SIM115
    with losses.out, pytest.raises(ConfigError, match="--devices 2"):  # type: ignore[attr-defined]
        train(photos, two, output=tmp_path / "other", callbacks=[losses], progress=Silent())
    assert not (tmp_path / "other").exists()
