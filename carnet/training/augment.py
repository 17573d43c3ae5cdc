"""Augmentation of training images, drawn from a random generator for each image and from nothing else.

On processors Pillow augments one image at a time, on the threads that prepare images; `benchmarks/kernels.py` measured
that as twice as fast as whole batches in PyTorch. On a GPU whole batches are augmented there, to the same pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from carnet.config import TrainingConfig
from carnet.preprocess import Images, to_pillow

MAX_RATIO = 4 / 3
"""Largest ratio of the sides of a crop, either way."""
_FIXED = 65536
"""Pillow counts positions in this many parts of a pixel."""


class Change(NamedTuple):
    """The augmentation of one image, as it was drawn."""

    left: float
    """The four numbers of the crop are shares of the image's side."""
    top: float
    width: float
    height: float
    factor: float
    """Of brightness."""
    mirrored: bool
    angle: float
    """In degrees."""
    contrast: float
    """Factor of the distance of pixels from the image's mean grey."""
    saturation: float
    """Factor of the distance of pixels from their own grey."""


@dataclass(frozen=True)
class Augmentation:
    """A random crop (RandomResizedCrop); then jitter of colours, mirroring and rotation, in the published order.

    The smallest crop and the side of the result change over a run: see `carnet.training.schedule`.
    """

    brightness: float
    """Factor between 1 - this and 1 + this."""
    flip: float
    """Probability of mirroring left to right."""
    rotation: float
    """Largest angle in degrees, either way; corners from outside the image become black."""
    color: float = 0.0
    """Factors of contrast and of saturation between 1 - this and 1 + this."""

    @classmethod
    def from_config(cls, config: TrainingConfig) -> Augmentation:
        """Return the augmentation that the recipe names."""
        return cls(config.brightness, config.flip, config.rotation, config.color)

    def draw(self, rng: np.random.Generator, min_crop: float = 1.0) -> Change:
        """Draw the change to one image.

        The number of draws is constant, so that switching one kind off leaves the others as they were. The crop has a
        random area, and a random ratio of its sides between 3:4 and 4:3 as far as the square image allows.

        Args:
            rng: from which everything is drawn.
            min_crop: smallest share of the area that is cut out; 1: the whole image.
        """
        factor = rng.uniform(1 - self.brightness, 1 + self.brightness)
        mirrored = bool(rng.random() < self.flip)
        angle = rng.uniform(-self.rotation, self.rotation)
        area = rng.uniform(min_crop, 1)
        widest = min(math.log(MAX_RATIO), abs(math.log(area)))
        ratio = math.exp(rng.uniform(-widest, widest))
        width, height = (min(1.0, math.sqrt(area * share)) for share in (ratio, 1 / ratio))
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        contrast, saturation = rng.uniform(1 - self.color, 1 + self.color, 2).tolist()
        return Change(left, top, width, height, factor, mirrored, angle, contrast, saturation)

    def apply(self, pixels: Images, change: Change, size: int) -> Images:
        """uint8 (S, S, C) -> uint8 (size, size, C)"""
        image = to_pillow(pixels)
        if size != image.width or min(change.width, change.height) < 1:
            left, top, width, height = (image.width * share for share in change[:4])
            box = (left, top, left + width, top + height)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if self.brightness:
            image = ImageEnhance.Brightness(image).enhance(change.factor)
        if self.color:
            image = ImageEnhance.Contrast(image).enhance(change.contrast)
            image = ImageEnhance.Color(image).enhance(change.saturation)
        if change.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotation:
            image = image.rotate(change.angle, Image.Resampling.NEAREST)
        return np.array(image).reshape(image.height, image.width, pixels.shape[2])

    def apply_to_batch(self, images: Tensor, changes: Tensor, size: int) -> Tensor:
        """uint8 (N, S, S, C), changes (N, 9) -> uint8 (N, size, size, C), as `apply`, on the device of the images."""
        turns = [_turn(angle, size) for angle in changes[:, 6].tolist()] if self.rotation else [_turn(0, size)]
        is_cropped = size != images.shape[1] or bool((changes[:, 2:4] < 1).any())
        changes = changes.to(images.device)
        images = _cut(images, changes[:, :4], size) if is_cropped else images
        if self.brightness:
            images = _scaled(images, torch.zeros(1, device=images.device), changes[:, 4])
        if self.color:
            means = _grey(images).double().mean(dim=(1, 2)).add(0.5).floor()
            images = _scaled(images, means[:, None, None, None], changes[:, 7])
            images = _scaled(images, _grey(images)[..., None], changes[:, 8])
        return _place(images, changes[:, 5].bool(), torch.tensor(turns, device=images.device))


def _cut(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Resize a box of every image to (size, size), as Pillow does: along rows, then columns, each to whole levels.

    Args:
        images: uint8 (N, S, S, C).
        boxes: (N, 4), left, top, width and height as shares of S.
        size: of the result.
    """
    side = images.shape[1]
    across, down = (_weights(boxes[:, i] * side, boxes[:, i + 2] * side, side, size) for i in (0, 1))
    pixels = torch.einsum("nxs,nysc->nyxc", across, images.float()).round()
    return torch.einsum("nyr,nrxc->nyxc", down, pixels).round().clamp(0, 255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return the weight of every pixel of a line for each of the `size` pixels that a part of it is resized to.

    (N,), (N,) -> (N, size, side); a triangle filter as wide as a new pixel, and at least as wide as an old one.
    """
    scale = length / size
    centres = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * scale[:, None]
    distances = torch.arange(side, device=start.device) + 0.5 - centres[..., None]
    weights = (1 - distances.abs() / scale.clamp(min=1)[:, None, None]).clamp(min=0)
    # As in Pillow, pixels outside the box count as well if they are inside the image.
    return (weights / weights.sum(-1, keepdim=True)).float()


def _turn(angle: float, size: int) -> list[int]:
    """Return the affine map that Pillow's `rotate` makes of an angle in degrees, for squares and nearest pixels.

    Returns:
        In fixed point: the origin of the first pixel, x and y; its change along a row, and down a column.
    """
    radians = -math.radians(angle % 360)
    cos, sin = round(math.cos(radians), 15), round(math.sin(radians), 15)
    centre = size / 2
    x = cos * -centre + sin * -centre + centre
    y = -sin * -centre + cos * -centre + centre
    # The origin of a pixel is that of its middle.
    x, y = x + cos * 0.5 + sin * 0.5, y - sin * 0.5 + cos * 0.5
    return [math.floor(value * _FIXED + 0.5) for value in (x, y, cos, -sin, sin, cos)]


def _place(images: Tensor, mirrored: Tensor, turns: Tensor) -> Tensor:
    """Mirror and rotate: every pixel is copied from one place, or is black if that lies outside."""
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


def _scaled(images: Tensor, origin: Tensor, factors: Tensor) -> Tensor:
    """Multiply the distance of all pixels from `origin` and clip to 0..255, as Pillow does; opacity stays."""
    values = images[..., :3].float()
    scaled = origin.float() + factors.float()[:, None, None, None] * (values - origin.float())
    return torch.cat([scaled.clamp(0, 255).to(torch.uint8), images[..., 3:]], dim=-1)


def _grey(images: Tensor) -> Tensor:
    """(N, S, S, C) -> (N, S, S), whole levels of grey as Pillow computes them: ITU-R 601."""
    if images.shape[-1] == 1:
        return images[..., 0]
    red, green, blue = images[..., :3].int().unbind(-1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
