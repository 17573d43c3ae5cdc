"""What a scan gives: the images that can be decoded, what each file holds, and what is to be known of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from carnet.data.samples import LabeledImages, Sample
from carnet.data.unlabeled import UnlabeledImages
from carnet.errors import ImageError

UNREADABLE, UNLABELED, LEFT_OUT = "unreadable", "unlabeled", "left out"
"""The splits that `data.csv` of a run gives to images that were skipped because they cannot be decoded, to images
without labels, whose paths count from their own folder, and to those of them that are near copies of evaluated ones."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one file holds.

    Attributes:
        sha256: hash of the file's bytes; "" if they cannot be read.
        width: in pixels, as stored.
        height: in pixels, as stored.
        format: Pillow's name of the file format.
        mode: Pillow's name of the pixel format.
        oddities: what is unusual about the image and was dealt with, such as a palette or a wrong extension.
        error: why it cannot be decoded; None if it can.
    """

    sha256: str
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    oddities: tuple[str, ...] = ()
    error: ImageError | None = None


@dataclass(frozen=True)
class ScannedImages:
    """Labelled images that can all be decoded, split into `train`, `valid` and perhaps `test`.

    Attributes:
        data: the images.
        facts: what each file holds.
        unreadable: images that were skipped because they cannot be decoded.
        held_out: whether `valid` was held out of the other images by `scan_images`.
        warnings: what the user should know.
        unlabeled: images that a teacher names; none of them is a labelled image as well. None: there are none.
        unreadable_unlabeled: those of them that were skipped because they cannot be decoded.
        near_copies_unlabeled: those that were left out because they are near copies of images that are evaluated.
        near: content hash of a labelled image -> those of its near copies; None: near copies are not known.
    """

    data: LabeledImages
    facts: Mapping[Path, ImageFacts]
    unreadable: tuple[Sample, ...] = ()
    held_out: bool = False
    warnings: tuple[str, ...] = ()
    unlabeled: UnlabeledImages | None = None
    unreadable_unlabeled: tuple[Path, ...] = ()
    near_copies_unlabeled: tuple[Path, ...] = ()
    near: Mapping[str, frozenset[str]] | None = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """The images that the ignore list names, as a run records them."""
        return self.data.ignored + (() if self.unlabeled is None else self.unlabeled.ignored)

    @property
    def num_unlabeled(self) -> int:
        """Number of images without labels."""
        return 0 if self.unlabeled is None else len(self.unlabeled.paths)

    @property
    def num_images(self) -> dict[str, int]:
        """Number of images of each split, those without labels last if there are some."""
        numbers = {split: len(samples) for split, samples in self.data.splits.items()}
        return numbers | ({UNLABELED: self.num_unlabeled} if self.unlabeled else {})

    @property
    def num_unreadable(self) -> int:
        """Number of images that were skipped because they cannot be decoded."""
        return len(self.unreadable) + len(self.unreadable_unlabeled)

    def leaked(self, split: str) -> tuple[Sample, ...]:
        """Return the images of a split that are byte for byte in `train` as well."""
        train = {self.facts[sample.path].sha256 for sample in self.data.splits["train"]}
        return tuple(s for s in self.data.splits.get(split, ()) if self.facts[s.path].sha256 in train)

    def near_leaked(self, split: str) -> tuple[Sample, ...]:
        """Return the images of a split that are near copies of images in `train`, but not byte for byte in it."""
        train = {self.facts[sample.path].sha256 for sample in self.data.splits["train"]}
        near = self.near or {}
        others = (s for s in self.data.splits.get(split, ()) if self.facts[s.path].sha256 not in train)
        return tuple(s for s in others if not train.isdisjoint(near.get(self.facts[s.path].sha256, ())))

    @property
    def oddities(self) -> dict[str, list[str]]:
        """Files by what is unusual about them, the most frequent oddity first."""
        files: dict[str, list[str]] = defaultdict(list)
        unlabeled = () if self.unlabeled is None else self.unlabeled.paths
        for path in (*(sample.path for sample in self.data.samples), *unlabeled):
            for oddity in self.facts[path].oddities:
                files[oddity].append(self.data.relative(path))
        return dict(sorted(files.items(), key=lambda item: -len(item[1])))

    @property
    def duplicates(self) -> list[list[Sample]]:
        """Groups of files that are equal byte for byte, within and across splits."""
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in self.data.samples:
            groups[self.facts[sample.path].sha256].append(sample)
        return [group for group in groups.values() if len(group) > 1]

    @property
    def content_hash(self) -> str:
        """Hash of the split, class, relative path and bytes of every image, in order."""
        digest = hashlib.sha256()
        for row in self.rows():
            line = "\t".join(row[column] for column in ("split", "label", "filepath", "sha256"))
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def rows(self) -> Iterable[dict[str, str]]:
        """Yield one record for each file, with the columns of a run's `data.csv`."""
        for split, samples in (*self.data.splits.items(), (UNREADABLE, self.unreadable)):
            for sample in samples:
                yield self._row(split, self.data.classes[sample.label], self.data.relative(sample), sample.path)
        if self.unlabeled is not None:
            for split, paths in (
                (UNLABELED, self.unlabeled.paths),
                (UNREADABLE, self.unreadable_unlabeled),
                (LEFT_OUT, self.near_copies_unlabeled),
            ):
                for path in paths:
                    yield self._row(split, "", path.relative_to(self.unlabeled.root).as_posix(), path)

    def _row(self, split: str, label: str, name: str, path: Path) -> dict[str, str]:
        facts = self.facts[path]
        return {
            "split": split,
            "label": label,
            "filepath": name,
            **{key: str(getattr(facts, key)) for key in ("sha256", "width", "height", "format", "mode")},
            "notes": "; ".join(facts.oddities) if facts.error is None else facts.error.reason,
        }
