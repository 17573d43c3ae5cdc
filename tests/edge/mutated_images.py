"""Classify a thousand damaged images: `python mutated_images.py MODEL` prints the outcome."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import psutil
from PIL import Image

from carnet import Classifier
from carnet.errors import ImageError

NUMBER, WARM = 1000, 300
"""Number of images, and of those after which memory should have stopped growing."""


def main(model: str) -> None:
    classifier, process = Classifier(model), psutil.Process()
    rng, originals = np.random.default_rng(0), drawn_files()
    answered = refused = memory = 0
    for number in range(NUMBER):
        try:
            classifier.predict(mutated(originals[number % len(originals)], rng))
            answered += 1
        except ImageError as error:
            refused += "\n" not in str(error)
        if number == WARM:
            memory = process.memory_info().rss
    growth = process.memory_info().rss - memory
    print(json.dumps({"answered": answered, "refused": refused, "growth_bytes": growth}))


def drawn_files() -> list[bytes]:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 255, (70, 90, 3), np.uint8)).resize((180, 140))
    files = []
    for form, mode in (
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
        ("BMP", "RGB"),
    ):
        content = io.BytesIO()
        image.convert(mode).save(content, form)
        files.append(content.getvalue())
    return files


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut a file, or change bytes; half of the time near the beginning, because headers decide most."""
    changed = bytearray(content)
    if rng.random() < 0.3:
        del changed[int(rng.integers(0, len(changed))) :]
    end = len(changed) if rng.random() < 0.5 else min(len(changed), 64)
    for _ in range(int(rng.integers(1, 12)) if end else 0):
        changed[int(rng.integers(0, end))] = int(rng.integers(0, 256))
    return bytes(changed)


if __name__ == "__main__":
    main(sys.argv[1])
