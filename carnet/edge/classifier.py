"""Classify images with a model file, without PyTorch.

Where in an image a class is seen: a class map as heat over the picture.
"""

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
from carnet.preprocess import MAX_PIXELS, Images, ImageSource, decode, name_of, open_image, resize
from carnet.spec import ModelSpec


class Classifier(Predictor):
    """A model that `carnet export` has written.

        classifier = carnet.Classifier("model.onnx")
        print(classifier.predict("photo.jpg"))

    May be used from several threads at once, and pickled: a process that gets one opens the same model anew.

    Args:
        model: path of the file, or its bytes (also as a bytearray or memoryview).
        threads: of the arithmetic for one call; 0 leaves it to the runtime, which takes all cores.
        runtime: onnxruntime, or openvino (`pip install "carnet[openvino]"`).
        max_pixels: larger images are refused before they are decoded, which takes up to about 14 bytes a pixel.

    Attributes:
        spec: classes, size of the images, and what else makes an input of an image.
        document: all that the file says about itself: how it was trained and judged, versions.
        threshold: an answer less probable than this is not sure; None: nobody has chosen one.
        name: of the file, for messages.

    Raises:
        ModelFileError: if the file is missing, damaged, none of ours, newer than this version, or refused by the
            runtime.
        ConfigError: unknown runtime, a negative number of threads, or `max_pixels` out of range.
        MissingExtraError: OpenVINO is asked for and not installed.
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
        self.spec, self.document = file.spec, file.document
        self.threshold = file.document.get("threshold")
        self.name = file.name
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

    def explain(self, source: ImageSource, label: str | None = None) -> Explanation:
        """Show where in an image a class is seen.

        Args:
            source: a path, the bytes of a file, a Pillow image, or a uint8 array (H, W, 3).
            label: the class; None: the most probable one.

        Raises:
            ImageError: if the image cannot be decoded.
            ConfigError: if there is no such class.
            ModelFileError: if the model has no class maps, or they are not numbers.
        """
        if label is not None and label not in self.classes:
            raise ConfigError(f"{self.name} knows no class {label!r}")
        centres = self.document.get("map_centres")
        if centres is None:
            raise ModelFileError(f"{self.name} has no class maps: its network has no mean-and-linear head")
        outputs = self._run(self._load(source)[None])
        prediction = self.to_prediction(outputs[PROBABILITIES][0], len(self.classes))
        label = prediction.label if label is None else label
        maps = outputs[CLASS_MAPS][0]
        if not np.isfinite(maps).all():
            raise ModelFileError(f"{self.name} answers with something that is not a number; export it again")
        # What all classes have in common at a place speaks for none of them: softmax does not see it.
        class_map = maps[self.classes.index(label)] - maps.mean(axis=0)
        return Explanation(label, prediction, class_map, draw_heat(source, class_map, centres, self.spec))

    def logits(self, images: Images) -> NDArray[np.float32]:
        """uint8 images (N, S, S, C), as `carnet.preprocess.load_image` gives them -> logits (N, classes)"""
        return self._run(images)[LOGITS]

    def calibrated_logits(self, images: Images) -> NDArray[np.float32]:
        """The same, divided by the temperature: softmax of them are the probabilities."""
        return self.logits(images) / np.float32(self.document.get("temperature", 1.0))

    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """uint8 images (N, S, S, C), as `carnet.preprocess.load_image` gives them -> probabilities (N, classes)"""
        return self._run(images)[PROBABILITIES].astype(np.float64)


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
