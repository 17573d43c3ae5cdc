import json
from typing import Any

import pytest

from carnet.errors import ConfigError, RunError
from carnet.spec import ModelSpec


def test_survives_json() -> None:
    spec = ModelSpec(model="carnet18", classes=("a b", "ü", '"'), image_size=96, resize="pad", mean=(0.1, 0.2, 0.3))
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"classes": ("a",)}, "classes, got 1"),
        ({"classes": ("a", "a")}, "class names"),
        ({"image_size": 0}, "image_size .* got 0"),
        ({"image_size": 10_000}, "image_size .* 8,192 .* got 10000"),
        ({"resize": "squash"}, "resize .* crop, pad, stretch, got 'squash'"),
        ({"std": (1.0, 0.0, 1.0)}, r"std .* got \(1.0, 0.0, 1.0\)"),
        ({"mean": (1.0, 0.0)}, r"mean .* 3 .* got \(1.0, 0.0\)"),
        ({"in_channels": 1}, "mean .* 1 "),
        ({"in_channels": 2}, "in_channels .* 1, 3, 4, got 2"),
        ({"mean": (1.0, 0.0, float("nan"))}, "mean .* nan"),
    ],
)
def test_a_field_out_of_range_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ModelSpec(**({"model": "carnet18", "classes": ("a", "b"), "image_size": 32} | fields))


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RunError, match="classes"):
        ModelSpec.from_json({"model": "carnet18"})


def test_older_descriptions_are_bilinear_and_newer_ones_are_refused() -> None:
    spec = ModelSpec(model="carnet_s", classes=("a", "b"), image_size=32, interpolation="bicubic")
    document = spec.to_json()
    assert ModelSpec.from_json(document) == spec
    older = {key: value for key, value in document.items() if key not in ("format", "interpolation")}
    assert ModelSpec.from_json(older).interpolation == "bilinear"
    with pytest.raises(RunError, match=r"format 99.*update carnet"):
        ModelSpec.from_json(document | {"format": 99})
    with pytest.raises(RunError, match="interpolation"):
        ModelSpec.from_json(document | {"interpolation": "nearest"})
