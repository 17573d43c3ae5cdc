"""An evaluation in a few plain sentences: what the model can and cannot tell apart, and how far to trust it.

Every statement is a count or stands on a 95 % interval. A class often has few images: it is called easy or
hard only where chance alone would not explain it, and with its counts ("4 of 5"), never as a percentage.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from carnet.evaluation import EvaluationReport
from carnet.metrics import wilson_interval
from carnet.text import is_control

FEW_IMAGES = 20
"""Below this many images, one image is worth more than five percentage points of its class."""
CONFIDENT_PERCENT = 90
"""From this probability on, an answer counts as a sure one."""
CHANCE = 0.05
"""A class is easy or hard where chance gives a result like its own less often than this."""
MAX_NAME_LENGTH = 60
"""Characters; longer names would drown the sentence around them."""


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes the model mixes up, in the direction it does so more often."""

    true: str
    predicted: str
    count: int
    """Images of `true` that were called `predicted`."""
    num_true: int
    """Images of `true`."""
    count_reverse: int
    """Images of `predicted` that were called `true`."""


def findings(report: EvaluationReport) -> list[str]:
    """Say in plain sentences what the numbers of a report mean, the most important first.

    Raises:
        ValueError: for a report without images.
    """
    broken = int((np.isnan(report.logits) | np.isposinf(report.logits)).any(axis=1).sum())
    if broken:
        return [
            f"For {broken:,} of {report.num_images:,} images the model answered with something that is not "
            "a number; no figure of this evaluation can be trusted."
        ]
    if report.num_images == 1:
        right = "right" if report.top1 else "wrong"
        return [
            f"The model named the one image {right}; a single image cannot say how good a model is.",
            *_about_leaks(report),
        ]
    leaks = _about_leaks(report)
    rest = [
        _against_guessing(report),
        *_about_classes(report),
        *_about_confusions(report),
        _about_confidence(report),
    ]
    # Leaked images change how the score is to be read, so they follow it; their absence can wait.
    return [_score(report), *leaks, *rest] if report.num_leaked else [_score(report), *rest, *leaks]


def most_confused(report: EvaluationReport, limit: int) -> list[ConfusedPair]:
    """The pairs of classes mixed up most often, counting both directions; each pair is listed once."""
    confusion = report.confusion
    mixed = np.triu(confusion + confusion.T, k=1)
    firsts, seconds = np.nonzero(mixed)
    order = np.argsort(-mixed[firsts, seconds], kind="stable")[:limit]
    pairs = []
    for first, second in zip(firsts[order].tolist(), seconds[order].tolist(), strict=True):
        swapped = confusion[second, first] > confusion[first, second]
        true, predicted = (second, first) if swapped else (first, second)
        pairs.append(
            ConfusedPair(
                true=report.classes[true],
                predicted=report.classes[predicted],
                count=int(confusion[true, predicted]),
                num_true=int(confusion[true].sum()),
                count_reverse=int(confusion[predicted, true]),
            )
        )
    return pairs


def confident_mistakes(report: EvaluationReport, limit: int) -> list[int]:
    """Which images were named wrong with the highest probability, the surest mistake first."""
    wrong = np.flatnonzero(~report.correct)
    order = np.argsort(-report.probabilities[wrong].max(axis=1), kind="stable")
    return [int(index) for index in wrong[order][:limit]]


def percent(share: float) -> str:
    """0.846 -> "84.6 %"."""
    return f"{100 * share:.1f} %"


def displayable(text: str) -> str:
    """Text without what no page may hold: characters that command, and the undecodable bytes of file names."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_unprintable(c) else c for c in text)


def _is_unprintable(character: str) -> bool:
    return is_control(character) or unicodedata.category(character) == "Cs" or character in "\ufffe\uffff"


def shortened(name: str) -> str:
    """A name that fits into a sentence; of a very long one both ends stay, where names tend to differ."""
    if len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{name[: MAX_NAME_LENGTH - 20].rstrip()}…{name[-19:].lstrip()}"


def _score(report: EvaluationReport) -> str:
    right, total = int(report.correct.sum()), report.num_images
    if right == total:
        sentence = f"The model named all {total:,} images right."
    elif right == 0:
        sentence = f"The model named none of the {total:,} images right."
    else:
        sentence = f"The model named {right:,} of {total:,} images right ({percent(right / total)})."
    # With leaked images this interval would promise too much; the sentence about them gives a better one.
    if report.num_leaked:
        return sentence
    return f"{sentence} {_likely(right, total, leaks_known=report.leaks_known)}"


def _likely(right: int, total: int, *, leaks_known: bool = True) -> str:
    low, high = wilson_interval(right, total)
    interval = f"likely {percent(low)} to {percent(high)}"
    if leaks_known:
        return f"On new images of the same kind, {interval} would be right (95 % interval)."
    return f"If it was trained on none of them, {interval} of new ones would be right too (95 % interval)."


def _about_leaks(report: EvaluationReport) -> list[str]:
    if not report.leaks_known:
        return []
    leaked, total = int(report.leaked.sum()), report.num_images
    if leaked == 0:
        return ["None of these images stands byte for byte among the training images."] if total > 1 else []
    if leaked == total:
        which = "It is a training image" if total == 1 else "All of these images are training images"
        return [f"{which}, byte for byte, so the result says nothing about new ones."]
    clean = ~report.leaked
    right, left = int(report.correct[clean].sum()), int(clean.sum())
    are, them = ("is a training image", "it") if leaked == 1 else ("are training images", "them")
    without = f"Without {them} the model is right on {right:,} of {left:,} ({percent(right / left)})."
    return [f"{leaked:,} of these images {are}, byte for byte. {without} {_likely(right, left)}"]


def _against_guessing(report: EvaluationReport) -> str:
    counts = report.confusion.sum(axis=1)
    most = int(counts.max())
    frequent, present = np.flatnonzero(counts == most), int((counts > 0).sum())
    if present == 1:
        name = _quoted(report.classes[int(frequent[0])])
        return f"All of these images are {name}, so they cannot show whether the model tells classes apart."
    if len(frequent) < present:
        rank = "the most frequent class" if len(frequent) == 1 else "one of the most frequent classes"
        guess = f"Always answering {_quoted(report.classes[int(frequent[0])])}, {rank} here,"
    elif present < len(report.classes):
        guess = f"Every class with images here has {most:,}; always giving the same answer"
    else:
        images = "1 image" if most == 1 else f"{most:,} images"
        guess = f"Every class has {images} here; always giving the same answer"
    by_guessing = f"{most:,} right ({percent(most / report.num_images)})"
    sentence = f"{guess} would name {by_guessing}; {_verdict(report, most)}."
    if not _gives_several_answers(report):
        sentence += f" It called every single image {_quoted(report.classes[int(report.predictions[0])])}."
    return sentence


def _verdict(report: EvaluationReport, by_guessing: int) -> str:
    right, (low, high) = int(report.correct.sum()), report.top1_ci95
    share = by_guessing / report.num_images
    if share < low:
        return "the model does clearly better"
    if share > high:
        return "the model does clearly worse"
    if right > by_guessing:
        return "the model does better, but with this many images that may be chance"
    return "the model does no better"


def _gives_several_answers(report: EvaluationReport) -> bool:
    """False for a model that calls everything the same; what is easy or confused is then no news."""
    return len(np.unique(report.predictions)) > 1


def _about_classes(report: EvaluationReport) -> list[str]:
    confusion = report.confusion
    right, counts = np.diag(confusion), confusion.sum(axis=1)
    present = np.flatnonzero(counts)
    absent = [_quoted(report.classes[k]) for k in np.flatnonzero(counts == 0)]
    sentences = []
    if _gives_several_answers(report) and len(present) > 1 and 0 < right.sum() < counts.sum():
        sentences += _easy_and_hard(report, present.tolist(), right.tolist(), counts.tolist())
    if absent:
        number = f"{len(absent)} of the {len(report.classes)} classes {'has' if len(absent) == 1 else 'have'}"
        sentences.append(f"{number} no images here, so nothing is known about {_listing(absent, 5)}.")
    return sentences


def _easy_and_hard(report: EvaluationReport, present: list[int], right: list[int], counts: list[int]) -> list[str]:
    top1 = report.top1
    flawless = [k for k in present if right[k] == counts[k]]
    chance_low = {k: _chance_of_at_most(right[k], counts[k], top1) for k in present}
    chance_high = {k: _chance_of_at_most(counts[k] - right[k], counts[k], 1 - top1) for k in present}
    # Of many classes some look odd by chance; dividing by their number (Bonferroni, 1936) allows for that.
    easy = _least_likely(chance_high, CHANCE / len(present)) if len(flawless) <= 3 else []
    hard = _least_likely(chance_low, CHANCE / len(present))
    perhaps_hard = [] if hard else _least_likely(chance_low, CHANCE)

    def listed(group: list[int]) -> str:
        named = [f"{_quoted(report.classes[k])} ({right[k]:,} of {counts[k]:,} right)" for k in group]
        return f"{'is' if len(group) == 1 else 'are'} {_listing(named, 3)}"

    sentences = []
    if len(flawless) > 3:
        sentences.append(f"{len(flawless)} of {len(present)} classes were named right every time.")
    if easy:
        sentences.append(f"Best known {listed(easy)}.")
    if hard:
        sentences.append(f"Hardest {listed(hard)}.{_hint(min(counts[k] for k in hard))}")
    if perhaps_hard:
        sentences.append(f"Perhaps hardest {listed(perhaps_hard)}, though that may be chance.")
    may_be_chance = "with this many images, the differences between the classes may be chance"
    return sentences or [f"No class stands out: {may_be_chance}."]


def _chance_of_at_most(num_right: int, num_images: int, share: float) -> float:
    """Binomial: how likely so few are right where each is with probability `share`, above 0 and below 1."""
    total = 0.0
    for k in range(num_right + 1):
        # In logarithms, since the number of ways soon passes what a float can hold.
        ways = math.lgamma(num_images + 1) - math.lgamma(k + 1) - math.lgamma(num_images - k + 1)
        total += math.exp(ways + k * math.log(share) + (num_images - k) * math.log1p(-share))
    return total


def _least_likely(chances: Mapping[int, float], below: float) -> list[int]:
    return sorted((k for k in chances if chances[k] < below), key=lambda k: chances[k])[:3]


def _hint(fewest: int) -> str:
    if fewest >= FEW_IMAGES:
        return ""
    points = f"{100 / fewest:.0f} points"
    return f" Take such small counts as hints: in a class of {fewest}, one image makes {points}."


def _about_confusions(report: EvaluationReport) -> list[str]:
    mistakes = int((~report.correct).sum())
    pairs = [pair for pair in most_confused(report, 3) if pair.count > 1]
    if mistakes < 2 or not _gives_several_answers(report):
        return []
    if not pairs:
        no_pattern = "no class was taken for the same other class twice"
        return [f"The {mistakes:,} mistakes follow no pattern: {no_pattern}."]
    return [f"Most often confused: {'; '.join(_confusion(pair) for pair in pairs)}."]


def _confusion(pair: ConfusedPair) -> str:
    called = f"{pair.count:,} of {pair.num_true:,} {_quoted(pair.true)} were called {_quoted(pair.predicted)}"
    return f"{called}, {pair.count_reverse:,} the other way" if pair.count_reverse else called


def _about_confidence(report: EvaluationReport) -> str:
    confidence = report.probabilities.max(axis=1)
    mean, (low, high) = float(confidence.mean()), report.top1_ci95
    if mean > high:
        so = "it is over-confident, so take its percentages as too high"
    elif mean < low:
        so = "it is under-confident, so it is right more often than it says"
    elif report.num_images < 100:
        so = f"as far as {report.num_images} images can show, its confidence can be believed on average"
    else:
        so = "its confidence can be believed on average"
    right_share = percent(report.top1)
    sentence = f"On average it is {percent(mean)} sure of its answer and right {right_share} of the time: {so}."
    sure = confidence >= CONFIDENT_PERCENT / 100
    # A handful of sure answers would say nothing.
    if sure.sum() < 10:
        return sentence
    total, right = int(sure.sum()), int(report.correct[sure].sum())
    how_many = "all" if right == total else f"{right:,}" if right else "none"
    answers = f"Of the {total:,} answers it was at least {CONFIDENT_PERCENT} % sure of"
    return f"{sentence} {answers}, {how_many} were right."


def _quoted(name: str) -> str:
    return f"'{displayable(shortened(name))}'"


def _listing(items: Sequence[str], limit: int) -> str:
    """a / a and b / a, b and c / a, b and 7 more."""
    shown = list(items) if len(items) <= limit else [*items[: limit - 1], f"{len(items) - limit + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
