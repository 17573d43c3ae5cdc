"""Random changes to training images, each a function of the generator it is drawn from and of nothing else.

On processors Pillow changes one image at a time, on the threads that prepare images: measured, twice as fast as whole
batches in PyTorch (`benchmarks/kernels.py`). On a GPU whole batches are changed there, to the same pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from carnet.preprocess import Images, as_picture
from carnet.training.config import TrainingConfig

_FIXED = 65536
"""Pillow counts positions in parts of a pixel of this size."""


class Change(NamedTuple):
    """What happens to one image."""

    factor: float
    """Of brightness."""
    mirrored: bool
    angle: float
    """In degrees."""


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

    def draw(self, rng: np.random.Generator) -> Change:
        """What to do to an image; always three draws, so that switching one off leaves the others as they were."""
        return Change(
            rng.uniform(1 - self.brightness, 1 + self.brightness),
            bool(rng.random() < self.flip),
            rng.uniform(-self.rotation, self.rotation),
        )

    def apply(self, image: Images, change: Change) -> Images:
        """uint8 (S, S, C) -> uint8 (S, S, C)"""
        picture = as_picture(image)
        if self.brightness:
            picture = ImageEnhance.Brightness(picture).enhance(change.factor)
        if change.mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotation:
            picture = picture.rotate(change.angle, Image.Resampling.NEAREST)
        return np.array(picture).reshape(image.shape)

    def apply_to_batch(self, images: Tensor, changes: Tensor) -> Tensor:
        """The same for uint8 images (N, S, S, C) and their changes (N, 3), on the device where they are."""
        size = images.shape[1]
        turns = [_turn(angle, size) for angle in changes[:, 2].tolist()] if self.rotation else [_turn(0, size)]
        changes = changes.to(images.device)
        images = _place(images, changes[:, 1].bool(), torch.tensor(turns, device=images.device))
        return _brighten(images, changes[:, 0].float()) if self.brightness else images


def _turn(angle: float, size: int) -> list[int]:
    """What Pillow's `rotate` makes of an angle in degrees, for a square and the nearest pixel.

    Returns:
        In fixed point: where the first pixel comes from, x and y; how that moves along a row, and down a column.
    """
    radians = -math.radians(angle % 360)
    cos, sin = round(math.cos(radians), 15), round(math.sin(radians), 15)
    centre = size / 2
    x = cos * -centre + sin * -centre + centre
    y = -sin * -centre + cos * -centre + centre
    # Of the first pixel, its middle counts.
    x, y = x + cos * 0.5 + sin * 0.5, y - sin * 0.5 + cos * 0.5
    return [math.floor(value * _FIXED + 0.5) for value in (x, y, cos, -sin, sin, cos)]


def _place(images: Tensor, mirrored: Tensor, turns: Tensor) -> Tensor:
    """Mirror and turn: every pixel comes from one place, or from outside and is black."""
    number, size, _, channels = images.shape
    along = torch.arange(size, device=images.device)
    x0, y0, x_along, y_along, x_down, y_down = turns.unsqueeze(-1).unsqueeze(-1).unbind(1)
    x = (x0 + x_along * along + x_down * along[:, None]) >> 16
    y = (y0 + y_along * along + y_down * along[:, None]) >> 16
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    x = torch.where(mirrored[:, None, None], size - 1 - x, x)
    first = torch.arange(number, device=images.device)[:, None, None] * size**2
    index = torch.where(inside, first + y * size + x, 0).reshape(-1)
    return images.reshape(-1, channels).index_select(0, index).reshape(images.shape) * inside[..., None]


def _brighten(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply, cut off what is too bright and what stands behind the point; opacity stays."""
    bright = (images[..., :3].float() * factors[:, None, None, None]).clamp(0, 255).to(torch.uint8)
    return torch.cat([bright, images[..., 3:]], dim=-1)
