"""Which of two classifiers is better, and how sure that is.

Everything works on arrays of correct answers: a row for each run (seed), a column for each image, the same images for
all. With one run of each the images decide; with several, what another seed would have given counts as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carnet import metrics

Correct = NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """Accuracy of one model less another's, as shares.

    Attributes:
        mean: as measured.
        low: of the 95 % interval.
        high: of the 95 % interval.
        p_value: how likely so large a difference, or a larger one, is where there is none.
        image_variance: part of the mean's variance that other images would show.
        seeds: part that other seeds would show; None where there was one run of each.
    """

    mean: float
    low: float
    high: float
    p_value: float
    image_variance: float
    seeds: SeedsPart | None = None


@dataclass(frozen=True)
class SeedsPart:
    """What other seeds would change in a difference.

    Attributes:
        variance: of the difference, with the runs there are.
        freedom: how much is known of it: degrees of freedom.
        of_one_each: what the variance would be with one run of each model.
    """

    variance: float
    freedom: float
    of_one_each: float


def mcnemar(correct: Correct, other: Correct) -> float:
    """Two-sided p-value for two single runs on the same images, exact: (N,), (N,)

    Of the images that only one of both names right, each is as likely either's where there is no difference.
    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.
    """
    only_one, only_other = int((correct & ~other).sum()), int((other & ~correct).sum())
    number, fewer = only_one + only_other, min(only_one, only_other)
    # Each binomial coefficient from the one before it: exact, and fast for thousands of images.
    ways, coefficient = 0, 1
    for k in range(fewer + 1):
        ways += coefficient
        coefficient = coefficient * (number - k) // (k + 1)
    return min(1.0, 2 * float(ways / 2**number))


def difference_of_single_runs(correct: Correct, other: Correct) -> Difference:
    """What two runs differ by on the same images; what other seeds would give stays unknown: (N,), (N,)

    The p-value is the exact one of `mcnemar`, the interval that of `carnet.metrics.paired_difference`.

    Raises:
        ValueError: with fewer than two images.
    """
    if len(correct) < 2:
        raise ValueError(f"a difference needs at least two images, got {len(correct)}")
    mean, low, high = metrics.paired_difference(correct, other)
    image_variance = float((correct.astype(int) - other).var(ddof=1)) / len(correct)
    return Difference(mean, low, high, mcnemar(correct, other), image_variance)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for being several: each stays below a bound only if all smaller ones do.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def difference_over_seeds(correct: Correct, other: Correct) -> Difference:
    """What two models differ by, for images and seeds alike: (seeds, N), (seeds, N)

    The variance of the mean over images, plus that over seeds. Answers that change with the seed for one image alone
    are in both; with few seeds, taking them off once makes intervals too narrow (simulated in the tests). A model with
    a single run is taken to vary with the seed as the other does. The interval is Student's, with degrees of freedom
    after Satterthwaite, "An approximate distribution of estimates of variance components", 1946.

    Raises:
        ValueError: with one run of each, fewer than two images, or unequal numbers of them.
    """
    number = correct.shape[1]
    if number != other.shape[1] or number < 2:
        raise ValueError(f"both must name the same images, at least two, got {number} and {other.shape[1]}")
    of_images = correct.mean(axis=0) - other.mean(axis=0)
    mean, image_variance = float(of_images.mean()), float(of_images.var(ddof=1)) / number
    seeds = _seeds_part(correct, other)
    variance = image_variance + seeds.variance
    if variance == 0:
        # Every image alike, which other images need not be.
        _, low, high = metrics.paired_difference(correct[0], other[0])
        return Difference(mean, low, high, float(mean == 0), 0.0, seeds)
    freedom = _freedom((image_variance, number - 1), (seeds.variance, seeds.freedom))
    half = student_quantile(0.975, freedom) * math.sqrt(variance)
    p_value = 2 * (1 - student_cdf(abs(mean) / math.sqrt(variance), freedom))
    return Difference(mean, mean - half, mean + half, p_value, image_variance, seeds)


def _seeds_part(correct: Correct, other: Correct) -> SeedsPart:
    several = [runs for runs in (correct, other) if len(runs) > 1]
    if not several:
        raise ValueError("a difference over seeds needs at least two runs of one model")
    spreads = [_variance_over_seeds(runs if len(runs) > 1 else several[0]) for runs in (correct, other)]
    parts = [spread / len(runs) for spread, runs in zip(spreads, (correct, other), strict=True)]
    if len(several) == 2:
        freedom = _freedom(*((part, len(runs) - 1) for part, runs in zip(parts, several, strict=True)))
    else:
        freedom = len(several[0]) - 1
    return SeedsPart(sum(parts), freedom, sum(spreads))


def _variance_over_seeds(runs: Correct) -> float:
    """Of the accuracies of single runs."""
    return float(runs.mean(axis=1).var(ddof=1))


def _freedom(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of variances, each with its own."""
    squares = sum(variance**2 / freedom for variance, freedom in parts)
    return sum(variance for variance, _ in parts) ** 2 / squares if squares else min(freedom for _, freedom in parts)


def student_cdf(t: float, freedom: float) -> float:
    """Share of Student's distribution below t."""
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t > 0 else tail


def student_quantile(share: float, freedom: float) -> float:
    """The t below which a share of Student's distribution lies; for shares of a half and more."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised, by its continued fraction, which converges fast below the distribution's middle.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 26.5.8.
    """
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    # From the inside out; 100 levels are more than any accuracy here needs.
    fraction = 1.0
    for m in range(100, 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        fraction = 1 + even / (1 + odd / fraction)
    fraction = 1 - (a + b) * x / (a + 1) / fraction
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * fraction)


def accuracy_over_seeds(correct: Correct) -> tuple[float, float, float]:
    """A model's accuracy and its 95 % interval, for images and seeds alike: (seeds, N); at least two of both.

    Wilson's interval, for so many images as would leave the variance that images and seeds leave together, and with
    Student's quantile. It stays within 0 and 1, and has a width where all answers are right.
    """
    number = correct.shape[1]
    mean, image_variance = float(correct.mean()), float(correct.mean(axis=0).var(ddof=1)) / number
    seed_variance = _variance_over_seeds(correct) / len(correct)
    variance = image_variance + seed_variance
    if variance == 0:
        return mean, *metrics.wilson_interval(mean * number, number)
    freedom = _freedom((image_variance, number - 1), (seed_variance, len(correct) - 1))
    images = min(mean * (1 - mean) / variance, correct.size)
    return mean, *metrics.wilson_interval(mean * images, images, student_quantile(0.975, freedom))


_MOST_IMAGES, _MOST_SEEDS = 10**9, 1000
"""More than anyone has."""


def enough(
    difference: Difference, num_images: int, num_seeds: int, alarm: float = 0.05
) -> tuple[int | None, int | None]:
    """How many images, or how many seeds, would show a difference as it was measured, four times of five.

    Args:
        difference: that does not show yet.
        num_images: it was measured on.
        num_seeds: of the model with fewer of them.
        alarm: a difference counts below this p-value.

    Returns:
        images in all, seeds of each model in all; None where no number of them alone would.
    """
    seeds = difference.seeds

    def shown(*parts: tuple[float, float]) -> bool:
        freedom = _freedom(*parts)
        wanted = student_quantile(1 - alarm / 2, freedom) + student_quantile(0.8, freedom)
        return abs(difference.mean) > wanted * math.sqrt(sum(variance for variance, _ in parts))

    def by_images(number: int) -> bool:
        part = difference.image_variance * num_images / number, number - 1
        return shown(part) if seeds is None else shown(part, (seeds.variance, seeds.freedom))

    def by_seeds(number: int) -> bool:
        assert seeds is not None
        return shown((difference.image_variance, num_images - 1), (seeds.of_one_each / number, 2 * (number - 1)))

    images = _least(by_images, num_images + 1, _MOST_IMAGES)
    return images, None if seeds is None else _least(by_seeds, num_seeds + 1, _MOST_SEEDS)


def _least(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number that fits, where all larger ones do; None if not even the highest does."""
    if not fits(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low
