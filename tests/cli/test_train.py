"""`carnet train`: its document, and what becomes of the recipe of a run that is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from carnet import TrainingConfig
from carnet.cli.compare import Command as Compare
from carnet.cli.main import parse
from carnet.config import published

Call = Callable[..., tuple[int, str, str]]


def test_train_json_is_one_document(photos: Path, tmp_path: Path, call: Call) -> None:
    flags = ["--model", "carnet_n", "--image-size", "48", "--epochs", "1", "--batch-size", "8"]
    code, out, err = call("train", photos, *flags, "--output", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert "24 train, 12 valid images" in err
    assert "epoch 1/1: train loss" in err


def test_resume_takes_no_preset(trained_run: Path, call: Call) -> None:
    code, _, err = call("train", "--resume", trained_run, "--preset", "published")
    assert (code, "--preset" in err) == (2, True)


def test_resume_takes_the_runs_own_recipe(photos: Path, trained_run: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    code, out, _ = call("train", "--resume", tmp_path / "run")
    assert code == 0
    assert "2 of 2 epochs" in out
    code, _, err = call("train", "--resume", tmp_path / "run", "--epochs", "5")
    assert (code, "--epochs 5 (was 2)" in err) == (2, True)


def test_a_preset_and_other_flags_of_compare() -> None:
    flags = ["--models", "carnet18,resnet18", "--preset", "published", "--lr", "0.1", "--json"]
    command = parse(Compare, "compare", ["photos", *flags])
    assert (command.targets, command.models, command.json) == (("photos",), "carnet18,resnet18", True)
    assert command.recipe == TrainingConfig(**(published().to_json() | {"lr": 0.1}))
