"""Measure how many planted copies of photos are found, by kind of change, and how many other photos are taken for one.

For each kind, copies of so many photos, drawn at random, are added to all photos of the data. A copy counts as found if
it is paired with its original. A pair of a copy with another photo is false, unless that photo was paired with the
original before: the data have near copies of their own, which `carnet check --report` shows.

Example:
  python benchmarks/near_copies.py DATA --copies 2000
"""

from __future__ import annotations

import argparse
import io
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from environment import write_result
from PIL import Image, ImageEnhance, ImageOps

from carnet.data.copies import find_near_copies
from carnet.data.find import find_images
from carnet.data.thumbnails import Thumbnail
from carnet.machine import each_on_threads
from carnet.text import quoted

Change = Callable[[Image.Image, random.Random], Image.Image]


def cropped(image: Image.Image, share: float, rng: random.Random, *, is_centred: bool = False) -> Image.Image:
    """Cut off a share of both sides' lengths, at the ends that chance divides it over, or at both alike."""
    width, height = (round((1 - share) * side) for side in image.size)
    left, top = image.width - width, image.height - height
    left, top = (left // 2, top // 2) if is_centred else (rng.randint(0, left), rng.randint(0, top))
    return image.crop((left, top, left + width, top + height))


def resized(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return an image at half to one and a half times its size."""
    factor = rng.choice([0.5, 0.75, 1.5])
    return image.resize((round(factor * image.width), round(factor * image.height)), Image.Resampling.BICUBIC)


CHANGES: dict[str, Change] = {
    "re-encoded": lambda image, rng: image,
    "resized": resized,
    "brightened": lambda image, rng: ImageEnhance.Brightness(image).enhance(rng.choice([0.75, 1.2, 1.35])),
    "cropped by 5%": lambda image, rng: cropped(image, 0.05, rng),
    "cropped by 5% at each side": lambda image, rng: cropped(image, 0.1, rng, is_centred=True),
    "cropped by 10%": lambda image, rng: cropped(image, 0.1, rng),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "mirrored and cropped by 5%": lambda image, rng: cropped(ImageOps.mirror(image), 0.05, rng),
    "grey": lambda image, rng: image.convert("L"),
}
"""Kind -> how a copy is made; each is saved as JPEG of quality 40 to 90 besides."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--copies", type=int, default=2000, help="photos that are copied for each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="near-copies", help="of the result's file")
    options = parser.parse_args()
    paths = list({sample.path: None for sample in find_images(options.data).samples})
    originals = np.stack(list(each_on_threads(lambda path: thumbnail(path.read_bytes()), paths)))
    own = find_near_copies(originals)
    known = pairs_of(own.first, own.second)
    chosen = sorted(random.Random(options.seed).sample(range(len(paths)), min(options.copies, len(paths))))
    rows = []
    for kind, change in CHANGES.items():
        copies = np.stack(list(each_on_threads(partial(copy, paths, change), chosen)))
        found = find_near_copies(np.concatenate([originals, copies]))
        row = {"kind": kind, **count(pairs_of(found.first, found.second), known, chosen, len(paths))}
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    result = {"data": options.data.name, "images": len(paths), "pairs_of_their_own": len(known), "kinds": rows}
    command = " ".join(["python benchmarks/near_copies.py DATA", *map(quoted, sys.argv[2:])])
    print(write_result(options.name, command, result))


def thumbnail(content: bytes) -> np.ndarray:
    """Return the thumbnail of a file, uint8 (64, 64)."""
    with Image.open(io.BytesIO(content)) as image:
        return Thumbnail().pixels(image, Path("photo"))[:, :, 0]


def copy(paths: list[Path], change: Change, index: int) -> np.ndarray:
    """Return the thumbnail of a changed copy of a file."""
    rng, file = random.Random(index), io.BytesIO()
    with Image.open(paths[index]) as image:
        change(image.convert("RGB"), rng).convert("RGB").save(file, "JPEG", quality=rng.randint(40, 90))
    return thumbnail(file.getvalue())


def pairs_of(first: np.ndarray, second: np.ndarray) -> set[tuple[int, int]]:
    """Return pairs of indices."""
    return set(zip(first.tolist(), second.tolist(), strict=True))


def count(
    found: set[tuple[int, int]], known: set[tuple[int, int]], chosen: list[int], number: int
) -> dict[str, float | int]:
    """Return the recall of the copies, which follow `number` originals, and the false pairs."""
    original = {number + place: index for place, index in enumerate(chosen)}
    right = sum((original[second], second) in found for second in original)
    false = 0
    for first, second in found - known:
        one, other = original.get(first, first), original.get(second, second)
        false += one != other and (min(one, other), max(one, other)) not in known
    images = number + len(chosen)
    return {"recall": right / len(chosen), "false_pairs": false, "false_pairs_per_1000_images": 1000 * false / images}


if __name__ == "__main__":
    main()
