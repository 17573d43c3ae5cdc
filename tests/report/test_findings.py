"""The sentences are true by the numbers, and say nothing the numbers do not carry."""

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
    _chance_of_at_most,
    confident_mistakes,
    displayable,
    findings,
    most_confused,
    shortened,
)


def make_report(confusion, classes=None, confidence=0.8, num_leaked=None):
    """A report with these counts, each answer given with the same confidence; the first images are the leaked ones."""
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
        "The model named 178 of 200 images right (89.0 %). "
        "If it was trained on none of them, likely 83.9 % to 92.6 % of new ones would be right too (95 % interval).",
        "Always answering 'glass', the most frequent class here, would name 91 right (45.5 %); "
        "the model does clearly better.",
        "No class stands out: with this many images, the differences between the classes may be chance.",
        "Most often confused: 12 of 91 'glass' were called 'plastic', 9 the other way.",
        "On average it is 97.0 % sure of its answer and right 89.0 % of the time: "
        "it is over-confident, so take its percentages as too high. "
        "Of the 200 answers it was at least 90 % sure of, 178 were right.",
    ]


def test_easy_and_hard_classes_are_named_with_their_counts():
    confusion = [[99, 1, 0], [20, 80, 0], [3, 3, 4]]
    sentences = findings(make_report(confusion, ("cat", "dog", "owl"), num_leaked=0))
    assert "Best known is 'cat' (99 of 100 right)." in sentences
    assert (
        "Hardest is 'owl' (4 of 10 right). "
        "Take such small counts as hints: in a class of 10, one image makes 10 points."
    ) in sentences
    assert sentences[-1] == "None of these images stands byte for byte among the training images."


def test_five_images_are_never_a_percentage_nor_a_verdict():
    """Among 100 classes of 5 images, a few with 2 right are what chance gives; the sentence says so."""
    right = np.full(100, 4)
    right[7] = 2
    confusion = np.diag(right)
    for k in range(100):
        confusion[k, (k + 1) % 100] += 5 - right[k]
    text = "\n".join(findings(make_report(confusion)))
    assert "Hardest" not in text
    confusion[7, 7], confusion[7, 8] = 0, 5
    text = "\n".join(findings(make_report(confusion)))
    assert "Hardest is 'c7' (0 of 5 right). Take such small counts as hints: in a class of 5," in text


def test_a_suspicion_is_called_one():
    right = np.full(40, 9)
    right[3] = 6
    confusion = np.diag(right)
    for k in range(40):
        confusion[k, (k + 1) % 40] += 10 - right[k]
    assert "Perhaps hardest is 'c3' (6 of 10 right), though that may be chance." in findings(make_report(confusion))


def test_many_flawless_classes_are_counted_not_listed():
    confusion = np.diag([5] * 10)
    confusion[0, 0], confusion[0, 1] = 4, 1
    assert "9 of 10 classes were named right every time." in findings(make_report(confusion))


@pytest.mark.parametrize(
    ("confidence", "words"),
    [
        (0.80, "its confidence can be believed on average."),
        (0.84, "its confidence can be believed on average."),
        (0.95, "it is over-confident, so take its percentages as too high."),
        (0.60, "it is under-confident, so it is right more often than it says."),
    ],
)
def test_confidence_is_judged_against_the_interval(confidence, words):
    sentence = findings(make_report([[80, 20], [20, 80]], confidence=confidence))[-1]
    assert (
        f"On average it is {100 * confidence:.1f} % sure of its answer and right 80.0 % of the time: {words}"
        in sentence
    )


def test_few_images_leave_the_confidence_open():
    assert "as far as 10 images can show, its confidence can be believed" in findings(make_report([[4, 1], [1, 4]]))[-1]


def test_perfect_model():
    sentences = findings(make_report([[30, 0], [0, 30]], confidence=0.99))
    assert sentences[0].startswith("The model named all 60 images right. ")
    assert "likely 94.0 % to 100.0 %" in sentences[0]
    assert "always giving the same answer would name 30 right (50.0 %); the model does clearly better." in sentences[1]
    assert sentences[-1].endswith("Of the 60 answers it was at least 90 % sure of, all were right.")
    assert len(sentences) == 3


def test_all_wrong():
    text = "\n".join(findings(make_report([[0, 20], [20, 0]], confidence=0.99)))
    assert "none of the 40 images right" in text
    assert "the model does clearly worse" in text
    assert "20 of 20 'c0' were called 'c1', 20 the other way" in text
    assert "none were right" in text


def test_one_answer_to_everything_is_said_once():
    sentences = findings(make_report([[10, 0, 0], [10, 0, 0], [9, 0, 0]]))
    assert "the model does no better. It called every single image 'c0'." in sentences[1]
    assert len(sentences) == 3


@pytest.mark.parametrize(
    ("confusion", "verdict"),
    [
        ([[88, 2], [4, 6]], "the model does better, but with this many images that may be chance."),
        ([[85, 5], [5, 5]], "the model does no better."),
        ([[40, 50], [5, 5]], "the model does clearly worse."),
    ],
)
def test_verdict_against_guessing(confusion, verdict):
    guess = "Always answering 'c0', the most frequent class here, would name 90 right (90.0 %); "
    assert findings(make_report(confusion))[1] == guess + verdict


def test_one_image():
    assert findings(make_report([[1, 0], [0, 0]])) == [
        "The model named the one image right; a single image cannot say how good a model is."
    ]
    assert findings(make_report([[0, 1], [0, 0]], num_leaked=1)) == [
        "The model named the one image wrong; a single image cannot say how good a model is.",
        "It is a training image, byte for byte, so the result says nothing about new ones.",
    ]


def test_classes_without_images():
    confusion = np.zeros((9, 9), dtype=int)
    confusion[0, 0], confusion[1, 1], confusion[1, 0] = 8, 6, 2
    sentences = findings(make_report(confusion))
    assert (
        "7 of the 9 classes have no images here, so nothing is known about 'c2', 'c3', 'c4', 'c5' and 3 more."
        in sentences
    )
    assert sentences[1].startswith("Every class with images here has 8; always giving the same answer would name 8")


def test_a_split_of_one_class_shows_nothing():
    sentences = findings(make_report([[9, 1], [0, 0]]))
    assert sentences[1] == "All of these images are 'c0', so they cannot show whether the model tells classes apart."


def test_images_that_are_no_training_images_speak_for_new_ones():
    sentences = findings(make_report(WASTE, WASTE_CLASSES, num_leaked=0))
    assert sentences[0].endswith(
        "On new images of the same kind, likely 83.9 % to 92.6 % would be right (95 % interval)."
    )


def test_leaked_images_and_their_effect():
    # The first ten images, all right, are training images; of the other 90, 40 + 30 are right.
    sentences = findings(make_report([[50, 0], [20, 30]], num_leaked=10))
    assert sentences[0] == "The model named 80 of 100 images right (80.0 %)."
    assert sentences[1].startswith(
        "10 of these images are training images, byte for byte. "
        "Without them the model is right on 70 of 90 (77.8 %). On new images of the same kind, likely 68.2 %"
    )
    everything = findings(make_report([[5, 0], [0, 5]], num_leaked=10))
    assert everything[1].startswith(
        "All of these images are training images, byte for byte, so the result says nothing"
    )
    assert "training images" not in " ".join(findings(make_report([[5, 0], [0, 5]])))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_numbers_end_the_matter(value):
    report = make_report([[5, 0], [0, 5]])
    report.logits[3, 1] = value
    assert findings(report) == [
        "For 1 of 10 images the model answered with something that is not a number; "
        "no figure of this evaluation can be trusted."
    ]


def test_scattered_mistakes():
    confusion = np.diag([9, 9, 9, 10])
    confusion[0, 1] = confusion[1, 2] = confusion[2, 0] = 1
    expected = "The 3 mistakes follow no pattern: no class was taken for the same other class twice."
    assert expected in findings(make_report(confusion))


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
    assert "198 of 200 classes were named right every time." in sentences
    assert "Hardest are 'c0' (50 of 80 right) and 'c199' (50 of 80 right)." in sentences


@pytest.mark.parametrize(("num_right", "num_images", "share"), [(0, 5, 0.8), (3, 5, 0.8), (40, 60, 0.7), (7, 7, 0.4)])
def test_binomial_tail_against_exact_sum(num_right, num_images, share):
    exact = sum(math.comb(num_images, k) * share**k * (1 - share) ** (num_images - k) for k in range(num_right + 1))
    assert _chance_of_at_most(num_right, num_images, share) == pytest.approx(exact, rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), num_images=st.integers(1, 10**5), share=st.floats(1e-5, 1 - 1e-5))
def test_binomial_tail_against_scipy(data, num_images, share):
    num_right = data.draw(st.integers(0, num_images))
    expected = stats.binom.cdf(num_right, num_images, share)
    assert _chance_of_at_most(num_right, num_images, share) == pytest.approx(expected, rel=1e-7, abs=1e-300)


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
