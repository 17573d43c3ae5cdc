import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from carnet import metrics


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), num_images=st.integers(1, 30), num_classes=st.integers(2, 12))
def test_against_plain_loops(seed: int, num_images: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-3, 4, (num_images, num_classes)).astype(np.float32)  # whole numbers: many ties
    labels = rng.integers(0, num_classes, num_images)
    for k in (1, 3, 5):
        hits = [
            int(label) in sorted(range(num_classes), key=lambda c: -row[c])[:k] for row, label in zip(logits, labels)
        ]
        assert metrics.in_top_k(logits, labels, k).tolist() == hits
    predictions = logits.argmax(axis=1)
    assert np.array_equal(metrics.in_top_k(logits, labels, 1), predictions == labels)
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits.tolist(), labels)]
    np.testing.assert_allclose(metrics.cross_entropy(logits, labels), losses, rtol=1e-9, atol=1e-12)
    confusion = metrics.confusion_matrix(labels, predictions, num_classes)
    f1s = []
    for c in range(num_classes):
        hits_c = sum(1 for p, t in zip(predictions, labels) if p == t == c)
        either = sum(1 for p in predictions if p == c) + sum(1 for t in labels if t == c)
        assert confusion[c].sum() == (labels == c).sum()
        if either:
            f1s.append(2 * hits_c / either)
    assert metrics.macro_f1(confusion) == pytest.approx(sum(f1s) / len(f1s))
    np.testing.assert_allclose(metrics.softmax(logits).sum(axis=1), 1)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, -1e4]], dtype=np.float32)
    assert metrics.cross_entropy(logits, np.array([1]))[0] == pytest.approx(2e4)
    assert metrics.softmax(logits).tolist() == [[1, 0]]


def test_wilson_interval_known_values() -> None:
    """Published worked example: 81 of 263 gives 0.2553 to 0.3662 (Newcombe, "Two-sided confidence intervals", 1998)."""
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert metrics.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


@settings(deadline=None)
@given(data=st.data(), images=st.integers(1, 10**6), level=st.sampled_from([0.5, 0.95, 0.999]))
def test_wilson_intervals_against_scipy(data: st.DataObject, images: int, level: float) -> None:
    correct = data.draw(st.integers(0, images))
    expected = stats.binomtest(correct, images).proportion_ci(level, method="wilson")
    z = stats.norm.isf((1 - level) / 2)
    assert metrics.wilson_interval(correct, images, z) == pytest.approx((expected.low, expected.high), abs=1e-12)
    if level == 0.95:
        assert metrics.wilson_interval(correct, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 300))
def test_softmax_and_cross_entropy_against_scipy(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, spread, (20, 7)), rng.integers(0, 7, 20)
    np.testing.assert_allclose(metrics.softmax(logits), special.softmax(logits, axis=1), rtol=1e-12, atol=1e-300)
    expected = -special.log_softmax(logits, axis=1)[np.arange(20), labels]
    np.testing.assert_allclose(metrics.cross_entropy(logits, labels), expected, rtol=1e-9, atol=1e-12)


def test_wilson_interval_covers_the_accuracy() -> None:
    rng = np.random.default_rng(0)
    for accuracy in (0.5, 0.8, 0.95):
        inside = [
            low <= accuracy <= high
            for low, high in (metrics.wilson_interval(int(k), 100) for k in rng.binomial(100, accuracy, 4000))
        ]
        assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.parametrize(("correct", "images"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_nonsense(correct: int, images: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} .*{images}"):
        metrics.wilson_interval(correct, images)


def test_nan_is_never_correct() -> None:
    logits = np.array([[np.nan, np.nan], [1.0, np.nan], [1.0, 0.0]], dtype=np.float32)
    assert metrics.in_top_k(logits, np.array([0, 0, 0]), 1).tolist() == [False, False, True]


def test_calibration_error_against_a_loop() -> None:
    rng = np.random.default_rng(3)
    confidence, correct = rng.random(500), rng.random(500) < 0.6
    expected = 0.0
    for k in range(15):
        inside = (confidence >= k / 15) & (confidence < (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(expected)
    gaps = stats.binned_statistic(confidence, confidence - correct, "sum", bins=15, range=(0, 1)).statistic
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(np.abs(gaps).sum() / 500)
    assert metrics.expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0
    with pytest.raises(ValueError, match="images"):
        metrics.expected_calibration_error(np.empty(0), np.empty(0, bool))


def test_the_paired_interval_covers_the_difference() -> None:
    rng = np.random.default_rng(5)
    truth, held = 0.84 - 0.80, 0
    for _ in range(600):
        one = rng.random(200) < 0.84
        # Errors are correlated: on images that one gets wrong, the other is wrong more often.
        other = np.where(one, rng.random(200) < 0.92, rng.random(200) < (0.80 - 0.84 * 0.92) / 0.16)
        difference, low, high = metrics.paired_difference(one, other)
        assert low <= difference <= high
        held += low <= truth <= high
    assert 0.93 <= held / 600 <= 0.99


def test_the_paired_interval_against_scipy() -> None:
    """The normal interval of the mean of what images gain, with half an image more for each of the four outcomes."""
    rng = np.random.default_rng(6)
    one, other = rng.random(150) < 0.9, rng.random(150) < 0.8
    gains, weights = np.append(one.astype(int) - other, [1, -1, 0]), np.append(np.ones(150), [0.5, 0.5, 1])
    mean = np.average(gains, weights=weights)
    deviation = np.sqrt(np.average((gains - mean) ** 2, weights=weights) / weights.sum())
    assert metrics.paired_difference(one, other)[1:] == pytest.approx(stats.norm.interval(0.95, mean, deviation))


def test_the_paired_interval_has_a_width_if_both_agree() -> None:
    same = np.array([True, False, True])
    difference, low, high = metrics.paired_difference(same, same)
    assert (difference, low) == (0, -high)
    assert 0 < high < 1
    with pytest.raises(ValueError, match="images"):
        metrics.paired_difference(np.empty(0, bool), np.empty(0, bool))
