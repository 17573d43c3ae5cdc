"""From a folder to one sorted list of labelled images.

Two forms are understood:

- split: `DATA/train/<class>/…`, with `valid` (also `val` or `validation`) and `test` beside `train`;
- flat: `DATA/<class>/…`, which `carnet.data.split` divides.

A class is a folder; its images may lie in folders inside it. Every split counts its classes in the one sorted list
that `train` gives, so a class has the same number everywhere.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carnet.errors import DataError
from carnet.preprocess import looks_like_image
from carnet.progress import counted

SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
"""Folder name -> the split it holds."""


@dataclass(frozen=True)
class Sample:
    """One labelled image."""

    path: Path
    label: int
    """The class's place in the class list."""


@dataclass(frozen=True)
class LabeledImages:
    """The images found in a folder. `splits` maps "train", "valid", "test", or "all" for a flat folder, to samples."""

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    num_hidden: int = 0
    """Hidden files and folders passed over."""
    num_other_files: int = 0
    """Files that are not images, or lie outside every class folder."""
    warnings: tuple[str, ...] = field(default=())

    @property
    def is_flat(self) -> bool:
        """Whether the folder holds classes and no splits."""
        return "all" in self.splits

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Every image of every split."""
        return tuple(sample for samples in self.splits.values() for sample in samples)

    def relative(self, sample: Sample) -> str:
        """The sample's path below the root, with forward slashes on every system."""
        return sample.path.relative_to(self.root).as_posix()

    def counts(self, split: str) -> dict[str, int]:
        """Images of each class in a split, in the order of `classes`."""
        numbers = Counter(sample.label for sample in self.splits[split])
        return {name: numbers[label] for label, name in enumerate(self.classes)}


def find_images(root: Path | str, classes: Sequence[str] | None = None) -> LabeledImages:
    """List the labelled images in a folder.

    Args:
        root: the folder, in either form.
        classes: number the labels by this list (a trained model's) instead of by the folder's own.

    Raises:
        DataError: no such folder, no images, a class that `train` (or `classes`) does not have, one class only,
            or a form that could mean two things.
    """
    root = Path(root)
    _check_is_folder(root)
    found = _Found()
    folders = _subfolders(root, found)
    splits = _split_folders(root, folders)
    found.count_loose_files(root)
    if splits:
        listed = {}
        for split, folder in splits.items():
            found.count_loose_files(folder)
            listed[split] = _list_classes(_subfolders(folder, found), found)
        for folder in folders:
            if folder not in splits.values():
                found.num_other_files += sum(1 for _ in _images(folder, found))
                found.warnings.append(f"folder {folder.name} is none of the splits and is left out")
    else:
        listed = {"all": _list_classes(folders, found)}
    if classes is None:
        classes = _own_classes(root, listed, found)
    else:
        _check_known(listed, classes, "the model")
    number = {name: label for label, name in enumerate(classes)}
    samples = {
        split: tuple(Sample(path, number[name]) for name, paths in sorted(by_class.items()) for path in paths)
        for split, by_class in listed.items()
    }
    return LabeledImages(root, tuple(classes), samples, found.num_hidden, found.num_other_files, tuple(found.warnings))


def images_in(folder: Path) -> list[Path]:
    """Every image in a folder and the folders inside it, sorted."""
    return sorted(_images(folder, _Found()))


ByClass = dict[str, list[Path]]


@dataclass
class _Found:
    """What the walk passes over, counted on the way."""

    num_hidden: int = 0
    num_other_files: int = 0
    warnings: list[str] = field(default_factory=list)

    def count_loose_files(self, folder: Path) -> None:
        loose = [path for path in sorted(folder.iterdir()) if path.is_file() and not _is_hidden(path)]
        self.num_hidden += sum(1 for path in folder.iterdir() if path.is_file() and _is_hidden(path))
        self.num_other_files += len(loose)
        images = [path.name for path in loose if looks_like_image(path)]
        if images:
            self.warnings.append(
                f"{counted(len(images), 'image')} directly in {folder}, in no class folder, left out: {_some(images)}"
            )


def _check_is_folder(root: Path) -> None:
    if not root.exists():
        near = difflib.get_close_matches(root.name, [p.name for p in _siblings(root)], n=1)
        hint = f"; did you mean {root.parent / near[0]}?" if near else ""
        raise DataError(f"no folder {root}{hint}")
    if not root.is_dir():
        raise DataError(f"{root} is a file; DATA is a folder with one folder of images per class")


def _siblings(root: Path) -> list[Path]:
    return [path for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _subfolders(folder: Path, found: _Found) -> list[Path]:
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    found.num_hidden += sum(1 for path in folders if _is_hidden(path))
    return [path for path in folders if not _is_hidden(path)]


def _split_folders(root: Path, folders: list[Path]) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            continue
        if split in splits:
            raise DataError(f"{root} has both {splits[split].name} and {folder.name}; keep one of them")
        splits[split] = folder
    # A split holds class folders; a class that happens to be called "train" or "test" holds images.
    return splits if splits and any(_has_subfolder(folder) for folder in splits.values()) else {}


def _has_subfolder(folder: Path) -> bool:
    return any(path.is_dir() and not _is_hidden(path) for path in folder.iterdir())


def _list_classes(folders: list[Path], found: _Found) -> ByClass:
    by_class: ByClass = {}
    for folder in folders:
        # macOS may spell an accented letter with two characters where other systems use one.
        name = unicodedata.normalize("NFC", folder.name)
        by_class.setdefault(name, []).extend(sorted(_images(folder, found)))
    return by_class


def _images(folder: Path, found: _Found) -> Iterator[Path]:
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        here = Path(current)
        hidden = [name for name in (*folders, *names) if _is_hidden(Path(name))]
        found.num_hidden += len(hidden)
        folders[:] = sorted(name for name in folders if name not in hidden)
        for name in sorted(set(names) - set(hidden)):
            if looks_like_image(here / name):
                yield here / name
            else:
                found.num_other_files += 1


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot look into {error.filename}: {error.strerror}") from error


def _own_classes(root: Path, listed: dict[str, ByClass], found: _Found) -> tuple[str, ...]:
    first = "all" if "all" in listed else "train"
    if first not in listed:
        raise DataError(f"{root} has {' and '.join(listed)} but no train folder, {root / 'train'}")
    for split, by_class in listed.items():
        empty = [name for name, paths in sorted(by_class.items()) if not paths]
        for name in empty:
            del by_class[name]
        if empty:
            found.warnings.append(f"{counted(len(empty), 'class folder')} of {split} without images: {_some(empty)}")
    classes = tuple(sorted(listed[first]))
    if not classes:
        where = root if first == "all" else root / "train"
        raise DataError(f"no images in {where}; DATA needs one folder of images per class: {where / 'cat' / '1.jpg'}")
    if len(classes) == 1:
        raise DataError(f"{root} has images of one class only ({classes[0]!r}); a classifier needs at least two")
    _check_known(listed, classes, first)
    for split, by_class in listed.items():
        missing = [name for name in classes if name not in by_class]
        if missing and split != first:
            number = counted(len(missing), "class", "classes")
            found.warnings.append(f"{number} of train without images in {split}: {_some(missing)}")
    return classes


def _check_known(listed: dict[str, ByClass], classes: Sequence[str], whose: str) -> None:
    for split, by_class in listed.items():
        strange = {name: len(paths) for name, paths in sorted(by_class.items()) if paths and name not in classes}
        if not strange:
            continue
        names = [f"{name!r} ({counted(count, 'image')}{_similar(name, classes)})" for name, count in strange.items()]
        where = "DATA" if split == "all" else split
        raise DataError(
            f"{where} has {counted(len(names), 'class', 'classes')} that {whose} does not have: {_some(names)}; "
            f"rename or remove the folder"
        )


def _similar(name: str, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in classes], n=1, cutoff=0.8)
    matches = [known for known in classes if near and known.lower() == near[0]]
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _some(items: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
