"""Check of labels: which ones do the other images contradict?

Confident learning (Northcutt, Jiang and Chuang, "Confident learning: Estimating uncertainty in dataset labels", 2021):
a label is suspect if the image's probability of another class is at least what images with that label get on average,
by predictions of models that were fitted without the image. Suspects are ranked by how much more probable the other
class is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carnet.checks.data import CheckedData
from carnet.checks.findings import Example, Finding


@dataclass(frozen=True)
class LabelScores:
    """Out-of-sample probabilities.

    Attributes:
        paths: N images.
        probabilities: (N, classes of the data), each image's by a model that was fitted without it and its copies.
        source: what the features are from.
    """

    paths: Sequence[Path]
    probabilities: NDArray[np.floating]
    source: str


def suspect_labels(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> list[tuple[int, int, float]]:
    """Return the suspect labels, the most suspect first: index, the class that is more probable, and the margin.

    Args:
        probabilities: (N, K), out of sample.
        labels: (N,)
    """
    number, num_classes = probabilities.shape
    own = probabilities[np.arange(number), labels]
    sums = np.bincount(labels, own, minlength=num_classes)
    sizes = np.bincount(labels, minlength=num_classes)
    # A class without images has no threshold that anything could reach.
    thresholds = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    above = np.where(probabilities >= thresholds, probabilities, -1.0)
    # With its own label above its threshold and more probable, an image is where it belongs.
    best = above.argmax(axis=1)
    margins = above[np.arange(number), best] - own
    suspect = np.flatnonzero((best != labels) & (margins > 0))
    order = suspect[np.argsort(-margins[suspect], kind="stable")]
    return [(int(index), int(best[index]), float(margins[index])) for index in order]


def check_labels(data: CheckedData, scores: LabelScores) -> Iterator[Finding]:
    """Find labels that the other images contradict."""
    label_of = {sample.path: (split, sample) for split, sample in data}
    labels = np.array([label_of[path][1].label for path in scores.paths], np.int64)
    examples = []
    for index, other, margin in suspect_labels(scores.probabilities, labels):
        share = scores.probabilities[index, other]
        about = f"{data.images.classes[other]!r} is more probable ({100 * share:.0f}%, {100 * margin:.0f} points more)"
        examples.append(Example(about, (data.place(*label_of[scores.paths[index]]),)))
    if examples:
        rule = f"confident learning on cross-validated predictions from features of {scores.source}"
        yield Finding.of("label-suspect", examples, rule=rule)
