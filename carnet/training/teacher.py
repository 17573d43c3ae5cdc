"""A teacher: a larger model whose answers a smaller one learns from (knowledge distillation).

It is a finished run, an exported file, or pretrained EfficientNet-Lite0, whose head is fitted to the labelled images.
An image that it was fitted to is answered by a head that was fitted without it, because what a model says about its own
training images is more certain than what it knows.

Sources: Hinton et al., "Distilling the knowledge in a neural network", 2015; Beyer et al., "Knowledge distillation: a
good teacher is patient and consistent", 2022; Shen and Xing, "A fast knowledge distillation framework for visual
recognition", 2022 (answers for crops, computed once).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet import files
from carnet.config import LITE0, ResolvedConfig, TrainingConfig
from carnet.data.samples import expanded
from carnet.data.scan import UNLABELED, ScannedImages
from carnet.edge.classifier import Classifier
from carnet.errors import CarnetError, ConfigError, RunError
from carnet.files import digest_of
from carnet.models.registry import create_model, default_image_size, preprocessing_of
from carnet.models.weights import compute_exactly, load, on_threads
from carnet.preprocess import load_image
from carnet.run_folder import RunFolder
from carnet.text import Progress, counted, duration, parse_bytes, parse_seconds, show_bytes
from carnet.training.answers import TEACHER_SHARE, Answers
from carnet.training.augment import Augmentation
from carnet.training.features import FeatureExtractor, Features, Photo, linear_head
from carnet.training.head import MOST_VIEWS, VIEWED_IMAGES, LinearHead, cross_fitted, fit_head
from carnet.training.memory import free_bytes, keep_freed_memory

NUM_CROPS = 8
"""Crops of each image that a teacher answers for, besides the whole: see `benchmarks/LOG.md`."""
_MOST_OF_BUDGET = 0.5
"""Share of the rest of a budget that the whole images may take at most."""
_MAX_BYTES = 32 * 2**30
_COPIES = 3
"""Of the features of a view in memory, while they are computed and a head is fitted to them."""

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Teacher:
    """A model whose answers another one learns from.

    Attributes:
        name: of the model, and where it comes from.
        extractor: computes its features; those of a file are its scores.
        digest: SHA-256 of its weights or its file.
        score: features (N, channels) -> scores (N, classes); None: a head is fitted to the labelled images first.
        trained_on: digests of the images that it was trained on, as far as that is known.
        data_hash: hash of the data that an exported file was trained on.
    """

    name: str
    extractor: FeatureExtractor
    digest: str
    score: Callable[[Features], Scores] | None = None
    trained_on: frozenset[str] = frozenset()
    data_hash: str = ""


def check_teacher(requested: TrainingConfig) -> None:
    """Check that what was requested suits a teacher, before the images are scanned.

    Raises:
        ConfigError: if there is no such teacher, or another flag contradicts it.
    """
    if requested.teacher is None:
        if requested.unlabeled is not None:
            raise ConfigError(
                f"--unlabeled {requested.unlabeled} needs a --teacher that names its images, such as "
                "--teacher efficientnet_lite0"
            )
        return
    if requested.stream:
        raise ConfigError("--teacher answers for each image before the first step; leave --stream out")
    if requested.freeze:
        raise ConfigError("--freeze fits a head to the labels without training steps; leave --teacher out, or --freeze")
    if requested.teacher == LITE0:
        return
    path = expanded(requested.teacher)
    if path.is_dir():
        # Raises an error that names the folder.
        load(path)
    elif path.is_file():
        Classifier(path)
    else:
        raise ConfigError(
            f"--teacher {requested.teacher} does not exist; name a finished run, a model file (.onnx), or {LITE0}"
        )


def open_teacher(config: ResolvedConfig, classes: Sequence[str]) -> Teacher:
    """Open the teacher of a student that is trained as `config` says, for these classes.

    Raises:
        CarnetError: if it cannot be opened, or is an exported file for other classes.
    """
    assert config.teacher is not None
    # The crop is what both see. The student's colours are changed as well, which the answer does not depend on.
    rules: dict[str, Any] = {"augmentation": Augmentation(0.0, config.flip, 0.0), "min_crop": config.min_crop}
    if config.teacher == LITE0:
        network = create_model(LITE0, num_classes=2, pretrained=True).to(config.device)
        spec = preprocessing_of(LITE0, pretrained=True).spec(
            model=LITE0, classes=("0", "1"), image_size=default_image_size(LITE0), resize=config.resize
        )
        extractor = FeatureExtractor.of_network(network, spec, **rules)
        return Teacher(f"pretrained {LITE0}", extractor, extractor.identity)
    path = expanded(config.teacher)
    if path.is_dir():
        return _run_as_teacher(path, config, classes, rules)
    classifier, digest = Classifier(path, threads=config.threads), digest_of(path)
    order = _order(classifier.classes, classes)
    if order is None:
        raise ConfigError(
            f"--teacher {config.teacher} knows other classes than the data; name the run it was exported from, to "
            "whose features a head for these classes is fitted"
        )
    return Teacher(
        f"{classifier.spec.model} in {path.name}",
        FeatureExtractor(
            classifier.calibrated_logits, replace(classifier.spec, resize=config.resize), identity=digest, **rules
        ),
        digest,
        score=lambda scores: scores[:, order],
        data_hash=_data_hash(classifier),
    )


def _data_hash(classifier: Classifier) -> str:
    """Return the hash of the data that an exported file was trained on; empty where it does not say."""
    training = classifier.document.get("training")
    return str(training.get("data_hash", "")) if isinstance(training, dict) else ""


def _run_as_teacher(path: Path, config: ResolvedConfig, classes: Sequence[str], rules: dict[str, Any]) -> Teacher:
    """Return a finished run as a teacher; if it knows other classes, by its features alone."""
    run, model = RunFolder.open(path), load(path, device=config.device)
    spec = replace(model.spec, resize=config.resize)
    layer = linear_head(model.network, spec.model)
    weight = layer.weight.detach().cpu().numpy()
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias.detach().cpu().numpy()
    order = _order(spec.classes, classes)
    digests = run.digests() or {}
    return Teacher(
        f"{spec.model} of {path}",
        FeatureExtractor.of_network(model.network, spec, **rules),
        digest_of(run.weights),
        score=None if order is None else lambda features: (features @ weight.T + bias)[:, order],
        trained_on=frozenset(digests.get("train", set()) | digests.get(UNLABELED, set())),
    )


def _order(known: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return the places of the wanted classes among the known ones; None if these are other classes."""
    return [known.index(name) for name in wanted] if set(known) == set(wanted) else None


def answers_for(
    images: ScannedImages,
    config: ResolvedConfig,
    *,
    progress: Progress,
    started: float | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> tuple[Answers, dict[str, Any]]:
    """Let the config's teacher answer for the training images, those with labels first; return also a record of it.

    Args:
        images: as they were scanned.
        config: of the student.
        progress: shows what happens.
        started: when the budget began, by `time.monotonic`; None: of a resumed run.
        recorded: the record of a resumed run, whose teacher answers for the same crops again.

    Raises:
        CarnetError: if the teacher cannot be opened, or its answers fit neither into memory nor into the budget.
    """
    begun = time.monotonic()
    if config.keep_memory:
        keep_freed_memory()
    compute_exactly()
    samples, unlabeled = images.data.splits["train"], () if images.unlabeled is None else images.unlabeled.paths
    # The last digits depend on the number of threads.
    threads = config.threads if recorded is None else recorded["threads"]
    with on_threads(threads):
        teacher = open_teacher(config, images.data.classes)
        load_view = partial(load_image, spec=teacher.extractor.spec)
        paths = [*(sample.path for sample in samples), *unlabeled]
        photos = [Photo(images.facts[path].sha256, partial(load_view, path)) for path in paths]
        left = None if config.budget is None or started is None else parse_seconds(config.budget) - (begun - started)
        number = recorded["num_views"] if recorded else _num_views(teacher.extractor, len(photos), config, left)
        views = teacher.extractor.views(number)
        progress.say(
            f"Asks the teacher, {teacher.name}, for {counted(len(views), 'view')} of {counted(len(photos), 'image')} …"
        )
        features = teacher.extractor.features(photos, views, partial(progress.bar, "the teacher's views"))
        labels = np.array([sample.label for sample in samples])
        digests, num_classes = [photo.digest for photo in photos], len(images.data.classes)
        scores, head = _scores(
            teacher,
            features,
            labels=labels,
            digests=digests,
            num_classes=num_classes,
            seed=config.seed,
            progress=progress,
        )
    number_whole = len(set(views) & set(teacher.extractor.whole_views))
    answers = Answers(
        np.stack([np.mean(scores[:number_whole], axis=0, dtype=np.float32).astype(np.float16), *scores[number_whole:]]),
        np.array([_boxes(teacher.extractor, photos, view) for view in [0, *views[number_whole:]]], np.float32),
        config.min_crop,
    )
    record = {
        "name": teacher.name,
        "digest": teacher.digest,
        "sha256": hashlib.sha256(answers.pack()).hexdigest(),
        "num_crops": answers.num_crops,
        "num_views": len(views),
        "threads": threads,
        "num_answered": len(photos),
        "head": None if head is None else head.to_json(),
        "seconds": round(max(0.001, time.monotonic() - begun), 3),
        # A file does not say which of the images it was trained on.
        "saw_images": bool(teacher.data_hash) and teacher.data_hash == images.content_hash,
    }
    return answers, record


def restored_answers(
    run: RunFolder, images: ScannedImages, config: ResolvedConfig, record: Mapping[str, Any], *, progress: Progress
) -> Answers:
    """Return the answers that a resumed run began with, from its folder or from its teacher again.

    Raises:
        CarnetError: if the file is gone or damaged, and the teacher cannot be asked or answers otherwise.
    """
    with suppress(RunError):
        content = files.read_whole(run.answers, _MAX_BYTES)
        if hashlib.sha256(content).hexdigest() == record["sha256"]:
            return Answers.unpack(content)
    missing = f"{run.answers} is missing or damaged, and {record['name']}"
    way_out = "copy the file again from where the run was made"
    try:
        answers, again = answers_for(images, config, progress=progress, recorded=record)
    except CarnetError as error:
        raise RunError(f"{missing} cannot be asked again ({error}); {way_out}") from error
    if again["sha256"] != record["sha256"]:
        raise RunError(f"{missing} answers otherwise now; {way_out}")
    files.write_bytes(run.answers, answers.pack())
    return answers


def _scores(
    teacher: Teacher,
    features: Sequence[NDArray[np.float16]],
    *,
    labels: NDArray[np.int64],
    digests: Sequence[str],
    num_classes: int,
    seed: int,
    progress: Progress,
) -> tuple[list[NDArray[np.float16]], LinearHead | None]:
    """Return the scores of each view, (N, classes), and the head that was fitted to the labelled images.

    The first of the images are those with labels. Labelled images that the teacher knows, or its head was fitted to,
    are answered by heads that were fitted without them.
    """
    number = len(labels)
    known = np.array([teacher.score is None or digest in teacher.trained_on for digest in digests[:number]])
    head, score = None, teacher.score
    if known.any():
        places = np.flatnonzero(known)
        fitted = min(len(features), max(2, min(MOST_VIEWS, VIEWED_IMAGES // len(places))))
        views, truth = [view[places] for view in features], labels[places]
        contents = [digests[place] for place in places.tolist()]
        bar = partial(progress.bar, "fitting the teacher's head")
        head = fit_head(views[:fitted], truth, contents, num_classes, seed=seed, progress=bar)
        head = replace(head, num_views=fitted)
        if score is None:
            weight = head.weight.numpy()
            score = lambda rows: rows @ weight.T  # noqa: E731
        bar = partial(progress.bar, "answers for labelled images")
        left_out = cross_fitted(views, truth, contents, head, seed=seed, progress=bar)
    assert score is not None
    scores = [score(view.astype(np.float32)).astype(np.float16) for view in features]
    if known.any():
        for given, better in zip(scores, left_out, strict=True):
            given[places] = better.astype(np.float16)
    return scores, head


def _num_views(extractor: FeatureExtractor, num_photos: int, config: ResolvedConfig, seconds_left: float | None) -> int:
    """Return how many views of each image memory and budget allow.

    Raises:
        ConfigError: if not even the whole images do.
    """
    pixels = np.zeros((1, extractor.spec.image_size, extractor.spec.image_size, extractor.spec.in_channels), np.uint8)
    channels = extractor.compute(pixels).shape[1]
    allowed = parse_bytes(config.max_memory) if config.max_memory else free_bytes()
    # Features are kept in half precision until all are there.
    of_view, once = 2 * num_photos * channels, _COPIES * 4 * num_photos * channels
    if once + of_view > allowed:
        raise ConfigError(
            f"the teacher's features of {counted(num_photos, 'image')} take {show_bytes(once + of_view)} of memory, "
            f"more than the {show_bytes(allowed)} allowed; train with fewer images, or without --teacher"
        )
    number = min(len(extractor.whole_views) + NUM_CROPS, (allowed - once) // of_view)
    if seconds_left is not None:
        seconds = extractor.seconds_per_image() * num_photos
        if seconds > _MOST_OF_BUDGET * seconds_left:
            raise ConfigError(
                f"the teacher takes about {duration(seconds)} to look at each image once, and --budget leaves "
                f"{duration(max(0.0, seconds_left))}; give more, or take a smaller teacher, or none"
            )
        number = min(number, max(1, int(TEACHER_SHARE * seconds_left / seconds)))
    return int(number)


def _boxes(extractor: FeatureExtractor, photos: Sequence[Photo], view: int) -> list[tuple[float, ...]]:
    """Return the part of each image that a view shows, in shares of its side: left, top, width and height."""
    if view in extractor.whole_views:
        return [(0.0, 0.0, 1.0, 1.0)] * len(photos)
    return [extractor.change(photo.digest, view)[:4] for photo in photos]


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


def about_teacher(record: Mapping[str, Any] | None) -> str:
    """Return a phrase about the teacher of a run; empty without one."""
    if record is None:
        return ""
    head = record["head"]
    fitted = (
        ""
        if head is None
        else f", its head right for {100 * head['top1']:.1f}% of labelled images that it was fitted without"
    )
    return (
        f"answers of {record['name']} for {counted(record['num_crops'], 'crop')} of each image{fitted}, in "
        f"{duration(record['seconds'])}"
    )
