"""Explain an evaluation in a few plain sentences: what the model confuses, and how far its numbers can be trusted.

Every statement is a count or rests on a 95% interval. Classes often have few images, so a class is called easy or hard
only where chance alone would not explain its result, and with its counts ("4 of 5"), never as a percentage.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from carnet.evaluation import EvaluationReport
from carnet.metrics import wilson_interval
from carnet.text import counted, is_control

FEW_IMAGES = 20
"""A class with fewer images than this changes by more than five percentage points with each image."""
CONFIDENT_PERCENT = 90
"""A prediction of at least this probability counts as confident."""
SIGNIFICANCE_LEVEL = 0.05
"""A class is called easy or hard if chance alone would give its result less often than this."""
MAX_NAME_LENGTH = 60
"""Longer names, in characters, are shortened."""


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that the model confuses, in the more frequent direction."""

    true: str
    predicted: str
    count: int
    """Images of `true` that were predicted as `predicted`."""
    num_true: int
    """Images of `true`."""
    count_reverse: int
    """Images of `predicted` that were predicted as `true`."""


def findings(report: EvaluationReport) -> list[str]:
    """Say in plain sentences what the numbers of a report mean, the most important first.

    Raises:
        ValueError: for a report without images.
    """
    broken = int((np.isnan(report.logits) | np.isposinf(report.logits)).any(axis=1).sum())
    if broken:
        return [
            f"For {broken:,} of {report.num_images:,} images the model's output is not a number; "
            "no figure of this evaluation can be trusted."
        ]
    leaks = _about_leaks(report)
    if report.num_images == 1:
        result = "correctly" if report.top1 else "wrongly"
        return [f"The model classified the only image {result}; one image cannot show how good a model is.", *leaks]
    rest = [_about_baseline(report), *_about_classes(report), *_about_confusions(report), _about_confidence(report)]
    # Leaked images change how the accuracy has to be read.
    has_leaks = bool(report.num_leaked or report.num_near_leaked)
    return [_about_accuracy(report), *leaks, *rest] if has_leaks else [_about_accuracy(report), *rest, *leaks]


def most_confused(report: EvaluationReport, limit: int) -> list[ConfusedPair]:
    """Return the most frequently confused pairs of classes, both directions counted; each pair is listed once."""
    confusion = report.confusion
    mixed = np.triu(confusion + confusion.T, k=1)
    firsts, seconds = np.nonzero(mixed)
    order = np.argsort(-mixed[firsts, seconds], kind="stable")[:limit]
    pairs = []
    for first, second in zip(firsts[order].tolist(), seconds[order].tolist(), strict=True):
        swapped = confusion[second, first] > confusion[first, second]
        true, predicted = (second, first) if swapped else (first, second)
        count, reverse, num_true = confusion[true, predicted], confusion[predicted, true], confusion[true].sum()
        pairs.append(
            ConfusedPair(report.classes[true], report.classes[predicted], int(count), int(num_true), int(reverse))
        )
    return pairs


def confident_mistakes(report: EvaluationReport, limit: int) -> list[int]:
    """Return the indices of the wrong predictions of the highest probability, the most confident first."""
    wrong = np.flatnonzero(~report.correct)
    order = np.argsort(-report.probabilities[wrong].max(axis=1), kind="stable")
    return list(wrong[order][:limit].tolist())


def percent(share: float) -> str:
    """0.846 -> "84.6%"."""
    return f"{100 * share:.1f}%"


def displayable(text: str) -> str:
    """Replace what a page must not hold: control and format characters, and undecodable bytes of file names."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if is_control(c) or unicodedata.category(c) == "Cs" or c in "\ufffe\uffff" else c
        for c in text
    )


def shortened(name: str) -> str:
    """Shorten a name to fit into a sentence; both ends stay, since that is where names tend to differ."""
    if len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{name[: MAX_NAME_LENGTH - 20].rstrip()}…{name[-19:].lstrip()}"


def _about_accuracy(report: EvaluationReport) -> str:
    right, total = int(report.correct.sum()), report.num_images
    if right == total:
        sentence = f"The model classified all {total:,} images correctly."
    elif right == 0:
        sentence = f"The model classified none of the {total:,} images correctly."
    else:
        share = f"{percent(right / total)}; macro recall {percent(report.macro_recall)}"
        sentence = f"The model classified {right:,} of {total:,} images correctly ({share})."
    # With leaked images this interval would be too optimistic; the sentence about them gives a better one.
    has_leaks = bool(report.num_leaked or report.num_near_leaked)
    return sentence if has_leaks else f"{sentence} {_likely(right, total, leaks_known=report.leaks_known)}"


def _likely(right: int, total: int, *, leaks_known: bool = True) -> str:
    low, high = wilson_interval(right, total)
    condition = "On" if leaks_known else "If none of them were used in training, then on"
    return (
        f"{condition} new images of the same kind, its accuracy is likely between {percent(low)} and {percent(high)} "
        "(95% interval)."
    )


def _about_leaks(report: EvaluationReport) -> list[str]:
    if not report.leaks_known:
        return []
    near = _about_near_leaks(report)
    leaked, total = int(report.leaked.sum()), report.num_images
    if leaked == 0 and near:
        return near
    if leaked == 0:
        return ["None of these images is byte for byte a training image."] if total > 1 else []
    if leaked == total:
        which = "It is" if total == 1 else "All of these images are"
        return [f"{which} byte for byte in the training set, so the result says nothing about new images."]
    clean = ~report.leaked
    right, left = int(report.correct[clean].sum()), int(clean.sum())
    are, them = ("is", "it") if leaked == 1 else ("are", "them")
    without = f"Without {them}, the model is right on {right:,} of {left:,} ({percent(right / left)})."
    # With near copies as well, the sentence about these gives the interval.
    interval = "" if near else f" {_likely(right, left)}"
    return [f"{leaked:,} of these images {are} byte for byte in the training set. {without}{interval}", *near]


def _about_near_leaks(report: EvaluationReport) -> list[str]:
    if report.near_leaked is None or not report.near_leaked.any():
        return []
    number, clean = int(report.near_leaked.sum()), ~(report.leaked | report.near_leaked)
    right, left = int(report.correct[clean].sum()), int(clean.sum())
    what = f"{number:,} of these images {'is a near copy' if number == 1 else 'are near copies'} of training images"
    more = " as well" if report.num_leaked else ""
    rest = "Nothing is left that says how good the model is on new images."
    if left:
        which = "all of these" if report.num_leaked else "them" if number > 1 else "it"
        share = f"{right:,} of {left:,} ({percent(right / left)})"
        rest = f"Without {which}, the model is right on {share}. {_likely(right, left)}"
    return [f"{what}{more}: saved again, resized, cropped a little or mirrored. {rest}"]


def _about_baseline(report: EvaluationReport) -> str:
    """Compare the model with always predicting the most frequent class."""
    counts = report.confusion.sum(axis=1)
    most = int(counts.max())
    frequent, present = np.flatnonzero(counts == most), int((counts > 0).sum())
    name = _quoted(report.classes[int(frequent[0])])
    if present == 1:
        return f"All of these images are {name}, so they cannot show whether the model tells classes apart."
    if len(frequent) < present:
        rank = "the most frequent class" if len(frequent) == 1 else "one of the most frequent classes"
        guess = f"Always predicting {name}, {rank} here,"
    elif present < len(report.classes):
        guess = f"Every class with images here has {most:,}; always predicting the same class"
    else:
        guess = f"Every class has {counted(most, 'image')} here; always predicting the same class"
    share, right, (low, high) = most / report.num_images, int(report.correct.sum()), report.top1_ci95
    if share < low:
        verdict = "the model is clearly better"
    elif share > high:
        verdict = "the model is clearly worse"
    elif right > most:
        verdict = "the model is better, but with this few images that may be chance"
    else:
        verdict = "the model is no better"
    sentence = f"{guess} would be right on {most:,} ({percent(share)}); {verdict}."
    if not _predicts_several_classes(report):
        sentence += f" It predicted {_quoted(report.classes[int(report.predictions[0])])} for every image."
    return sentence


def _predicts_several_classes(report: EvaluationReport) -> bool:
    """Return False for a model that predicts one class for everything, of which there is nothing more to say."""
    return len(np.unique(report.predictions)) > 1


def _about_classes(report: EvaluationReport) -> list[str]:
    right, counts = np.diag(report.confusion), report.confusion.sum(axis=1)
    present = np.flatnonzero(counts)
    absent = [_quoted(report.classes[k]) for k in np.flatnonzero(counts == 0)]
    sentences = []
    if _predicts_several_classes(report) and len(present) > 1 and 0 < right.sum() < counts.sum():
        sentences += _easy_and_hard(report, present.tolist(), right.tolist(), counts.tolist())
    if absent:
        number = f"{len(absent)} of the {len(report.classes)} classes {'has' if len(absent) == 1 else 'have'}"
        sentences.append(f"{number} no images here, so nothing is known about {_listing(absent, 5)}.")
    return sentences


def _easy_and_hard(report: EvaluationReport, present: list[int], right: list[int], counts: list[int]) -> list[str]:
    def least_likely(chances: Mapping[int, float], below: float) -> list[int]:
        return sorted((k for k in chances if chances[k] < below), key=lambda k: chances[k])[:3]

    def listed(group: list[int]) -> str:
        named = [f"{_quoted(report.classes[k])} ({right[k]:,} of {counts[k]:,} correct)" for k in group]
        return f"{'is' if len(group) == 1 else 'are'} {_listing(named, 3)}"

    chance_low = {k: binomial_cdf(right[k], counts[k], report.top1) for k in present}
    chance_high = {k: binomial_cdf(counts[k] - right[k], counts[k], 1 - report.top1) for k in present}
    num_flawless = sum(right[k] == counts[k] for k in present)
    # Divide by the number of classes (Bonferroni, 1936), because among many some look unusual by chance.
    adjusted = SIGNIFICANCE_LEVEL / len(present)
    easy, hard = least_likely(chance_high, adjusted), least_likely(chance_low, adjusted)
    sentences = []
    if num_flawless > 3:
        sentences.append(f"{num_flawless} of {len(present)} classes have no mistakes.")
    elif easy:
        sentences.append(f"Easiest {listed(easy)}.")
    if hard:
        fewest = min(counts[k] for k in hard)
        hint = f" Such small counts are only a hint: in a class of {fewest}, one image is {100 / fewest:.0f} points."
        sentences.append(f"Hardest {listed(hard)}.{hint if fewest < FEW_IMAGES else ''}")
    elif perhaps_hard := least_likely(chance_low, SIGNIFICANCE_LEVEL):
        sentences.append(f"Perhaps hardest {listed(perhaps_hard)}, but that may be chance.")
    return sentences or ["No class stands out: with this few images, their differences may be chance."]


def binomial_cdf(num_right: int, num_images: int, share: float) -> float:
    """Return the probability of at most `num_right` successes in `num_images` trials; `share` is between 0 and 1."""
    total = 0.0
    for k in range(num_right + 1):
        # The number of combinations soon overflows a float, its logarithm does not.
        ways = math.lgamma(num_images + 1) - math.lgamma(k + 1) - math.lgamma(num_images - k + 1)
        total += math.exp(ways + k * math.log(share) + (num_images - k) * math.log1p(-share))
    return total


def _about_confusions(report: EvaluationReport) -> list[str]:
    mistakes = int((~report.correct).sum())
    if mistakes < 2 or not _predicts_several_classes(report):
        return []
    phrases = []
    for pair in most_confused(report, 3):
        if pair.count > 1:
            reverse = f", {pair.count_reverse:,} the other way" if pair.count_reverse else ""
            predicted = f"{_quoted(pair.true)} were predicted as {_quoted(pair.predicted)}"
            phrases.append(f"{pair.count:,} of {pair.num_true:,} {predicted}{reverse}")
    if phrases:
        return [f"Most often confused: {'; '.join(phrases)}."]
    return [f"The {mistakes:,} mistakes follow no pattern: no two are the same confusion."]


def _about_confidence(report: EvaluationReport) -> str:
    confidence = report.probabilities.max(axis=1)
    mean, (low, high) = float(confidence.mean()), report.top1_ci95
    if mean > high:
        verdict = "it is overconfident, so its probabilities are too high"
    elif mean < low:
        verdict = "it is underconfident, so its probabilities are too low"
    elif report.num_images < 100:
        verdict = f"as far as {report.num_images} images can show, it is calibrated on average"
    else:
        verdict = "it is calibrated on average"
    sentence = f"Its mean confidence is {percent(mean)} and its accuracy {percent(report.top1)}: {verdict}."
    confident = confidence >= CONFIDENT_PERCENT / 100
    total, right = int(confident.sum()), int(report.correct[confident].sum())
    # Fewer would say nothing.
    if total < 10:
        return sentence
    how_many = "all" if right == total else f"{right:,}" if right else "none"
    return f"{sentence} Of the {total:,} predictions of at least {CONFIDENT_PERCENT}%, {how_many} are correct."


def _quoted(name: str) -> str:
    return f"'{displayable(shortened(name))}'"


def _listing(items: Sequence[str], limit: int) -> str:
    """Join to: a / a and b / a, b and c / a, b and 7 more."""
    shown = list(items) if len(items) <= limit else [*items[: limit - 1], f"{len(items) - limit + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
