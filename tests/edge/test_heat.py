"""Heat lies where the network looked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from carnet.edge.classifier import draw_heat
from carnet.spec import ModelSpec

SPEC = ModelSpec(model="carnet_s", classes=("a", "b"), image_size=64)


def redness(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture, np.float32)
    return pixels[:, :, 0] - pixels[:, :, 2]


def test_the_hottest_place_is_the_centre_that_was_named() -> None:
    class_map = np.zeros((3, 3), np.float32)
    class_map[1, 1] = 2.0
    centres = ([10.0, 30.0, 50.0], [12.0, 36.0, 52.0])
    red = redness(draw_heat(Image.new("RGB", (64, 64), "grey"), class_map, centres, SPEC))
    row, column = np.unravel_index(red.argmax(), red.shape)
    scale = 64 / red.shape[0]
    assert (row + 0.5) * scale - 0.5 == pytest.approx(30, abs=1)
    assert (column + 0.5) * scale - 0.5 == pytest.approx(36, abs=1)
    assert red[-1, 0] == 0


def test_where_the_network_does_not_look_there_is_no_heat() -> None:
    centres = ([28.0, 32.0, 36.0],) * 2
    red = redness(draw_heat(Image.new("RGB", (64, 64), "grey"), np.ones((3, 3), np.float32), centres, SPEC))
    side = red.shape[0]
    assert red[side // 2, side // 2] > 50
    for row, column in ((0, 0), (0, side // 2), (side // 2, side - 1), (side // 4, side // 4)):
        assert red[row, column] == 0


@pytest.mark.parametrize("rule", ["crop", "pad", "stretch"])
def test_what_speaks_against_a_class_is_not_drawn(rule: str) -> None:
    spec = ModelSpec(model="carnet_s", classes=("a", "b"), image_size=64, resize=rule)  # type: ignore[arg-type]
    picture = draw_heat(Image.new("RGB", (120, 80), "teal"), -np.ones((1, 1), np.float32), ([31.5], [31.5]), spec)
    assert (redness(picture) == 0).all()
