"""Evaluate any function from images to logits on labelled image files. Without PyTorch and ONNX."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet import metrics
from carnet.data.appearance import look_at
from carnet.data.find import find_images, form_of
from carnet.data.samples import LabeledImages, Sample, expanded
from carnet.data.scan import hash_files
from carnet.data.scanned import UNLABELED
from carnet.errors import CarnetError, DataError, ImageError, RunError, UnreadableImagesError
from carnet.metrics import Labels
from carnet.prediction import load_batches
from carnet.preprocess import Images
from carnet.run_folder import DataPlace, RunFolder
from carnet.spec import ModelSpec
from carnet.text import OnProgress, Progress, Silent, counted

PredictFn = Callable[[Images], NDArray[np.floating[Any]]]
"""uint8 images (N, S, S, C) -> logits (N, classes)."""


@dataclass(frozen=True)
class ClassResult:
    """Numbers of one class."""

    name: str
    num_images: int
    num_predicted: int
    """Number of images that were predicted as this class."""
    precision: float
    recall: float
    f1: float

    @property
    def shares(self) -> tuple[float | None, float | None, float | None]:
        """Precision, recall and F1; None instead of 0 where the quotient has no denominator."""
        return (
            self.precision if self.num_predicted else None,
            self.recall if self.num_images else None,
            self.f1 if self.num_images or self.num_predicted else None,
        )


@dataclass(frozen=True)
class EvaluationReport:
    """A model's logits for labelled images, and metrics of them. Arrays are in the order of `samples`."""

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    labels: Labels
    logits: NDArray[np.float32]
    leaked: NDArray[np.bool_] = field(repr=False)
    """(N,) marks images that are training images, byte for byte; all False where that is unknown."""
    leaks_known: bool = False
    near_leaked: NDArray[np.bool_] | None = field(default=None, repr=False)
    """(N,) marks images that are near copies of training images, but not byte for byte; None: not looked for."""
    unreadable: tuple[ImageError, ...] = ()
    """Images that were skipped because they cannot be decoded."""
    num_ignored: int = 0
    """Number of images that the ignore list excludes."""
    warnings: tuple[str, ...] = ()
    """Oddities that were found while listing the images."""

    @classmethod
    def from_logits(
        cls, classes: tuple[str, ...], samples: Sequence[Sample], logits: NDArray[np.floating[Any]]
    ) -> EvaluationReport:
        """Make a report from logits (N, classes), with unknown leaks."""
        return cls(
            classes=classes,
            samples=tuple(samples),
            labels=np.array([sample.label for sample in samples], dtype=np.int64),
            logits=logits.astype(np.float32),
            leaked=np.zeros(len(samples), dtype=np.bool_),
        )

    def with_leaks(self, leaked: Collection[Path] | None, near: Collection[Path] | None = None) -> EvaluationReport:
        """Return the report with the files marked that are training images, byte for byte, and near copies of some.

        None: unknown.
        """
        if leaked is None:
            return self
        flags, near_flags = (
            np.array([sample.path in (files or ()) for sample in self.samples], dtype=np.bool_)
            for files in (leaked, near)
        )
        return replace(self, leaked=flags, leaks_known=True, near_leaked=None if near is None else near_flags)

    def without(self, left_out: NDArray[np.bool_]) -> EvaluationReport:
        """Return the report on the other images: (N,) bool."""
        samples = tuple(itertools.compress(self.samples, ~left_out))
        arrays = {name: getattr(self, name)[~left_out] for name in ("labels", "logits", "leaked")}
        near = None if self.near_leaked is None else self.near_leaked[~left_out]
        return replace(self, samples=samples, near_leaked=near, **arrays)

    @property
    def num_images(self) -> int:
        """Number of evaluated images."""
        return len(self.labels)

    @property
    def predictions(self) -> Labels:
        """Index of the class with the highest logit: (N,)."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits: (N, classes)."""
        return metrics.softmax(self.logits)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Marks images whose predicted class is the true one: (N,) bool."""
        return metrics.in_top_k(self.logits, self.labels, 1)

    @property
    def top1(self) -> float:
        """Top-1 accuracy."""
        return float(self.correct.mean())

    @property
    def top5(self) -> float:
        """Top-5 accuracy; 1 if there are at most five classes."""
        return float(metrics.in_top_k(self.logits, self.labels, 5).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats per image."""
        return float(metrics.cross_entropy(self.logits, self.labels).mean())

    @property
    def top1_ci95(self) -> tuple[float, float]:
        """95% Wilson interval of the top-1 accuracy."""
        return metrics.wilson_interval(int(self.correct.sum()), self.num_images)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts (classes, classes); rows are true classes, columns predicted ones."""
        return metrics.confusion_matrix(self.labels, self.predictions, len(self.classes))

    @property
    def macro_f1(self) -> float:
        """Unweighted mean of the classes' F1."""
        return metrics.macro_f1(self.confusion)

    @property
    def macro_recall(self) -> float:
        """Unweighted mean of the recalls of the classes that have images."""
        recalls = [result.recall for result in self.per_class if result.num_images]
        return float(np.mean(recalls))

    @property
    def num_near_leaked(self) -> int | None:
        """Number of images that are near copies of training images, but not byte for byte; None if unknown."""
        return None if self.near_leaked is None else int(self.near_leaked.sum())

    @property
    def num_leaked(self) -> int | None:
        """Number of images that are training images, byte for byte; None if unknown."""
        return int(self.leaked.sum()) if self.leaks_known else None

    @property
    def top1_without_leaked(self) -> float | None:
        """Top-1 accuracy on the images that are not training images; None if unknown or if none is left."""
        if not self.leaks_known or self.leaked.all():
            return None
        return float(self.correct[~self.leaked].mean())

    @property
    def top1_without_copies(self) -> float | None:
        """Top-1 accuracy without training images and near copies of them; None if unknown or if none is left."""
        if not self.leaks_known or self.near_leaked is None:
            return None
        clean = ~(self.leaked | self.near_leaked)
        return float(self.correct[clean].mean()) if clean.any() else None

    @property
    def per_class(self) -> tuple[ClassResult, ...]:
        """One result per class, in the order of `classes`."""
        columns = (self.confusion.sum(axis=1), self.confusion.sum(axis=0), *metrics.precision_recall_f1(self.confusion))
        rows = zip(self.classes, *(column.tolist() for column in columns), strict=True)
        return tuple(ClassResult(*row) for row in rows)

    @property
    def worst_first(self) -> list[ClassResult]:
        """`per_class` with the lowest F1 first; classes without images come last."""
        return sorted(self.per_class, key=lambda one: (one.num_images == 0, one.f1, one.recall, one.name))

    def summary(self) -> dict[str, Any]:
        """Return the metrics over all images, in plain values."""
        names = (
            *("top1", "top5", "loss", "macro_recall", "macro_f1", "top1_ci95"),
            *("num_leaked", "num_near_leaked", "top1_without_leaked", "top1_without_copies"),
        )
        return {
            "num_images": self.num_images,
            "num_classes": len(self.classes),
            "num_skipped_unreadable": len(self.unreadable),
            "num_ignored": self.num_ignored,
            **{name: getattr(self, name) for name in names},
        }

    def to_json(self) -> dict[str, Any]:
        """Return all metrics, without the arrays, in plain values."""
        return self.summary() | {
            "per_class": [vars(result) for result in self.per_class],
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    predict_fn: PredictFn,
    samples: Sequence[Sample],
    spec: ModelSpec,
    *,
    batch_size: int = 32,
    skip_unreadable: bool = False,
    read: Callable[[Path], Images] | None = None,
    progress: OnProgress | None = None,
) -> EvaluationReport:
    """Evaluate a model on labelled images.

    Args:
        predict_fn: maps uint8 images (N, S, S, C) to logits (N, classes).
        samples: the images; labels are indices of `spec.classes`.
        spec: how a file becomes an image.
        batch_size: images per call of `predict_fn`; the last batch may have fewer.
        skip_unreadable: skip and count images that cannot be decoded, instead of raising an error.
        read: returns the pixels of a file; None decodes it by `spec`.
        progress: called after every batch.

    Raises:
        DataError: without images.
        UnreadableImagesError: listing the images that cannot be decoded.
    """
    logits: list[NDArray[np.floating[Any]]] = []
    evaluated: list[Sample] = []
    unreadable: list[ImageError] = []
    for batch in load_batches([sample.path for sample in samples], spec, batch_size, read):
        first = len(evaluated) + len(unreadable)
        unreadable += [image for image in batch if isinstance(image, ImageError)]
        good = [image for image in batch if not isinstance(image, ImageError)]
        if good:
            logits.append(predict_fn(np.stack(good)))
        of_batch = zip(samples[first : first + len(batch)], batch, strict=True)
        evaluated += [sample for sample, image in of_batch if not isinstance(image, ImageError)]
        if progress is not None:
            progress(len(evaluated) + len(unreadable), len(samples))
    if unreadable and not skip_unreadable:
        raise UnreadableImagesError(unreadable, len(samples))
    if not evaluated:
        raise DataError(
            f"there is nothing to evaluate, because no image of {len(samples):,} can be read; repair them"
            if unreadable
            else "there are no images to evaluate; name some"
        )
    report = EvaluationReport.from_logits(spec.classes, evaluated, np.concatenate(logits))
    return replace(report, unreadable=tuple(unreadable))


@dataclass(frozen=True)
class Selection:
    """Images to evaluate a model on."""

    samples: tuple[Sample, ...]
    leaked: set[Path] | None
    """Files that are training images, byte for byte; None where there is no record of those."""
    near_leaked: set[Path] | None = field(default=None, kw_only=True)
    """Files that are near copies of training images, but not byte for byte; None where they were not looked for."""
    warnings: tuple[str, ...]
    """Oddities that were found while listing the images."""
    num_ignored: int = 0
    """Number of images of the split that the ignore list excludes."""

    def evaluate(self, predict_fn: PredictFn, spec: ModelSpec, **options: Any) -> EvaluationReport:
        """`evaluate` a model on them; the report has the leaks and warnings.

        Raises:
            DataError: as `evaluate`.
        """
        report = evaluate(predict_fn, self.samples, spec, **options).with_leaks(self.leaked, self.near_leaked)
        return replace(report, warnings=self.warnings, num_ignored=self.num_ignored)

    def with_near_leaks(self, run: RunFolder, progress: Progress | None = None) -> Selection:
        """Find the images that are near copies of a run's labelled training images, if these can still be read.

        Args:
            run: its record says which images it was trained on, and where they were.
            progress: shows how far it is.
        """
        digests = run.digests()
        if digests is None:
            return self
        known = digests.get("train", set())
        try:
            place = run.recorded_data()
            if form_of(expanded(place.path)) not in ("folder", "table"):
                # It would have to be unpacked or fetched.
                return self
            rules: dict[str, Any] = {"layout": place.layout, "ignore": place.ignore, "unlabeled": place.unlabeled}
            trained = find_images(place.path, **rules).samples
            paths = list(dict.fromkeys(sample.path for sample in (*trained, *self.samples)))
            looked = look_at(paths, "auto", place=str(place.path), progress=progress)
        except (DataError, RunError):
            return self
        except CarnetError as error:
            return replace(self, warnings=(*self.warnings, f"near copies of training images are not known: {error}"))
        if known.isdisjoint(looked.digests):
            return self
        digest_of = {sample.path: looked.facts[sample.path].sha256 for sample in self.samples}
        leaks = {
            path
            for path, digest in digest_of.items()
            if digest not in known and not known.isdisjoint(looked.near_copies.get(digest, ()))
        }
        return replace(self, near_leaked=leaks)


def select_samples(
    place: DataPlace,
    split: str,
    classes: Sequence[str],
    run_digests: Mapping[str, set[str]] | None,
    *,
    progress: Progress | None = None,
) -> Selection:
    """Find the images of a split, and which of them a model was trained on.

    Where training held out the validation images itself (of flat data, or of `train` where there is no `valid`), the
    run's record says which they are. Classes that were added to such data later are left out, with a warning.

    Args:
        place: where the images are, and how they are found.
        split: train, valid, test, or all.
        classes: the model's, which give the labels.
        run_digests: content hashes of the images of the model's run, by split; None where there is no record.
        progress: shows how far listing and reading the images is; None shows nothing.

    Raises:
        DataError: if the data lacks the split, or has classes that the model does not know.
    """
    bar = (progress or Silent()).bar
    has_record, recorded = run_digests is not None, run_digests or {}
    data = place.path
    found = find_images(
        data,
        classes,
        layout=place.layout,
        ignore=place.ignore,
        unlabeled=place.unlabeled,
        leave_out_new=has_record and split != "all",
        progress=partial(bar, "unpacking"),
    )
    splits, by_record = _places(data, split, found, has_record)
    samples = tuple(sample for one in splits for sample in found.splits[one])
    ignored = [path for one in splits for path in found.left_out.get(one, ())]
    paths = [*(sample.path for sample in samples), *ignored]
    digests = hash_files(paths, partial(bar, "reading the images")) if has_record else {}
    wanted, warnings = recorded.get(split, set()), found.warnings
    # Other data may have a split of which the run held nothing out.
    by_record = by_record and not (split in found.splits and wanted.isdisjoint(digests.values()))
    if by_record:
        samples = tuple(sample for sample in samples if digests.get(sample.path) in wanted)
        ignored = [path for path in ignored if digests.get(path) in wanted]
        if missing := wanted - set(digests.values()):
            of_all = f"of the run's {counted(len(wanted), 'different image')} in {split}"
            warnings += (f"{len(missing):,} {of_all} cannot be read any more, or are not here",)
    if not samples:
        raise _nothing_to_evaluate(data, split, by_record, has_record, are_ignored=bool(ignored))
    trained_on = recorded.get("train", set()) | recorded.get(UNLABELED, set())
    leaked = {sample.path for sample in samples if digests.get(sample.path) in trained_on}
    return Selection(samples, leaked if has_record else None, warnings, len(ignored))


def _places(data: Path | str, split: str, found: LabeledImages, has_record: bool) -> tuple[tuple[str, ...], bool]:
    """Return the splits of the data that can hold a split, and whether only a run's record says which images are in it.

    Raises:
        DataError: if the data lacks the split.
    """
    if split == "all":
        return tuple(found.splits), False
    if found.is_flat:
        return ("all",), True
    if has_record and split in ("train", "valid") and "train" in found.splits and "valid" not in found.splits:
        return ("train",), True
    if split not in found.splits:
        raise DataError(f"{data} has no {split} split; it has {', '.join(found.splits)}; choose with --split")
    return (split,), False


def _nothing_to_evaluate(
    data: Path | str, split: str, by_record: bool, has_record: bool, *, are_ignored: bool
) -> DataError:
    if are_ignored:
        return DataError(f"{data} has no images in {split}, because the ignore list names them all; shorten it")
    if not by_record:
        return DataError(f"{data} has no images in {split}; choose another --split")
    if not has_record:
        return DataError(
            f"{data} does not say which images are {split}, and there is no record of this model's training images, "
            "which exported models never have; evaluate its run, or new images with --split all"
        )
    return DataError(
        f"{data} does not say which images are {split}, and none of them were in the run's {split}; "
        "evaluate all of them with --split all"
    )


def select_of_run(
    run: RunFolder,
    split: str,
    classes: Sequence[str],
    data: Path | str | None = None,
    *,
    progress: Progress | None = None,
) -> Selection:
    """Find the images of a run's split as training did; `data` is where they are now, None where they were.

    Raises:
        DataError: as `select_samples`.
        RunError: if the run's record is missing or damaged.
    """
    place = run.recorded_data()
    place = place if data is None else place.moved_to(data)
    return select_samples(place, split, classes, run.digests(), progress=progress)
