"""Statistics against closed forms, and against simulated models whose true difference is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from carnet.significance import (
    Correct,
    Difference,
    accuracy_over_seeds,
    difference_of_single_runs,
    difference_over_seeds,
    enough,
    holm,
    mcnemar,
    student_cdf,
    student_quantile,
)


@pytest.mark.parametrize("t", [0.1, 0.7, 1.0, 2.5, 12.0])
def test_student_against_closed_forms(t: float) -> None:
    assert student_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-12)
    assert student_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-12)
    assert student_cdf(-t, 2) == pytest.approx(1 - student_cdf(t, 2), abs=1e-12)
    normal = 0.5 * (1 + math.erf(t / math.sqrt(2)))
    assert student_cdf(t, 1e7) == pytest.approx(normal, abs=1e-6)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (200, 1.9719)])
def test_quantiles_against_the_usual_table(freedom: float, quantile: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)


def test_mcnemar_against_counting_all_outcomes() -> None:
    one = np.array([1, 1, 1, 1, 1, 0, 1, 0, 1], bool)
    other = np.array([0, 0, 0, 0, 0, 1, 1, 0, 1], bool)
    # Six images decide, of which one had five: as many outcomes of six coins are at least as lopsided.
    extreme = sum(abs(sum(coins) - 3) >= 2 for coins in itertools.product((0, 1), repeat=6))
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(extreme / 64)
    assert mcnemar(one, one) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def simulate(rng: np.random.Generator, seeds: int, images: int, gap: float, spread: float) -> tuple[np.ndarray, ...]:
    """Runs of two models: images differ in difficulty, runs in luck, and answers for the same image go together."""
    difficulty = rng.normal(1.6, 1.5, images)
    runs = []
    for shift in (gap, 0.0):
        luck = rng.normal(0, spread, (seeds, 1))
        own = rng.normal(0, 0.7, images)
        runs.append(difficulty + own + shift + luck + rng.logistic(0, 0.7, (seeds, images)) > 0)
    return tuple(runs)


def true_difference(gap: float, spread: float) -> float:
    one, other = simulate(np.random.default_rng(99), 400, 20_000, gap, spread)
    return float(one.mean() - other.mean())


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_intervals_hold_what_they_promise(seeds: int, spread: float) -> None:
    rng, number, gap = np.random.default_rng(seeds), 1000, 0.25
    truth = true_difference(gap, spread)
    found = [difference_over_seeds(*simulate(rng, seeds, 300, gap, spread)) for _ in range(number)]
    held = sum(one.low <= truth <= one.high for one in found) / number
    # Three standard errors of the simulation below 95 %.
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / number)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_equal_models_raise_no_more_alarms_than_promised(seeds: int) -> None:
    rng, number = np.random.default_rng(seeds), 1000
    alarms = 0
    for _ in range(number):
        one, other = simulate(rng, seeds, 300, 0.0, 0.0 if seeds == 1 else 0.1)
        alarms += (mcnemar(one[0], other[0]) if seeds == 1 else difference_over_seeds(one, other).p_value) < 0.05
    assert alarms / number <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / number)


def test_the_p_value_and_the_interval_agree() -> None:
    rng = np.random.default_rng(1)
    for gap in (0.0, 0.1, 0.3, 0.6):
        found = difference_over_seeds(*simulate(rng, 3, 300, gap, 0.1))
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)


def test_runs_that_are_all_alike() -> None:
    same = np.ones((2, 5), bool)
    found = difference_over_seeds(same, same)
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(("one", "other"), [((1, 5), (2, 5)), ((2, 5), (2, 4)), ((2, 1), (2, 1))])
def test_too_little_to_compare(one: tuple[int, int], other: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"at least two"):
        difference_over_seeds(np.ones(one, bool), np.ones(other, bool))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_one_model(seeds: int) -> None:
    rng, number = np.random.default_rng(10 + seeds), 1000
    truth = float(simulate(np.random.default_rng(98), 400, 20_000, 0.0, 0.15)[0].mean())
    found = [accuracy_over_seeds(simulate(rng, seeds, 300, 0.0, 0.15)[0]) for _ in range(number)]
    held = sum(low <= truth <= high for _, low, high in found) / number
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / number)
    assert accuracy_over_seeds(np.ones((2, 5), bool)) == (1, 1, 1)


def test_how_much_would_be_enough() -> None:
    difference = Difference(0.02, -0.01, 0.05, 0.3, image_variance=1e-4, seed_variance=2e-5)
    images, seeds = enough(difference, num_images=300, num_seeds=3)
    # (0.02 / 2.8)^2 = 5.1e-5, of which seeds take 2e-5; images alone have more than all of it.
    assert images == math.ceil(300 * 1e-4 / ((0.02 / 2.8) ** 2 - 2e-5))
    assert seeds is None
    assert enough(Difference(0.0, -0.1, 0.1, 1.0, 1e-4, 1e-4), 300, 3) == (None, None)


def test_how_many_images_would_be_enough_for_single_runs() -> None:
    """So many images, drawn alike, do show the difference four times of five."""
    rng = np.random.default_rng(5)

    def draw(number: int) -> tuple[Correct, Correct]:
        common = rng.random(number)
        return (common < 0.8) ^ (rng.random(number) < 0.1), (common < 0.75) ^ (rng.random(number) < 0.1)

    difference = difference_of_single_runs(*draw(200_000))
    images, _ = enough(difference, 200_000, 1)
    assert images is not None
    shown = [mcnemar(*draw(images)) < 0.05 for _ in range(400)]
    assert 0.72 < np.mean(shown) < 0.88
