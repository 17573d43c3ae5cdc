"""Check the statistics against closed forms and SciPy, and on simulated models whose true difference is known."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from carnet.metrics import paired_difference, wilson_interval
from carnet.significance import (
    Correct,
    Difference,
    Part,
    SeedsPart,
    _half_width,
    _two_sided,
    accuracy_over_seeds,
    difference_of_single_runs,
    difference_over_seeds,
    holm,
    mcnemar,
    student_quantile,
    student_tail,
    sufficient_numbers,
)


@pytest.mark.parametrize("t", [0.1, 0.7, 1.0, 2.5, 12.0])
def test_student_against_closed_forms(t: float) -> None:
    assert student_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, abs=1e-12)
    assert student_tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), abs=1e-12)
    assert student_tail(t, 1e7) == pytest.approx(0.5 * math.erfc(t / math.sqrt(2)), abs=1e-6)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (200, 1.9719)])
def test_quantiles_against_the_usual_table(freedom: float, quantile: float) -> None:
    assert student_quantile(0.025, freedom) == pytest.approx(quantile, abs=1e-4)
    for tail in (0.5, 0.4, 0.1, 0.0001, 1e-9):
        assert student_tail(student_quantile(tail, freedom), freedom) == pytest.approx(tail, rel=1e-6)


FREEDOMS = st.floats(1, 1e6) | st.integers(1, 10**9 - 1)


@settings(deadline=None)
@given(freedom=FREEDOMS, t=st.floats(0, 40))
def test_student_tails_against_scipy(freedom: float, t: float) -> None:
    expected = stats.t.sf(t, freedom)
    assert student_tail(t, freedom) == pytest.approx(expected, rel=1e-9 if freedom < 1e6 else 1e-7, abs=1e-300)


@settings(deadline=None)
@given(freedom=FREEDOMS, tail=st.floats(1e-9, 0.5))
def test_student_quantiles_against_scipy(freedom: float, tail: float) -> None:
    assert student_quantile(tail, freedom) == pytest.approx(stats.t.isf(tail, freedom), rel=1e-7, abs=1e-9)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 5000), unlike=st.floats(0, 1))
def test_mcnemar_against_scipy(seed: int, images: int, unlike: float) -> None:
    rng = np.random.default_rng(seed)
    one = rng.random(images) < 0.8
    other = one ^ (rng.random(images) < unlike)
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9, abs=1e-300)


VARIANCES = st.floats(1e-9, 1)
PARTS = st.lists(st.tuples(VARIANCES, st.integers(1, 20) | st.integers(300, 10**6)), min_size=1, max_size=2)


def width_by_scipy(tail: float, parts: list[Part]) -> float:
    return math.sqrt(sum(variance * stats.t.isf(tail, freedom) ** 2 for variance, freedom in parts))


@settings(max_examples=50)
@given(parts=PARTS, tail=st.floats(0.0001, 0.49))
def test_widths_of_intervals_against_scipy(parts: list[Part], tail: float) -> None:
    assert _half_width(tail, *parts) == pytest.approx(width_by_scipy(tail, parts), rel=1e-7)


@settings(max_examples=50)
@given(parts=PARTS, tail=st.floats(1e-6, 0.49))
def test_p_values_against_scipy(parts: list[Part], tail: float) -> None:
    distance = width_by_scipy(tail, parts)
    found = _two_sided(distance, *parts)
    if len(parts) == 1:
        (variance, freedom) = parts[0]
        assert found == pytest.approx(2 * stats.t.sf(distance / math.sqrt(variance), freedom), rel=1e-4)
    assert found == pytest.approx(2 * tail, rel=1e-4)


def test_with_very_many_images_it_is_welchs_t_test() -> None:
    """Among 200,000 images the variance due to images is negligible."""
    shares = (0.61, 0.66, 0.64), (0.54, 0.60, 0.45, 0.57)
    one, other = (np.array([np.arange(200_000) < 200_000 * share for share in runs]) for runs in shares)
    expected = stats.ttest_ind(*shares, equal_var=False)
    found = difference_over_seeds(one, other)
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.02)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.002)


@pytest.mark.parametrize("mean", [0.01, 0.02, 0.05])
def test_sufficient_numbers_against_trying_all(mean: float) -> None:
    images, seeds = sufficient_numbers(Difference(mean, -0.1, 0.1, 0.3, 2e-4, SeedsPart(4e-5, 4, 6e-5)), 500, 3)

    def shown(*parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        power = sum(
            variance * (stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)) ** 2 for variance, freedom in parts
        )
        return mean**2 > power

    more_images, more_seeds = np.arange(501, 20_000), np.arange(4, 1000)
    of_seeds, of_images = (np.array(4e-5), np.array(4)), (np.array(2e-4), np.array(499))
    by_images = shown((2e-4 * 500 / more_images, more_images - 1), of_seeds)
    by_seeds = shown(of_images, (6e-5 / more_seeds, 2 * (more_seeds - 1)))
    assert images == next(iter(more_images[by_images].tolist()), None)
    assert seeds == next(iter(more_seeds[by_seeds].tolist()), None)


def test_mcnemar_against_counting_all_outcomes() -> None:
    one = np.array([1, 1, 1, 1, 1, 0, 1, 0, 1], bool)
    other = np.array([0, 0, 0, 0, 0, 1, 1, 0, 1], bool)
    # The runs differ on six images, five to one; count how many outcomes of six coins are at least as unequal.
    extreme = sum(abs(sum(coins) - 3) >= 2 for coins in itertools.product((0, 1), repeat=6))
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(extreme / 64)
    assert mcnemar(one, one) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_bonferroni_for_every_subset(p_values: list[float]) -> None:
    """Holm's theorem: a difference is significant if Bonferroni finds one in every subset that contains it."""
    places = range(len(p_values))
    subsets = [chosen for size in places for chosen in itertools.combinations(places, size + 1)]
    expected = [
        max(min(1.0, len(chosen) * min(p_values[k] for k in chosen)) for chosen in subsets if place in chosen)
        for place in places
    ]
    assert holm(p_values) == pytest.approx(expected)


def simulate(rng: np.random.Generator, seeds: int, images: int, gap: float, spread: float) -> tuple[np.ndarray, ...]:
    """Simulate runs of two models: images differ in difficulty, runs in luck, and errors are correlated."""
    difficulty = rng.normal(1.6, 1.5, images)
    runs = []
    for shift in (gap, 0.0):
        luck = rng.normal(0, spread, (seeds, 1))
        own = rng.normal(0, 0.7, images)
        runs.append(difficulty + own + shift + luck + rng.logistic(0, 0.7, (seeds, images)) > 0)
    return tuple(runs)


@functools.cache
def true_difference(gap: float, spread: float) -> float:
    one, other = simulate(np.random.default_rng(99), 400, 20_000, gap, spread)
    return float(one.mean() - other.mean())


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_intervals_cover_the_difference(seeds: int, spread: float) -> None:
    rng, number, gap = np.random.default_rng(seeds), 1000, 0.25
    truth = true_difference(gap, spread)
    found = [difference_over_seeds(*simulate(rng, seeds, 300, gap, spread)) for _ in range(number)]
    held = sum(one.low <= truth <= one.high for one in found) / number
    # Three standard errors of the simulation below 95 %.
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / number)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_one_run_of_one_model(seeds: int) -> None:
    """Its variance over seeds is taken from the other model; false alarms stay at their level."""
    rng, number = np.random.default_rng(20 + seeds), 1000
    alarms = 0
    for _ in range(number):
        one, other = simulate(rng, seeds, 300, 0.0, 0.15)
        alarms += difference_over_seeds(one, other[:1]).p_value < 0.05
    assert alarms / number <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / number)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_equal_models_raise_false_alarms_at_the_level(seeds: int) -> None:
    rng, number = np.random.default_rng(seeds), 1000
    alarms = 0
    for _ in range(number):
        one, other = simulate(rng, seeds, 300, 0.0, 0.0 if seeds == 1 else 0.1)
        alarms += (mcnemar(one[0], other[0]) if seeds == 1 else difference_over_seeds(one, other).p_value) < 0.05
    assert alarms / number <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / number)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (1, 3), (2, 2), (3, 3), (2, 5)])
@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_many_images_and_few_seeds_raise_false_alarms_at_the_level(one: int, other: int, spread: float) -> None:
    """One number for all degrees of freedom raised twice as many where seeds vary more than images."""
    rng, number = np.random.default_rng(40 + 10 * one + other), 1000
    alarms = 0
    for _ in range(number):
        first, second = simulate(rng, max(one, other), 2000, 0.0, spread)
        found = difference_over_seeds(first[:one], second[:other])
        alarms += not found.low <= 0 <= found.high
    assert alarms / number <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / number)


def test_a_difference_on_four_images_is_not_significant() -> None:
    """Two identical seeds of each model, which differ on four of fifty images."""
    one, other = np.ones((2, 50), bool), np.repeat(np.arange(50)[None] >= 4, 2, axis=0)
    found = difference_over_seeds(one, other)
    assert found.p_value > 0.05
    assert found.low < 0 < found.mean == 0.08 < found.high


@pytest.mark.parametrize("gap", [0.0, 0.1, 0.3, 0.6, 3.0])
@pytest.mark.parametrize(("one", "other"), [(3, 3), (1, 2), (5, 2)])
def test_the_p_value_and_the_interval_agree(gap: float, one: int, other: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        first, second = simulate(rng, 5, 300, gap, 0.1)
        found = difference_over_seeds(first[:one], second[:other])
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
        assert 0 < found.p_value <= 1


def test_identical_seeds_are_one_run() -> None:
    rng = np.random.default_rng(4)
    one, other = (rng.random(400) < share for share in (0.8, 0.7))
    found = difference_over_seeds(*(np.repeat(answers[None], 3, axis=0) for answers in (one, other)))
    assert (found.mean, found.low, found.high) == pytest.approx(paired_difference(one, other), rel=0.03, abs=1e-3)
    alone = accuracy_over_seeds(np.repeat(one[None], 3, axis=0))
    assert alone[1:] == pytest.approx(wilson_interval(one.sum(), 400), rel=0.03)


def test_with_very_many_images_it_is_the_t_test_of_seeds() -> None:
    """Three accuracies of each model, with a standard deviation of two points, on 100,000 images."""
    one, other = (np.array([np.arange(100_000) < 1000 * n for n in shares]) for shares in ((80, 82, 84), (70, 72, 74)))
    found = difference_over_seeds(one, other)
    assert found.high - found.low == pytest.approx(2 * 2.7764 * math.sqrt(2 * 0.02**2 / 3), rel=0.02)


def test_p_value_and_interval_of_single_runs_agree() -> None:
    """A difference on five of 51 images is too small for the exact test, but not for the usual interval."""
    other = np.arange(51) >= 5
    found = difference_of_single_runs(np.ones(51, bool), other)
    assert found.p_value == pytest.approx(2 / 2**5)
    assert (found.low, found.high > found.mean > 0) == (0, True)
    assert difference_of_single_runs(other, np.ones(51, bool)).high == 0


def test_runs_that_are_all_identical() -> None:
    same = np.ones((2, 5), bool)
    found = difference_over_seeds(same, same)
    assert (found.mean, found.p_value) == (0, 1)
    # Five correct predictions do not prove that others are correct.
    assert found.low < -0.1 < 0.1 < found.high


@pytest.mark.parametrize(("one", "other"), [((1, 5), (1, 5)), ((2, 5), (2, 4)), ((2, 1), (2, 1))])
def test_too_little_to_compare(one: tuple[int, int], other: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        difference_over_seeds(np.ones(one, bool), np.ones(other, bool))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_one_model(seeds: int) -> None:
    rng, number = np.random.default_rng(10 + seeds), 1000
    truth = float(simulate(np.random.default_rng(98), 400, 20_000, 0.0, 0.15)[0].mean())
    found = [accuracy_over_seeds(simulate(rng, seeds, 300, 0.0, 0.15)[0]) for _ in range(number)]
    held = sum(low <= truth <= high for _, low, high in found) / number
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / number)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_a_model_that_is_nearly_always_correct(seeds: int) -> None:
    """With few images and errors the normal interval would often have no width, or end above 100%."""
    rng, number = np.random.default_rng(30 + seeds), 1000

    def draw(images: int, runs: int) -> Correct:
        return rng.random(images) + rng.normal(0, 0.02, (runs, 1)) + rng.normal(0, 0.02, (runs, images)) < 0.96

    truth = float(draw(20_000, 200).mean())
    found = [accuracy_over_seeds(draw(50, seeds)) for _ in range(number)]
    assert all(0 <= low < high <= 1 for _, low, high in found)
    held = sum(low <= truth <= high for _, low, high in found) / number
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / number)


def test_intervals_at_the_ends_are_those_of_one_run() -> None:
    assert accuracy_over_seeds(np.ones((3, 40), bool)) == (1, *wilson_interval(40, 40))
    assert accuracy_over_seeds(np.zeros((3, 40), bool)) == (0, *wilson_interval(0, 40))


def test_no_number_suffices_without_a_difference() -> None:
    none = Difference(0.0, -0.1, 0.1, 1.0, 1e-4, SeedsPart(1e-4, 4, 3e-4))
    assert sufficient_numbers(none, 300, 3) == (None, None)
    # The variance due to seeds hides the difference, with any number of images.
    assert sufficient_numbers(replace(none, mean=0.01), 300, 3)[0] is None
    # More seeds alone suffice, and so do more images alone.
    images, seeds = sufficient_numbers(replace(none, mean=0.035, seeds=SeedsPart(1e-4, 40, 2e-3)), 300, 20)
    # The variance may be (0.035 / 2.85)^2 = 1.5e-4, of which the other part takes 1e-4.
    assert images == pytest.approx(300 * 1e-4 / 5e-5, rel=0.1)
    assert seeds == pytest.approx(2e-3 / 5e-5, rel=0.1)


@pytest.mark.parametrize("alarm", [0.05, 0.05 / 3])
def test_how_many_seeds_suffice(alarm: float) -> None:
    """That many simulated seeds show the difference four times out of five."""
    rng, number, gap, spread = np.random.default_rng(6), 400, 0.6, 0.3
    found = difference_over_seeds(*simulate(rng, 200, 2000, gap, spread))
    assert found.seeds is not None
    # The same difference with two seeds of each.
    two = replace(found, seeds=SeedsPart(found.seeds.of_one_each / 2, 2, found.seeds.of_one_each))
    _, seeds = sufficient_numbers(two, 2000, 2, alarm)
    assert seeds is not None
    shown = [difference_over_seeds(*simulate(rng, seeds, 2000, gap, spread)).p_value < alarm for _ in range(number)]
    assert 0.7 < np.mean(shown) < 0.95


def test_how_many_images_suffice_for_single_runs() -> None:
    """That many simulated images show the difference four times out of five."""
    rng = np.random.default_rng(5)

    def draw(number: int) -> tuple[Correct, Correct]:
        common = rng.random(number)
        return (common < 0.8) ^ (rng.random(number) < 0.1), (common < 0.75) ^ (rng.random(number) < 0.1)

    # The true difference, with the variance of fifty images.
    exact = difference_of_single_runs(*draw(200_000))
    images, _ = sufficient_numbers(replace(exact, image_variance=exact.image_variance * 200_000 / 50), 50, 1)
    assert images is not None
    shown = [mcnemar(*draw(images)) < 0.05 for _ in range(400)]
    assert 0.72 < np.mean(shown) < 0.88


def test_a_tail_where_its_fraction_is_exchanged() -> None:
    """Both halves are rounded there, and either may seem larger."""
    assert student_tail(1.6383560438182505, 17.0) == pytest.approx(0.0598608, rel=1e-5)
    for freedom in (3.0, 17.0, 200.0):
        turning = (3 * freedom / (freedom + 2)) ** 0.5
        for step in range(-40, 41):
            tail = student_tail(turning * (1 + step * 2**-52), freedom)
            assert tail == pytest.approx(float(stats.t.sf(turning, freedom)), rel=1e-9)
