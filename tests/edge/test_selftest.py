"""`carnet verify`: an installation that computes something else is found out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carnet import Classifier
from carnet.edge.selftest import draw_tests, verify
from carnet.errors import ModelFileError
from carnet.spec import ModelSpec


def test_this_installation_reproduces_what_it_wrote(exported: Path) -> None:
    checks = verify(Classifier(exported)).checks
    assert [check.picture for check in checks] == ["lossless", "jpeg"]
    assert all(check.passed and check.difference < check.tolerance / 10 for check in checks)


def test_another_arithmetic_is_noticed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(exported)
    right = classifier.probabilities
    monkeypatch.setattr(classifier, "probabilities", lambda images: np.roll(right(images), 1, axis=1))
    checks = verify(classifier).checks
    assert not any(check.passed for check in checks)
    assert all(check.difference > check.tolerance for check in checks)


def test_a_decoder_that_differs_fails_the_jpeg_alone(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from carnet.edge import selftest

    right = selftest.load_image

    def other(content: bytes, spec: ModelSpec) -> np.ndarray:
        pixels = right(content, spec)
        return pixels if content.startswith(b"\x89PNG") else 255 - pixels

    monkeypatch.setattr(selftest, "load_image", other)
    lossless, jpeg = verify(exported).checks
    assert lossless.passed
    assert not jpeg.passed


def test_a_picture_that_cannot_be_decoded_fails(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from carnet import preprocess

    monkeypatch.setattr(preprocess, "FORMATS", ("PNG",))
    lossless, jpeg = verify(exported).checks
    assert lossless.passed
    assert "cannot decode" in jpeg.problem


@pytest.mark.parametrize(
    "tests",
    [
        None,
        [],
        [{}],
        [{"picture": "lossless", "tolerance": 1, "file": "?", "probabilities": []}],
        [{"picture": "lossless", "tolerance": "x", "file": "", "probabilities": []}],
    ],
)
def test_files_without_tests_say_so(exported: Path, tests: object) -> None:
    classifier = Classifier(exported)
    classifier.document = {**classifier.document, "tests": tests}
    with pytest.raises(ModelFileError, match="pictures"):
        verify(classifier)


@pytest.mark.parametrize("size", [32, 128, 244])
def test_the_pictures_are_small_and_need_what_they_test(size: int) -> None:
    from io import BytesIO

    pictures = draw_tests(ModelSpec(model="carnet_s", classes=("a", "b"), image_size=size))
    assert all(len(content) < 40_000 for content in pictures.values())
    with Image.open(BytesIO(pictures["lossless"])) as lossless, Image.open(BytesIO(pictures["jpeg"])) as jpeg:
        assert (lossless.format, lossless.size) == ("PNG", (size, size))
        assert jpeg.format == "JPEG"
        assert jpeg.width != jpeg.height > size
