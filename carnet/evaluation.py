"""Evaluation. It knows neither torch nor ONNX: it takes a function from images to logits, and labelled files."""

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
from carnet.data.find import find_images
from carnet.data.samples import LabeledImages, Layout, Sample
from carnet.data.scan import hash_files
from carnet.errors import DataError, ImageError, UnreadableImagesError
from carnet.metrics import Labels
from carnet.prediction import load_batches
from carnet.preprocess import Images
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.text import OnProgress, Progress, Silent, counted

PredictFn = Callable[[Images], NDArray[np.floating[Any]]]
"""uint8 images (N, S, S, C) -> logits (N, classes)."""


@dataclass(frozen=True)
class ClassResult:
    """How one class fared."""

    name: str
    num_images: int
    num_predicted: int
    """How many images were called this."""
    precision: float
    recall: float
    f1: float

    @property
    def shares(self) -> tuple[float | None, float | None, float | None]:
        """Precision, recall and F1; None, where the fields say 0, if there is nothing to divide by."""
        return (
            self.precision if self.num_predicted else None,
            self.recall if self.num_images else None,
            self.f1 if self.num_images or self.num_predicted else None,
        )


@dataclass(frozen=True)
class EvaluationReport:
    """What a model did with some labelled images. Arrays run over the images, in the order they were given."""

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    labels: Labels
    logits: NDArray[np.float32]
    leaked: NDArray[np.bool_] = field(repr=False)
    """Whether the image stands byte for byte among the training images; all False where that is not known."""
    leaks_known: bool = False
    unreadable: tuple[ImageError, ...] = ()
    """Images that were left out because they cannot be decoded."""
    num_ignored: int = 0
    """How many images the ignore list left out."""
    warnings: tuple[str, ...] = ()
    """What was noticed while looking for the images."""

    @classmethod
    def from_logits(
        cls, classes: tuple[str, ...], samples: Sequence[Sample], logits: NDArray[np.floating[Any]]
    ) -> EvaluationReport:
        """A report on samples with their logits (N, classes), of which no leaks are known."""
        return cls(
            classes=classes,
            samples=tuple(samples),
            labels=np.array([sample.label for sample in samples], dtype=np.int64),
            logits=logits.astype(np.float32),
            leaked=np.zeros(len(samples), dtype=np.bool_),
        )

    def with_leaks(self, leaked: Collection[Path] | None) -> EvaluationReport:
        """The same report, knowing which files are training images, byte for byte; None: that is not known."""
        if leaked is None:
            return self
        flags = np.array([sample.path in leaked for sample in self.samples], dtype=np.bool_)
        return replace(self, leaked=flags, leaks_known=True)

    def without(self, left_out: NDArray[np.bool_]) -> EvaluationReport:
        """The report on the other images only: (N,)"""
        kept = ~left_out
        samples = tuple(itertools.compress(self.samples, kept))
        return replace(
            self, samples=samples, labels=self.labels[kept], logits=self.logits[kept], leaked=self.leaked[kept]
        )

    @property
    def num_images(self) -> int:
        """How many images were evaluated."""
        return len(self.labels)

    @property
    def predictions(self) -> Labels:
        """Number of the class with the highest logit, for each image: (N,)."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits: (N, classes)."""
        return metrics.softmax(self.logits)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted class is the true one, for each image: (N,)."""
        return metrics.in_top_k(self.logits, self.labels, 1)

    @property
    def top1(self) -> float:
        """Share of images whose predicted class is the true one."""
        return float(self.correct.mean())

    @property
    def top5(self) -> float:
        """Share of images whose true class is among the five highest; 1 where there are five classes or fewer."""
        return float(metrics.in_top_k(self.logits, self.labels, 5).mean())

    @property
    def loss(self) -> float:
        """Mean cross entropy, in nats per image."""
        return float(metrics.cross_entropy(self.logits, self.labels).mean())

    @property
    def top1_ci95(self) -> tuple[float, float]:
        """Wilson interval of the accuracy, 95 %."""
        return metrics.wilson_interval(int(self.correct.sum()), self.num_images)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts (classes, classes); a row is the true class, a column the predicted one."""
        return metrics.confusion_matrix(self.labels, self.predictions, len(self.classes))

    @property
    def macro_f1(self) -> float:
        """Unweighted mean of the classes' F1."""
        return metrics.macro_f1(self.confusion)

    @property
    def num_leaked(self) -> int | None:
        """How many of the images are training images, byte for byte; None where that is not known."""
        return int(self.leaked.sum()) if self.leaks_known else None

    @property
    def top1_without_leaked(self) -> float | None:
        """Accuracy on the images that are not training images; None where that is not known or none is left."""
        if not self.leaks_known or self.leaked.all():
            return None
        return float(self.correct[~self.leaked].mean())

    @property
    def per_class(self) -> tuple[ClassResult, ...]:
        """One result per class, in the order of `classes`."""
        confusion = self.confusion
        precision, recall, f1 = metrics.precision_recall_f1(confusion)
        return tuple(
            ClassResult(name, true, predicted, float(precision[k]), float(recall[k]), float(f1[k]))
            for k, (name, true, predicted) in enumerate(
                zip(self.classes, confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist(), strict=True)
            )
        )

    @property
    def worst_first(self) -> list[ClassResult]:
        """`per_class` with the lowest F1 first; classes of which nothing is known are not the worst ones."""
        return sorted(self.per_class, key=lambda one: (one.num_images == 0, one.f1, one.recall, one.name))

    def summary(self) -> dict[str, Any]:
        """The numbers of the whole, in plain values."""
        return {
            "num_images": self.num_images,
            "num_classes": len(self.classes),
            "num_skipped_unreadable": len(self.unreadable),
            "num_ignored": self.num_ignored,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "macro_f1": self.macro_f1,
            "top1_ci95": list(self.top1_ci95),
            "num_leaked": self.num_leaked,
            "top1_without_leaked": self.top1_without_leaked,
        }

    def to_json(self) -> dict[str, Any]:
        """All numbers without the arrays, in plain values."""
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
    """Judge a model on labelled images.

    Args:
        predict_fn: maps uint8 images (N, S, S, C) to logits (N, classes).
        samples: the images; labels count in `spec.classes`.
        spec: how to make an image out of a file.
        batch_size: images handed to `predict_fn` at a time; the last batch may hold fewer.
        skip_unreadable: leave out, and count, images that cannot be decoded; nothing ever stands in for one.
        read: gives the pixels of a file; None: decodes it as `spec` says.
        progress: told after every batch.

    Raises:
        DataError: without images.
        UnreadableImagesError: listing the images that cannot be decoded.
    """
    logits: list[NDArray[np.floating[Any]]] = []
    evaluated: list[Sample] = []
    unreadable: list[ImageError] = []
    remaining = iter(samples)
    for batch in load_batches([sample.path for sample in samples], spec, batch_size, read):
        pairs = list(zip(itertools.islice(remaining, len(batch)), batch, strict=True))
        unreadable += [image for _, image in pairs if isinstance(image, ImageError)]
        good = [(sample, image) for sample, image in pairs if not isinstance(image, ImageError)]
        if good:
            logits.append(predict_fn(np.stack([image for _, image in good])))
            evaluated += [sample for sample, _ in good]
        if progress is not None:
            progress(len(evaluated) + len(unreadable), len(samples))
    if unreadable and not skip_unreadable:
        raise UnreadableImagesError(unreadable, len(samples))
    if not evaluated:
        raise DataError(
            f"there is nothing to evaluate, because no image of {len(samples):,} can be read; mend them"
            if unreadable
            else "there are no images to evaluate on; name some"
        )
    report = EvaluationReport.from_logits(spec.classes, evaluated, np.concatenate(logits))
    return replace(report, unreadable=tuple(unreadable))


@dataclass(frozen=True)
class Selection:
    """Images to evaluate a model on."""

    samples: tuple[Sample, ...]
    leaked: set[Path] | None
    """Files that stand byte for byte among the training images; None where there is no record of those."""
    warnings: tuple[str, ...]
    """What was noticed while looking for them."""
    num_ignored: int = 0
    """How many images of the split the ignore list left out."""

    def evaluate(self, predict_fn: PredictFn, spec: ModelSpec, **options: Any) -> EvaluationReport:
        """`evaluate` a model on them; its report knows the leaks, and what was noticed.

        Raises:
            DataError: as `evaluate`.
        """
        report = evaluate(predict_fn, self.samples, spec, **options).with_leaks(self.leaked)
        return replace(report, warnings=self.warnings, num_ignored=self.num_ignored)


def select_samples(
    data: Path | str,
    split: str,
    classes: Sequence[str],
    run_digests: Mapping[str, set[str]] | None,
    *,
    layout: Layout = "auto",
    ignore: Sequence[str] = (),
    progress: Progress | None = None,
) -> Selection:
    """Find the images of a split, and which of them a model was trained on.

    Where training held images back for validation itself, its record tells which: of flat data, or of `train` where
    there is no `valid`. Classes that came into such data later are left out, with a note.

    Args:
        data: the folder, table or archive.
        split: train, valid, test, or all.
        classes: the model's, which give the labels.
        run_digests: content hashes of the images of the model's run, by split; None where there is no record.
        layout: what the data's folders are, classes or splits, where that cannot be told.
        ignore: paths of images to leave out.
        progress: shown how far finding and reading them is; None: nobody.

    Raises:
        DataError: if the data lacks the split, or has classes that the model does not know.
    """
    bar = (progress or Silent()).bar
    leave_out_new = run_digests is not None and split != "all"
    found = find_images(
        data, classes, layout=layout, ignore=ignore, leave_out_new=leave_out_new, progress=partial(bar, "unpacking")
    )
    by_run = split != "all" and (found.is_flat or (run_digests is not None and _is_held_back(split, found)))
    places = _places(data, split, found, by_run)
    samples = tuple(sample for place in places for sample in found.splits[place])
    ignored = [path for place in places for path in found.left_out.get(place, ())]
    files = [*(sample.path for sample in samples), *ignored]
    digests = hash_files(files, partial(bar, "reading the images")) if run_digests is not None else {}
    warnings = list(found.warnings)
    wanted = (run_digests or {}).get(split, set())
    # Other data may have a split of which the run has held nothing back.
    by_run = by_run and not (split in found.splits and wanted.isdisjoint(digests.values()))
    if by_run:
        samples = tuple(sample for sample in samples if digests.get(sample.path) in wanted)
        ignored = [path for path in ignored if digests.get(path) in wanted]
        warnings += _about_missing(wanted, wanted - set(digests.values()), split)
    if not samples:
        raise _nothing_to_evaluate(data, split, by_run, recorded=run_digests is not None, are_ignored=bool(ignored))
    leaked = {one.path for one in samples if digests.get(one.path) in (run_digests or {}).get("train", ())}
    return Selection(samples, leaked if run_digests is not None else None, tuple(warnings), len(ignored))


def select_of_run(
    run: RunFolder,
    split: str,
    classes: Sequence[str],
    data: Path | str | None = None,
    *,
    progress: Progress | None = None,
) -> Selection:
    """The images of a split of a run, found as the run found them.

    Args:
        run: the run.
        split: train or valid.
        classes: its model's, which give the labels.
        data: where its images are; None: where they were.
        progress: shown how far finding and reading them is; None: nobody.

    Raises:
        DataError: as `select_samples`.
        RunError: if the run's record is missing or damaged.
    """
    path_then, layout, ignore = run.recorded_data()
    location = path_then if data is None else data
    return select_samples(location, split, classes, run.digests(), layout=layout, ignore=ignore, progress=progress)


def _places(data: Path | str, split: str, found: LabeledImages, by_run: bool) -> tuple[str, ...]:
    """The splits of the data in which the images of a split are to be looked for.

    Raises:
        DataError: if there are none.
    """
    if split == "all":
        return tuple(found.splits)
    if by_run:
        return ("all" if found.is_flat else "train",)
    if split not in found.splits:
        raise DataError(f"{data} has no {split} split; it has {', '.join(found.splits)}; choose with --split")
    return (split,)


def _about_missing(wanted: set[str], missing: set[str], split: str) -> list[str]:
    of_all = counted(len(wanted), "different image")
    where = f"of the run's {of_all} in {split}"
    return [f"{len(missing):,} {where} cannot be read any more, or are not here"] if missing else []


def _is_held_back(split: str, found: LabeledImages) -> bool:
    """Whether training divides `train` into this split and another."""
    return split in ("train", "valid") and "train" in found.splits and "valid" not in found.splits


def _nothing_to_evaluate(data: Path | str, split: str, by_run: bool, *, recorded: bool, are_ignored: bool) -> DataError:
    if are_ignored:
        return DataError(f"{data} has no images in {split}, for the ignore list names them all; shorten it")
    if by_run and not recorded:
        return DataError(
            f"{data} does not say which images are {split}, and there is no list of what this model was trained on, "
            f"which an exported one never has; evaluate its run, or images that it has not seen, with --split all"
        )
    if by_run:
        return DataError(
            f"{data} does not say which images are {split}, and none of them were in the run's {split}; "
            f"evaluate on all of them with --split all"
        )
    return DataError(f"{data} has no images in {split}; choose another --split")
