"""Labelled images in folders.

Two forms are understood:

- split: `DATA/train/<class>/…`, with `valid` and `test` beside `train` (`SPLIT_NAMES` has their other names);
- flat: `DATA/<class>/…`, which `carnet.data.samples` divides.

A class is a folder; its images may lie in folders inside it. Where one folder holds everything, it is entered. Where a
folder beside the supposed splits holds images too, both readings are possible, and the user is asked (`--layout`).
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from carnet.data.samples import SPLIT_NAMES, ByClass, Layout, Listing, in_order
from carnet.errors import DataError
from carnet.preprocess import looks_like_image
from carnet.text import counted, first_few

TABLE_EXTENSIONS = (".csv", ".tsv")
_HIDDEN = frozenset(
    (
        *("__macosx", "icon\r", "network trash folder", "temporary items", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "system volume information"),
    )
)
"""What macOS, Linux and Windows put beside files, in small letters."""
_SYSTEM = re.compile(
    r"[#@~$](recycle(\.bin|d|r)?|trash(es)?|(recently-)?snapshots?|snap|eadir|tmp|__thumb|sharebin)"
    r"|.*@syno(eastream|resource)|found\.\d{3}",
    re.IGNORECASE,
)
"""What network drives put beside files, such as #recycle, ~snapshot and @eaDir; and Windows when it repairs a disk."""
_UNLABELED = frozenset(("unlabeled", "unlabelled", "unannotated", "unsupervised"))
"""What a folder beside the splits is called whose images have no class."""
_IMAGES = frozenset(("images", "image", "imgs", "img", "jpegimages", "photos", "pictures"))
_ABOUT_IMAGES = frozenset(
    (
        *("annotations", "annotation", "labels", "groundtruth", "ground_truth", "gt", "depth", "masks", "mask"),
        *("trimaps", "segmentations", "segmentation", "segmentationclass", "segmentationobject"),
    )
)
"""What folders are called that hold the images of a data set, and those that hold pictures about them."""


def list_folder(root: Path, shown: Path, known_classes: Collection[str] = (), layout: Layout = "auto") -> Listing:
    """List the images in a folder, in either form.

    Args:
        root: the folder.
        shown: what messages call it: images from an archive are known by the archive's name.
        known_classes: a folder of such a name is a class, even if it is the only one.
        layout: the form, if the user has said it.

    Raises:
        DataError: if two folders hold the same split, folders could be splits or classes, a folder may not be looked
            into, or a link leads nowhere.
    """
    walk = _Walk(root, shown)
    folders = walk.enter(known_classes)
    splits = {} if layout == "classes" else _split_folders(folders, walk, layout)
    walk.count_loose_files(walk.root)
    if not splits:
        return walk.listing({"all": _list_classes(folders, walk)}, root)
    listed = {}
    for split, folder in splits.items():
        walk.count_loose_files(folder)
        listed[split] = _list_classes(walk.subfolders(folder), walk)
    beside = {folder: list(_images(folder, walk)) for folder in folders if folder not in splits.values()}
    if layout == "auto":
        _check_that_none_are_lost(splits, listed, beside, walk)
    for folder, images in beside.items():
        walk.num_other_files += len(images)
        number = f", with {counted(len(images), 'image')}" if images else ""
        walk.warnings.append(f"folder {folder.name} is none of the splits and is left out{number}")
    return walk.listing(listed, root)


def check_classes(listing: Listing, shown: Path, layout: Layout = "auto") -> None:
    """Look whether folders that are taken for classes may be something else: `seg_train` and `seg_test`, or `masks`.

    Args:
        listing: as `list_folder` gives it; takes a note if folders in several classes have one name.
        shown: what messages call the folder.
        layout: the form, if the user has said it; then nothing is refused.

    Raises:
        DataError: if they look like splits: by their names, all of them or those that hold folders of the same names;
            or like images and pictures about them.
    """
    for split, classes in listing.splits.items():
        names = sorted(name for name, paths in classes.items() if paths)
        known = {name.lower() for name in names}
        if layout != "classes" and known & _IMAGES and known & _ABOUT_IMAGES and known <= _IMAGES | _ABOUT_IMAGES:
            raise DataError(
                f"the folders {first_few(names)} in {shown} look like images and pictures about them, not like "
                "classes; name the folder that holds one folder per class, or a table that gives the classes"
                + (", or say --layout classes if they are" if split == "all" else "")
            )
    by_class = listing.splits.get("all", {})
    inside = {name: _folders_inside(paths, listing.root) for name, paths in by_class.items() if paths}
    times = Counter(name for names in inside.values() for name in names)
    shared = sorted(name for name, number in times.items() if number > 1)
    alike = [name for name, names in sorted(inside.items()) if names & set(shared)]
    for suspects in (list(inside), alike):
        splits = [_split_in(name) for name in suspects]
        if layout != "classes" and len(set(splits) - {""}) > 1 and (suspects is alike or all(splits)):
            raise DataError(
                f"the folders {first_few(sorted(suspects))} in {shown} look like splits, not like classes; call them "
                f"train, valid and test, with one folder per class in each, or name a table that gives the classes, "
                f"or say --layout classes if they are"
            )
    if shared:
        what = f"folders of the same names ({first_few(shared)}), which are taken for parts of these classes"
        listing.warnings.append(f"{first_few(alike)} hold {what}")


def images_in(folder: Path) -> list[Path]:
    """Every image in a folder and the folders inside it, sorted."""
    return in_order(_images(folder, _Walk(folder, folder)))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's doing, but the system's or a tool's."""
    return name.startswith(".") or name.lower() in _HIDDEN or _SYSTEM.fullmatch(name) is not None


def visible(folder: Path) -> list[Path]:
    """What a folder holds that is not hidden, sorted.

    Raises:
        DataError: if it may not be looked into.
    """
    return [path for path in _contents(folder) if not is_hidden(path.name)]


@dataclass
class _Walk:
    """Where the walk begins, and what it passes over."""

    root: Path
    shown: Path
    num_hidden: int = 0
    num_other_files: int = 0
    num_loose_images: int = 0
    warnings: list[str] = field(default_factory=list)

    def enter(self, known_classes: Collection[str]) -> list[Path]:
        """Make the one folder that holds everything the root, as long as there is one; return the root's folders."""
        top, been_in = self.root, {self.root.resolve()}
        folders = self.subfolders(self.root)
        while _holds_everything(folders, self.root, known_classes) and folders[0].resolve() not in been_in:
            self.count_loose_files(self.root)
            self.root = folders[0]
            been_in.add(self.root.resolve())
            folders = self.subfolders(self.root)
        if self.root != top:
            inside = self.root.relative_to(top)
            self.warnings.append(f"everything in {self.shown} lies in one folder, {inside.as_posix()}, which is taken")
            self.shown /= inside
        return folders

    def subfolders(self, folder: Path) -> list[Path]:
        contents = _contents(folder)
        self.num_hidden += sum(1 for path in contents if is_hidden(path.name) and os.path.isdir(path))  # noqa: PTH112
        return [path for path in contents if not is_hidden(path.name) and is_folder(path)]

    def count_loose_files(self, folder: Path) -> None:
        files = [path for path in _contents(folder) if path.is_file()]
        loose = [path for path in files if not is_hidden(path.name)]
        self.num_hidden += len(files) - len(loose)
        self.num_other_files += len(loose)
        images = [path.name for path in loose if looks_like_image(path)]
        if images:
            self.num_loose_images += len(images)
            number, where = counted(len(images), "image"), self.shown / folder.relative_to(self.root)
            self.warnings.append(f"{number} directly in {where}, in no class folder, left out: {first_few(images)}")

    def listing(self, splits: dict[str, ByClass], top: Path) -> Listing:
        return Listing(
            root=self.root,
            splits=splits,
            top=top,
            num_hidden=self.num_hidden,
            num_other_files=self.num_other_files,
            num_loose_images=self.num_loose_images,
            warnings=self.warnings,
        )


def _contents(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _closed(error) from error


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to one.

    Raises:
        DataError: if it is a link that leads nowhere, such as to a disk that is not mounted, or cannot be looked at.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        try:
            target = path.readlink()
        except OSError:
            if isinstance(error, FileNotFoundError):
                # Somebody has removed it meanwhile.
                return False
            raise _closed(error) from error
        raise DataError(
            f"{path} is a link to {target}, which cannot be reached ({error.strerror}); mount its disk, or correct or "
            f"remove the link"
        ) from error


def _closed(error: OSError) -> DataError:
    return DataError(f"cannot look into {error.filename}: {error.strerror}; allow it, or move the folder away")


def _holds_everything(folders: list[Path], root: Path, known_classes: Collection[str]) -> bool:
    """Whether a folder's only folder has folders of its own, and nothing beside it could be data."""
    if len(folders) != 1 or not _has_subfolder(folders[0]) or _class_name(folders[0]) in known_classes:
        return False
    if folders[0].name.lower() in SPLIT_NAMES and not _has_splits(folders[0]):
        return False
    # A licence or a text beside the one folder is usual; a table may say what the classes are.
    beside = [path for path in visible(root) if path.is_file()]
    return not any(path.suffix.lower() in TABLE_EXTENSIONS or looks_like_image(path) for path in beside)


def _has_splits(folder: Path) -> bool:
    named = [path for path in visible(folder) if path.name.lower() in SPLIT_NAMES]
    return any(_has_subfolder(path) for path in named if is_folder(path))


def _has_subfolder(folder: Path) -> bool:
    # pathlib's would raise an error in a folder that may be listed and not entered.
    return any(os.path.isdir(path) for path in visible(folder))  # noqa: PTH112


def _split_folders(folders: list[Path], walk: _Walk, layout: Layout) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            continue
        if split in splits:
            raise DataError(
                f"{walk.shown} has both {splits[split].name} and {folder.name}; keep one of them, or say --layout "
                f"classes if every folder is a class"
            )
        splits[split] = folder
    if layout == "splits":
        if not splits:
            raise DataError(f"{walk.shown} has no folder train, valid or test; rename them, or leave --layout out")
        return splits
    # A split holds class folders; a class that happens to be called "train" or "test" holds images.
    return splits if splits and any(_has_subfolder(folder) for folder in splits.values()) else {}


def _check_that_none_are_lost(
    splits: dict[str, Path], listed: dict[str, ByClass], beside: dict[Path, list[Path]], walk: _Walk
) -> None:
    """Images that a folder's name may give a class are not left out, only because a folder beside it is called train.

    Raises:
        DataError: with both readings, and how to choose.
    """
    in_splits = {name for by_class in listed.values() for name, paths in by_class.items() if paths}
    lost: list[str] = []
    shared: set[str] = set()
    number = 0
    for folder, images in beside.items():
        inside = {unicodedata.normalize("NFC", name) for name in _folders_inside(images, walk.root)} & in_splits
        # What is called so, beside several splits, and holds no folders of their classes, has no classes.
        unlabeled = folder.name.lower() in _UNLABELED and len(splits) > 1 and not inside
        if images and not unlabeled:
            lost.append(folder.name)
            shared |= inside
            number += len(images)
    if lost:
        several = len(splits) > 1
        names = first_few([folder.name for folder in splits.values()])
        alike = f" (they hold folders of the same names, {first_few(sorted(shared))})" if shared else ""
        raise DataError(
            f"{names} in {walk.shown} could be {'splits' if several else 'a split'}, which would leave out "
            f"{counted(number, 'image')} in {first_few(lost)}, or {'classes' if several else 'a class'} like "
            f"these{alike}; say which with --layout splits or --layout classes, or move away what is neither"
        )


def _folders_inside(images: list[Path], root: Path) -> set[str]:
    """The names of folders between a class's folder and its images."""
    return {part for folder in {path.parent for path in images} for part in folder.relative_to(root).parts[1:]}


def _split_in(name: str) -> str:
    """The split that a word of a folder's name means (`train_images`: train); nothing ("") for other names."""
    words = re.split(r"[\W_\d]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _list_classes(folders: list[Path], walk: _Walk) -> ByClass:
    by_class: ByClass = {}
    for folder in folders:
        name = _class_name(folder)
        if name in by_class:
            walk.warnings.append(
                f"two folders are called {name}, in two ways of writing its letters; they are one class"
            )
        by_class.setdefault(name, []).extend(_images(folder, walk))
    return {name: in_order(paths) for name, paths in by_class.items()}


def _class_name(folder: Path) -> str:
    # macOS may spell an accented letter with two characters where other systems use one.
    return unicodedata.normalize("NFC", folder.name)


def _images(folder: Path, walk: _Walk) -> Iterator[Path]:
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(current)
        here = Path(current)
        # A link to a folder that it lies in would bring in the images of all classes, as images of this one.
        leads_back = here != walk.root and Path(os.path.realpath(here.parent)).is_relative_to(real)
        if leads_back and real not in seen:
            link = here.relative_to(walk.root).as_posix()
            walk.warnings.append(f"{link} is a link back to {real}, in which it lies, and is not followed")
        if leads_back or real in seen:
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in (*folders, *names) if is_hidden(name)]
        walk.num_hidden += len(hidden)
        folders[:] = sorted(name for name in folders if name not in hidden)
        for name in sorted(set(names) - set(hidden)):
            # What is called like an image counts as one, and is found to be unreadable if it is a link to nothing.
            if looks_like_image(here / name):
                yield here / name
            elif not is_folder(here / name):
                walk.num_other_files += 1


def _refuse(error: OSError) -> None:
    raise _closed(error) from error
