"""What a recipe leaves open follows from the data and the budget, and what is asked for stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from carnet import TrainingConfig, published
from carnet.training.resolve import (
    LONG_RUN,
    filled_from,
    with_augmentation,
    with_batch_size,
    with_epochs,
)


@pytest.mark.parametrize(
    ("num_train", "batch_size"), [(5, 8), (131, 8), (300, 16), (600, 32), (1023, 32), (1024, 64), (1_000_000, 64)]
)
def test_few_images_come_in_small_batches(num_train: int, batch_size: int) -> None:
    assert with_batch_size(TrainingConfig(), num_train).batch_size == batch_size
    assert with_batch_size(TrainingConfig(batch_size=7), num_train).batch_size == 7


@pytest.mark.parametrize(("num_train", "epochs"), [(24, 200), (2_000, 200), (13_572, 29), (1_000_000, 5)])
def test_few_images_are_seen_often(num_train: int, epochs: int) -> None:
    assert with_epochs(TrainingConfig(), num_train).epochs == epochs
    assert with_epochs(TrainingConfig(epochs=7), num_train).epochs == 7
    # Time decides later.
    assert with_epochs(TrainingConfig(budget="1m"), num_train).epochs == 0


def test_every_device_gets_two_images() -> None:
    assert with_batch_size(TrainingConfig(), 20, devices=16).batch_size == 32
    # 12 at least, of which a power of two must not fall short.
    assert with_batch_size(TrainingConfig(), 100, devices=6).batch_size == 16


def test_long_runs_change_images_more() -> None:
    short, long = (with_augmentation(TrainingConfig(epochs=epochs)) for epochs in (LONG_RUN - 1, LONG_RUN))
    assert (short.min_crop, short.cutmix) == (0.35, 0.0)
    assert (long.min_crop, long.cutmix) == (0.25, 0.5)
    asked = with_augmentation(TrainingConfig(epochs=LONG_RUN, min_crop=1.0, cutmix=0.0))
    assert (asked.min_crop, asked.cutmix) == (1.0, 0.0)


def test_the_published_recipe_leaves_nothing_to_the_data() -> None:
    recipe = published()
    filled = with_augmentation(with_epochs(with_batch_size(recipe, 50), 50))
    assert filled == recipe


def test_a_resumed_run_takes_what_was_recorded() -> None:
    recorded = TrainingConfig(image_size=128, epochs=70, batch_size=16, min_crop=0.25, cutmix=0.5)
    assert filled_from(TrainingConfig(), recorded) == recorded
    assert filled_from(replace(recorded, cutmix=0.0), recorded).cutmix == 0.0
