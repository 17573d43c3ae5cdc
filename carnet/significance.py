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
Part = tuple[float, float]
"""Of what makes a mean vary: a variance, and how much is known of it, in degrees of freedom."""


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

    The p-value is the exact one of `mcnemar`, the interval that of `carnet.metrics.paired_difference`, which is less
    strict with few images: where the test finds no difference, it is made to hold none as well.

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
    are in both; with few seeds, taking them off once makes intervals too narrow (simulated in the tests). As in
    `carnet.metrics.paired_difference`, half an image is added to each outcome of two answers. A model with a single run
    is taken to vary with the seed as the other does.

    Each part has as many degrees of freedom of its own as it has; see `_half_width`. One number for both, after
    Satterthwaite, raised false alarms with two or three seeds and thousands of images (simulated too).

    Raises:
        ValueError: with one run of each, fewer than two images, or unequal numbers of them.
    """
    number = correct.shape[1]
    if number != other.shape[1] or number < 2:
        raise ValueError(f"both must name the same images, at least two, got {number} and {other.shape[1]}")
    of_images = correct.mean(axis=0) - other.mean(axis=0)
    total, squares = float(of_images.sum()), float((of_images**2).sum())
    middle = total / (number + 2)
    image_variance = (squares + 1 - total * middle) / (number + 2) ** 2
    seeds = _seeds_part(correct, other)
    parts = ((image_variance, number - 1), (seeds.variance, seeds.freedom))
    half = _half_width(0.975, *parts)
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Difference(total / number, low, high, _two_sided(abs(middle), *parts), image_variance, seeds)


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


def _freedom(*parts: Part) -> float:
    """Degrees of freedom of a sum of variances, each with its own.

    Source: Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
    """
    squares = sum(variance**2 / freedom for variance, freedom in parts)
    return sum(variance for variance, _ in parts) ** 2 / squares if squares else min(freedom for _, freedom in parts)


def _half_width(share: float, *parts: Part) -> float:
    """What lies between a mean and the end of its interval, where several things of their own make it vary.

    Source: Howe, "Approximate confidence limits on the mean of X + Y where X and Y are two tabled independent random
    variables", 1974.

    Args:
        share: of outcomes below the upper end, a half or more; 0.975 for an interval of 95 %.
        parts: variance and degrees of freedom of each.
    """
    return math.sqrt(sum(variance * student_quantile(share, freedom) ** 2 for variance, freedom in parts if variance))


def _two_sided(distance: float, *parts: Part) -> float:
    """The p-value at which an interval of `_half_width` just reaches a mean that lies so far away."""
    parts = tuple(part for part in parts if part[0])
    if distance == 0:
        return 1.0
    variance, freedom = min(parts, key=lambda part: part[1])
    # In terms of the distribution with the largest quantiles, whose own part is not all of the width.
    nearest, farthest = distance / math.sqrt(sum(one for one, _ in parts)), distance / math.sqrt(variance)

    def tail(t: float) -> float:
        return max(student_tail(t, freedom), _SMALLEST_TAIL)

    def reaches(t: float) -> float:
        others = (one * _quantile_above(tail(t), own) ** 2 for one, own in parts if own != freedom)
        return math.sqrt(sum(one for one, own in parts if own == freedom) * t**2 + sum(others)) - distance

    return 2 * tail(_root(reaches, nearest, farthest, precision=1e-6))


_SMALLEST_TAIL = 1e-30
"""Below it p-values say nothing more."""


def student_tail(t: float, freedom: float) -> float:
    """Share of Student's distribution above t, of 0 or more."""
    whole = freedom + t * t
    return 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / whole, t * t / whole)


def student_quantile(share: float, freedom: float) -> float:
    """The t below which a share of Student's distribution lies; for shares of a half and more."""
    return _quantile_above(1 - share, freedom)


def _quantile_above(tail: float, freedom: float) -> float:
    """The t above which a share of Student's distribution lies, of a half or less."""
    if tail >= 0.5:
        return 0.0
    high = 1.0
    while student_tail(high, freedom) > tail:
        high *= 2

    def beyond(t: float) -> float:
        return math.log(tail / student_tail(t, freedom))

    return _root(beyond, 0.0 if high == 1 else high / 2, high)


def _root(function: Callable[[float], float], low: float, high: float, *, precision: float = 1e-12) -> float:
    """Where an increasing function is zero, by the Illinois method; between its arguments, or at the end next to it."""
    below, above, side = function(low), function(high), 0
    if below >= 0 or above <= 0:
        return low if below >= 0 else high
    while high - low > precision * high:
        middle = (low * above - high * below) / (above - below)
        value = function(middle)
        if value == 0 or not low < middle < high:
            return middle
        if value < 0:
            # The end that stays twice counts half, so that it does not stay for good.
            low, below, above, side = middle, value, above / 2 if side < 0 else above, -1
        else:
            high, above, below, side = middle, value, below / 2 if side > 0 else below, 1
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Regularised, by its continued fraction, which converges fast below the distribution's middle.

    Sources: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 26.5.8; evaluated from the front, after
    Lentz, "Generating Bessel functions in Mie scattering calculations using continued fractions", 1976.

    Args:
        a: above 0; one of a and b is a half.
        b: above 0.
        x: from 0 to 1.
        rest: 1 - x, which x itself cannot tell to the last digit where it is close to 1.
    """
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    # Of x / rest, so that the exchanged one, however x and rest are rounded, does not come back here.
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
    log_x, log_rest = (math.log(one) if one < 0.5 else math.log1p(-other) for one, other in ((x, rest), (rest, x)))
    return math.exp(_log_gamma_step(max(a, b)) - math.lgamma(0.5) + a * log_x + b * log_rest) * fraction / a


def _log_gamma_step(a: float) -> float:
    """Logarithm of gamma(a + 1/2) / gamma(a); of large numbers by a series, as the difference would lose its digits."""
    if a < 1000:
        return math.lgamma(a + 0.5) - math.lgamma(a)
    return 0.5 * math.log(a) - 1 / (8 * a) + 1 / (192 * a**3)


def accuracy_over_seeds(correct: Correct) -> tuple[float, float, float]:
    """A model's accuracy and its 95 % interval, for images and seeds alike: (seeds, N); at least two of both.

    Wilson's interval, for so many images as would leave the variance that images and seeds leave together, and as wide
    as `_half_width` has it. It stays within 0 and 1, and has a width where all answers are right.
    """
    number = correct.shape[1]
    mean, image_variance = float(correct.mean()), float(correct.mean(axis=0).var(ddof=1)) / number
    seed_variance = _variance_over_seeds(correct) / len(correct)
    variance = image_variance + seed_variance
    if variance == 0:
        return mean, *metrics.wilson_interval(mean * number, number)
    half = _half_width(0.975, (image_variance, number - 1), (seed_variance, len(correct) - 1))
    images = min(mean * (1 - mean) / variance, correct.size)
    return mean, *metrics.wilson_interval(mean * images, images, half / math.sqrt(variance))


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

    def shown(*parts: Part) -> bool:
        # Far enough for the interval, and for what the next runs may fall short of.
        wanted = sum(
            variance * (student_quantile(1 - alarm / 2, freedom) + student_quantile(0.8, freedom)) ** 2
            for variance, freedom in parts
        )
        return abs(difference.mean) > math.sqrt(wanted)

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
