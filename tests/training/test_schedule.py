"""What changes over a run: learning rate, side and crops of the images, and the time of a step."""

import math

import numpy as np
import pytest
from runs import resolved

from carnet.config import published
from carnet.training.schedule import (
    initial_side,
    lr_ratio,
    mean_cost,
    step_cost,
    view_at,
)


def test_learning_rate_over_the_run() -> None:
    config = resolved(warmup=0.2)
    shares = [lr_ratio((step + 0.5) / 100, config) for step in range(100)]
    assert int(np.argmax(shares)) in (19, 20)
    assert max(shares) > 0.97
    assert shares[0] < 0.05
    assert 0 < shares[-1] < 0.01
    assert shares[59] == pytest.approx(40.5 / 80)
    assert {lr_ratio(step / 100, resolved(published())) for step in range(100)} == {1.0}
    assert lr_ratio(0.5, resolved(warmup=0)) == pytest.approx(0.5)


def test_images_grow_to_their_full_side() -> None:
    config = resolved(image_size=128)
    sides = [view_at(epoch / 20, config, 1000).side for epoch in range(20)]
    assert sides == sorted(sides)
    assert set(sides) == {64, 96, 128}
    assert sides[0] == initial_side(config) == 64
    assert sides[15:] == [128] * 5
    odd = resolved(image_size=110)
    assert [initial_side(odd), *sorted({view_at(step / 100, odd, 1000).side for step in range(100)})] == [
        64,
        64,
        96,
        110,
    ]


@pytest.mark.parametrize(("size", "first"), [(16, 16), (64, 64), (96, 64), (128, 64), (160, 64), (224, 96), (384, 192)])
def test_small_images_do_not_grow(size: int, first: int) -> None:
    assert initial_side(resolved(image_size=size)) == first


def test_crops_are_nearly_whole_in_the_last_steps() -> None:
    config = resolved(image_size=128, min_crop=0.4)
    assert [view_at(progress, config, 8000).min_crop for progress in (0, 0.74, 0.75, 1)] == [0.4, 0.4, 0.9, 0.9]
    assert view_at(1, resolved(image_size=128, min_crop=0.95), 8000).min_crop == 0.95
    assert (view_at(0, config, 8000), view_at(1, config, 8000)) == ((64, 0.4), (128, 0.9))


@pytest.mark.parametrize(("steps", "whole"), [(100, 25), (8000, 25), (10_000, 20), (20_000, 10), (100_000, 2)])
def test_the_last_steps_with_nearly_whole_crops_are_limited(steps: int, whole: int) -> None:
    config = resolved(image_size=128, min_crop=0.25)
    crops = [view_at((part + 0.5) / 100, config, steps).min_crop for part in range(100)]
    assert crops == [0.25] * (100 - whole) + [0.9] * whole


def test_growing_can_be_off() -> None:
    assert {view_at(step / 10, resolved(published()), 1000) for step in range(10)} == {(244, 1)}
    assert initial_side(resolved(image_size=101, initial_size_ratio=1.0)) == 101
    small = resolved(image_size=32, initial_step_cost=0.5)
    assert mean_cost(small) == step_cost(32, small) == 1


def test_the_cost_of_a_step_lies_between_the_first_and_the_last() -> None:
    config = resolved(image_size=128, initial_step_cost=0.4)
    assert step_cost(64, config) == pytest.approx(0.4)
    assert step_cost(128, config) == pytest.approx(1)
    # The mean of both, at the side whose area is the mean.
    assert step_cost(round(math.sqrt((64**2 + 128**2) / 2)), config) == pytest.approx(0.7, abs=0.01)
    whole, second_half = mean_cost(config), mean_cost(config, 0.5)
    assert 0.4 < whole < second_half < 1
    assert mean_cost(config, 0.75) == pytest.approx(1)
