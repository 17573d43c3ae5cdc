"""Records of runs by versions before 0.2, translated to the present format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from carnet.config import FORMAT, TrainingConfig, steps_per_epoch

_OPEN_IN_FORMAT_1: dict[str, Any] = {
    **dict.fromkeys(("image_size", "epochs", "batch_size", "min_crop", "threads", "micro_batch"), 0),
    **dict.fromkeys(("cutmix", "workers", "valid_seed"), -1),
    **dict.fromkeys(("max_memory", "budget"), ""),
    **dict.fromkeys(
        ("layout", "device", "precision", "muon_precision", "compile", "memory_format", "fast_depthwise"), "auto"
    ),
    **dict.fromkeys(("keep_memory", "cache"), "auto"),
}
_RENAMED = {
    "start_share": "initial_size_ratio",
    "adam_share": "adamw_lr_ratio",
    "first_cost": "initial_step_cost",
    "most_steps": "max_steps",
    "training_steps": "num_steps",
}
_PLAN_IN_FORMAT_1: dict[str, Any] = {
    **{"devices": 1, "memory_format": "channels_last", "compile": False, "fast_depthwise": False},
    **{"muon_precision": "bf16", "keep_memory": False, "training_steps": 0, "most_steps": 0, "training_seconds": 0.0},
}
"""Meaning of entries that plans of the first versions lack."""


def from_format_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the record of a run by a version before 0.2: recipe, asked and plan become requested and resolved.

    Types are checked when the translation is read.

    Raises:
        KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError: if the record is damaged.
    """
    recipe, plan = record["recipe"], _PLAN_IN_FORMAT_1 | dict(record["plan"])
    num_train = record["data"]["num_images"]["train"]
    steps_of_epoch = steps_per_epoch(num_train, recipe["batch_size"], plan["devices"])
    if _is_zero(plan["training_steps"]):
        plan["training_steps"] = recipe["epochs"] * steps_of_epoch
    for name in ("most_steps", "training_seconds"):
        if _is_zero(plan[name]):
            plan[name] = None
    # Every layer was trained then.
    resolved = _settings_of_format_1(recipe) | {"frozen_share": 0.0}
    resolved |= {_RENAMED.get(name, name): value for name, value in plan.items()}
    if resolved["valid_seed"] is None:
        resolved["valid_seed"] = resolved["seed"]
    rest = {name: value for name, value in record.items() if name not in ("recipe", "asked", "plan")}
    requested = _settings_of_format_1(record.get("asked", recipe))
    return {"format": FORMAT, "requested": requested, "resolved": resolved, **rest}


def _is_zero(value: object) -> bool:
    """Return whether a number is zero; other types are checked when the translation is read."""
    return type(value) in (int, float) and value == 0


def _settings_of_format_1(recipe: Mapping[str, Any]) -> dict[str, Any]:
    words = {"on": True, "off": False}
    settings = {field.name: field.default for field in fields(TrainingConfig)}
    for name, value in recipe.items():
        is_open = name in _OPEN_IN_FORMAT_1 and value == _OPEN_IN_FORMAT_1[name]
        is_switch = name in ("compile", "fast_depthwise", "keep_memory")
        settings[_RENAMED.get(name, name)] = None if is_open else words.get(value, value) if is_switch else value
    return settings
