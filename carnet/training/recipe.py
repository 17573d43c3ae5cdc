"""What a recipe leaves open and the network or the data decide; all of it is written into the run."""

from __future__ import annotations

from dataclasses import replace

from carnet.models.registry import default_image_size
from carnet.training.config import TrainingConfig

IMAGES_TO_SEE = 400_000
"""Training images, each as often as it comes up."""
FEWEST_EPOCHS, MOST_EPOCHS = 5, 200


def with_size(config: TrainingConfig) -> TrainingConfig:
    """Fill in the side of the images.

    Raises:
        CarnetError: if there is no such network.
    """
    return replace(config, image_size=config.image_size or default_image_size(config.model))


def with_epochs(config: TrainingConfig, num_train: int) -> TrainingConfig:
    """Fill in the number of epochs: many for few images, few for many; a budget chooses it later."""
    if config.epochs or config.budget:
        return config
    epochs = round(IMAGES_TO_SEE / num_train)
    return replace(config, epochs=min(MOST_EPOCHS, max(FEWEST_EPOCHS, epochs)))
