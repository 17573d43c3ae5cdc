"""Classify images with a model file, without PyTorch, and show where in an image a class is seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet.edge.model_file import ModelFile
from carnet.edge.runtimes import CLASS_MAPS, LOGITS, PROBABILITIES, Runtime, open_runtime
from carnet.errors import ConfigError, ModelFileError
from carnet.explanation import Explanation, explain
from carnet.prediction import Predictor
from carnet.preprocess import MAX_PIXELS, Images, ImageSource


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
    def content(self) -> bytes:
        """The whole file."""
        return self._opened[0].content

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.spec.classes

    @property
    def map_centres(self) -> Sequence[Sequence[float]] | None:
        """Where each row, and each column, of the class maps looks, in pixels of the input; None without class maps."""
        centres: Sequence[Sequence[float]] | None = self.document.get("map_centres")
        return centres

    def class_maps(self, images: Images) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """uint8 images (N, S, S, C) -> probabilities (N, classes) and class maps (N, classes, h, w).

        Raises:
            ModelFileError: if the file has no class maps, or they are not numbers.
        """
        outputs = self._run(images)
        if CLASS_MAPS not in outputs or self.map_centres is None:
            raise ModelFileError(f"{self.name} has no class maps: its head is not a mean and a linear layer")
        if not np.isfinite(outputs[CLASS_MAPS]).all():
            raise ModelFileError(f"{self.name} has class maps that are not numbers; export it again")
        return outputs[PROBABILITIES].astype(np.float64), outputs[CLASS_MAPS]

    def explain(self, source: ImageSource, label: str | None = None, top_k: int | None = None) -> Explanation:
        """Show where in an image a class is seen: `carnet.explanation.explain` with this model."""
        return explain(self, source, label, top_k)

    def logits(self, images: Images) -> NDArray[np.float32]:
        """uint8 images (N, S, S, C), as `carnet.preprocess.load_image` gives them -> logits (N, classes)"""
        return self._run(images)[LOGITS]

    def calibrated_logits(self, images: Images) -> NDArray[np.float32]:
        """The same, divided by the temperature: their softmax are the probabilities."""
        return self.logits(images) / np.float32(self.document.get("temperature", 1.0))

    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """uint8 images (N, S, S, C), as `carnet.preprocess.load_image` gives them -> probabilities (N, classes)"""
        return self._run(images)[PROBABILITIES].astype(np.float64)
