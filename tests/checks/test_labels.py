"""Labels that the other images contradict."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import small

import carnet
from carnet.checks.labels import suspect_labels
from carnet.errors import RunError
from carnet.training.run import train


def test_suspects_are_ranked() -> None:
    probabilities = np.full((40, 2), 0.1)
    labels = np.arange(40) % 2
    probabilities[np.arange(40), labels] = 0.9
    # Three exchanged labels, of which the last is the most certain, and an image that is merely hard.
    for index, wrong in ((4, 0.8), (7, 0.85), (10, 0.99)):
        probabilities[index] = (wrong, 1 - wrong) if labels[index] else (1 - wrong, wrong)
    probabilities[12] = (0.55, 0.45)
    found = suspect_labels(probabilities, labels)
    assert [index for index, _, _ in found] == [10, 7, 4][: len(found)]
    assert len(found) >= 2
    assert all(other != labels[index] for index, other, _ in found)
    margins = [margin for _, _, margin in found]
    assert margins == sorted(margins, reverse=True)


def test_a_class_that_is_hard_as_a_whole_is_not_suspect() -> None:
    """What its images get on average is the measure, not one half."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    first = np.where(labels == 0, 0.55, 0.4) + rng.uniform(-0.02, 0.02, 200)
    assert suspect_labels(np.stack([first, 1 - first], axis=1), labels) == []


def test_a_class_without_images_is_never_proposed() -> None:
    probabilities = np.array([[0.1, 0.1, 0.8]] * 4 + [[0.8, 0.1, 0.1]] * 4)
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    assert all(other != 2 for _, other, _ in suspect_labels(probabilities, labels))


def test_wrong_labels_are_found_with_a_run(flat: Path, tmp_path: Path) -> None:
    """The run was trained on the wrong labels, and is not taken at its word."""
    shutil.move(flat / "red" / "3.png", flat / "blue" / "wrong.png")
    run = tmp_path / "run"
    train(flat, small(epochs=4), output=run)
    report = carnet.check(flat, only=("labels",), model=run)
    (finding,) = report.findings
    assert str(finding.examples[0]).startswith("blue/wrong.png")
    assert "'red'" in str(finding.examples[0])
    assert finding.count <= 3


def test_what_labels_need_is_said(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere"):
        carnet.check(flat, only=("labels",), model=tmp_path / "nowhere")
    assert "labels" in carnet.check(flat, only=("photos",)).skipped
