"""What a classifier may say of itself: a temperature for its probabilities, and a threshold below which it is not sure.

Both are chosen on images that were held back from training. What they are worth is measured by cross-fitting: the
images are divided, and each part is judged with what was chosen on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet import metrics
from carnet.metrics import Floats, Labels

COLDEST, HOTTEST = 0.05, 20.0
CONFIDENT_ERROR = 0.05
"""Share of the answers given that may be wrong."""
FOLDS = 5
NEVER_CONFIDENT = math.nextafter(1.0, 2.0)
"""A threshold that no answer reaches; in float32 a probability may well be 1."""


@dataclass(frozen=True)
class Calibration:
    """What was chosen.

    Attributes:
        temperature: logits are divided by it before softmax.
        threshold: the highest probability below which an answer is not sure; 0 where all are, above 1 where none is.
    """

    temperature: float
    threshold: float


@dataclass(frozen=True)
class CrossFitted:
    """What a temperature and a threshold are worth for images that they were not chosen on.

    Attributes:
        confidence: (N,) highest probability of each image.
        is_confident: (N,) whether it reaches the threshold.
        correct: (N,) whether the answer is right.
        error_before: expected calibration error of the plain softmax.
        error: the same with the temperature.
    """

    confidence: NDArray[np.float64]
    is_confident: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    error_before: float
    error: float

    @property
    def coverage(self) -> float:
        """Share of the images that get a sure answer."""
        return float(self.is_confident.mean())

    @property
    def confident_accuracy(self) -> float | None:
        """Share of the sure answers that are right; None without any."""
        return float(self.correct[self.is_confident].mean()) if self.is_confident.any() else None

    def to_json(self) -> dict[str, Any]:
        """The numbers without the arrays."""
        return {
            "calibration_error_before": self.error_before,
            "calibration_error": self.error,
            "coverage": self.coverage,
            "confident_accuracy": self.confident_accuracy,
        }


def calibrate(logits: Floats, labels: Labels) -> Calibration:
    """Choose temperature and threshold: (N, classes), (N,)"""
    temperature = fit_temperature(logits, labels)
    confidence = metrics.softmax(logits / temperature).max(axis=1)
    return Calibration(temperature, choose_threshold(confidence, metrics.in_top_k(logits, labels, 1)))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature that makes the true classes most likely: (N, classes), (N,)

    As though one image more had been seen that could be anything, so that a few images, all of them right, do not make
    it certain of everything. Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    wide = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        cooled = wide / math.exp(log_temperature)
        true = metrics.cross_entropy(cooled, labels).sum()
        anything = metrics.cross_entropy(cooled, labels) + cooled[np.arange(len(labels)), labels] - cooled.mean(axis=1)
        return float(true + anything.mean())

    return math.exp(_minimum(loss, math.log(COLDEST), math.log(HOTTEST)))


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest, by golden sections."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2


def choose_threshold(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """The lowest probability above which few answers are wrong: (N,), (N,)

    Few is `CONFIDENT_ERROR`, or half of what is wrong anyway where that is less.
    """
    allowed = min(CONFIDENT_ERROR, 0.5 * float((~correct).mean()))
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~correct[order]) / np.arange(1, len(order) + 1)
    # Of equally probable answers either all are sure or none.
    is_end = np.append(np.diff(confidence[order]) < 0, True)
    good = np.flatnonzero((wrong <= allowed) & is_end)
    if not len(good):
        return NEVER_CONFIDENT
    last = int(good[-1])
    return 0.0 if last == len(order) - 1 else float(confidence[order[last]] + confidence[order[last + 1]]) / 2


def cross_fit(logits: Floats, labels: Labels) -> CrossFitted:
    """Judge each part of the images with what was chosen on the others: (N, classes), (N,)

    Args:
        logits: of at least two images.
        labels: their classes.
    """
    parts = np.random.default_rng(0).permutation(len(labels)) % min(FOLDS, len(labels))
    confidence = np.empty(len(labels))
    is_confident = np.empty(len(labels), np.bool_)
    for part in range(parts.max() + 1):
        judged = parts == part
        chosen = calibrate(logits[~judged], labels[~judged])
        confidence[judged] = metrics.softmax(logits[judged] / chosen.temperature).max(axis=1)
        is_confident[judged] = confidence[judged] >= chosen.threshold
    correct = metrics.in_top_k(logits, labels, 1)
    before = metrics.expected_calibration_error(metrics.softmax(logits).max(axis=1), correct)
    return CrossFitted(
        confidence, is_confident, correct, before, metrics.expected_calibration_error(confidence, correct)
    )


def coverage_curve(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What every threshold would give, from the highest on: thresholds, share answered, accuracy of the answers."""
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return confidence[order], answered / len(order), np.cumsum(correct[order]) / answered
