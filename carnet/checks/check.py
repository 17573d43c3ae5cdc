"""Check labelled images: list them, look at them, and run every check that is asked for."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from carnet.checks.classes import check_class_names, check_classes
from carnet.checks.data import CheckedData
from carnet.checks.duplicates import check_duplicates
from carnet.checks.files import check_content, check_names
from carnet.checks.findings import Example, Finding
from carnet.checks.kinds import GROUPS, KINDS, Severity
from carnet.checks.labels import LabelScores, check_labels
from carnet.checks.photos import check_photos
from carnet.config import TrainingConfig
from carnet.data.appearance import Appearance, look_at
from carnet.data.find import list_images, own_classes
from carnet.data.samples import LabeledImages, Layout, Listing, expanded
from carnet.data.scan import hash_files, scan_images
from carnet.data.scanned import ImageFacts
from carnet.errors import ConfigError, DataError, ModelError, OutOfMemoryError
from carnet.text import Progress, Silent, counted

LEFT_OUT_FAST = "left out of a fast check"
_PREFIXES = ("leak", "conflict", "copy")
_SIDE = 64
"""In pixels, to which images are decoded at least; nothing but errors is kept."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        name: of the data.
        num_images: by split.
        num_classes: how many classes there are in all splits.
        findings: errors first, then warnings, then notes.
        skipped: what was not checked -> why.
        seconds: that it took.
        was_decoded: whether every image was decoded.
        ignored: images that an ignore list had left out.
    """

    name: str
    num_images: Mapping[str, int]
    num_classes: int
    findings: tuple[Finding, ...]
    skipped: Mapping[str, str]
    seconds: float
    was_decoded: bool = True
    ignored: tuple[str, ...] = ()

    @property
    def is_trainable(self) -> bool | None:
        """Whether `carnet train` accepts the data; None: nothing speaks against it, but no image was decoded."""
        if self.of("error"):
            return False
        return True if self.was_decoded else None

    def of(self, severity: Severity) -> list[Finding]:
        """Return the findings of one severity."""
        return [finding for finding in self.findings if finding.kind.severity == severity]

    def ignore_list(self) -> str:
        """Return a text for --ignore: images to leave out, and in comments those that a person has to decide on."""
        lines = ["# Images to leave out: carnet train DATA --ignore THIS-FILE"]
        lines += ["", "# left out before", *self.ignored] if self.ignored else []
        named = set(self.ignored)
        for finding in self.findings:
            treatment = finding.kind.treatment
            names = [name for name in finding.dropped if name not in named]
            if treatment == "keep" or not names:
                continue
            hint = " (decide: remove the # in front of those to leave out)" if treatment == "decide" else ""
            lines += ["", f"# {finding.id}: {finding.kind.what}{hint}"]
            undecided = finding.undecided if treatment == "drop" else frozenset(names)
            lines += [
                f"# {_line(name)}" if name in undecided else _line(name) for name in names if _can_be_listed(name)
            ]
            if left := [name for name in names if not _can_be_listed(name)]:
                lines.append(f"# {counted(len(left), 'image')} with a name that no line of a text can hold")
            named.update(name for name in names if name not in undecided)
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return a document of it."""
        return {
            "data": self.name,
            "trainable": self.is_trainable,
            "images": dict(self.num_images),
            "classes": self.num_classes,
            "counts": {severity: len(self.of(severity)) for severity in get_args(Severity)},
            "findings": [finding.to_json() for finding in self.findings],
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class Selection:
    """Which findings are wanted; a word is an id, a group, or leak, conflict or copy.

    Attributes:
        only: words of those that are wanted; none: all.
        skip: words of those that are not.
        fast: whether no image is decoded.
    """

    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    fast: bool = False

    def __post_init__(self) -> None:
        known = [*KINDS, *GROUPS, *_PREFIXES]
        for flag, words in (("--only", self.only), ("--skip", self.skip)):
            for word in words:
                if word not in known:
                    near = difflib.get_close_matches(word, known, n=1)
                    hint = f"did you mean {near[0]}?" if near else f"the groups are {', '.join(GROUPS)}"
                    raise ConfigError(f"{flag} {word}: nothing is found under this name; {hint}")
        if not any(self.wants(kind) for kind in KINDS):
            raise ConfigError("--only and --skip leave nothing to check; leave one of them out")

    def wants(self, kind: str) -> bool:
        """Return whether findings of a kind are wanted."""
        names = {kind, KINDS[kind].group, kind.partition("-")[0]}
        return (not self.only or not names.isdisjoint(self.only)) and names.isdisjoint(self.skip)

    def needs(self, *groups: str) -> bool:
        """Return whether any finding of these groups is wanted."""
        return any(self.wants(kind) for kind in KINDS if KINDS[kind].group in groups)

    @property
    def needs_appearance(self) -> bool:
        """Whether images have to be looked at."""
        of_pixels = (kind for kind in KINDS if KINDS[kind].group == "duplicates" and not kind.endswith("-bytes"))
        return not self.fast and (self.needs("photos", "labels") or any(map(self.wants, of_pixels)))


def check_data(
    data: Path | str,
    selection: Selection | None = None,
    *,
    layout: Layout = "auto",
    ignore: Sequence[str] = (),
    score_labels: Callable[[CheckedData], LabelScores] | str = "not asked for",
    progress: Progress | None = None,
) -> CheckReport:
    """Check labelled images.

    Args:
        data: a folder, a table, an archive or a data set, as for training.
        selection: which findings are wanted; None: all.
        layout: whether the data's folders are classes or splits, where that cannot be told.
        ignore: paths of images to leave out.
        score_labels: gives out-of-sample probabilities of the classes; or why labels cannot be checked.
        progress: shows how far it is.

    Raises:
        DataError: if there is no such data, or it cannot be listed.
    """
    begun, wanted = time.monotonic(), selection or Selection()
    display = progress or Silent()
    source = expanded(data)
    listing = list_images(source, layout=layout, ignore=ignore, progress=partial(display.bar, "unpacking"))
    names = {name for by_class in listing.splits.values() for name, paths in by_class.items() if paths}
    images = listing.labeled(sorted(names), source)
    findings = [*check_classes(listing, images, TrainingConfig.valid_fraction), *check_class_names(images)]
    facts, appearance = _look(images, wanted, display)
    checked = CheckedData(images, facts, appearance)
    findings += check_names(checked)
    if not wanted.fast:
        findings += check_content(checked)
    findings += [*check_photos(checked), *check_duplicates(checked)]
    skipped = {"photos, files and near copies": LEFT_OUT_FAST} if wanted.fast else {}
    if appearance is not None and appearance.copies.cut > 1:
        skipped["near copies"] = "the images are too alike to tell copies from others"
    if appearance is not None and not appearance.digests and any(one.error is None for one in facts.values()):
        skipped["photos and near copies"] = "there is room for thumbnails neither on the disk nor in memory"
    if wanted.fast or not wanted.needs("labels"):
        score_labels = LEFT_OUT_FAST if wanted.fast else "not asked for"
    if isinstance(score_labels, str):
        skipped["labels"] = score_labels
    else:
        try:
            findings += check_labels(checked, score_labels(checked))
        except (DataError, ModelError, OutOfMemoryError) as error:
            # The other findings must not be lost.
            skipped["labels"] = str(error)
    is_said = any(finding.id == "class-extra" for finding in findings)
    reasons = [] if is_said else [*_why_untrainable(source, listing, appearance)]
    if reasons:
        findings.append(Finding.of("untrainable", [Example(reason) for reason in reasons]))
    return CheckReport(
        images.name,
        {split: len(samples) for split, samples in images.splits.items()},
        len(images.classes),
        _sorted(finding for finding in findings if wanted.wants(finding.id) or finding.kind.severity == "error"),
        skipped,
        time.monotonic() - begun,
        was_decoded=appearance is not None,
        ignored=images.ignored,
    )


def _line(name: str) -> str:
    """Return a name as a line of an ignore list, which is neither a comment nor loses a blank at its start."""
    return f"./{name}" if name.startswith(("#", " ")) else name


def _can_be_listed(name: str) -> bool:
    """Return whether a line of a UTF-8 text can name an image."""
    return name == name.rstrip() and name.isprintable()


def sizes_of(report: CheckReport) -> str:
    """Return the number of images of each split: 800 train, 200 valid images."""
    if list(report.num_images) == ["all"]:
        return f"{counted(report.num_images['all'], 'image')}, not divided"
    return f"{', '.join(f'{number:,} {split}' for split, number in report.num_images.items())} images"


def _look(
    images: LabeledImages, wanted: Selection, display: Progress
) -> tuple[Mapping[Path, ImageFacts], Appearance | None]:
    """Return what each file holds, and what the images look like, as far as that is needed."""
    paths = list(dict.fromkeys(sample.path for sample in images.samples))
    if not wanted.fast and (wanted.needs("files") or wanted.needs_appearance):
        appearance = look_at(paths, "auto", place=images.location, progress=display)
        return appearance.facts, appearance
    digests = {}
    if wanted.needs("duplicates"):
        digests = hash_files(paths, partial(display.bar, "reading the images"))
    return {path: ImageFacts(digests.get(path, "")) for path in paths}, None


def _why_untrainable(source: Path, listing: Listing, appearance: Appearance | None) -> Iterator[str]:
    """Yield what training would say instead of beginning, but for single images, which are findings of their own."""
    try:
        classes = own_classes(source, listing)
        if appearance is not None:
            found = listing.labeled(classes, source)
            scan_images(
                found,
                image_size=_SIDE,
                skip_unreadable=True,
                valid_fraction=TrainingConfig.valid_fraction,
                facts=appearance.facts,
                near=appearance.near_copies,
            )
    except DataError as error:
        yield str(error)


def _sorted(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    severities, kinds = list(get_args(Severity)), list(KINDS)
    return tuple(
        sorted(
            findings,
            key=lambda one: (severities.index(one.kind.severity), GROUPS.index(one.kind.group), kinds.index(one.id)),
        )
    )
