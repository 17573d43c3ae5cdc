"""Show where in an image a class is seen: a class map as heat over the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from carnet.errors import ConfigError
from carnet.prediction import Prediction
from carnet.preprocess import WHITE, Images, ImageSource, decode, name_of, open_image, resize
from carnet.spec import ModelSpec
from carnet.text import first_few

FIGURE_SIDE = 448
"""Smallest side of an explanation's figure, in pixels."""
_WARM, _HOT = (255, 214, 60), (205, 20, 30)
_OPACITY = 0.72
"""Opacity of the heat at the hottest place."""


@dataclass(frozen=True)
class Explanation:
    """Where a class is seen in an image.

    Attributes:
        label: the class.
        prediction: the prediction for the image.
        class_map: (h, w), what each place adds to the class's logit beyond the average class; the mean over all places
            and the bias make the logit.
        figure: what the model sees of the image, larger, in grey, with heat where the class is seen. No heat is drawn
            where the network does not look.
    """

    label: str
    prediction: Prediction
    class_map: NDArray[np.float32]
    figure: Image.Image

    @property
    def picture(self) -> Image.Image:
        """The figure, under its name before version 0.2."""
        return self.figure


class Explainable(Protocol):
    """A model that knows what each place of an image adds to each class."""

    spec: ModelSpec
    max_pixels: int

    def class_maps(self, images: Images) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """uint8 images (N, S, S, C) -> probabilities (N, classes) and class maps (N, classes, h, w)."""

    @property
    def map_centres(self) -> Sequence[Sequence[float]] | None:
        """Where each row, and each column, of the class maps looks, in pixels; None if there are no class maps."""

    def to_prediction(self, probabilities: NDArray[np.float64], top_k: int) -> Prediction:
        """(classes,) -> the prediction."""


def explain(model: Explainable, source: ImageSource, label: str | None = None, top_k: int | None = None) -> Explanation:
    """Decode an image once, run the network once, and draw where the class is seen.

    Args:
        model: the model.
        source: a path, the bytes of a file, a Pillow image, or a uint8 array (H, W, 3) in RGB order.
        label: the class; None: the most probable one.
        top_k: the number of classes in the prediction; None: all.

    Raises:
        ImageError: if the image cannot be decoded.
        ConfigError: if there is no such class, or `top_k` is below 1.
        ModelError, ModelFileError: if the network has no class maps, or they are not numbers.
    """
    spec, centres = model.spec, model.map_centres
    if label is not None and label not in spec.classes:
        raise ConfigError(f"the model has no class {label!r}; it has {first_few(spec.classes)}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"--top-k must be at least 1, got {top_k}")
    side, channels = spec.image_size, spec.in_channels
    with open_image(source, model.max_pixels) as opened:
        image = decode(opened, name_of(source), min_side=2 * side, in_channels=channels)
    pixels = np.array(resize(image, side, spec.resize, spec.interpolation)).reshape(1, side, side, channels)
    (probabilities,), (maps,) = model.class_maps(pixels)
    assert centres is not None, "a model with class maps knows where they look"
    prediction = model.to_prediction(probabilities, top_k or spec.num_classes)
    label = prediction.label if label is None else label
    # Softmax ignores what is added to all classes alike.
    class_map = maps[spec.classes.index(label)] - maps.mean(axis=0)
    return Explanation(label, prediction, class_map, draw_heat(image, class_map, centres, spec))


def draw_heat(
    image: Image.Image, class_map: NDArray[np.float32], centres: Sequence[Sequence[float]], spec: ModelSpec
) -> Image.Image:
    """Lay a class map (h, w) over a decoded image; values below 0 are evidence against the class and are not drawn.

    `centres` says where each row, and each column, of the map looks, in pixels of the network's input.
    """
    side = max(FIGURE_SIDE, spec.image_size)
    resized = resize(image, side, spec.resize, spec.interpolation)
    if resized.mode == "RGBA":
        resized = Image.alpha_composite(Image.new("RGBA", resized.size, WHITE), resized)
    down, across = (_interpolation(line, spec.image_size, side) for line in centres)
    heat = np.clip(down @ class_map @ across.T, 0, None)
    heat /= max(float(class_map.max()), 1e-6)
    heat = np.clip(heat, 0, 1)[:, :, None]
    grey = np.asarray(ImageOps.grayscale(resized), np.float32)[:, :, None]
    colour = (1 - heat) * np.array(_WARM) + heat * np.array(_HOT)
    # Faint where there is little evidence, which is most of an image.
    opacity = _OPACITY * heat**1.5
    return Image.fromarray(((1 - opacity) * grey + opacity * colour).round().astype(np.uint8))


def _interpolation(centres: Sequence[float], size: int, side: int) -> NDArray[np.float64]:
    """Return the weight of each place of a map for each pixel of a larger picture, along one axis: (side, places).

    Linear from centre to centre; the outermost places reach one step further, and nothing reaches beyond.
    """
    places = np.asarray(centres, np.float64)
    pixels = (np.arange(side) + 0.5) * size / side - 0.5
    weights = np.stack([np.interp(pixels, places, row) for row in np.eye(len(places))], axis=1)
    reach = float(np.diff(places).mean()) if len(places) > 1 else size
    weights[(pixels < places[0] - reach) | (pixels > places[-1] + reach)] = 0
    return np.asarray(weights)
