"""Photos that tests draw for checks: each has content of its own, unlike any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def draw_photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Draw shapes of many sizes, brightnesses and colours, a little out of focus, as a photo is."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(40, 216, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(28):
        x, y = rng.integers(-20, size[0]), rng.integers(-20, size[1])
        width, height = rng.integers(6, size[0] // 2, 2)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + width, y + height), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image.filter(ImageFilter.GaussianBlur(0.6))


def save(path: Path, image: Image.Image, **options: object) -> Path:
    """Save an image, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path
