"""Calibrate a classifier: a temperature for its probabilities, and a threshold of confidence.

Both are chosen on held-out images. How good they are is measured by cross-fitting: the images are divided into folds,
and each fold is evaluated with what was chosen on the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet import metrics
from carnet.metrics import Floats, Labels

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
CONFIDENT_ERROR = 0.05
"""Share of the confident predictions that may be wrong."""
FOLDS = 5
NEVER_CONFIDENT = math.nextafter(1.0, 2.0)
"""A threshold that no probability reaches, not even 1."""


@dataclass(frozen=True)
class Calibration:
    """A temperature and a threshold.

    Attributes:
        temperature: divides the logits before softmax.
        threshold: lowest probability of a confident prediction; 0 if all are confident, above 1 if none is.
    """

    temperature: float
    threshold: float


@dataclass(frozen=True)
class CrossFitted:
    """The effect of temperatures and thresholds on images that they were not chosen on.

    Attributes:
        confidence: (N,) highest probability of each image.
        is_confident: (N,) marks images whose confidence reaches the threshold.
        correct: (N,) marks correct predictions.
        error_before: expected calibration error without a temperature.
        error: expected calibration error with the temperature.
    """

    confidence: NDArray[np.float64]
    is_confident: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    error_before: float
    error: float

    @property
    def coverage(self) -> float:
        """Share of the images with a confident prediction."""
        return float(self.is_confident.mean())

    @property
    def confident_accuracy(self) -> float | None:
        """Accuracy of the confident predictions; None without any."""
        return float(self.correct[self.is_confident].mean()) if self.is_confident.any() else None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers without the arrays."""
        return {
            "calibration_error_before": self.error_before,
            "calibration_error": self.error,
            "coverage": self.coverage,
            "confident_accuracy": self.confident_accuracy,
        }


def calibrate(logits: Floats, labels: Labels) -> Calibration:
    """Choose temperature and threshold: (N, classes), (N,)."""
    temperature = fit_temperature(logits, labels)
    confidence = metrics.softmax(logits / temperature).max(axis=1)
    return Calibration(temperature, choose_threshold(confidence, metrics.in_top_k(logits, labels, 1)))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """Return the temperature with the lowest cross-entropy, by golden-section search: (N, classes), (N,).

    One more image that could be of any class is added, so that a few images, all of them correct, do not make all
    predictions certain. Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    wide = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = wide / math.exp(log_temperature)
        true = metrics.cross_entropy(scaled, labels)
        any_class = true + scaled[np.arange(len(labels)), labels] - scaled.mean(axis=1)
        return float(true.sum() + any_class.mean())

    low, high, ratio = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE), (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return math.exp((low + high) / 2)


def choose_threshold(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """Return the lowest threshold that keeps wrong confident predictions rare: (N,), (N,).

    Their share is at most `CONFIDENT_ERROR`, or half the share of all wrong predictions where that is less.
    """
    allowed = min(CONFIDENT_ERROR, 0.5 * float((~correct).mean()))
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~correct[order]) / np.arange(1, len(order) + 1)
    # Equally probable predictions are all confident, or none of them is.
    is_end = np.append(np.diff(confidence[order]) < 0, True)
    good = np.flatnonzero((wrong <= allowed) & is_end)
    if not len(good):
        return NEVER_CONFIDENT
    last = good[-1]
    return 0.0 if last == len(order) - 1 else float(confidence[order[last]] + confidence[order[last + 1]]) / 2


def cross_fit(logits: Floats, labels: Labels) -> CrossFitted:
    """Evaluate each fold with what was chosen on the others: (N, classes), (N,) of at least two images."""
    folds = np.random.default_rng(0).permutation(len(labels)) % min(FOLDS, len(labels))
    confidence = np.empty(len(labels))
    is_confident = np.empty(len(labels), np.bool_)
    for fold in range(folds.max() + 1):
        held_out = folds == fold
        chosen = calibrate(logits[~held_out], labels[~held_out])
        confidence[held_out] = metrics.softmax(logits[held_out] / chosen.temperature).max(axis=1)
        is_confident[held_out] = confidence[held_out] >= chosen.threshold
    correct = metrics.in_top_k(logits, labels, 1)
    error_before, error = (
        metrics.expected_calibration_error(values, correct)
        for values in (metrics.softmax(logits).max(axis=1), confidence)
    )
    return CrossFitted(confidence, is_confident, correct, error_before, error)


def coverage_curve(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return all thresholds, highest first, with coverage and accuracy of the confident predictions: (N,), (N,)."""
    order = np.argsort(-confidence, kind="stable")
    num_confident = np.arange(1, len(order) + 1)
    return confidence[order], num_confident / len(order), np.cumsum(correct[order]) / num_confident
