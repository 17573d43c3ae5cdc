"""Thumbnails: small grey copies of images, and what can be said of an image from them.

A thumbnail shows the whole image, stretched to a square. It depends on the file alone, not on the side at which a
network is trained, so that what is found with it is the same for all networks.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carnet.preprocess import Images, decode

SIDE = 64
"""Side of a thumbnail, in pixels."""
_LEAST_DECODED = 96
"""Side down to which a JPEG is decoded at reduced scale."""
_CHUNK = 256


@dataclass(frozen=True)
class Thumbnail:
    """What the cache keeps of each image, as `carnet.data.decoded.Result` describes it."""

    image_size: int = SIDE
    in_channels: int = 1

    def pixels(self, image: Image.Image, path: Path) -> Images:
        """Return the thumbnail, uint8 (64, 64, 1), of an opened image.

        Raises:
            ImageError: if it cannot be decoded.
        """
        if image.format == "JPEG":
            # Brightness alone, without the colours, is decoded faster.
            image.draft("L", (_LEAST_DECODED, _LEAST_DECODED))
        grey = decode(image, path, in_channels=1)
        small = grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)
        return np.asarray(small)[:, :, None]


@dataclass(frozen=True)
class Pages:
    """Some rows of an array of thumbnails, in an order."""

    thumbnails: Images
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: NDArray[np.int64] | slice) -> Images:
        """Return thumbnails, uint8 (M, S, S)."""
        pixels = self.thumbnails[self.rows[places]]
        mapped = getattr(self.thumbnails, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            # Pages of the file that were read would count as memory of this process.
            with suppress(OSError, ValueError):
                mapped.madvise(mmap.MADV_DONTNEED)
        return pixels


@dataclass(frozen=True)
class Statistics:
    """Numbers about thumbnails, one array (N,) each.

    Attributes:
        dark: brightness from 0 to 255 that 1% of the pixels are below.
        bright: brightness that 99% of the pixels are below or at.
        bits: entropy of the brightness in 64 steps, 0 to 6 bits per pixel.
        sharpness: the strongest edges (99% of the Laplacian's absolute values are below), divided by the range of
            brightness; a photo in focus has some sharp edges, whatever the rest of it shows.
    """

    dark: NDArray[np.float32]
    bright: NDArray[np.float32]
    bits: NDArray[np.float32]
    sharpness: NDArray[np.float32]

    @property
    def contrast(self) -> NDArray[np.float32]:
        """Range of brightness between the darkest and the brightest hundredth of the pixels."""
        return self.bright - self.dark

    @classmethod
    def of(cls, thumbnails: Images, rows: NDArray[np.int64]) -> Statistics:
        """Return the statistics of some rows of thumbnails, uint8 (M, 64, 64, 1)."""
        pages = Pages(thumbnails[..., 0], rows)
        return cls.joined([_statistics(pages.read(slice(at, at + _CHUNK))) for at in range(0, len(rows), _CHUNK)])

    @classmethod
    def joined(cls, parts: Sequence[Statistics]) -> Statistics:
        """Return the statistics of several sets of thumbnails as one."""
        empty = np.empty(0, np.float32)
        return cls(*(np.concatenate([empty, *(getattr(part, one.name) for part in parts)]) for one in fields(cls)))


def _statistics(thumbnails: Images) -> Statistics:
    number, num_pixels = len(thumbnails), SIDE * SIDE
    levels = thumbnails.reshape(number, -1) + 256 * np.arange(number, dtype=np.int32)[:, None]
    counts = np.bincount(levels.ravel(), minlength=256 * number).reshape(number, 256)
    below = counts.cumsum(axis=1)
    dark, bright = ((below < share * num_pixels).sum(axis=1) for share in (0.01, 0.99))
    shares = counts.reshape(number, 64, 4).sum(axis=2) / num_pixels
    bits = -(shares * np.log2(np.maximum(shares, 1e-12))).sum(axis=1)
    grey = thumbnails.astype(np.int16)
    inner = 4 * grey[:, 1:-1, 1:-1]
    laplacian = np.abs(inner - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]).reshape(
        number, -1
    )
    place = int(0.99 * laplacian.shape[1])
    edges = np.partition(laplacian, place, axis=1)[:, place] / np.maximum(bright - dark, 1)
    return Statistics(*(values.astype(np.float32) for values in (dark, bright, bits, edges)))
