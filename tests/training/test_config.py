import json
from dataclasses import fields
from typing import Any

import pytest

from carnet.config import PRESETS, TrainingConfig, published
from carnet.errors import ConfigError, RunError


def test_published_recipe() -> None:
    recipe = published()
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (5e-4, 0, 16, 50)
    assert (recipe.model, recipe.optimizer, recipe.schedule, recipe.start_share) == ("carnet18", "adam", "constant", 1)
    assert (recipe.label_smoothing, recipe.cutmix, recipe.color, recipe.ema, recipe.min_crop) == (0, 0, 0, 0, 1)
    assert (recipe.image_size, recipe.resize, recipe.precision, recipe.pretrained) == (244, "crop", "fp32", False)
    assert (recipe.brightness, recipe.flip, recipe.rotation) == (0.2, 0.5, 15)


def test_every_preset_says_how_to_run_it_and_what_to_expect() -> None:
    for name, preset in PRESETS.items():
        assert f"--preset {name}" in (preset.__doc__ or "")


def test_survives_json() -> None:
    recipe = TrainingConfig(model="resnet18", lr=0.1 + 0.2, seed=2**62)
    assert TrainingConfig.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    with pytest.raises(RunError, match="cannot be read"):
        TrainingConfig.from_json(recipe.to_json() | {"epochs": "3"})
    with pytest.raises(RunError, match="does not know: momentum"):
        TrainingConfig.from_json(recipe.to_json() | {"momentum": 0.9})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", -1),
        ("resize", "squash"),
        ("epochs", -1),
        ("batch_size", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("weight_decay", -1.0),
        ("brightness", 1.5),
        ("flip", -0.1),
        ("rotation", 181.0),
        ("valid_fraction", 1.0),
        ("patience", -1),
        ("seed", -1),
        ("device", "tpu"),
        ("precision", "int8"),
        ("threads", -1),
        ("workers", -2),
        ("micro_batch", -1),
        ("compile", "yes"),
        ("cache", "gpu"),
        ("start_share", 0),
        ("optimizer", "lion"),
        ("adam_share", 0),
        ("schedule", "step"),
        ("warmup", 1.0),
        ("label_smoothing", 1.0),
        ("cutmix", 1.1),
        ("color", 1.1),
        ("color", -0.5),
        ("cutmix", -0.5),
        ("ema", 1.0),
        ("min_crop", -0.1),
        ("memory_format", "nhwc"),
        ("max_memory", "much"),
        ("max_memory", "0GB"),
        ("budget", "soon"),
        ("budget", "0m"),
        ("logger", "wandb"),
    ],
)
def test_out_of_range_names_the_flag(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^--{field.replace('_', '-')} must be "):
        TrainingConfig(**{field: value})


def test_differences_leave_out_what_does_not_change_the_result() -> None:
    recipe = TrainingConfig()
    assert recipe.differences(TrainingConfig(workers=3, threads=2, logger="tensorboard", compile="on")) == []
    assert recipe.differences(TrainingConfig(lr=0.1, seed=7)) == ["--lr 0.1 (was 0.08)", "--seed 7 (was 0)"]
    assert len(fields(recipe)) == len(recipe.to_json())
