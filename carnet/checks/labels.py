"""Check of labels: which ones do the other images contradict?

A label is suspect if the image's probability of another class is many times that of its own, by predictions of models
that were fitted without the image. Suspects are ranked as in confident learning (Northcutt, Jiang and Chuang,
"Confident learning: Estimating uncertainty in dataset labels", 2021): both probabilities count relative to what images
with these labels get on average, because some classes are harder than others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carnet.checks.data import CheckedData
from carnet.checks.findings import Example, Finding

LEAST_ODDS = 40
"""How many times as probable as its own another class must be. With 5% of the labels of the sports photos exchanged, 82
to 88% of the suspects were wrong, and 98% of the wrong ones suspect (`benchmarks/wrong_labels.py`)."""
LEAST_SUPPORT = 4
"""Different photos of a class that a model must have been fitted to; of fewer, it can say nothing about the class."""
_MANY = 1000


@dataclass(frozen=True)
class LabelScores:
    """Out-of-sample probabilities.

    Attributes:
        paths: N images.
        probabilities: (N, classes of the data), each image's by a model that was fitted without it and its copies.
        support: (N,) how many different photos with the image's label that model was fitted to.
        source: what the features are from.
    """

    paths: Sequence[Path]
    probabilities: NDArray[np.floating]
    support: NDArray[np.int64]
    source: str


def suspect_labels(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> list[tuple[int, int, float]]:
    """Return the suspect labels, the most suspect first: index, the class that is more probable, and how many times.

    Args:
        probabilities: (N, K), out of sample.
        labels: (N,)
    """
    number, num_classes = probabilities.shape
    images = np.arange(number)
    own = np.maximum(probabilities[images, labels], 1e-12)
    others = probabilities.copy()
    others[images, labels] = -1
    best = others.argmax(axis=1)
    odds = others[images, best] / own
    # What images with a label get on average; a class without images is never proposed.
    averages = np.bincount(labels, own, minlength=num_classes) / np.maximum(
        np.bincount(labels, minlength=num_classes), 1
    )
    relative = odds * averages[labels] / np.maximum(averages[best], 1e-12)
    suspect = np.flatnonzero((odds > LEAST_ODDS) & (averages[best] > 0))
    order = suspect[np.argsort(-relative[suspect], kind="stable")]
    return [(int(index), int(best[index]), float(odds[index])) for index in order]


def check_labels(data: CheckedData, scores: LabelScores) -> Iterator[Finding]:
    """Find labels that the other images contradict."""
    label_of = {sample.path: (split, sample) for split, sample in data}
    labels = np.array([label_of[path][1].label for path in scores.paths], np.int64)
    examples = []
    for index, other, odds in suspect_labels(scores.probabilities, labels):
        if scores.support[index] < LEAST_SUPPORT:
            continue
        share = scores.probabilities[index, other]
        times = f"{odds:,.0f} times as probable" if odds < _MANY else f"more than {_MANY:,} times as probable"
        about = f"{data.images.classes[other]!r} is {times} ({100 * share:.0f}%)"
        place = data.place(*label_of[scores.paths[index]])
        examples.append(Example(about, (place,), data.images.classes[other]))
    if examples:
        rule = f"by heads that were fitted without the image, on features of {scores.source}"
        yield Finding.of("label-suspect", examples, rule=rule)
