"""Classify images with a model file, without PyTorch, and show where in an image a class is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from carnet.edge.model_file import ModelFile
from carnet.edge.runtimes import CLASS_MAPS, LOGITS, PROBABILITIES, Runtime, open_runtime
from carnet.errors import ConfigError, ModelFileError
from carnet.prediction import Prediction, Predictor
from carnet.preprocess import MAX_PIXELS, WHITE, Images, ImageSource, decode, name_of, open_image, resize
from carnet.spec import ModelSpec
from carnet.text import first_few

PICTURE_SIDE = 448
"""Smallest side of an explanation's picture, in pixels."""
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
        picture: what the model sees of the image, larger, in grey, with heat where the class is seen. No heat is drawn
            where the network does not look.
    """

    label: str
    prediction: Prediction
    class_map: NDArray[np.float32]
    picture: Image.Image


class Classifier(Predictor):
    """A model that `carnet export` has written.

        classifier = carnet.Classifier("model.onnx")
        print(classifier.predict("photo.jpg"))

    May be used from several threads at once, and pickled: a process that unpickles it opens the same model anew.

    Args:
        model: path of the file, or its bytes (also as a bytearray or memoryview).
        threads: compute threads for one call; 0 leaves their number to the runtime, which takes all cores.
        runtime: onnxruntime, or openvino (`pip install "carnet[openvino]"`).
        max_pixels: larger images are refused before they are decoded, which takes up to about 14 bytes a pixel.

    Attributes:
        spec: classes, image size, and what else turns an image into an input.
        document: what the file says about itself, such as how it was trained and evaluated, and with which versions.
        threshold: a prediction less probable than this is not confident; None: none was chosen.
        name: path of the file, for messages.

    Raises:
        ModelFileError: if the file is missing, damaged, none of ours, newer than this version, or refused by the
            runtime.
        ConfigError: for an unknown runtime, a negative number of threads, or `max_pixels` out of range.
        MissingExtraError: for OpenVINO where it is not installed.
    """

    def __init__(
        self,
        model: Path | str | bytes | bytearray | memoryview,
        *,
        threads: int = 0,
        runtime: Runtime = "onnxruntime",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not 1 <= max_pixels <= MAX_PIXELS:
            raise ConfigError(f"max_pixels must be 1 to {MAX_PIXELS:,}, got {max_pixels:,}")
        self.max_pixels = max_pixels
        if isinstance(model, bytes | bytearray | memoryview):
            file = ModelFile.from_bytes(bytes(model))
        else:
            file = ModelFile.read(model)
        self.spec, self.document, self.name = file.spec, file.document, file.name
        self.threshold = file.document.get("threshold")
        self._opened = file, runtime, threads
        self._run = open_runtime(*self._opened)

    def __getstate__(self) -> dict[str, Any]:
        # Sessions of runtimes cannot be pickled; the file's bytes can, and are the model even if the file has gone.
        return {name: value for name, value in vars(self).items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._run = open_runtime(*self._opened)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.spec.classes

    def explain(self, source: ImageSource, label: str | None = None, top_k: int | None = None) -> Explanation:
        """Show where in an image a class is seen; decodes the image once and runs the network once.

        Args:
            source: a path, the bytes of a file, a Pillow image, or a uint8 array (H, W, 3).
            label: the class; None: the most probable one.
            top_k: how many classes the prediction names; None: all.

        Raises:
            ImageError: if the image cannot be decoded.
            ConfigError: if there is no such class, or `top_k` is below 1.
            ModelFileError: if the model has no class maps, or they are not numbers.
        """
        if label is not None and label not in self.classes:
            raise ConfigError(f"{self.name} has no class {label!r}; it has {first_few(self.classes)}")
        if top_k is not None and top_k < 1:
            raise ConfigError(f"--top-k must be at least 1, got {top_k}")
        centres = self.document.get("map_centres")
        if centres is None:
            raise ModelFileError(f"{self.name} cannot explain: its network has no mean-and-linear head")
        side, channels = self.spec.image_size, self.spec.in_channels
        with open_image(source, self.max_pixels) as opened:
            image = decode(opened, name_of(source), min_side=2 * side, in_channels=channels)
        outputs = self._run(np.array(resize(image, side, self.spec.resize)).reshape(1, side, side, channels))
        prediction = self.answer(outputs[PROBABILITIES][0], top_k or len(self.classes))
        label = prediction.label if label is None else label
        maps = outputs[CLASS_MAPS][0]
        if not np.isfinite(maps).all():
            raise ModelFileError(f"{self.name} returns class maps that are not finite; export it again")
        # Softmax ignores what is added to all classes alike.
        class_map = maps[self.classes.index(label)] - maps.mean(axis=0)
        return Explanation(label, prediction, class_map, draw_heat(image, class_map, centres, self.spec))

    def logits(self, images: Images) -> NDArray[np.float32]:
        """uint8 images (N, S, S, C), as `carnet.preprocess.load_image` gives them -> logits (N, classes)"""
        return self._run(images)[LOGITS]

    def calibrated_logits(self, images: Images) -> NDArray[np.float32]:
        """The same, divided by the temperature: their softmax are the probabilities."""
        return self.logits(images) / np.float32(self.document.get("temperature", 1.0))

    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """uint8 images (N, S, S, C), as `carnet.preprocess.load_image` gives them -> probabilities (N, classes)"""
        return self._run(images)[PROBABILITIES].astype(np.float64)


def draw_heat(
    image: Image.Image, class_map: NDArray[np.float32], centres: Sequence[Sequence[float]], spec: ModelSpec
) -> Image.Image:
    """Lay a class map (h, w) over a decoded image; values below 0 are evidence against the class and are not drawn.

    `centres` says where each row, and each column, of the map looks, in pixels of the network's input.
    """
    side = max(PICTURE_SIDE, spec.image_size)
    picture = resize(image, side, spec.resize)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture)
    down, across = (_interpolation(line, spec.image_size, side) for line in centres)
    heat = np.clip(down @ class_map @ across.T, 0, None)
    heat /= max(float(class_map.max()), 1e-6)
    heat = np.clip(heat, 0, 1)[:, :, None]
    grey = np.asarray(ImageOps.grayscale(picture), np.float32)[:, :, None]
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
