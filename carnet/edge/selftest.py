"""Test images inside a model file: does this installation compute what was evaluated?

Two images travel with every model: a lossless one at the model's own size, which tests the arithmetic, and a larger
JPEG, which tests the decoder and the resizing as well. Each has its own tolerance.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carnet.documents import DocumentError, conform
from carnet.edge.classifier import Classifier
from carnet.edge.model_file import SelfTest, SelfTests
from carnet.edge.runtimes import Runtime
from carnet.errors import ImageError, ModelFileError
from carnet.preprocess import load_image
from carnet.spec import ModelSpec

LOSSLESS, JPEG = "lossless", "jpeg"
TOLERANCES = {LOSSLESS: 1e-4, JPEG: 0.02}
"""Largest difference of a probability. JPEG decoders may differ by one level in 256, which may show."""
QUANTIZED_TOLERANCES = {LOSSLESS: 0.01, JPEG: 0.03}
"""The same in eight bits, where a value that is rounded to the other side differs by one step in 256."""


@dataclass(frozen=True)
class Check:
    """How far this installation's probabilities for one image are from the recorded ones.

    Attributes:
        picture: lossless or jpeg.
        difference: the largest difference of a probability.
        tolerance: the largest difference that passes.
        problem: why the image cannot be classified; empty where it can.
    """

    picture: str
    difference: float
    tolerance: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Return whether the probabilities are the recorded ones."""
        return not self.problem and self.difference <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return vars(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Verification:
    """Whether this installation reproduces a model.

    Attributes:
        model: name of the model file.
        checks: one for each test image in it.
    """

    model: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Return whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the document that `carnet verify --json` prints."""
        checks = [check.to_json() for check in self.checks]
        return {"model": self.model, "passed": self.passed, "checks": checks}


def verify(
    model: Classifier | Path | str | bytes, *, threads: int = 0, runtime: Runtime = "onnxruntime"
) -> Verification:
    """Classify the test images inside a model file, and compare with the recorded probabilities.

    Args:
        model: an opened model, or a model file as `Classifier` takes it.
        threads: compute threads, for a model file; 0 leaves their number to the runtime.
        runtime: onnxruntime or openvino, for a model file.

    Raises:
        ModelFileError: if the file cannot be opened, or has no test images, or damaged ones.
        ConfigError, MissingExtraError: as `Classifier`.
    """
    classifier = model if isinstance(model, Classifier) else Classifier(model, threads=threads, runtime=runtime)
    tests = classifier.document.get("tests")
    if not tests:
        raise ModelFileError(f"{classifier.name} has no test images; export it again")
    try:
        checks = tuple(_check(classifier, test) for test in conform(tests, SelfTests, "tests"))
    except DocumentError as error:
        raise ModelFileError(f"the test images of {classifier.name} are damaged: {error}; export it again") from error
    return Verification(classifier.name, checks)


def draw_tests(spec: ModelSpec) -> dict[str, bytes]:
    """Draw the two test images: name -> file."""
    lossless, jpeg = BytesIO(), BytesIO()
    _draw(spec.image_size, spec.image_size).save(lossless, "PNG", optimize=True)
    # Neither square nor a multiple of JPEG's blocks.
    side = 2 * spec.image_size
    _draw(side + 37, max(1, side - 9)).save(jpeg, "JPEG", quality=80)
    return {LOSSLESS: lossless.getvalue(), JPEG: jpeg.getvalue()}


def record_tests(classifier: Classifier, *, is_quantized: bool) -> list[dict[str, Any]]:
    """Draw the test images, and return them with this installation's probabilities, as `verify` reads them."""
    tolerances = QUANTIZED_TOLERANCES if is_quantized else TOLERANCES
    return [
        {
            "picture": name,
            "file": base64.b64encode(content).decode(),
            "probabilities": [round(float(p), 7) for p in _probabilities(classifier, content)],
            "tolerance": tolerances[name],
        }
        for name, content in draw_tests(classifier.spec).items()
    ]


def _check(classifier: Classifier, test: SelfTest) -> Check:
    name, tolerance = test["picture"], test["tolerance"]
    try:
        content = base64.b64decode(test["file"], validate=True)
    except ValueError as error:
        raise DocumentError(f"{name}: {error}") from error
    expected = np.array(test["probabilities"], np.float64)
    try:
        found = _probabilities(classifier, content)
    except ImageError as error:
        return Check(name, 1.0, tolerance, f"this installation cannot decode it: {error.reason}")
    if found.shape != expected.shape:
        raise ModelFileError(f"the test images of {classifier.name} belong to another model; export it again")
    return Check(name, float(np.abs(found - expected).max()), tolerance)


def _probabilities(classifier: Classifier, content: bytes) -> NDArray[np.float64]:
    (probabilities,) = classifier.probabilities(load_image(content, classifier.spec)[None])
    return np.asarray(probabilities)


def _draw(width: int, height: int) -> Image.Image:
    """Draw soft colours with edges in between: something for every kind of filter, and small as a file."""
    down, across = (np.linspace(0, 1, side) for side in (height, width))
    y, x = np.meshgrid(down, across, indexing="ij")
    rings = np.hypot(x - 0.62, y - 0.41)
    pixels = np.stack([60 + 150 * shade for shade in (x, y, 1 - rings)], axis=-1)
    pixels[rings < 0.24] = (236, 180, 40)
    pixels[(np.abs(x - 0.25) < 0.09) & (y > 0.3)] = (40, 60, 120)
    pixels[(x + y) % 0.25 < 0.03] *= 0.6
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
