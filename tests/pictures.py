"""Pictures that tests draw for themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 70), "red": (210, 50, 40)}


def save_picture(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (60, 52)) -> None:
    """A noisy picture of one colour; another seed gives other bytes."""
    noise = np.random.default_rng(seed).integers(-40, 40, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(path)
