"""Metrics of classifiers: arrays in, numbers out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Z95 = 1.959963984540054
"""Half-width of the central 95% of a normal distribution, in standard deviations."""


def softmax(logits: Floats) -> NDArray[np.float64]:
    """(N, classes) -> probabilities (N, classes), computed in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def cross_entropy(logits: Floats, labels: Labels) -> NDArray[np.float64]:
    """Negative log-likelihood of each image's true class: (N, classes), (N,) -> (N,)."""
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1)
    log_sum = largest + np.log(np.exp(wide - largest[:, None]).sum(axis=1))
    return np.asarray(log_sum - wide[np.arange(len(labels)), labels])


def in_top_k(logits: Floats, labels: Labels, k: int) -> NDArray[np.bool_]:
    """Return which images have their true class among their k highest logits: (N, classes), (N,) -> (N,) bool.

    A tie goes to the class with the lower index, so the result never depends on the order of computation. An image with
    a NaN logit is a miss.
    """
    true_logits = logits[np.arange(len(labels)), labels][:, None]
    numbers = np.arange(logits.shape[1])
    above = (logits > true_logits) | ((logits == true_logits) & (numbers < labels[:, None]))
    return np.asarray((above.sum(axis=1) < k) & ~np.isnan(logits).any(axis=1))


def confusion_matrix(labels: Labels, predictions: Labels, num_classes: int) -> NDArray[np.int64]:
    """Return counts (num_classes, num_classes); rows are true classes, columns predicted ones."""
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return counts.astype(np.int64, copy=False).reshape(num_classes, num_classes)


def precision_recall_f1(confusion: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Return precision, recall and F1 per class; a quotient without a denominator is 0."""
    hits = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    # A denominator of 0 has 0 hits, and 0 / 1 is 0.
    return hits / np.maximum(predicted, 1), hits / np.maximum(true, 1), 2 * hits / np.maximum(true + predicted, 1)


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Return the unweighted mean of the classes' F1, without classes that are neither true nor predicted anywhere."""
    f1 = precision_recall_f1(confusion)[2]
    present = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return float(f1[present].mean())


def wilson_interval(num_correct: float, num_images: float, z: float = Z95) -> tuple[float, float]:
    """Return the interval of an accuracy, 95% by default. Source: Wilson, "Probable Inference", 1927.

    Unlike the normal interval it stays within 0 and 1, and holds for few images and for accuracies near either end.

    Raises:
        ValueError: without images, or with more correct than images.
    """
    if not 0 <= num_correct <= num_images or num_images == 0:
        raise ValueError(f"cannot give an interval for {num_correct} correct of {num_images}")
    share = num_correct / num_images
    denominator = 1 + z * z / num_images
    centre = (share + z * z / (2 * num_images)) / denominator
    spread = share * (1 - share) / num_images + z * z / (4 * num_images**2)
    half = z * math.sqrt(spread) / denominator
    # Exact at the ends, in spite of rounding.
    return 0.0 if share == 0 else max(0.0, centre - half), 1.0 if share == 1 else min(1.0, centre + half)


def paired_difference(correct: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return the accuracy of one classifier minus another's on the same images, and its 95% interval: (N,), (N,).

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", 2005: the normal
    interval with half an image added to each of the four outcomes, so that it has a width even if both always agree.

    Raises:
        ValueError: without images.
    """
    if len(correct) == 0:
        raise ValueError("cannot compare without images")
    only_one, only_other = float((correct & ~other).sum()), float((other & ~correct).sum())
    number, gained, lost = len(correct) + 2, only_one + 0.5, only_other + 0.5
    middle = (gained - lost) / number
    half = Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / number) / number
    return (only_one - only_other) / len(correct), max(-1.0, middle - half), min(1.0, middle + half)


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over equally wide bins, weighted by their images: (N,), (N,).

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.

    Raises:
        ValueError: without images.
    """
    if len(confidence) == 0:
        raise ValueError("cannot compute a calibration error without images")
    places = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(places, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
