"""The script for the reproduction at full size: what it asks for, and that it checks itself without a CUDA device."""

from __future__ import annotations

import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reproduce_published
import torch

from carnet import TrainingConfig, published
from carnet.comparison import runs as training_of_runs
from carnet.errors import StoppedError
from carnet.progress import Silent


def reproduce(data: Path, monkeypatch: pytest.MonkeyPatch, *, cuda: bool, **passed: Any) -> int:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(sys, "argv", ["reproduce_published.py", str(data), "--output", str(data / "answer")])
    return reproduce_published.main(**passed)


def test_without_cuda_it_checks_itself_on_two_batches(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def train(data: str, config: TrainingConfig, path: Path) -> None:
        training_of_runs._train(data, config, path)
        trained.append((config.model, len((path / "data.csv").read_text().splitlines()) - 1))

    small = replace(published(), image_size=48, batch_size=2)
    monkeypatch.setattr(reproduce_published, "published", lambda: small)
    monkeypatch.setattr(training_of_runs, "_train_alone", train)
    # The published pair takes a minute on a slow processor, and is tested elsewhere.
    assert reproduce(photos, monkeypatch, cuda=False, models=("carnet18", "carnet_n")) == 0
    assert trained == [("carnet18", 8), ("carnet_n", 8)]
    assert "It works, on two batches for each network, on a processor; " in capsys.readouterr().err
    assert not (photos / "answer").exists()


def test_with_cuda_it_asks_for_the_published_runs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class AskedError(Exception):
        pass

    def train_runs(data: str, models: tuple[str, ...], **others: Any) -> None:
        asked.update(data=data, models=models, **others)
        raise AskedError

    monkeypatch.setattr(reproduce_published, "train_runs", train_runs)
    with pytest.raises(AskedError):
        reproduce(photos, monkeypatch, cuda=True)
    assert (asked["models"], asked["seeds"], asked["folder"]) == (("carnet18", "resnet18"), 5, photos / "answer")
    config = asked["config"]
    assert (config.image_size, config.epochs, config.batch_size, config.device) == (244, 50, 16, "cuda")


def test_a_stop_leaves_how_far_it_came(
    photos: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, Any] = {}

    def train_runs(*_: Any, folder: Path, **__: Any) -> None:
        shutil.copytree(trained_run, folder / "carnet18-seed-0")
        shutil.copytree(trained_run, folder / "resnet18-seed-0")
        (folder / "resnet18-seed-0" / "result.json").unlink()
        raise StoppedError("stopped", signal.SIGINT)

    monkeypatch.setattr(reproduce_published, "train_runs", train_runs)
    monkeypatch.setattr(reproduce_published, "write_result", lambda name, command, numbers: written.update(numbers))
    with pytest.raises(StoppedError):
        reproduce_published.reproduce(photos, 5, tmp_path / "runs", Silent())
    finished, stopped = written["runs"]
    assert (finished["run"], len(finished["epochs"]), finished["result"]["epochs"]) == ("carnet18-seed-0", 2, 2)
    assert (stopped["run"], len(stopped["epochs"]), stopped["result"]) == ("resnet18-seed-0", 2, None)


def test_without_a_valid_folder_it_says_so(
    flat: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(flat, monkeypatch, cuda=False) == 2
    assert "has no valid folder" in capsys.readouterr().err
