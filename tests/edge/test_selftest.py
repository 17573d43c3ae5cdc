"""`carnet verify` notices an installation that computes something else."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from carnet import Classifier
from carnet.cli.main import run
from carnet.edge.selftest import draw_tests, verify
from carnet.errors import ModelFileError
from carnet.spec import ModelSpec


def test_this_installation_reproduces_what_it_wrote(exported: Path) -> None:
    result = verify(exported)
    assert result.passed
    assert [check.picture for check in result.checks] == ["lossless", "jpeg"]
    assert all(check.difference < check.tolerance / 10 for check in result.checks)


def test_the_command_prints_what_the_function_returns(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(exported), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == verify(str(exported)).to_json()


class Rolled(Classifier):
    """Computes something else."""

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        return np.roll(super().probabilities(images), 1, axis=1)


def test_another_arithmetic_is_noticed(exported: Path) -> None:
    result = verify(Rolled(exported))
    assert not result.passed
    assert all(check.difference > check.tolerance for check in result.checks)


def with_jpeg(exported: Path, change: Callable[[bytes], bytes]) -> Classifier:
    """The model with another file in place of its JPEG, as if a decoder read it differently."""
    classifier = Classifier(exported)
    lossless, jpeg = classifier.document["tests"]
    other = base64.b64encode(change(base64.b64decode(jpeg["file"]))).decode()
    classifier.document = {**classifier.document, "tests": [lossless, {**jpeg, "file": other}]}
    return classifier


def inverted(content: bytes) -> bytes:
    with Image.open(BytesIO(content)) as image:
        file = BytesIO()
        ImageOps.invert(image).save(file, "JPEG")
    return file.getvalue()


def test_a_decoder_that_differs_fails_the_jpeg_alone(exported: Path) -> None:
    lossless, jpeg = verify(with_jpeg(exported, inverted)).checks
    assert (lossless.passed, jpeg.passed, jpeg.problem) == (True, False, "")
    assert jpeg.difference > jpeg.tolerance


def test_an_image_that_cannot_be_decoded_fails(exported: Path) -> None:
    lossless, jpeg = verify(with_jpeg(exported, lambda content: content[:100])).checks
    assert (lossless.passed, jpeg.passed) == (True, False)
    assert jpeg.problem


@pytest.mark.parametrize(
    "tests",
    [
        None,
        [],
        [{}],
        [{"picture": "lossless", "tolerance": 1, "file": "?", "probabilities": []}],
        [{"picture": "lossless", "tolerance": "x", "file": "", "probabilities": []}],
        [{"picture": "lossless", "tolerance": 0.01, "file": "?", "probabilities": []}],
    ],
)
def test_files_without_tests_are_an_error(exported: Path, tests: object) -> None:
    classifier = Classifier(exported)
    classifier.document = {**classifier.document, "tests": tests}
    with pytest.raises(ModelFileError, match=re.escape(str(exported))):
        verify(classifier)


@pytest.mark.parametrize("size", [32, 128, 244])
def test_the_test_images_are_small_and_of_the_right_size(size: int) -> None:
    images = draw_tests(ModelSpec(model="carnet_s", classes=("a", "b"), image_size=size))
    assert all(len(content) < 40_000 for content in images.values())
    with Image.open(BytesIO(images["lossless"])) as lossless, Image.open(BytesIO(images["jpeg"])) as jpeg:
        assert (lossless.format, lossless.size) == ("PNG", (size, size))
        assert jpeg.format == "JPEG"
        assert jpeg.width != jpeg.height > size
