"""Predict the classes of one image, or of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet.errors import ConfigError, ImageError
from carnet.machine import load_ahead, loading_threads
from carnet.preprocess import MAX_PIXELS, Images, ImageSource, load_image
from carnet.spec import ModelSpec


@dataclass(frozen=True)
class Prediction:
    """Classes and their probabilities, most probable first."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    is_confident: bool | None = None
    """Whether the most probable class reaches the model's threshold; None if it has none."""

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[0]

    @property
    def probability(self) -> float:
        """Its probability."""
        return self.probabilities[0]

    @property
    def is_sure(self) -> bool | None:
        """`is_confident`, under its name before version 0.2."""
        return self.is_confident

    def to_json(self) -> list[dict[str, Any]]:
        """Return a list of {"class", "probability"}, most probable first."""
        return [{"class": name, "probability": p} for name, p in zip(self.classes, self.probabilities, strict=True)]

    def __str__(self) -> str:
        answer = ", ".join(f"{name} {100 * p:.1f}%" for name, p in zip(self.classes, self.probabilities, strict=True))
        return f"not confident: {answer}" if self.is_confident is False else answer


class Predictor:
    """Base of models that turn pixels into probabilities.

    Attributes:
        spec: classes, and how an image becomes an input.
        threshold: predictions less probable than this are not confident; None if no threshold was chosen.
        max_pixels: larger images are refused before they are decoded.
    """

    spec: ModelSpec
    threshold: float | None = None
    max_pixels: int = MAX_PIXELS

    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """uint8 images (N, S, S, C), as `carnet.preprocess.load_image` gives them -> probabilities (N, classes)."""
        raise NotImplementedError

    def load(self, source: ImageSource) -> Images:
        """Decode an image and resize it -> uint8 (S, S, C), as `carnet.preprocess.load_image`, within `max_pixels`."""
        return load_image(source, self.spec, max_pixels=self.max_pixels)

    def predict(self, source: ImageSource, top_k: int = 5) -> Prediction:
        """Classify one image.

        Args:
            source: a path, the bytes of a file (also as a bytearray or memoryview), a Pillow image, or a uint8 array
                (H, W, 3).
            top_k: number of classes in the prediction.

        Raises:
            ImageError: if it cannot be decoded.
            ConfigError: if `top_k` is below 1.
        """
        _require_positive("top_k", top_k)
        return self.to_prediction(self.probabilities(self.load(source)[None])[0], top_k)

    def predict_many(
        self, sources: Iterable[ImageSource], batch_size: int = 32, top_k: int = 5
    ) -> Iterator[Prediction | ImageError]:
        """Classify any number of images, in order; an `ImageError` takes the place of one that cannot be decoded.

        Args:
            sources: as `predict` takes them; a buffer may be reused as soon as the next one is asked for.
            batch_size: images that are computed at a time.
            top_k: number of classes in the prediction.

        Raises:
            ConfigError: at once, if `batch_size` or `top_k` is below 1.
            Exception: whatever `sources` raises, after the predictions for the sources before.
        """
        _require_positive("top_k", top_k)
        # Images are decoded later, when a reused buffer already holds the next one.
        kept = (bytes(source) if isinstance(source, bytearray | memoryview) else source for source in sources)
        return self._answers(load_batches(kept, self.spec, batch_size, self.load), top_k)

    def to_prediction(self, probabilities: NDArray[np.floating[Any]], top_k: int) -> Prediction:
        """Return the `top_k` most probable of all classes, or all if there are fewer: (classes,) -> Prediction."""
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        names, values = tuple(self.spec.classes[k] for k in order), tuple(float(probabilities[k]) for k in order)
        return Prediction(names, values, None if self.threshold is None else values[0] >= self.threshold)

    def _answers(
        self, batches: Iterable[Sequence[Images | ImageError]], top_k: int
    ) -> Iterator[Prediction | ImageError]:
        for loaded in batches:
            good = [image for image in loaded if not isinstance(image, ImageError)]
            rows = iter(self.probabilities(np.stack(good))) if good else iter(())
            for image in loaded:
                yield image if isinstance(image, ImageError) else self.to_prediction(next(rows), top_k)


def load_batches(
    sources: Iterable[Any], spec: ModelSpec, batch_size: int, read: Callable[[Any], Images] | None = None
) -> Iterator[list[Images | ImageError]]:
    """Decode images on several threads, ahead of their use; an `ImageError` takes the place of a failed one.

    Raises:
        ConfigError: at once, for a batch size below 1.
    """
    _require_positive("batch_size", batch_size)

    def load(source: Any) -> Images | ImageError:
        try:
            return load_image(source, spec) if read is None else read(source)
        except ImageError as error:
            return error

    return load_ahead(load, _batches(sources, batch_size), threads=loading_threads())


def _require_positive(name: str, number: int) -> None:
    if number < 1:
        raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {number}")


def _batches(sources: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Group the sources by `size`; an error that they raise follows the last group."""
    batch: list[Any] = []
    try:
        for source in sources:
            batch.append(source)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
