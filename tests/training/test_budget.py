"""A budget chooses small images if there is time for few passes over them, and larger ones if there is more."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import pytest
from fake_measure import FakeMeasure

from carnet import TrainingConfig
from carnet.config import ResolvedConfig
from carnet.data.find import find_images
from carnet.spec import ModelSpec
from carnet.text import Silent
from carnet.training.measure import Measure
from carnet.training.preparation import prepare
from carnet.training.resolve import SIDES_BY_STEPS, budget_chooses_size, choose_size, size_for

SIDES = [side for _, side in SIDES_BY_STEPS]
OPEN = TrainingConfig(model="carnet_n", budget="10m", device="cpu")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))


class Recorded(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def steps_of(seconds: float, **machine: Any) -> Callable[[ResolvedConfig, ModelSpec], Measure]:
    """Return a machine on which every step takes so long."""
    return lambda guess, spec: FakeMeasure(of_step=lambda _: seconds, **machine)


def never(*_: object) -> Never:
    raise AssertionError("steps were measured")


def test_more_steps_choose_larger_images() -> None:
    assert sorted(SIDES) == SIDES
    assert (SIDES[0], SIDES[-1]) == (64, 160)
    for most, side in SIDES_BY_STEPS[:-1]:
        assert size_for(most) == side < size_for(most + 1)
    assert (size_for(0), size_for(1e9)) == (64, 160)


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, None),
        ({"budget": None}, 128),
        ({"epochs": 5}, 128),
        ({"image_size": 96}, 96),
        ({"stream": True}, 128),
        ({"model": "carnet18"}, 244),
    ],
)
def test_a_budget_chooses_the_side_if_nobody_did(changes: dict[str, Any], side: int | None, photos: Path) -> None:
    asked = replace(OPEN, **changes)
    assert budget_chooses_size(asked) == (side is None)
    if side is not None:
        progress = Recorded()
        assert choose_size(asked, find_images(photos), progress, started=0.0, measure=never) == side
        assert not progress.said


@pytest.mark.parametrize("seconds", [200.0, 0.9, 0.2, 0.001])
def test_speed_images_and_budget_decide_the_side(seconds: float, photos: Path) -> None:
    """24 training images are three steps; 600 s hold as many of them, minus the time of decoding."""
    progress = Recorded()
    side = choose_size(
        OPEN, find_images(photos), progress, started=0.0, measure=steps_of(seconds), decoding_seconds=60.0
    )
    assert side == size_for(540 / seconds)
    (said,) = progress.said
    assert all(part in said for part in (f"{side} px", "--budget 10m", "24 training images", "--image-size"))


def test_time_that_is_spent_already_counts(photos: Path) -> None:
    side = choose_size(
        OPEN, find_images(photos), Silent(), started=0.0, measure=steps_of(0.1, spent=520.0), decoding_seconds=60.0
    )
    assert side == size_for(20 / 0.1) < size_for(540 / 0.1)


def test_the_first_measurement_of_speed_counts(photos: Path) -> None:
    known: dict[str, dict[str, float]] = {}
    sides = [
        choose_size(
            OPEN,
            find_images(photos),
            Silent(),
            started=0.0,
            measure=steps_of(seconds, known=known),
            decoding_seconds=60.0,
        )
        for seconds in (60.0, 0.001)
    ]
    assert sides == [size_for(9), size_for(9)]


def test_without_a_cache_images_are_decoded_in_every_pass(photos: Path) -> None:
    for cache, steps in (("disk", 500 / 0.001), ("off", 3 * 600 / 100.003)):
        config = replace(OPEN, cache=cache)
        side = choose_size(
            config, find_images(photos), Silent(), started=0.0, measure=steps_of(0.001), decoding_seconds=100.0
        )
        assert side == size_for(steps)


def test_held_out_images_of_a_folder_without_splits_do_not_count(flat: Path) -> None:
    progress = Recorded()
    choose_size(OPEN, find_images(flat), progress, started=0.0, measure=steps_of(1.0))
    assert "24 training images" in progress.said[0]


def test_the_run_records_the_requested_and_the_resolved_side(photos: Path, tmp_path: Path) -> None:
    """This measures real steps, so that the side depends on the machine."""
    job = prepare(
        photos,
        replace(OPEN, compile=False, threads=1),
        output=tmp_path / "run",
        init=None,
        ignore=(),
        started=time.monotonic(),
        progress=Silent(),
        held=ExitStack(),
    )
    assert job.config.image_size in SIDES
    assert job.config.image_size == job.spec.image_size == job.record["resolved"]["image_size"]
    assert job.record["requested"]["image_size"] is None
