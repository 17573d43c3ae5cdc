"""Labelled images, which every form of data becomes; how to hold some out, and leave some out by a list of paths."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from carnet.errors import DataError
from carnet.files import open_text
from carnet.text import counted, first_few

Layout = Literal["auto", "classes", "splits"]
"""What the folders in DATA are: classes, or splits that contain classes; auto decides by names and contents."""
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits in folders, tables and data sets, in lower case -> the split."""
ByClass = dict[str, list[Path]]
"""Class name -> its images, sorted by path."""

_FILE_EXTENSION = re.compile(r"\.(csv|tsv|txt|zip|parquet|tar|gz|bz2|xz|tgz|tbz2?|txz)", re.IGNORECASE)


@dataclass(frozen=True)
class Sample:
    """One labelled image; `label` is the index of its class in the list of classes."""

    path: Path
    label: int


@dataclass(frozen=True)
class LabeledImages:
    """The images found in a folder, a table, an archive or a data set.

    Attributes:
        root: the folder that paths are relative to: the one given, the table's, or where an archive was unpacked.
        classes: names of the classes.
        splits: "train", "valid", "test", or "all" for data without splits -> the images.
        source: DATA as it was given.
        num_hidden: how many hidden files and folders were skipped.
        num_other_files: how many files are not images, or are in no class folder.
        left_out: images that the ignore list names, by split.
        warnings: what the user should know.
    """

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    source: Path
    num_hidden: int = 0
    num_other_files: int = 0
    left_out: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name for titles and run folders."""
        return short_name(self.source)

    @property
    def location(self) -> str:
        """DATA in a form that is valid from any folder."""
        given = self.source.as_posix()
        if not given.startswith("hf:"):
            return str(expanded(given).resolve())
        folder, mark, choice = given.removeprefix("hf:").partition("?")
        return f"hf:{expanded(folder).resolve()}{mark}{choice}" if folder.startswith((".", "~")) else given

    @property
    def is_flat(self) -> bool:
        """Whether the data has classes and no splits."""
        return "all" in self.splits

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The images of all splits."""
        return tuple(sample for samples in self.splits.values() for sample in samples)

    @property
    def ignored(self) -> tuple[str, ...]:
        """The images that the ignore list names, as `relative` writes them."""
        return tuple(self.relative(path) for paths in self.left_out.values() for path in paths)

    def relative(self, image: Sample | Path) -> str:
        """Return the path of an image below the root, or in full if it lies elsewhere, with forward slashes."""
        path = image if isinstance(image, Path) else image.path
        # Of very many files, this is many times as fast as `Path.relative_to`.
        text, root = str(path), f"{self.root}{os.sep}"
        if text.startswith(root):
            return text[len(root) :].replace(os.sep, "/")
        below = path.is_relative_to(self.root)
        return (path.relative_to(self.root) if below else path.absolute()).as_posix()

    def counts(self, split: str) -> dict[str, int]:
        """Return the number of images of each class in a split, in the order of `classes`."""
        numbers = Counter(sample.label for sample in self.splits[split])
        return {name: numbers[label] for label, name in enumerate(self.classes)}


@dataclass
class Listing:
    """What one form of data holds, before its classes are numbered.

    The fields are those of `LabeledImages`, and:

    Attributes:
        top: the folder that was given, if `root` is inside it.
        num_loose_images: how many of the other files are images.
        unlabeled: `identity` of the folder of images without labels, which is passed over; None: there is
            none.
    """

    root: Path
    splits: dict[str, ByClass]
    top: Path | None = None
    num_hidden: int = 0
    num_other_files: int = 0
    num_loose_images: int = 0
    unlabeled: object = None
    left_out: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def labeled(self, classes: Sequence[str], source: Path) -> LabeledImages:
        """Return the images, labelled with the index of their class in `classes`."""
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
    """Sort paths in the same order on all systems; by default, Windows ignores case."""
    return sorted(paths, key=lambda path: path.parts)


def expanded(path: Path | str) -> Path:
    """Return a path with the home folder in place of `~`, and `hf:NAME` for the hub's `hf://datasets/NAME`."""
    # pathlib would raise an error for a user who does not exist, and drops one of two slashes.
    return Path(os.path.expanduser(re.sub("^hf://datasets/", "hf:", str(path))))  # noqa: PTH111


def short_name(source: Path) -> str:
    """Return a short name for some data, without extensions (`photos.tar.gz`: photos), owner and revision."""
    if source.is_dir():
        return source.resolve().name
    name = re.split("[:@?]", source.name.removeprefix("hf:"))[0]
    if re.search(r"[*?{\[]", name) and not source.exists():
        # For a pattern of files, the name of their folder says more.
        name = source.resolve().parent.name
    while _FILE_EXTENSION.fullmatch(Path(name).suffix):
        name = Path(name).stem
    return name


_LARGEST_GROUP = 20
"""Contents in a group of near copies of near copies; larger ones are divided."""


def groups_of(near: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Return the group of each content that has near copies: the content that stands for it.

    Near copies of near copies are in one group, so that no pair is on two sides. A long series, in which each photo is
    like the next, would become one group as well: there, a content joins the first one that it is like itself.

    Args:
        near: content -> its near copies.
    """
    leaders: dict[str, str] = {}
    for start in sorted(near):
        if start in leaders:
            continue
        group, left = {start}, [start]
        while left:
            new = near[left.pop()] - group
            group |= new
            left += new
        if len(group) <= _LARGEST_GROUP:
            leaders |= dict.fromkeys(group, start)
            continue
        for digest in sorted(group):
            like = sorted(other for other in near[digest] if leaders.get(other) == other)
            leaders[digest] = like[0] if like else digest
    return leaders


def representatives(digests: Sequence[str], near: Mapping[str, frozenset[str]] | None) -> list[str]:
    """Return for each content the one that stands for it and its near copies, as `groups_of` chooses it.

    Args:
        digests: the contents.
        near: content -> its near copies; None: they are not known, and each content stands for itself.
    """
    groups = groups_of(near or {})
    return [groups.get(digest, digest) for digest in digests]


def hold_out(
    samples: Sequence[Sample],
    digests: Mapping[Path, str],
    *,
    fraction: float,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Divide labelled images into those to train on and those to validate with.

    The division is stratified: each class gives `fraction` of its images, at least one if it has two or more. Files
    that are equal byte for byte stay on one side, whatever their names and classes, and so do near copies, except in a
    class that consists of so few groups of them that none can be spared. Which images are held out follows from `seed`
    and their content only, so adding or renaming files moves few others.

    Args:
        samples: the images.
        digests: content hash of each file.
        fraction: fraction to hold out, between 0 and 1.
        seed: chooses one of the possible divisions.
        groups: content hash -> that of the content which stands for its near copies, as `groups_of` returns it.

    Returns:
        (train, valid), each in the order of `samples`.
    """
    group_of = groups or {}
    sizes = Counter(sample.label for sample in samples)
    # Never hold out all images of a class: some must be left to train on.
    room = {label: min(max(1, round(fraction * size)), size - 1) for label, size in sizes.items()}
    division = _Division()
    by_group = _by_content(samples, lambda sample: group_of.get(digests[sample.path], digests[sample.path]), seed)
    for group in by_group:
        division.take(group, room)
    without = {label for label, size in sizes.items() if size > 1 and not division.held_out[label]}
    if without:
        # The smallest groups of these classes, even if they are larger than wanted; or else contents of a group.
        for group in sorted(by_group, key=len):
            if any(sample.label in without and not division.held_out[sample.label] for sample in group):
                division.take(group, {label: size // 2 for label, size in sizes.items()})
        for group in _by_content(samples, lambda sample: digests[sample.path], seed):
            if all(sample.label in without and not division.is_held_out(sample) for sample in group):
                division.take(group, room)
    train = tuple(sample for sample in samples if not division.is_held_out(sample))
    valid = tuple(sample for sample in samples if division.is_held_out(sample))
    return train, valid


def _by_content(samples: Sequence[Sample], key: Callable[[Sample], str], seed: int) -> list[list[Sample]]:
    """Return the images of each content together, in an order that follows from the seed and the contents."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[key(sample)].append(sample)
    order = sorted(groups, key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
    return [groups[digest] for digest in order]


@dataclass
class _Division:
    """The images that are held out.

    Attributes:
        held_out: how many of each class.
        taken: the images.
    """

    held_out: Counter[int] = field(default_factory=Counter)
    taken: set[Sample] = field(default_factory=set)

    def take(self, group: Sequence[Sample], limits: Mapping[int, int]) -> None:
        """Hold out some images together, if all their classes have room for them."""
        wanted = Counter(sample.label for sample in group)
        if all(self.held_out[label] + count <= limits[label] for label, count in wanted.items()):
            self.held_out += wanted
            self.taken.update(group)

    def is_held_out(self, sample: Sample) -> bool:
        """Return whether an image is held out."""
        return sample in self.taken


def read_ignore_file(path: Path | str) -> tuple[str, ...]:
    """Return the paths that an ignore list names, as they are written; empty lines and # comments are skipped.

    A path counts from the data's folder, as `filepath` in a run's `data.csv`, or from the current folder, or is
    absolute.

    Args:
        path: a UTF-8 text file with one path on each line.

    Raises:
        DataError: if it does not exist, is not such a text, or is larger than `carnet.files.MAX_TABLE_BYTES`.
    """
    path = Path(path)
    lines: list[str] = []
    try:
        with open_text(path) as file:
            # Read line by line, because a list of empty lines would take many times its size in memory.
            for line in file:
                if "\0" in line:
                    raise DataError(f"{path} is not a text; an ignore list is a UTF-8 text with one path on each line")
                if (line := line.strip()) and not line.startswith("#"):
                    lines.append(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8; an ignore list is a UTF-8 text with one path on each line") from error
    except OSError as error:
        raise DataError(f"cannot read the ignore list {path}: {error.strerror or error}") from error
    return tuple(lines)


def named_images(images: Iterable[Path], lines: Sequence[str], roots: Iterable[Path]) -> tuple[set[Path], list[str]]:
    """Return the images that some lines name, and the lines that name none.

    Args:
        images: the images to search.
        lines: paths, as `read_ignore_file` returns them.
        roots: folders that relative paths count from, tried in order before the current folder.
    """
    known: dict[str, list[Path]] = {}
    for image in images:
        known.setdefault(_key(image), []).append(image)
    places = [(root, root.resolve()) for root in (*roots, Path.cwd())]
    named: set[Path] = set()
    unmatched = []
    for line in lines:
        if (key := next((key for key in _keys(line, places) if key in known), None)) is None:
            unmatched.append(line)
        else:
            named.update(known[key])
    return named, unmatched


def leave_out(listing: Listing, ignore: Sequence[str], *, elsewhere: Collection[str] = ()) -> None:
    """Move the images that an ignore list names to `left_out`, and warn of lines that name none.

    Args:
        listing: the images.
        ignore: lines of the list.
        elsewhere: lines that name images without labels.
    """
    if not ignore:
        return
    images = [path for by_class in listing.splits.values() for paths in by_class.values() for path in paths]
    roots = [listing.root] if listing.top is None else [listing.root, listing.top]
    named, unmatched = named_images(images, ignore, roots)
    for split, by_class in listing.splits.items():
        listing.left_out[split] = tuple(path for paths in by_class.values() for path in paths if path in named)
        for name, paths in by_class.items():
            by_class[name] = [path for path in paths if path not in named]
    others = set(elsewhere)
    if unmatched := [line for line in unmatched if line not in others]:
        listing.warnings.append(describe_unmatched(unmatched))


def describe_unmatched(unmatched: Sequence[str]) -> str:
    """Return a warning about lines of an ignore list that name no image."""
    lines = first_few([repr(line[:200]) for line in unmatched])
    return (
        f"{counted(len(unmatched), 'line')} of the ignore list name{'s' * (len(unmatched) == 1)} no image here: {lines}"
    )


def _keys(line: str, places: Sequence[tuple[Path, Path]]) -> Iterable[str]:
    """Yield the keys of the images that a line may mean, the most likely first."""
    for text in dict.fromkeys((line, line.replace("\\", "/"))):
        for root, resolved in places:
            yield _key(root / text)
            # The data may have been given as a link.
            if Path(text).is_relative_to(resolved):
                yield _key(root / Path(text).relative_to(resolved))


def _key(path: Path) -> str:
    """Return the same text for all ways to write one path."""
    return unicodedata.normalize("NFC", os.path.normcase(os.path.normpath(Path.cwd() / path)))


def identity(path: Path) -> object:
    """Return what all ways to write the path of one file or folder have in common: two files are one if it is equal."""
    with suppress(OSError, ValueError):
        state = path.stat()
        # Some network drives on Windows give every file the number 0.
        if state.st_ino:
            return state.st_dev, state.st_ino
    with suppress(OSError, ValueError):
        return os.path.normcase(os.path.realpath(path))
    return str(path)
