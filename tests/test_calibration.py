"""Check temperature and threshold against plain references, and on simulated data with known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, special

from carnet import metrics
from carnet.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    calibrate,
    choose_threshold,
    coverage_curve,
    cross_fit,
    fit_temperature,
)


def overconfident(number: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits), and the logits `temperature` times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (number, 6))
    shares = metrics.softmax(logits)
    labels = np.array([rng.choice(6, p=row) for row in shares])
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float) -> None:
    logits, labels = overconfident(4000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.08)


def test_the_temperature_is_the_most_likely_one() -> None:
    logits, labels = overconfident(500, 2.0)
    grid = np.exp(np.linspace(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE), 2000))
    losses = [
        metrics.cross_entropy(logits / t, labels).sum() - np.log(metrics.softmax(logits / t)).mean(axis=1).mean()
        for t in grid
    ]
    assert fit_temperature(logits, labels) == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)


@pytest.mark.parametrize("number", [2, 5, 60, 1000])
@pytest.mark.parametrize("temperature", [0.02, 0.3, 1.0, 4.0, 50.0])
def test_the_temperature_against_scipy(number: int, temperature: float) -> None:
    logits, labels = overconfident(number, temperature, seed=number)

    def loss(log_temperature: float) -> float:
        logs = special.log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float(logs[np.arange(number), labels].sum() + logs.mean())

    ends = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    expected = optimize.minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-9})
    assert math.log(fit_temperature(logits, labels)) == pytest.approx(expected.x, abs=1e-5)


def test_a_few_correct_predictions_do_not_make_it_certain() -> None:
    logits, labels = np.eye(3)[[0, 1, 2, 0]] * 4.0, np.array([0, 1, 2, 0])
    temperature = fit_temperature(logits, labels)
    assert temperature > 2 * MIN_TEMPERATURE
    assert metrics.softmax(logits / temperature).max() < 0.99


def test_the_threshold_keeps_confident_errors_rare() -> None:
    logits, labels = overconfident(4000, 1.0)
    chosen = calibrate(logits, labels)
    confidence = metrics.softmax(logits / chosen.temperature).max(axis=1)
    correct = metrics.in_top_k(logits, labels, 1)
    is_confident = confidence >= chosen.threshold
    assert 0 < chosen.threshold < 1
    assert correct[is_confident].mean() >= 0.95
    # The next lower threshold would allow more errors.
    lower = np.sort(confidence[~is_confident])[-1]
    assert correct[confidence >= lower].mean() < 0.95


def test_thresholds_at_the_ends() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    assert choose_threshold(confidence, np.array([True] * 4)) == 0.0
    assert choose_threshold(confidence, np.array([False] * 4)) > 1
    assert choose_threshold(confidence, np.array([True, True, True, False])) == pytest.approx(0.65)
    # Equal probabilities are all confident, or none is.
    assert choose_threshold(np.array([0.9, 0.7, 0.7]), np.array([True, True, False])) == pytest.approx(0.8)


def test_no_image_is_evaluated_with_what_was_chosen_on_it() -> None:
    logits, labels = overconfident(60, 2.0)
    before = cross_fit(logits, labels)
    for image in range(0, 60, 7):
        changed = labels.copy()
        changed[image] = (changed[image] + 1) % 6
        after = cross_fit(logits, changed)
        # Its own label does not influence its temperature.
        assert after.confidence[image] == before.confidence[image]
        assert (after.confidence != before.confidence).any()


def test_cross_fitting_brings_confidence_closer_to_the_truth() -> None:
    crossed = cross_fit(*overconfident(3000, 3.0))
    assert crossed.error < 0.05 < crossed.error_before
    assert crossed.confident_accuracy is not None
    assert crossed.confident_accuracy == pytest.approx(0.95, abs=0.03)


def test_the_curve_ends_with_all_images() -> None:
    thresholds, coverage, accuracy = coverage_curve(np.array([0.5, 0.9, 0.7]), np.array([False, True, True]))
    assert thresholds.tolist() == [0.9, 0.7, 0.5]
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert accuracy.tolist() == pytest.approx([1, 1, 2 / 3])
