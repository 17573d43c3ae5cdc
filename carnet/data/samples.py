"""What every form of data becomes: labelled images; how some are held out, and a list of paths leaves some out."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from carnet.errors import DataError
from carnet.files import open_text
from carnet.text import counted, first_few

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
        return tuple(self.relative(path) for paths in self.left_out.values() for path in paths)

    def relative(self, image: Sample | Path) -> str:
        """An image's path below the root, or in full if it lies elsewhere; with forward slashes on every system."""
        path = image if isinstance(image, Path) else image.path
        below = path.is_relative_to(self.root)
        return (path.relative_to(self.root) if below else path.absolute()).as_posix()

    def counts(self, split: str) -> dict[str, int]:
        """Images of each class in a split, in the order of `classes`."""
        numbers = Counter(sample.label for sample in self.splits[split])
        return {name: numbers[label] for label, name in enumerate(self.classes)}


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
    left_out: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Images that an ignore list took out, by split."""
    warnings: list[str] = field(default_factory=list)

    def labeled(self, classes: Sequence[str], source: Path) -> LabeledImages:
        """The images of each split, each with its class's place in `classes`."""
        number = {name: label for label, name in enumerate(classes)}
        splits = {
            split: tuple(Sample(path, number[name]) for name, paths in sorted(by_class.items()) for path in paths)
            for split, by_class in self.splits.items()
        }
        return LabeledImages(
            root=self.root,
            classes=tuple(classes),
            splits=splits,
            source=source,
            num_hidden=self.num_hidden,
            num_other_files=self.num_other_files,
            left_out=self.left_out,
            warnings=tuple(self.warnings),
        )


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


def hold_out(
    samples: Sequence[Sample], digests: Mapping[Path, str], *, fraction: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Divide labelled images into those to train on and those to validate with.

    Stratified: each class gives `fraction` of its images, at least one where it has two or more. Files that are equal
    byte for byte stay on one side, under whatever name or class they appear. Which images are held back follows from
    `seed` and their content alone, so that adding or renaming files moves few others.

    Args:
        samples: the images.
        digests: content hash of each file.
        fraction: share to hold back, between 0 and 1.
        seed: chooses among the possible divisions.

    Returns:
        (train, valid), each in the order of `samples`.
    """
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[digests[sample.path]].append(sample)
    sizes = Counter(sample.label for sample in samples)
    # Never all of a class: something has to be left to learn from.
    room = {label: min(max(1, round(fraction * size)), size - 1) for label, size in sizes.items()}
    held_back: set[str] = set()
    for digest in sorted(groups, key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest()):
        wanted = Counter(sample.label for sample in groups[digest])
        if all(count <= room[label] for label, count in wanted.items()):
            held_back.add(digest)
            for label, count in wanted.items():
                room[label] -= count
    train = tuple(sample for sample in samples if digests[sample.path] not in held_back)
    valid = tuple(sample for sample in samples if digests[sample.path] in held_back)
    return train, valid


def read_ignore_file(path: Path | str) -> tuple[str, ...]:
    """The paths that a list names, as they are written.

    Args:
        path: a text file in UTF-8.

    Raises:
        DataError: if there is no such file, or it is no such text, or larger than `carnet.files.MAX_TABLE_BYTES`.
    """
    path = Path(path)
    lines: list[str] = []
    try:
        with open_text(path) as file:
            # A line at a time: a list may be large, and one of empty lines would take many times its size.
            for line in file:
                if "\0" in line:
                    raise DataError(f"{path} is no text; an ignore list is a text with one path on each line")
                if (line := line.strip()) and not line.startswith("#"):
                    lines.append(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8; an ignore list is a text with one path on each line") from error
    except OSError as error:
        raise DataError(f"cannot read the ignore list {path}: {error.strerror or error}") from error
    return tuple(lines)


def named_images(images: Iterable[Path], lines: Sequence[str], roots: Iterable[Path]) -> tuple[set[Path], list[str]]:
    """Which images some lines name.

    Args:
        images: among which to look.
        lines: as `read_ignore_file` gives them.
        roots: folders that relative lines count from, the first one that fits; the current folder is the last.

    Returns:
        (the images that are named, the lines that name none).
    """
    known: dict[str, list[Path]] = {}
    for image in images:
        known.setdefault(_key(image), []).append(image)
    places = [(root, root.resolve()) for root in (*roots, Path.cwd())]
    named: set[Path] = set()
    strange = []
    for line in lines:
        if (key := next((key for key in _keys(line, places) if key in known), None)) is None:
            strange.append(line)
        else:
            named.update(known[key])
    return named, strange


def leave_out(listing: Listing, ignore: Sequence[str]) -> None:
    """Take the images that an ignore list names out of a listing, which notes lines that name none."""
    if not ignore:
        return
    images = [path for by_class in listing.splits.values() for paths in by_class.values() for path in paths]
    roots = [listing.root] if listing.top is None else [listing.root, listing.top]
    named, strange = named_images(images, ignore, roots)
    for split, by_class in listing.splits.items():
        listing.left_out[split] = tuple(path for paths in by_class.values() for path in paths if path in named)
        for name, paths in by_class.items():
            by_class[name] = [path for path in paths if path not in named]
    if strange:
        listing.warnings.append(about_strange(strange))


def about_strange(strange: Sequence[str]) -> str:
    """What to say of lines that name no image."""
    lines = first_few([repr(line[:200]) for line in strange])
    return f"{counted(len(strange), 'line')} of the ignore list name{'s' * (len(strange) == 1)} no image here: {lines}"


def _keys(line: str, places: Sequence[tuple[Path, Path]]) -> Iterable[str]:
    """What the image could be called, the likeliest first."""
    for text in dict.fromkeys((line, line.replace("\\", "/"))):
        for root, resolved in places:
            yield _key(root / text)
            # The data may have been named by way of a link.
            if Path(text).is_relative_to(resolved):
                yield _key(root / Path(text).relative_to(resolved))


def _key(path: Path) -> str:
    """Equal for two ways of writing one path."""
    return unicodedata.normalize("NFC", os.path.normcase(os.path.normpath(Path.cwd() / path)))
