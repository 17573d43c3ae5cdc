"""Numbers that say how good a classifier is. Arrays in, numbers out; every count is per image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Z95 = 1.959963984540054
"""Standard deviations either way that hold 95 % of a normal distribution."""


def softmax(logits: Floats) -> NDArray[np.float64]:
    """(N, classes) -> (N, classes) probabilities, computed in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def cross_entropy(logits: Floats, labels: Labels) -> NDArray[np.float64]:
    """Negative log-likelihood of each image's true class: (N, classes), (N,) -> (N,)."""
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1)
    log_sum = largest + np.log(np.exp(wide - largest[:, None]).sum(axis=1))
    return np.asarray(log_sum - wide[np.arange(len(labels)), labels])


def in_top_k(logits: Floats, labels: Labels, k: int) -> NDArray[np.bool_]:
    """Whether each image's true class is among its k highest logits: (N, classes), (N,) -> (N,).

    A tie goes to the class with the lower number, so the answer never depends on the order of computation. An image
    with a logit that is not a number is a miss.
    """
    true_logits = logits[np.arange(len(labels)), labels][:, None]
    numbers = np.arange(logits.shape[1])
    above = (logits > true_logits) | ((logits == true_logits) & (numbers < labels[:, None]))
    return np.asarray((above.sum(axis=1) < k) & ~np.isnan(logits).any(axis=1))


def confusion_matrix(labels: Labels, predictions: Labels, num_classes: int) -> NDArray[np.int64]:
    """Counts (num_classes, num_classes); a row is the true class, a column the predicted one."""
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return counts.astype(np.int64, copy=False).reshape(num_classes, num_classes)


def precision_recall_f1(confusion: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Per class, from a confusion matrix; where a quotient has no denominator it is 0."""
    hits = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, true, out=np.zeros_like(hits), where=true > 0)
    f1 = np.divide(2 * hits, true + predicted, out=np.zeros_like(hits), where=true + predicted > 0)
    return precision, recall, f1


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Unweighted mean of the classes' F1; a class that is neither true nor predicted anywhere is left out."""
    f1 = precision_recall_f1(confusion)[2]
    present = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return float(f1[present].mean())


def wilson_interval(num_correct: float, num_images: float, z: float = Z95) -> tuple[float, float]:
    """Interval for an accuracy, 95 % by default. Source: Wilson, "Probable Inference", 1927.

    Unlike the plain normal interval it stays within 0 and 1 and keeps its promise for few images and for
    accuracies near either end.

    Raises:
        ValueError: without images, or with more correct than there are.
    """
    if not 0 <= num_correct <= num_images or num_images == 0:
        raise ValueError(f"cannot give an interval for {num_correct} correct of {num_images}")
    share = num_correct / num_images
    denominator = 1 + z * z / num_images
    centre = (share + z * z / (2 * num_images)) / denominator
    spread = share * (1 - share) / num_images + z * z / (4 * num_images**2)
    half = z * math.sqrt(spread) / denominator
    # Exact at the ends, where rounding would leave a hair's breadth.
    return 0.0 if share == 0 else max(0.0, centre - half), 1.0 if share == 1 else min(1.0, centre + half)


def paired_difference(correct: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Accuracy of one classifier less another's on the same images, and its 95 % interval: (N,), (N,)

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", 2005: the normal
    interval with half an image added to each of the four outcomes, so that it has a width even where both always agree.

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
    """How far confidence and accuracy lie apart: mean over equally wide bins, each with the weight of its images.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.

    Args:
        confidence: (N,) highest probability of each image.
        correct: (N,) whether the answer is right.
        bins: between 0 and 1.

    Raises:
        ValueError: without images.
    """
    if len(confidence) == 0:
        raise ValueError("cannot judge confidence without images")
    places = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(places, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
