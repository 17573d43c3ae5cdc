"""The data that is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from carnet.checks.findings import Place
from carnet.data.appearance import Appearance
from carnet.data.samples import LabeledImages, Sample
from carnet.data.scanned import ImageFacts


@dataclass(frozen=True)
class CheckedData:
    """Labelled images of all splits and classes, whether or not a classifier can be trained on them.

    Attributes:
        images: the images.
        facts: what each file holds; of a fast check, its content hash alone.
        appearance: what the images look like; None in a fast check.
    """

    images: LabeledImages
    facts: Mapping[Path, ImageFacts]
    appearance: Appearance | None = None

    @cached_property
    def split_of(self) -> Mapping[Path, str]:
        """The split of each file; of a file in several, the last."""
        return {sample.path: split for split, samples in self.images.splits.items() for sample in samples}

    @cached_property
    def files_of(self) -> Mapping[str, list[tuple[Sample, str]]]:
        """Content -> the files that hold it, each with its split."""
        files: dict[str, list[tuple[Sample, str]]] = {}
        for split, sample in self:
            if digest := self.facts[sample.path].sha256:
                files.setdefault(digest, []).append((sample, split))
        return files

    def __iter__(self) -> Iterator[tuple[str, Sample]]:
        """Yield every image with its split."""
        for split, samples in self.images.splits.items():
            for sample in samples:
                yield split, sample

    def place(self, split: str, sample: Sample) -> Place:
        """Return where an image is."""
        name = self.images.relative(sample)
        return Place(sample.path, name, self.images.classes[sample.label], split)
