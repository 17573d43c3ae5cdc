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

from carnet.config import TrainingConfig
from carnet.preprocess import Images, to_pillow

MAX_LEAN = 4 / 3
"""How much wider than high, or higher than wide, a piece may be."""
_FIXED = 65536
"""Pillow counts positions in parts of a pixel of this size."""


class Change(NamedTuple):
    """What happens to one image."""

    left: float
    """Of the piece that is cut out, as a share of the image's side; and so on."""
    top: float
    width: float
    height: float
    factor: float
    """Of brightness."""
    mirrored: bool
    angle: float
    """In degrees."""
    contrast: float
    """Factor of how far pixels are from the image's mean grey."""
    saturation: float
    """Factor of how far they are from their own grey."""


@dataclass(frozen=True)
class Augmentation:
    """A random piece of the image; then jitter of its colours, mirroring, rotation, in the published order.

    How large the piece is at least, and what comes out, changes over a run: see `carnet.training.schedule`.
    """

    brightness: float
    """Factor between 1 - this and 1 + this."""
    flip: float
    """Probability of mirroring left to right."""
    rotation: float
    """Degrees either way; corners that come from outside become black."""
    color: float = 0.0
    """Factors of contrast and of saturation between 1 - this and 1 + this."""

    @classmethod
    def from_config(cls, config: TrainingConfig) -> Augmentation:
        """Take the recipe's strengths."""
        return cls(config.brightness, config.flip, config.rotation, config.color)

    def draw(self, rng: np.random.Generator, min_crop: float = 1.0) -> Change:
        """What to do to an image; always as many draws, so that switching one off leaves the others as they were.

        Args:
            rng: what it is drawn from.
            min_crop: share of the area that is cut out at least; 1: the whole image.
        """
        factor, mirrored, angle = (
            rng.uniform(1 - self.brightness, 1 + self.brightness),
            bool(rng.random() < self.flip),
            rng.uniform(-self.rotation, self.rotation),
        )
        piece = _draw_piece(rng, min_crop)
        contrast, saturation = rng.uniform(1 - self.color, 1 + self.color, 2)
        return Change(*piece, factor, mirrored, angle, float(contrast), float(saturation))

    def apply(self, image: Images, change: Change, size: int) -> Images:
        """uint8 (S, S, C) -> uint8 (size, size, C)"""
        picture = to_pillow(image)
        if size != picture.width or min(change.width, change.height) < 1:
            left, top, width, height = (picture.width * share for share in change[:4])
            box = (left, top, left + width, top + height)
            picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if self.brightness:
            picture = ImageEnhance.Brightness(picture).enhance(change.factor)
        if self.color:
            picture = ImageEnhance.Contrast(picture).enhance(change.contrast)
            picture = ImageEnhance.Color(picture).enhance(change.saturation)
        if change.mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotation:
            picture = picture.rotate(change.angle, Image.Resampling.NEAREST)
        return np.array(picture).reshape(picture.height, picture.width, image.shape[2])

    def apply_to_batch(self, images: Tensor, changes: Tensor, size: int) -> Tensor:
        """The same for uint8 images (N, S, S, C) and their changes (N, 9), on the device where they are."""
        turns = [_turn(angle, size) for angle in changes[:, 6].tolist()] if self.rotation else [_turn(0, size)]
        has_pieces = size != images.shape[1] or bool((changes[:, 2:4] < 1).any())
        changes = changes.to(images.device)
        images = _cut(images, changes[:, :4], size) if has_pieces else images
        if self.brightness:
            images = _scaled(images, torch.zeros(1, device=images.device), changes[:, 4])
        if self.color:
            means = _grey(images).double().mean(dim=(1, 2)).add(0.5).floor()
            images = _scaled(images, means[:, None, None, None], changes[:, 7])
            images = _scaled(images, _grey(images)[..., None], changes[:, 8])
        return _place(images, changes[:, 5].bool(), torch.tensor(turns, device=images.device))


def _draw_piece(rng: np.random.Generator, min_crop: float) -> tuple[float, float, float, float]:
    """A box of a random area, and a random ratio of its sides between 3:4 and 4:3, as far as the square allows."""
    area = rng.uniform(min_crop, 1)
    lean = min(math.log(MAX_LEAN), abs(math.log(area)))
    ratio = math.exp(rng.uniform(-lean, lean))
    width, height = (min(1.0, math.sqrt(area * share)) for share in (ratio, 1 / ratio))
    return rng.uniform(0, 1 - width), rng.uniform(0, 1 - height), width, height


def _cut(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Resize a box of every image to (size, size), as Pillow does: columns first, then rows, each to whole levels.

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
    """What every pixel of a line counts for each of the `size` pixels that a part of it is resized to.

    (N,), (N,) -> (N, size, side); triangles, as wide as a new pixel is, and at least as an old one.
    """
    scale = length / size
    centres = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * scale[:, None]
    distances = torch.arange(side, device=start.device) + 0.5 - centres[..., None]
    weights = (1 - distances.abs() / scale.clamp(min=1)[:, None, None]).clamp(min=0)
    # Pillow lets pixels outside the box count as well, as long as they are inside the image.
    return (weights / weights.sum(-1, keepdim=True)).float()


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


def _scaled(images: Tensor, origin: Tensor, factors: Tensor) -> Tensor:
    """Multiply the distance of all pixels from `origin`, and cut off what leaves the scale, as Pillow does.

    Opacity stays.
    """
    values = images[..., :3].float()
    scaled = origin.float() + factors.float()[:, None, None, None] * (values - origin.float())
    return torch.cat([scaled.clamp(0, 255).to(torch.uint8), images[..., 3:]], dim=-1)


def _grey(images: Tensor) -> Tensor:
    """(N, S, S, C) -> (N, S, S) in whole levels, as Pillow does it: ITU-R 601."""
    if images.shape[-1] == 1:
        return images[..., 0]
    red, green, blue = images[..., :3].int().unbind(-1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
