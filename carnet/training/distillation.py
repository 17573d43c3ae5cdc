"""Let a teacher answer for the training images, once, before the first step.

Its answers for the whole images and for crops follow from its features, which the cache keeps by content. An image that
it was fitted to is answered for by a head that was fitted without it, because what a model says about its own training
images is more certain than what it knows.

Sources: Hinton et al., "Distilling the knowledge in a neural network", 2015; Beyer et al., "Knowledge distillation: a
good teacher is patient and consistent", 2022; Shen and Xing, "A fast knowledge distillation framework for visual
recognition", 2022 (answers for crops, computed once).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet import files
from carnet.config import ResolvedConfig
from carnet.data.samples import representatives
from carnet.data.scanned import ScannedImages
from carnet.documents import DocumentError
from carnet.errors import CarnetError, ConfigError, RunError
from carnet.machine import loading_threads
from carnet.models.weights import compute_exactly, on_threads
from carnet.preprocess import load_image
from carnet.run_folder import RunFolder
from carnet.text import Progress, counted, duration, parse_seconds, show_bytes
from carnet.training.answers import Answers
from carnet.training.features import BATCH, FeatureExtractor, Photo, num_within
from carnet.training.head import MOST_VIEWS, VIEWED_IMAGES, Choice, FoldHeads, LinearHead, fit_fold_heads, fit_head
from carnet.training.memory import allowed_bytes, keep_freed_memory
from carnet.training.resolve import TEACHER_SHARE
from carnet.training.teacher import Teacher, open_teacher

NUM_CROPS, FEWEST_CROPS = 8, 4
"""Crops of each image that a teacher answers for, besides the whole, and the number below which there are none, because
the same few crops over and over teach less than new ones: see `benchmarks/LOG.md`."""
_MOST_OF_BUDGET = 0.5
"""Share of the rest of a budget that one look at each image may take at most."""
_MAX_BYTES = 32 * 2**30
_ROW_BYTES = 200
"""Of the Python objects that hold the features of a view of one image."""
_FIT_COPIES = 16
"""Bytes for each number that a head is fitted to: rows in single precision, joined, scaled, and their gradients."""


@dataclass(frozen=True)
class Taught:
    """What a student learns from.

    Attributes:
        answers: for the training images, those with labels first.
        content: of the file that holds them.
        record: of the teacher, for `config.json`.
        notes: what the user should know.
    """

    answers: Answers
    content: bytes
    record: dict[str, Any]
    notes: tuple[str, ...] = ()


def ask_teacher(
    images: ScannedImages,
    config: ResolvedConfig,
    *,
    progress: Progress,
    started: float | None = None,
    recorded: Mapping[str, Any] | None = None,
    left_bytes: int | None = None,
) -> Taught:
    """Let the config's teacher answer for the training images.

    Args:
        images: as they were scanned.
        config: of the student.
        progress: shows what happens.
        started: when the budget began, by `time.monotonic`; None: of a resumed run.
        recorded: the record of a resumed run, whose teacher answers for the same views again.
        left_bytes: memory that may be taken; None: what the config and the system leave.

    Raises:
        CarnetError: if the teacher cannot be opened, or its answers fit neither into memory nor into the budget.
    """
    begun = time.monotonic()
    if config.keep_memory:
        keep_freed_memory()
    compute_exactly()
    # The last digits depend on the number of threads.
    threads = config.threads if recorded is None else recorded["threads"]
    if config.budget is not None and started is not None:
        progress = _Limited(progress, config.budget, started)
    with on_threads(threads):
        teacher = open_teacher(config, images.data.classes, threads=threads)
        photos = _photos(images, teacher.extractor)
        if recorded:
            number = recorded["num_views"]
        else:
            if left_bytes is None:
                left_bytes = allowed_bytes(config.max_memory, config.device)
                left_bytes -= teacher.extractor.bytes_to_compute(photos)
            number = _num_views(teacher.extractor, photos, images, config, started=started, allowed=left_bytes)
        views = teacher.extractor.views(number)
        progress.say(
            f"Asks the teacher, {teacher.name}, for {counted(len(views), 'view')} of {counted(len(photos), 'image')} …"
        )
        features = teacher.extractor.features(photos, views, partial(progress.bar, "the teacher's views"))
        answering = _Answering.of(
            teacher,
            features,
            images,
            [photo.digest for photo in photos],
            seed=config.seed,
            progress=progress,
        )
        answers = _answers(answering, features, views, photos)
    del features
    content = answers.pack()
    record = {
        "name": teacher.name,
        "digest": teacher.digest,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_crops": answers.num_crops,
        "num_views": len(views),
        "threads": threads,
        "head": None if answering.head is None else answering.head.to_json(),
        "seconds": round(max(0.001, time.monotonic() - begun), 3),
    }
    return Taught(answers, content, record, tuple(_notes(teacher, images, answering)))


def restored_answers(
    run: RunFolder, images: ScannedImages, config: ResolvedConfig, record: Mapping[str, Any], *, progress: Progress
) -> Answers:
    """Return the answers that a resumed run began with, from its folder or from its teacher again.

    Raises:
        CarnetError: if the file is gone or damaged, and the teacher cannot be asked or answers otherwise.
    """
    num_images = len(images.data.splits["train"]) + images.num_unlabeled
    with suppress(RunError, DocumentError):
        content = files.read_whole(run.answers, _MAX_BYTES)
        if hashlib.sha256(content).hexdigest() == record["sha256"]:
            return Answers.unpack(content, num_images=num_images, num_classes=len(images.data.classes))
    missing = f"{run.answers} is missing or damaged, and {record['name']}"
    way_out = "copy the file again from where the run was made"
    try:
        again = ask_teacher(images, config, progress=progress, recorded=record)
    except CarnetError as error:
        raise RunError(f"{missing} cannot be asked again ({error}); {way_out}") from error
    if again.record["sha256"] != record["sha256"]:
        raise RunError(f"{missing} answers otherwise now; {way_out}")
    files.write_bytes(run.answers, again.content)
    return again.answers


def _photos(images: ScannedImages, extractor: FeatureExtractor) -> list[Photo]:
    """Return the training images as the teacher sees them, those with labels first."""
    unlabeled = () if images.unlabeled is None else images.unlabeled.paths
    paths = [*(sample.path for sample in images.data.splits["train"]), *unlabeled]
    return [Photo(images.facts[path].sha256, partial(load_image, path, extractor.spec)) for path in paths]


@dataclass(frozen=True)
class _Answering:
    """How features become scores.

    Attributes:
        teacher: whose own scores count for images that it was not trained on, if it has a head.
        head: fitted to the labelled images; None: the teacher has one, and was trained on none of the images.
        fold_heads: the heads that were fitted without a part of the labelled images.
        known: (images,), which of them the teacher was trained on, or may have been.
        is_alone: (labelled images,), whether those with its label are all in its own part, so that the head which was
            fitted without them does not know the class.
    """

    teacher: Teacher
    head: LinearHead | None
    fold_heads: FoldHeads | None
    known: NDArray[np.bool_]
    is_alone: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        teacher: Teacher,
        features: Sequence[NDArray[np.float16]],
        images: ScannedImages,
        digests: Sequence[str],
        *,
        seed: int,
        progress: Progress,
    ) -> _Answering:
        """Fit heads to the labelled images, which are the first, if the teacher was trained on any of the images."""
        labels = np.array([sample.label for sample in images.data.splits["train"]])
        number, num_classes = len(labels), len(images.data.classes)
        known = np.array([teacher.knows(digest) for digest in digests])
        if not known.any():
            return cls(teacher, None, None, known, np.zeros(number, bool))
        views = [view[:number] for view in features[: _fitted_views(len(features), number)]]
        contents = representatives(digests[:number], images.near)
        bar = partial(progress.bar, "fitting the teacher's head")
        head = fit_head(views, labels, contents, num_classes, seed=seed, progress=bar)
        head = replace(head, num_views=len(views))
        choice = Choice(head.penalty, head.temperature, head.top1)
        bar = partial(progress.bar, "fitting heads without a part of the images")
        folds = fit_fold_heads(views, labels, contents, choice, num_classes, seed=seed, progress=bar)
        return cls(teacher, head, folds, known, known[:number] & (folds.support(labels, contents) == 0))

    def scores(self, features: NDArray[np.float16]) -> NDArray[np.float16]:
        """(N, channels) -> (N, classes)"""
        rows = features.astype(np.float32)
        if self.head is None or self.fold_heads is None:
            assert self.teacher.score is not None
            return self.teacher.score(rows).astype(np.float16)
        scores: NDArray[np.float32] = rows @ self.head.weight.numpy().T
        if self.teacher.score is not None:
            scores[~self.known] = self.teacher.score(rows[~self.known])
        number = len(self.is_alone)
        by_folds = self.known[:number] & ~self.is_alone
        scores[:number][by_folds] = self.fold_heads.scores(rows[:number])[by_folds]
        return scores.astype(np.float16)


def _fitted_views(num_views: int, num_labeled: int) -> int:
    """Return how many of the views a head is fitted to."""
    return min(num_views, max(2, min(MOST_VIEWS, VIEWED_IMAGES // num_labeled)))


def _answers(
    answering: _Answering, features: Sequence[NDArray[np.float16]], views: Sequence[int], photos: Sequence[Photo]
) -> Answers:
    """Return the answers for the whole images, the mean over those and their mirror images, and for the crops.

    The features of the whole images are centred, and scaled to length 1 so that no image outweighs the others.
    """
    extractor = answering.teacher.extractor
    num_whole = len(set(views) & set(extractor.whole_views))
    whole = np.mean([answering.scores(view) for view in features[:num_whole]], axis=0, dtype=np.float32)
    scores = [whole.astype(np.float16), *(answering.scores(view) for view in features[num_whole:])]
    boxes = np.zeros((len(scores), len(photos), 4), np.float32)
    boxes[0] = (0, 0, 1, 1)
    for place, view in enumerate(views[num_whole:], start=1):
        boxes[place] = [extractor.change(photo.digest, view)[:4] for photo in photos]
    rows = np.mean(features[:num_whole], axis=0, dtype=np.float32)
    rows -= rows.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return Answers(np.stack(scores), boxes, rows.astype(np.float16), extractor.min_crop)


def _num_views(
    extractor: FeatureExtractor,
    photos: Sequence[Photo],
    images: ScannedImages,
    config: ResolvedConfig,
    *,
    started: float | None,
    allowed: int,
) -> int:
    """Return how many views of each image a budget and so many bytes of memory allow.

    Raises:
        ConfigError: if not even the whole images do.
    """
    num_labeled, num_classes = len(images.data.splits["train"]), len(images.data.classes)
    few = photos[:BATCH]
    begun = time.perf_counter()
    pixels = [photo.load() for photo in few]
    loading = (time.perf_counter() - begun) / len(few) / loading_threads()
    channels: int = extractor.compute(np.stack(pixels)).shape[1]
    num_whole = len(extractor.whole_views)
    number = num_whole + (NUM_CROPS if config.min_crop < 1 else 0)
    # Half precision; scores twice, because they are packed into a file, and the features of one view while joined.
    of_view = len(photos) * (2 * channels + _ROW_BYTES + 4 * num_classes)
    once = len(photos) * (10 * channels + 4 * num_classes)

    def needed(number: int) -> int:
        # First pixels are under way, then heads are fitted.
        fitting = _FIT_COPIES * _fitted_views(number, num_labeled) * num_labeled * channels
        return number * of_view + once + max(extractor.bytes_ahead(number), fitting)

    while number and needed(number) > allowed:
        number -= 1
    if not number:
        raise ConfigError(
            f"the teacher's features of {counted(len(photos), 'image')} take {show_bytes(needed(1))} of memory, more "
            f"than the {show_bytes(max(0, allowed))} allowed; train with fewer images, or without --teacher"
        )
    if config.budget is not None and started is not None:
        seconds_left = parse_seconds(config.budget) - (time.monotonic() - started)
        seconds = extractor.seconds_of(photos, extractor.views(number), loading + extractor.seconds_per_image())
        if seconds[0] > _MOST_OF_BUDGET * seconds_left:
            raise ConfigError(
                f"the teacher takes about {duration(seconds[0])} to look at each image once, and --budget "
                f"{config.budget} leaves {duration(max(0.0, seconds_left))}; give more, or take a faster teacher"
            )
        number = num_within(seconds, TEACHER_SHARE * seconds_left)
    return number if number >= num_whole + FEWEST_CROPS else min(number, num_whole)


@dataclass(frozen=True)
class _Limited:
    """Shows progress, and ends a teacher that takes the whole budget."""

    progress: Progress
    budget: str
    started: float

    def say(self, text: str) -> None:
        self.progress.say(text)

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        self.progress.bar(what, done, total, note)
        if (spent := time.monotonic() - self.started) > parse_seconds(self.budget):
            raise ConfigError(
                f"the teacher took the rest of --budget {self.budget}: {what}, {done:,} of {total:,} after "
                f"{duration(spent)}; give more, or take a faster teacher"
            )


def _notes(teacher: Teacher, images: ScannedImages, answering: _Answering) -> list[str]:
    """Return what makes an accuracy, or the answers, worth less than they seem."""
    notes = []
    if teacher.is_file:
        notes.append(
            f"{teacher.name} does not say which images it was trained on; if it was trained on these, name its run as "
            "the teacher instead, whose answers for them are by heads that were fitted without them"
        )
    seen = [one for one in images.data.splits["valid"] if images.facts[one.path].sha256 in (teacher.trained_on or ())]
    if seen:
        notes.append(
            f"{counted(len(seen), 'image')} of valid trained {teacher.name}, so that the accuracy may be too high"
        )
    if teacher.score is not None and (number := int(answering.known[len(answering.is_alone) :].sum())):
        trained = "trained" if teacher.trained_on is not None else "may have trained"
        notes.append(
            f"{counted(number, 'image')} without label {trained} {teacher.name}; a head that is fitted to the labelled "
            "images answers for them"
        )
    if number := int(answering.is_alone.sum()):
        notes.append(
            f"{counted(number, 'training image')} cannot be answered for by a head that has not seen their labels, "
            "because no image of the class would be left to fit it to; a head that has seen them answers"
        )
    return notes


def about_teacher(record: Mapping[str, Any] | None) -> str:
    """Return a phrase about the teacher of a run; empty without one."""
    if record is None:
        return ""
    seen = f"image and {counted(record['num_crops'], 'crop')} of it" if record["num_crops"] else "whole image"
    head = record["head"]
    fitted = "" if head is None else f" (a head on its features is right for {100 * head['top1']:.1f}% of new images)"
    return (
        f"learns from the answers of {record['name']}{fitted} for each {seen}, in {duration(record['seconds'])}, and "
        "not from labels"
    )


def about_budget(record: Mapping[str, Any] | None, config: ResolvedConfig, spent_seconds: float) -> str:
    """Return a phrase that says how a budget is divided; empty without a teacher or a budget.

    Args:
        record: of the teacher.
        config: of the student, resolved.
        spent_seconds: until the config was resolved.
    """
    if record is None or config.budget is None or config.training_seconds is None:
        return ""
    return (
        f"--budget {config.budget}: {duration(max(0.0, spent_seconds - record['seconds']))} of scanning and measuring, "
        f"{duration(record['seconds'])} of the teacher, {duration(config.training_seconds)} of training and validation"
    )
