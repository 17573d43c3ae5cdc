"""What every form of data becomes: one list of labelled images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Layout = Literal["auto", "classes", "splits"]
"""What the folders in DATA are: classes, or splits with the classes inside; auto tells by their names and contents."""
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a folder, a row or a data set calls a split, in small letters -> the split it means."""
ByClass = dict[str, list[Path]]
"""Class name -> its images, sorted by path."""

_FILE_EXTENSIONS = (
    *(".csv", ".tsv", ".txt", ".zip"),
    *(".parquet", ".tar", ".gz", ".bz2", ".xz", ".tgz", ".tbz", ".tbz2", ".txz"),
)


@dataclass(frozen=True)
class Sample:
    """One labelled image."""

    path: Path
    label: int
    """The class's place in the class list."""


@dataclass(frozen=True)
class LabeledImages:
    """The images found in a folder, a table or an archive.

    `splits` maps "train", "valid", "test", or "all" for data that is not divided, to samples.
    """

    root: Path
    """The folder that paths are relative to: the one named, the table's own, or where an archive was unpacked."""
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    source: Path
    """What was named: a folder, a table or an archive."""
    num_hidden: int = 0
    """Hidden files and folders passed over."""
    num_other_files: int = 0
    """Files that are not images, or lie outside every class folder."""
    left_out: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Images that the ignore list names, by split."""
    warnings: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """A short name for titles and run folders."""
        return short_name(self.source)

    @property
    def location(self) -> str:
        """What would name the data from any folder."""
        said = self.source.as_posix()
        if not said.startswith("hf:"):
            return str(expanded(said).resolve())
        folder, mark, choice = said.removeprefix("hf:").partition("?")
        return f"hf:{expanded(folder).resolve()}{mark}{choice}" if folder.startswith((".", "~")) else said

    @property
    def is_flat(self) -> bool:
        """Whether the data holds classes and no splits."""
        return "all" in self.splits

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Every image of every split."""
        return tuple(sample for samples in self.splits.values() for sample in samples)

    @property
    def ignored(self) -> tuple[str, ...]:
        """The images that the ignore list names, as `relative` would write them."""
        return tuple(self._below_root(path) for paths in self.left_out.values() for path in paths)

    def relative(self, sample: Sample) -> str:
        """The sample's path below the root, or in full if it lies elsewhere; with forward slashes on every system."""
        return self._below_root(sample.path)

    def counts(self, split: str) -> dict[str, int]:
        """Images of each class in a split, in the order of `classes`."""
        numbers = Counter(sample.label for sample in self.splits[split])
        return {name: numbers[label] for label, name in enumerate(self.classes)}

    def _below_root(self, path: Path) -> str:
        below = path.is_relative_to(self.root)
        return (path.relative_to(self.root) if below else path.absolute()).as_posix()


@dataclass
class Listing:
    """What one form of data holds, before its classes are numbered."""

    root: Path
    splits: dict[str, ByClass]
    top: Path | None = None
    """The folder that was named, where `root` is one inside it."""
    num_hidden: int = 0
    num_other_files: int = 0
    num_loose_images: int = 0
    """Images outside every class folder; they count among the other files."""
    warnings: list[str] = field(default_factory=list)

    def images(self) -> list[Path]:
        """Every image of every class and split."""
        return [path for by_class in self.splits.values() for paths in by_class.values() for path in paths]


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted, in the same order on all systems; left to itself, Windows ignores capitals."""
    return sorted(paths, key=lambda path: path.parts)


def expanded(path: Path | str) -> Path:
    """A path with the home folder in place of `~`; `~nobody` stays what it is where there is no such user.

    What the hub calls `hf://datasets/NAME` becomes `hf:NAME`, for a path has no two slashes in a row.
    """
    # pathlib would raise an error for such a user.
    return Path(os.path.expanduser(re.sub("^hf://datasets/", "hf:", str(path))))  # noqa: PTH111


def short_name(source: Path) -> str:
    """What to call some data: its name without extensions (`photos.tar.gz`: photos), owner and revision."""
    if source.is_dir():
        return source.resolve().name
    name = re.split("[:@?]", source.name.removeprefix("hf:"))[0]
    if re.search(r"[*?{\[]", name) and not source.exists():
        # A pattern of files: what they lie in says more.
        name = source.resolve().parent.name
    while Path(name).suffix.lower() in _FILE_EXTENSIONS:
        name = Path(name).stem
    return name
