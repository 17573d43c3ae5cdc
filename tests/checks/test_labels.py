"""Labels that the other images contradict."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import COLOURS, save_picture
from runs import small

import carnet
from carnet.checks.labels import suspect_labels
from carnet.errors import RunError
from carnet.training.run import train


def test_suspects_are_ranked() -> None:
    probabilities = np.full((40, 2), 0.1)
    labels = np.arange(40) % 2
    probabilities[np.arange(40), labels] = 0.9
    # Three exchanged labels, of which the last is the most certain, and images that are merely hard.
    for index, wrong in ((4, 0.98), (7, 0.99), (10, 0.999), (12, 0.55), (13, 0.95)):
        probabilities[index, labels[index]] = 1 - wrong
        probabilities[index, 1 - labels[index]] = wrong
    found = suspect_labels(probabilities, labels)
    assert [index for index, _, _ in found] == [10, 7, 4]
    assert all(other == 1 - labels[index] for index, other, _ in found)


def test_a_class_that_is_always_taken_for_another_ranks_low() -> None:
    """A contradiction says less where the other class is given to everything."""
    labels = np.repeat([0, 1, 2], 20)
    probabilities = np.full((60, 3), 0.001)
    probabilities[np.arange(60), labels] = 0.9
    # Class 0 gets little of its own images, and class 1 gets all.
    probabilities[:20, 0], probabilities[:20, 1] = 0.02, 0.9
    probabilities[40, 2], probabilities[40, 0] = 0.001, 0.9
    assert suspect_labels(probabilities, labels)[0][:2] == (40, 0)


def test_a_class_without_images_is_never_proposed() -> None:
    probabilities = np.array([[0.001, 0.001, 0.998]] * 4 + [[0.998, 0.001, 0.001]] * 4)
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    assert {other for _, other, _ in suspect_labels(probabilities, labels)} == {0}


def test_wrong_labels_are_found_with_a_run(tmp_path: Path) -> None:
    """The run was trained on the wrong labels, and is not taken at its word."""
    data, run = tmp_path / "data", tmp_path / "run"
    for number in range(90):
        name = list(COLOURS)[number % 3]
        save_picture(data / name / f"{number}.png", COLOURS[name], number)
    shutil.move(data / "red" / "2.png", data / "blue" / "wrong.png")
    train(data, small(epochs=4), output=run)
    report = carnet.check(data, only=("labels",), model=run)
    (finding,) = report.findings
    assert str(finding.examples[0]).startswith("blue/wrong.png")
    assert "'red'" in str(finding.examples[0])
    assert finding.count <= 2


def test_what_labels_need_is_said(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere"):
        carnet.check(flat, only=("labels",), model=tmp_path / "nowhere")
    assert "labels" in carnet.check(flat, only=("photos",)).skipped
