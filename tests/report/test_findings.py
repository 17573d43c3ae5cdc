"""The sentences agree with the numbers, and claim nothing that the numbers do not support."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from carnet.data.samples import Sample
from carnet.evaluation import EvaluationReport
from carnet.report.findings import (
    ConfusedPair,
    binomial_cdf,
    confident_mistakes,
    displayable,
    findings,
    most_confused,
    shortened,
)


def make_report(confusion, classes=None, confidence=0.8, num_leaked=None):
    """Return a report with this confusion matrix and equal confidences; the first images are leaked."""
    confusion = np.asarray(confusion)
    num_classes = len(confusion)
    labels, predictions = (np.repeat(cells, confusion.ravel()) for cells in np.indices(confusion.shape).reshape(2, -1))
    logits = np.zeros((len(labels), num_classes), dtype=np.float32)
    logits[np.arange(len(labels)), predictions] = math.log(confidence * (num_classes - 1) / (1 - confidence))
    return EvaluationReport(
        classes=tuple(classes or (f"c{k}" for k in range(num_classes))),
        samples=tuple(Sample(Path(f"{i}.jpg"), int(label)) for i, label in enumerate(labels)),
        labels=labels.astype(np.int64),
        logits=logits,
        leaked=np.arange(len(labels)) < (num_leaked or 0),
        leaks_known=num_leaked is not None,
    )


WASTE = [[79, 12, 0], [9, 70, 1], [0, 0, 29]]
WASTE_CLASSES = ("glass", "plastic", "metal")


def test_golden_sentences():
    assert findings(make_report(WASTE, WASTE_CLASSES, confidence=0.97)) == [
        "The model classified 178 of 200 images correctly (89.0%; macro recall 91.4%). "
        "If none of them were used in training, then on new images of the same kind, its accuracy is likely between "
        "83.9% and 92.6% (95% interval).",
        "Always predicting 'glass', the most frequent class here, would be right on 91 (45.5%); "
        "the model is clearly better.",
        "No class stands out: with this few images, their differences may be chance.",
        "Most often confused: 12 of 91 'glass' were predicted as 'plastic', 9 the other way.",
        "Its mean confidence is 97.0% and its accuracy 89.0%: it is overconfident, so its probabilities are too high. "
        "Of the 200 predictions of at least 90%, 178 are correct.",
    ]


def only(sentences, *words):
    """Return the only sentence that contains all these words."""
    (found,) = [sentence for sentence in sentences if all(word in sentence for word in words)]
    return found


def test_easy_and_hard_classes_are_named_with_their_counts():
    confusion = [[99, 1, 0], [20, 80, 0], [3, 3, 4]]
    sentences = findings(make_report(confusion, ("cat", "dog", "owl"), num_leaked=0))
    assert only(sentences, "Easiest") == "Easiest is 'cat' (99 of 100 correct)."
    # So few images are only a hint.
    assert "'owl' (4 of 10 correct)" in only(sentences, "Hardest", "a class of 10", "10 points")
    # No training image is among them, which is said last.
    assert "byte for byte" in sentences[-1]


def test_five_images_are_never_a_percentage_nor_a_verdict():
    """Among 100 classes of 5 images, chance gives a few with 2 correct, so none of them is called hard."""
    right = np.full(100, 4)
    right[7] = 2
    confusion = np.diag(right)
    for k in range(100):
        confusion[k, (k + 1) % 100] += 5 - right[k]
    assert not any("ardest" in sentence for sentence in findings(make_report(confusion)))
    confusion[7, 7], confusion[7, 8] = 0, 5
    assert "'c7' (0 of 5 correct)" in only(findings(make_report(confusion)), "Hardest", "a class of 5")


def test_a_suspicion_is_called_one():
    right = np.full(40, 9)
    right[3] = 6
    confusion = np.diag(right)
    for k in range(40):
        confusion[k, (k + 1) % 40] += 10 - right[k]
    assert "'c3' (6 of 10 correct)" in only(findings(make_report(confusion)), "Perhaps hardest", "chance")


def test_many_flawless_classes_are_counted_not_listed():
    confusion = np.diag([5] * 10)
    confusion[0, 0], confusion[0, 1] = 4, 1
    assert only(findings(make_report(confusion)), "9 of 10 classes")


@pytest.mark.parametrize(
    ("confidence", "verdict"),
    [(0.80, "calibrated"), (0.84, "calibrated"), (0.95, "overconfident"), (0.60, "underconfident")],
)
def test_confidence_is_compared_with_the_interval(confidence, verdict):
    sentence = findings(make_report([[80, 20], [20, 80]], confidence=confidence))[-1]
    assert f"{100 * confidence:.1f}%" in sentence
    assert "80.0%" in sentence
    assert f"it is {verdict}" in sentence


def test_few_images_leave_the_confidence_open():
    assert "as far as 10 images can show" in findings(make_report([[4, 1], [1, 4]]))[-1]


def test_perfect_model():
    sentences = findings(make_report([[30, 0], [0, 30]], confidence=0.99))
    assert len(sentences) == 3
    assert all(number in sentences[0] for number in ("all 60", "94.0%", "100.0%"))
    assert all(words in sentences[1] for words in ("30 (50.0%)", "clearly better"))
    assert "Of the 60 predictions of at least 90%, all " in sentences[-1]


def test_all_wrong():
    sentences = findings(make_report([[0, 20], [20, 0]], confidence=0.99))
    assert "none of the 40" in sentences[0]
    assert only(sentences, "clearly worse")
    assert only(sentences, "20 of 20 'c0'", "'c1', 20 the other way")
    assert ", none " in sentences[-1]


def test_one_answer_to_everything_is_said_once():
    sentences = findings(make_report([[10, 0, 0], [10, 0, 0], [9, 0, 0]]))
    assert len(sentences) == 3
    assert all(words in sentences[1] for words in ("no better", "'c0' for every image"))


@pytest.mark.parametrize(
    ("confusion", "verdict"),
    [
        ([[88, 2], [4, 6]], "better, but with this few images that may be chance"),
        ([[85, 5], [5, 5]], "no better"),
        ([[40, 50], [5, 5]], "clearly worse"),
    ],
)
def test_verdict_against_guessing(confusion, verdict):
    sentence = findings(make_report(confusion))[1]
    assert sentence.startswith("Always predicting 'c0', the most frequent class here, ")
    assert sentence.endswith(f" 90 (90.0%); the model is {verdict}.")


def test_one_image():
    (sentence,) = findings(make_report([[1, 0], [0, 0]]))
    assert "correctly" in sentence
    wrong, leaked = findings(make_report([[0, 1], [0, 0]], num_leaked=1))
    assert "wrongly" in wrong
    assert "in the training set" in leaked


def test_classes_without_images():
    confusion = np.zeros((9, 9), dtype=int)
    confusion[0, 0], confusion[1, 1], confusion[1, 0] = 8, 6, 2
    sentences = findings(make_report(confusion))
    assert "'c2', 'c3', 'c4', 'c5' and 3 more" in only(sentences, "7 of the 9 classes")
    assert "has 8; " in sentences[1]


def test_a_split_of_one_class_shows_nothing():
    sentences = findings(make_report([[9, 1], [0, 0]]))
    assert "All of these images are 'c0'" in sentences[1]


def test_images_that_are_no_training_images_speak_for_new_ones():
    first = findings(make_report(WASTE, WASTE_CLASSES, num_leaked=0))[0]
    assert "83.9% and 92.6%" in first
    assert "If " not in first


def test_leaked_images_and_their_effect():
    # The first ten images, all right, are training images; of the other 90, 40 + 30 are right.
    sentences = findings(make_report([[50, 0], [20, 30]], num_leaked=10))
    assert all(number in sentences[0] for number in ("80 of 100", "80.0%"))
    assert "interval" not in sentences[0]
    assert all(number in sentences[1] for number in ("10 of these images", "70 of 90", "77.8%", "68.2%"))
    everything = findings(make_report([[5, 0], [0, 5]], num_leaked=10))
    assert "All of these images" in everything[1]
    assert "in the training set" in everything[1]
    assert "in the training set" not in " ".join(findings(make_report([[5, 0], [0, 5]])))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_numbers_end_the_matter(value):
    report = make_report([[5, 0], [0, 5]])
    report.logits[3, 1] = value
    (sentence,) = findings(report)
    assert "1 of 10 images" in sentence


def test_scattered_mistakes():
    confusion = np.diag([9, 9, 9, 10])
    confusion[0, 1] = confusion[1, 2] = confusion[2, 0] = 1
    assert only(findings(make_report(confusion)), "3 mistakes", "no pattern")


def test_most_confused_lists_each_pair_once_the_frequent_direction_first():
    report = make_report([[50, 2, 7], [4, 50, 0], [5, 1, 50]])
    assert most_confused(report, 10) == [
        ConfusedPair("c0", "c2", 7, 59, 5),
        ConfusedPair("c1", "c0", 4, 54, 2),
        ConfusedPair("c2", "c1", 1, 56, 0),
    ]
    assert len(most_confused(report, 2)) == 2
    assert most_confused(make_report([[5, 0], [0, 5]]), 3) == []


def test_confident_mistakes_are_wrong_and_sorted():
    report = make_report([[3, 2], [2, 3]])
    report.logits[:, :] = 0
    # Labels are 0 x 5, 1 x 5; margins towards class 1.
    report.logits[:, 1] = [3, -1, 1, 5, -2, 1, -4, 2, -1, 6]
    assert confident_mistakes(report, 10) == [3, 6, 0, 2, 8]
    assert confident_mistakes(report, 2) == [3, 6]
    assert confident_mistakes(make_report([[5, 0], [0, 5]]), 3) == []


def test_two_hundred_classes():
    confusion = np.diag([50] * 200)
    confusion[0, 1] = confusion[199, 3] = 30
    sentences = findings(make_report(confusion, num_leaked=0))
    assert only(sentences, "198 of 200 classes")
    assert "'c0' (50 of 80 correct) and 'c199' (50 of 80 correct)" in only(sentences, "Hardest are")


@pytest.mark.parametrize(("num_right", "num_images", "share"), [(0, 5, 0.8), (3, 5, 0.8), (40, 60, 0.7), (7, 7, 0.4)])
def test_binomial_tail_against_exact_sum(num_right, num_images, share):
    exact = sum(math.comb(num_images, k) * share**k * (1 - share) ** (num_images - k) for k in range(num_right + 1))
    assert binomial_cdf(num_right, num_images, share) == pytest.approx(exact, rel=1e-9)


@settings(max_examples=50)
@given(data=st.data(), num_images=st.integers(1, 10**5), share=st.floats(1e-5, 1 - 1e-5))
def test_binomial_tail_against_scipy(data, num_images, share):
    num_right = data.draw(st.integers(0, num_images))
    expected = stats.binom.cdf(num_right, num_images, share)
    assert binomial_cdf(num_right, num_images, share) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def test_names_are_made_fit_for_a_sentence():
    assert displayable("a\n\x00\x1b\ud800\uffffé日🦊") == "a\ufffd\ufffd\ufffd\ufffd\ufffdé日🦊"
    assert shortened("x" * 60) == "x" * 60
    long = shortened("species " * 20 + "alba")
    assert len(long) <= 60
    assert long.startswith("species")
    assert long.endswith("alba")
    text = " ".join(findings(make_report([[5, 5], [5, 5]], ("a" * 5000, "b\udcff"))))
    assert len(text) < 2000
    text.encode("utf-8")
