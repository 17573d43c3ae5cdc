"""A budget is spent on small images where there is time for few passes over them, and on larger ones where for many."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carnet import TrainingConfig
from carnet.data.find import find_images
from carnet.text import Silent
from carnet.training import budget
from carnet.training.budget import size_in_budget
from carnet.training.preparation import prepare
from carnet.training.resolve import SIDES_BY_PASSES, resolve, size_for, with_size

SIDES = [side for _, side in SIDES_BY_PASSES]
OPEN = TrainingConfig(model="carnet_n", budget="10m", device="cpu")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_the_more_passes_the_larger() -> None:
    assert sorted(SIDES) == SIDES
    assert (SIDES[0], SIDES[-1]) == (64, 160)
    for most, side in SIDES_BY_PASSES[:-1]:
        assert size_for(most) == side < size_for(most + 0.01)
    assert (size_for(0), size_for(1e9)) == (64, 160)


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, 0),
        ({"budget": ""}, 128),
        ({"epochs": 5}, 128),
        ({"image_size": 96}, 96),
        ({"stream": True}, 128),
        ({"model": "carnet18"}, 244),
    ],
)
def test_a_budget_chooses_only_what_nobody_did(changes: dict[str, Any], side: int) -> None:
    assert with_size(replace(OPEN, **changes)).image_size == side


@pytest.mark.parametrize("seconds", [200.0, 60.0, 10.0, 0.001])
def test_speed_images_and_budget_decide(seconds: float, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 training images are three steps; 600 s hold so many of them, less what decoding takes."""
    monkeypatch.setattr(budget, "seconds_of_step", lambda *_, **__: seconds)
    monkeypatch.setattr(budget, "seconds_to_decode", lambda *_: 60.0)
    listening = Listening()
    images = find_images(photos)
    side = size_in_budget(OPEN, resolve(OPEN), images, budget.time.monotonic(), listening)
    assert side == size_for(540 / (3 * seconds))
    (said,) = listening.said
    assert f"{side} px, because --budget 10m" in said
    assert "24 training images" in said


def test_the_speed_that_was_measured_first_counts(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "seconds_to_decode", lambda *_: 60.0)
    sides = []
    for seconds in (60.0, 0.001):
        monkeypatch.setattr(budget, "seconds_of_step", lambda *_, seconds=seconds, **__: seconds)
        sides.append(size_in_budget(OPEN, resolve(OPEN), find_images(photos), budget.time.monotonic(), Silent()))
    assert sides == [size_for(3), size_for(3)]


def test_images_that_are_not_kept_are_decoded_in_every_pass(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "seconds_of_step", lambda *_, **__: 0.001)
    monkeypatch.setattr(budget, "seconds_to_decode", lambda *_: 100.0)
    for cache, passes in (("disk", 500 / 0.003), ("off", 600 / 100.003)):
        config = replace(OPEN, cache=cache)
        side = size_in_budget(config, resolve(config), find_images(photos), budget.time.monotonic(), Silent())
        assert side == size_for(passes)


def test_a_folder_without_splits_counts_what_is_left_to_train_on(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "seconds_of_step", lambda *_, **__: 1.0)
    listening = Listening()
    size_in_budget(OPEN, resolve(OPEN), find_images(flat), budget.time.monotonic(), listening)
    assert "24 training images" in listening.said[0]


def test_the_run_records_what_was_asked_and_what_came_of_it(photos: Path, tmp_path: Path) -> None:
    """Measured for real; small pictures are seen often."""
    config = replace(OPEN, compile="off", threads=1)
    job = prepare(
        photos,
        config,
        resolve(config),
        output=tmp_path / "run",
        init=None,
        ignore=(),
        started=budget.time.monotonic(),
        progress=Silent(),
    )
    assert job.config.image_size == job.spec.image_size == SIDES[-1]
    assert job.record["recipe"]["image_size"] == SIDES[-1]
    assert job.record["asked"]["image_size"] == 0
