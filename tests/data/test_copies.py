"""Near copies are found, and unrelated images are not."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from drawing import draw_photo
from PIL import Image, ImageEnhance, ImageOps

from carnet.data.copies import find_near_copies
from carnet.data.thumbnails import Thumbnail

NUMBER = 40


def crop(image: Image.Image, share: float) -> Image.Image:
    """Cut off a share of each side's length, more at one end than at the other."""
    width, height = image.size
    left, top = round(share * width * 0.3), round(share * height * 0.8)
    return image.crop((left, top, left + round((1 - share) * width), top + round((1 - share) * height)))


CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], float]] = {
    "re-encoded": (lambda image: image, 1.0),
    "resized": (lambda image: image.resize((image.width // 2, image.height // 2)), 1.0),
    "squeezed": (lambda image: image.resize((image.width, image.width)), 1.0),
    "brightened": (lambda image: ImageEnhance.Brightness(image).enhance(1.25), 1.0),
    "grey": (lambda image: image.convert("L"), 1.0),
    "cropped by 5%": (lambda image: crop(image, 0.05), 0.95),
    "cropped by 10%": (lambda image: crop(image, 0.1), 0.5),
    "mirrored": (ImageOps.mirror, 0.95),
}
"""Change -> how it is made, and the share of copies that must be found."""


def thumbnails(images: list[Image.Image], quality: int = 90) -> np.ndarray:
    """Save images as JPEG, and return their thumbnails."""
    made = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        with Image.open(file) as opened:
            made.append(Thumbnail().pixels(opened, "photo.jpg")[:, :, 0])
    return np.stack(made)


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_nothing_else(change: str) -> None:
    make, wanted = CHANGES[change]
    originals = [draw_photo(seed) for seed in range(NUMBER)]
    found = find_near_copies(np.concatenate([thumbnails(originals), thumbnails([make(one) for one in originals], 60)]))
    assert all(found.second - found.first == NUMBER), "two unrelated photos count as copies"
    assert len(found.first) >= wanted * NUMBER
    assert all(found.is_mirrored == (change == "mirrored"))


def test_the_order_of_images_changes_no_pair() -> None:
    originals = [draw_photo(seed) for seed in range(20)]
    made = thumbnails([*originals, *(ImageOps.mirror(one) for one in originals[:5]), *originals[5:10]], 70)
    order = np.random.default_rng(0).permutation(len(made))
    plain, shuffled = find_near_copies(made), find_near_copies(made, order)
    pairs = {frozenset(pair) for pair in zip(plain.first.tolist(), plain.second.tolist(), strict=True)}
    assert len(pairs) == 10
    assert pairs == {
        frozenset((int(order[one]), int(order[other])))
        for one, other in zip(shuffled.first, shuffled.second, strict=True)
    }


def test_blank_images_are_no_copies_of_each_other() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (30, 64, 64))
    assert len(find_near_copies((128 + noise).astype(np.uint8)).first) == 0


def test_images_that_are_all_alike_are_not_called_copies() -> None:
    """Drawings of one thing on one ground agree more than two photos ever do."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(60):
        image = Image.new("L", (64, 64), 255)
        shifted = Image.new("L", (40, 40), 0)
        place = tuple(12 + rng.integers(-2, 3, 2))
        image.paste(shifted, (int(place[0]), int(place[1])))
        drawn.append(np.asarray(image))
    found = find_near_copies(np.stack(drawn))
    assert found.cut > 1
    assert len(found.first) == 0


def test_a_series_of_one_scene_ends_in_time() -> None:
    """Each frame is compared with some of those that follow it, not with all."""
    scene = thumbnails([draw_photo(1)])[0].astype(np.int16)
    noise = np.random.default_rng(0).integers(-4, 5, (150, 64, 64))
    others = thumbnails([draw_photo(seed) for seed in range(100, 500)])
    found = find_near_copies(np.concatenate([np.clip(scene + noise, 0, 255).astype(np.uint8), others]))
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(pairs) < 150 * 149 / 3
    assert {frame for frame, _ in pairs} == set(range(149))
    assert all(frame < 150 for pair in pairs for frame in pair)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_few_images(number: int) -> None:
    made = np.stack([thumbnails([draw_photo(0)])[0]] * number) if number else np.empty((0, 64, 64), np.uint8)
    assert len(find_near_copies(made).first) == number * (number - 1) // 2


def test_few_scenes_are_told_apart() -> None:
    """Of pairs drawn at random, a fifth shows one scene; they must not count as unrelated."""
    rng = np.random.default_rng(0)
    scenes = thumbnails([draw_photo(seed) for seed in range(5)]).astype(np.int16)
    frames = np.concatenate([np.clip(scene + rng.integers(-3, 4, (8, 64, 64)), 0, 255) for scene in scenes])
    found = find_near_copies(frames.astype(np.uint8))
    assert found.cut < 1
    assert all(found.first // 8 == found.second // 8)
    assert len(found.first) == 5 * 28
