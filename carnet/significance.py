"""Test which of two classifiers is better.

Everything works on arrays of correct predictions: a row for each run (seed), a column for each image, the same images
for all. With one run of each model only the images vary; with several, the seeds count as well.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carnet import metrics

Correct = NDArray[np.bool_]
Part = tuple[float, float]
"""A part of a mean's variance, and its degrees of freedom."""
_SMALLEST_TAIL = 1e-30
"""Smallest tail for which p-values are computed."""
_MAX_IMAGES, _MAX_SEEDS = 10**9, 1000


@dataclass(frozen=True)
class SeedsPart:
    """The part of a difference's variance that is due to seeds.

    Attributes:
        variance: with the runs there are.
        freedom: degrees of freedom.
        of_one_each: variance with one run of each model.
    """

    variance: float
    freedom: float
    of_one_each: float


@dataclass(frozen=True)
class Difference:
    """Accuracy of one model minus another's, as shares.

    Attributes:
        mean: measured difference.
        low: lower end of the 95% interval.
        high: upper end of the 95% interval.
        p_value: probability of a difference at least as large if there is none.
        image_variance: part of the mean's variance that is due to images.
        seeds: part that is due to seeds; None for one run of each model.
    """

    mean: float
    low: float
    high: float
    p_value: float
    image_variance: float
    seeds: SeedsPart | None = None


def mcnemar(correct: Correct, other: Correct) -> float:
    """Return the exact two-sided p-value for two single runs on the same images: (N,), (N,).

    If there is no difference, each image that only one run predicts correctly is equally likely to be either run's.
    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.
    """
    only_one, only_other = int((correct & ~other).sum()), int((other & ~correct).sum())
    number, fewer = only_one + only_other, min(only_one, only_other)
    # Compute each binomial coefficient from the one before it: exact, and fast for thousands of images.
    ways, coefficient = 0, 1
    for k in range(fewer + 1):
        ways += coefficient
        coefficient = coefficient * (number - k) // (k + 1)
    return min(1.0, 2 * float(ways / 2**number))


def difference_of_single_runs(correct: Correct, other: Correct) -> Difference:
    """Compare two runs on the same images; the effect of other seeds stays unknown: (N,), (N,).

    The p-value is the exact one of `mcnemar`, the interval that of `carnet.metrics.paired_difference`, which is less
    strict for few images: where the test finds no difference, the interval is extended to 0.

    Raises:
        ValueError: with fewer than two images.
    """
    if len(correct) < 2:
        raise ValueError(f"a difference needs at least two images, got {len(correct)}")
    mean, low, high = metrics.paired_difference(correct, other)
    p_value = mcnemar(correct, other)
    if p_value >= 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    image_variance = float((correct.astype(int) - other).var(ddof=1)) / len(correct)
    return Difference(mean, low, high, p_value, image_variance)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several comparisons: each stays below a level only if all smaller ones do.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def difference_over_seeds(correct: Correct, other: Correct) -> Difference:
    """Compare two models, counting images and seeds alike: (seeds, N), (seeds, N).

    The variance is that of the mean over images plus that over seeds. Predictions that change with the seed for a
    single image are in both; with few seeds, subtracting them once makes intervals too narrow (simulated in the tests).
    As in `carnet.metrics.paired_difference`, half an image is added to each of the four outcomes. A model with a single
    run is assumed to vary with the seed as the other one does.

    Each part keeps its own degrees of freedom, see `_half_width`. One number for both, after Satterthwaite, raised
    false alarms with two or three seeds and thousands of images (simulated too).

    Raises:
        ValueError: with one run of each, fewer than two images, or unequal numbers of them.
    """
    number = correct.shape[1]
    if number != other.shape[1] or number < 2:
        raise ValueError(f"both must have the same images, at least two, got {number} and {other.shape[1]}")
    of_images = correct.mean(axis=0) - other.mean(axis=0)
    total, squares = float(of_images.sum()), float((of_images**2).sum())
    middle = total / (number + 2)
    image_variance = (squares + 1 - total * middle) / (number + 2) ** 2
    seeds = _seeds_part(correct, other)
    parts = ((image_variance, number - 1), (seeds.variance, seeds.freedom))
    half = _half_width(0.025, *parts)
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Difference(total / number, low, high, _two_sided(abs(middle), *parts), image_variance, seeds)


def _seeds_part(correct: Correct, other: Correct) -> SeedsPart:
    several = [runs for runs in (correct, other) if len(runs) > 1]
    if not several:
        raise ValueError("a difference over seeds needs at least two runs of one model")
    spreads = [_variance_over_seeds(runs if len(runs) > 1 else several[0]) for runs in (correct, other)]
    parts = [spread / len(runs) for spread, runs in zip(spreads, (correct, other), strict=True)]
    freedom: float = min(len(runs) - 1 for runs in several)
    if len(several) == 2 and any(parts):
        # Source: Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
        freedom = sum(parts) ** 2 / sum(part**2 / (len(runs) - 1) for part, runs in zip(parts, several, strict=True))
    return SeedsPart(sum(parts), freedom, sum(spreads))


def _variance_over_seeds(runs: Correct) -> float:
    return float(runs.mean(axis=1).var(ddof=1))


def accuracy_over_seeds(correct: Correct) -> tuple[float, float, float]:
    """Return a model's accuracy and its 95% interval, counting images and seeds: (seeds, N), at least two of both.

    This is Wilson's interval for the number of images that would leave the variance of images and seeds together,
    widened as by `_half_width`. It stays within 0 and 1, and has a width even if all predictions are correct.
    """
    number = correct.shape[1]
    mean, image_variance = float(correct.mean()), float(correct.mean(axis=0).var(ddof=1)) / number
    seed_variance = _variance_over_seeds(correct) / len(correct)
    variance = image_variance + seed_variance
    if variance == 0:
        return mean, *metrics.wilson_interval(mean * number, number)
    half = _half_width(0.025, (image_variance, number - 1), (seed_variance, len(correct) - 1))
    images = min(mean * (1 - mean) / variance, correct.size)
    return mean, *metrics.wilson_interval(mean * images, images, half / math.sqrt(variance))


def sufficient_numbers(
    difference: Difference, num_images: int, num_seeds: int, level: float = 0.05
) -> tuple[int | None, int | None]:
    """Estimate how many images, or how many seeds, would show a difference four times out of five.

    Args:
        difference: a difference that is not significant yet.
        num_images: number of images it was measured on.
        num_seeds: number of runs of the model with fewer runs.
        level: significance level.

    Returns:
        images in all, seeds of each model in all; None where no number of them alone suffices.
    """
    seeds = difference.seeds

    def is_shown(*parts: Part) -> bool:
        # Beyond the interval, and beyond the amount by which the next runs may fall short.
        required = sum(
            variance * (student_quantile(level / 2, freedom) + student_quantile(0.2, freedom)) ** 2
            for variance, freedom in parts
        )
        return abs(difference.mean) > math.sqrt(required)

    def by_images(number: int) -> bool:
        part = difference.image_variance * num_images / number, number - 1
        return is_shown(part) if seeds is None else is_shown(part, (seeds.variance, seeds.freedom))

    def by_seeds(number: int) -> bool:
        assert seeds is not None
        return is_shown((difference.image_variance, num_images - 1), (seeds.of_one_each / number, 2 * (number - 1)))

    images = num_images + 1 + bisect_left(range(num_images + 1, _MAX_IMAGES), True, key=by_images)
    if seeds is None:
        return images if images < _MAX_IMAGES else None, None
    runs = num_seeds + 1 + bisect_left(range(num_seeds + 1, _MAX_SEEDS), True, key=by_seeds)
    return images if images < _MAX_IMAGES else None, runs if runs < _MAX_SEEDS else None


def _half_width(tail: float, *parts: Part) -> float:
    """Return half the width of an interval for a mean whose variance has several independent parts.

    A share `tail` of outcomes lies above the interval: 0.025 for 95%. Source: Howe, "Approximate confidence limits on
    the mean of X + Y where X and Y are two tabled independent random variables", 1974.
    """
    return math.sqrt(sum(variance * student_quantile(tail, freedom) ** 2 for variance, freedom in parts if variance))


def _two_sided(distance: float, *parts: Part) -> float:
    """Return the p-value at which an interval of `_half_width` just reaches a mean at this distance."""
    # It lies between those for the smallest and the largest degrees of freedom.
    t = distance / math.sqrt(sum(variance for variance, _ in parts))
    tails = [max(student_tail(t, freedom), _SMALLEST_TAIL) for _, freedom in parts]
    if max(tails) >= 0.5:
        return 1.0

    def excess(log_tail: float) -> float:
        return math.log(_half_width(math.exp(-log_tail), *parts) / distance)

    return 2 * math.exp(-_root(excess, -math.log(max(tails)), -math.log(min(tails)), precision=1e-7))


def student_tail(t: float, freedom: float) -> float:
    """Return the share of Student's distribution above t >= 0."""
    whole = freedom + t * t
    return 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / whole, t * t / whole)


def student_quantile(tail: float, freedom: float) -> float:
    """Return the t above which a share of Student's distribution lies, of a half or less."""
    if tail >= 0.5:
        return 0.0
    high = 1.0
    while student_tail(high, freedom) > tail:
        high *= 2
    low = 0.0 if high == 1 else high / 2
    return _root(lambda t: math.log(tail / student_tail(t, freedom)), low, high)


def _root(function: Callable[[float], float], low: float, high: float, *, precision: float = 1e-12) -> float:
    """Return the zero of an increasing function by the Illinois method, or the nearer end if it lies outside."""
    below, above, side = function(low), function(high), 0
    if below >= 0 or above <= 0:
        return low if below >= 0 else high
    while high - low > precision * high:
        middle = (low * above - high * below) / (above - below)
        value = function(middle)
        if value == 0 or not low < middle < high:
            return middle
        if value < 0:
            # An end that stays twice counts half, so that it does not stay for good.
            low, below, above, side = middle, value, above / 2 if side < 0 else above, -1
        else:
            high, above, below, side = middle, value, below / 2 if side > 0 else below, 1
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Return the regularised incomplete beta function by its continued fraction; one of a and b is a half.

    `rest` is 1 - x, which x itself does not give to the last digit where it is close to 1.

    Sources: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 26.5.8; evaluated from the front, after
    Lentz, "Generating Bessel functions in Mie scattering calculations using continued fractions", 1976.
    """
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    # The fraction converges fast below the middle. Comparing multiples of x and rest, however they are rounded, keeps
    # the exchanged call from coming back here.
    if x * (b + 1) > rest * (a + 1):
        return 1 - _incomplete_beta(b, a, rest, x)
    d = 1 / (1 - (a + b) * x / (a + 1))
    c, fraction = 1.0, d
    for m in range(1, 1000):
        before = fraction
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= d * c
        if abs(fraction - before) <= 1e-15 * fraction:
            break
    n = max(a, b)
    # The logarithm of gamma(n + 1/2) / gamma(n); for large n the difference would lose its digits.
    series = 0.5 * math.log(n) - 1 / (8 * n) + 1 / (192 * n**3)
    step = series if n >= 1000 else math.lgamma(n + 0.5) - math.lgamma(n)
    log_x, log_rest = (math.log(one) if one < 0.5 else math.log1p(-other) for one, other in ((x, rest), (rest, x)))
    return math.exp(step - math.lgamma(0.5) + a * log_x + b * log_rest) * fraction / a
