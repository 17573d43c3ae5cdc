"""What a recipe leaves open and the network or the data decide; all of it is written into the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from carnet.errors import RunError
from carnet.models.registry import RESIZABLE, default_image_size
from carnet.training.config import TrainingConfig

IMAGES_TO_SEE = 400_000
"""Training images, each as often as it comes up."""
FEWEST_EPOCHS, MOST_EPOCHS = 5, 200
STEPS_PER_EPOCH = 16
"""At least, as far as batches of `SMALLEST_BATCH` make them."""
SMALLEST_BATCH, LARGEST_BATCH = 8, 64
LONG_RUN = 30
"""Epochs from which a network sees enough of every image to need more variety."""


SIDES_BY_PASSES = ((2.0, 64), (7.0, 96), (40.0, 128), (math.inf, 160))
"""What a budget is best spent on: up to so many passes over the training images, if they had the network's own side,
and the side to take instead. `docs/recipe.md` has the experiments."""


def with_size(config: TrainingConfig) -> TrainingConfig:
    """Fill in the side of the images, unless a budget is left to choose it.

    Raises:
        CarnetError: if there is no such network.
    """
    if budget_chooses_size(config):
        return config
    return replace(config, image_size=config.image_size or default_image_size(config.model))


def budget_chooses_size(config: TrainingConfig) -> bool:
    """Whether measured speed decides on the side: with a budget and nothing else, for networks that take any side."""
    is_open = not (config.image_size or config.epochs or config.stream)
    return bool(config.budget) and is_open and config.model in RESIZABLE


def size_for(passes: float) -> int:
    """Side of the images, in pixels, for so many passes over the training images at the network's own side."""
    return next(side for most, side in SIDES_BY_PASSES if passes <= most)


def with_batch_size(config: TrainingConfig, num_train: int, devices: int = 1) -> TrainingConfig:
    """Fill in the batch: a power of two, smaller where there are few images, so that they still make some steps."""
    if config.batch_size:
        return config
    fitting = max(SMALLEST_BATCH, min(LARGEST_BATCH, num_train // STEPS_PER_EPOCH))
    size = 2 ** (fitting.bit_length() - 1)
    while size < 2 * devices:
        size *= 2
    return replace(config, batch_size=size)


def with_augmentation(config: TrainingConfig) -> TrainingConfig:
    """Fill in how much images are changed: more in a long run, which would learn them by heart otherwise."""
    is_long = config.epochs >= LONG_RUN
    min_crop = config.min_crop or (0.25 if is_long else 0.35)
    cutmix = config.cutmix if config.cutmix >= 0 else (0.5 if is_long else 0.0)
    return replace(config, min_crop=min_crop, cutmix=cutmix)


def recorded_recipe(values: Mapping[str, Any], path: Path) -> TrainingConfig:
    """The recipe that a run has recorded, in which nothing is left open.

    Args:
        values: as the run's config.json or checkpoint has them.
        path: that file, for messages.

    Raises:
        RunError: if it cannot be read, or leaves open what the run must have chosen.
    """
    config = TrainingConfig.from_json(values, path)
    if left_open := [name for name in ("image_size", "epochs", "batch_size") if not getattr(config, name)]:
        raise RunError(
            f"the recipe in {path} is damaged: it leaves {' and '.join(left_open)} open; start anew with --init"
        )
    return config


def filled_from(config: TrainingConfig, recorded: TrainingConfig) -> TrainingConfig:
    """Fill in what is left open with what a run has recorded."""
    return replace(
        config,
        image_size=config.image_size or recorded.image_size,
        epochs=config.epochs or recorded.epochs,
        batch_size=config.batch_size or recorded.batch_size,
        min_crop=config.min_crop or recorded.min_crop,
        cutmix=config.cutmix if config.cutmix >= 0 else recorded.cutmix,
    )


def with_epochs(config: TrainingConfig, num_train: int) -> TrainingConfig:
    """Fill in the number of epochs: many for few images, few for many; a budget chooses it later."""
    if config.epochs or config.budget:
        return config
    epochs = round(IMAGES_TO_SEE / num_train)
    return replace(config, epochs=min(MOST_EPOCHS, max(FEWEST_EPOCHS, epochs)))
