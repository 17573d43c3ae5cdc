"""Configs: ranges, JSON, differences, and records of older versions."""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from carnet.cli.main import parse
from carnet.cli.train import Command
from carnet.config import GROUPS, LIMITS, PRESETS, ResolvedConfig, TrainingConfig, published
from carnet.errors import ConfigError, RunError
from carnet.older_records import from_format_1


def test_published_recipe() -> None:
    """These are the values of the published scripts, or what turns off everything that they do not have."""
    recipe = published()
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (5e-4, 0, 16, 50)
    assert (recipe.model, recipe.optimizer, recipe.schedule, recipe.initial_size_ratio) == (
        "carnet18",
        "adam",
        "constant",
        1,
    )
    assert (recipe.label_smoothing, recipe.cutmix, recipe.color, recipe.ema, recipe.min_crop) == (0, 0, 0, 0, 1)
    assert (recipe.image_size, recipe.resize, recipe.precision, recipe.pretrained) == (244, "crop", "fp32", False)
    assert (recipe.brightness, recipe.flip, recipe.rotation) == (0.2, 0.5, 15)


def test_every_preset_says_how_to_run_it_and_what_to_expect() -> None:
    for name, preset in PRESETS.items():
        assert f"--preset {name}" in (preset.__doc__ or "")


def test_a_config_survives_json() -> None:
    recipe = TrainingConfig(model="resnet18", lr=0.1 + 0.2, seed=2**62)
    assert TrainingConfig.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    with pytest.raises(RunError, match=r"run/config\.json.*epochs"):
        TrainingConfig.from_json(recipe.to_json() | {"epochs": "3"}, Path("run/config.json"))
    with pytest.raises(RunError, match=r"run/config\.json.*momentum"):
        TrainingConfig.from_json(recipe.to_json() | {"momentum": 0.9}, Path("run/config.json"))


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
        ("precision", "auto"),
        ("image_size", 0),
        ("budget", ""),
        ("epochs", 2.5),
        ("cache", "gpu"),
        ("initial_size_ratio", 0),
        ("optimizer", "lion"),
        ("adamw_lr_ratio", 0),
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
    with pytest.raises(ConfigError, match=f"^--{field.replace('_', '-')} "):
        TrainingConfig(**{field: value})


def test_differences_leave_out_what_does_not_change_the_result() -> None:
    recipe = TrainingConfig()
    assert recipe.differences(TrainingConfig(workers=3, threads=2, logger="tensorboard", compile=True)) == []
    assert recipe.differences(TrainingConfig(lr=0.1, seed=7)) == ["--lr 0.1 (was auto)", "--seed 7 (was 0)"]


def test_every_field_is_in_one_group_of_the_help() -> None:
    grouped = [field.name for group in GROUPS.values() for field in fields(group)]
    assert sorted(grouped) == sorted({field.name for field in fields(TrainingConfig)})


def test_nothing_is_left_open_in_a_resolved_config() -> None:
    """The fields that it redeclares have no default, and the type of the requested ones without None."""
    asked, resolved = (get_type_hints(kind, include_extras=True) for kind in (TrainingConfig, ResolvedConfig))
    redeclared = [name for name in ResolvedConfig.__annotations__ if name in asked]
    assert redeclared
    for name in redeclared:
        assert resolved[name] | None == asked[name] or resolved[name] == asked[name]
    may_stay_open = {"layout", "cache", "max_memory", "budget", *LIMITS}
    left = {field.name for field in fields(TrainingConfig) if field.default is None}
    assert left - set(redeclared) == may_stay_open
    # Records of runs before there was fine-tuning lack this one.
    redeclared.remove("frozen_share")
    assert all(field.default is MISSING for field in fields(ResolvedConfig) if field.name in redeclared)


def test_flags_override_a_recipe_and_old_names_are_read() -> None:
    parsed = parse(Command, "train", ["x", "--preset", "published", "--compile", "off", "--epochs", "auto"])
    assert (parsed.recipe.compile, parsed.recipe.epochs, parsed.recipe.workers) == (False, None, None)
    older = parse(Command, "train", ["x", "--preset", "published", "--start-share=1", "--adam-share", "0.5"])
    assert (older.recipe.initial_size_ratio, older.recipe.adamw_lr_ratio) == (1, 0.5)


def test_records_of_version_0_1_are_translated() -> None:
    data = {"num_images": {"train": 100, "valid": 20}}
    recipe = {"batch_size": 32, "epochs": 3, "seed": 5, "valid_seed": -1, "start_share": 0.25, "compile": "auto"}
    plan = {"device": "cpu", "threads": 2, "first_cost": 0.5, "training_seconds": 0.0}
    record = from_format_1({"recipe": recipe, "asked": recipe | {"epochs": 0}, "plan": plan, "data": data})
    requested, resolved = record["requested"], record["resolved"]
    assert (requested["epochs"], requested["valid_seed"], requested["initial_size_ratio"]) == (None, None, 0.25)
    assert (resolved["valid_seed"], resolved["num_steps"], resolved["initial_step_cost"]) == (5, 12, 0.5)
    # Older plans lack these entries.
    assert (resolved["muon_precision"], resolved["compile"], resolved["max_steps"]) == ("bf16", False, None)
    assert record["data"] == data
