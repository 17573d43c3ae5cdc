"""Open choices follow from the data, the budget and the machine, and requested ones stay."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from fake_measure import FakeMeasure, Images
from runs import NEVER_CHOSEN

from carnet import TrainingConfig, published
from carnet.config import OF_MACHINE, ResolvedConfig
from carnet.errors import ConfigError, DataError
from carnet.training.autotune import LONG_RUN_EPOCHS, tune
from carnet.training.resolve import first_guess, resolve


def guess(asked: TrainingConfig, num_train: int) -> ResolvedConfig:
    return first_guess(replace(asked, device="cpu"), num_train=num_train, image_size=asked.image_size or 128)


@pytest.mark.parametrize(
    ("num_train", "batch_size"), [(5, 8), (131, 8), (300, 16), (600, 32), (1023, 32), (1024, 64), (1_000_000, 64)]
)
def test_few_images_have_small_batches(num_train: int, batch_size: int) -> None:
    assert guess(TrainingConfig(), num_train).batch_size == batch_size
    assert guess(TrainingConfig(batch_size=7), num_train).batch_size == 7


@pytest.mark.parametrize(("num_train", "epochs"), [(24, 200), (2_000, 200), (13_572, 29), (1_000_000, 5)])
def test_few_images_are_seen_often(num_train: int, epochs: int) -> None:
    assert guess(TrainingConfig(), num_train).epochs == epochs
    assert guess(TrainingConfig(epochs=7), num_train).epochs == 7
    assert guess(TrainingConfig(epochs=7, budget="1m"), num_train).epochs == 7
    # The budget decides later.
    assert guess(TrainingConfig(budget="1m"), num_train).epochs == 1


def test_every_device_has_two_images() -> None:
    assert guess(TrainingConfig(devices=16), 32).batch_size == 32
    # 12 at least, and a power of two.
    assert guess(TrainingConfig(devices=6), 100).batch_size == 16
    with pytest.raises(DataError, match=r"11 training images.*--devices 6"):
        guess(TrainingConfig(devices=6), 11)


def test_long_runs_augment_more() -> None:
    short, long = (guess(TrainingConfig(epochs=epochs), 100) for epochs in (LONG_RUN_EPOCHS - 1, LONG_RUN_EPOCHS))
    assert (short.min_crop, short.cutmix) == (0.35, 0.0)
    assert (long.min_crop, long.cutmix) == (0.25, 0.5)
    asked = guess(TrainingConfig(epochs=LONG_RUN_EPOCHS, min_crop=1.0, cutmix=0.0), 100)
    assert (asked.min_crop, asked.cutmix) == (1.0, 0.0)


def test_valid_seed_is_the_seed_unless_it_is_given() -> None:
    assert guess(TrainingConfig(seed=7), 100).valid_seed == 7
    assert guess(TrainingConfig(seed=7, valid_seed=0), 100).valid_seed == 0


def test_the_published_recipe_does_not_depend_on_the_data() -> None:
    recipe = published()
    resolved = guess(recipe, 50)
    of_recipe = {field.name for field in fields(TrainingConfig)} - OF_MACHINE - {"workers", "valid_seed"}
    assert {name: getattr(resolved, name) for name in of_recipe} == {name: getattr(recipe, name) for name in of_recipe}


@pytest.mark.parametrize(
    "asked",
    [
        {"batch_size": 4, "epochs": 3, "min_crop": 0.5, "cutmix": 0.25, "valid_seed": 3, "threads": 1, "workers": 2},
        {"precision": "bf16", "muon_precision": "bf16", "memory_format": "contiguous", "fast_depthwise": False},
        {"compile": True, "keep_memory": False, "micro_batch": 2},
        {"compile": False, "keep_memory": True, "micro_batch": 8, "workers": 0},
    ],
)
def test_requested_values_stay(asked: dict[str, Any]) -> None:
    config = TrainingConfig(device="cpu", image_size=64, **({"batch_size": 8} | asked))
    resolved = resolve(config, Images(800, image_size=64), FakeMeasure())
    assert {name: getattr(resolved, name) for name in asked} == asked


def test_equal_measurements_resolve_equally_and_nothing_is_left_open() -> None:
    asked, images = TrainingConfig(device="cpu"), Images(5000, image_size=128)
    one, other = (resolve(asked, images, FakeMeasure()) for _ in range(2))
    assert one == other
    chosen = {field.name for field in fields(ResolvedConfig) if getattr(one, field.name) is None}
    assert chosen == NEVER_CHOSEN
    by_hand = first_guess(asked, num_train=5000, image_size=128)
    assert tune(by_hand, asked, images.num_valid, FakeMeasure()) == one
    assert one.reasons


def test_a_precision_that_the_device_lacks() -> None:
    with pytest.raises(ConfigError, match="--precision fp16"):
        guess(TrainingConfig(precision="fp16"), 100)
