import json
from typing import Any

import pytest

from carnet.errors import ConfigError, RunError
from carnet.spec import ModelSpec


def test_survives_json() -> None:
    spec = ModelSpec(model="carnet18", classes=("a b", "ü", '"'), image_size=96, resize="pad", mean=(0.1, 0.2, 0.3))
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ("a",)}, "at least two classes"),
        ({"classes": ("a", "a")}, "differ"),
        ({"image_size": 0}, "at least 1 pixel"),
        ({"resize": "squash"}, "resize must be one of crop, pad, stretch"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be above 0"),
        ({"mean": (1.0, 0.0)}, "3 finite numbers"),
        ({"in_channels": 1}, "1 finite numbers"),
        ({"in_channels": 2}, "in_channels must be 1, 3, 4, got 2"),
        ({"mean": (1.0, 0.0, float("nan"))}, "3 finite numbers"),
    ],
)
def test_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSpec(**({"model": "carnet18", "classes": ("a", "b"), "image_size": 32} | fields))


def test_damaged_json_is_one_sentence() -> None:
    with pytest.raises(RunError, match=r"not a model description: .*classes"):
        ModelSpec.from_json({"model": "carnet18"})
