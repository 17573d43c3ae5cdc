"""Where in an image a class is seen: a class map as heat over the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from carnet.prediction import Prediction
from carnet.preprocess import ImageSource, decode, name_of, open_image, resize
from carnet.spec import ModelSpec

PICTURE_SIDE = 448
"""Pixels of the picture with the heat over it, at least."""
_WARM, _HOT = (255, 214, 60), (205, 20, 30)
_OPACITY = 0.72
"""Of the hottest place."""


@dataclass(frozen=True)
class Explanation:
    """Where a class is seen in an image.

    Attributes:
        label: the class.
        prediction: the answer for the image, with all classes.
        class_map: (h, w), what each place adds to the class's logit beyond the average class; the mean over all places
            and the bias make the logit.
        picture: what the model sees of the image, larger, in grey, with heat where the class is seen. No heat is drawn
            where the network does not look.
    """

    label: str
    prediction: Prediction
    class_map: NDArray[np.float32]
    picture: Image.Image


def draw_heat(
    source: ImageSource, class_map: NDArray[np.float32], centres: Sequence[Sequence[float]], spec: ModelSpec
) -> Image.Image:
    """Lay a class map over the image.

    Args:
        source: the image.
        class_map: (h, w); what is below 0 speaks against the class and is not drawn.
        centres: for each row, and for each column, where the network looks, in pixels of its input.
        spec: how the image becomes an input.
    """
    side = max(PICTURE_SIDE, spec.image_size)
    with open_image(source) as image:
        pixels = decode(image, name_of(source), min_side=side)
    picture = resize(pixels, side, spec.resize)
    down, across = (_weights(line, spec.image_size, side) for line in centres)
    heat = np.clip(down @ class_map @ across.T, 0, None)
    heat /= max(float(class_map.max()), 1e-6)
    heat = np.clip(heat, 0, 1)[:, :, None]
    grey = np.asarray(ImageOps.grayscale(picture), np.float32)[:, :, None]
    colour = (1 - heat) * np.array(_WARM) + heat * np.array(_HOT)
    # Faint where the class is hardly seen, which most of an image is.
    opacity = _OPACITY * heat**1.5
    return Image.fromarray(((1 - opacity) * grey + opacity * colour).round().astype(np.uint8))


def _weights(centres: Sequence[float], size: int, side: int) -> NDArray[np.float64]:
    """What each place of a map counts for each pixel of a larger picture, along one side: (side, places).

    In a straight line from centre to centre; the outermost count as far as a step further, then nothing does.
    """
    places = np.asarray(centres, np.float64)
    pixels = (np.arange(side) + 0.5) * size / side - 0.5
    weights = np.stack([np.interp(pixels, places, row) for row in np.eye(len(places))], axis=1)
    reach = float(np.diff(places).mean()) if len(places) > 1 else size
    weights[(pixels < places[0] - reach) | (pixels > places[-1] + reach)] = 0
    return np.asarray(weights)
