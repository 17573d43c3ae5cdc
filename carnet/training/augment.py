"""Random changes to training images, each a function of the generator it is given and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from carnet.preprocess import Images, as_picture
from carnet.training.config import TrainingConfig


@dataclass(frozen=True)
class Augmentation:
    """Brightness jitter, mirroring, rotation, in the published order."""

    brightness: float
    """Factor between 1 - this and 1 + this."""
    flip: float
    """Probability of mirroring left to right."""
    rotation: float
    """Degrees either way; corners that come from outside become black."""

    @classmethod
    def from_config(cls, config: TrainingConfig) -> Augmentation:
        """Take the recipe's strengths."""
        return cls(config.brightness, config.flip, config.rotation)

    def __call__(self, image: Images, rng: np.random.Generator) -> Images:
        """uint8 (S, S, C) -> uint8 (S, S, C)"""
        # Drawn first and always, so that switching one change off leaves the others as they were.
        factor = rng.uniform(1 - self.brightness, 1 + self.brightness)
        mirrored = rng.random() < self.flip
        angle = rng.uniform(-self.rotation, self.rotation)
        picture = as_picture(image)
        if self.brightness:
            picture = ImageEnhance.Brightness(picture).enhance(factor)
        if mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotation:
            picture = picture.rotate(angle, Image.Resampling.NEAREST)
        return np.array(picture).reshape(image.shape)
