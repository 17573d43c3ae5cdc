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
from pathlib import Path
from typing import NoReturn

from carnet.data.samples import SPLIT_NAMES, ByClass, Layout, Listing, in_order
from carnet.errors import DataError
from carnet.preprocess import looks_like_image
from carnet.text import counted, first_few

TABLE_EXTENSIONS = (".csv", ".tsv")
_HIDDEN = re.compile(
    r"\..*|__macosx|icon\r|network trash folder|temporary items|lost\+found|found\.\d{3}"
    r"|thumbs\.db|ehthumbs(_vista)?\.db|desktop\.ini|system volume information|.*@syno(eastream|resource)"
    r"|[#@~$](recycle(\.bin|d|r)?|trash(es)?|(recently-)?snapshots?|snap|eadir|tmp|__thumb|sharebin)",
    re.IGNORECASE | re.DOTALL,
)
"""What macOS, Linux, Windows and network drives put beside files, such as #recycle, ~snapshot and @eaDir."""
_UNLABELED = frozenset(("unlabeled", "unlabelled", "unannotated", "unsupervised"))
"""What a folder beside the splits is called whose images have no class."""
_IMAGES = re.compile("images?|imgs?|jpegimages|photos|pictures", re.IGNORECASE)
_ABOUT_IMAGES = re.compile(
    "annotations?|labels|ground_?truth|gt|depth|masks?|trimaps|segmentation(s|class|object)?", re.IGNORECASE
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
    listing = Listing(root, {}, top=root)
    folders, files = _look_into(root, listing, shown)
    been_in = {root.resolve()}
    while _holds_everything(folders, files, known_classes) and folders[0].resolve() not in been_in:
        listing.root = folders[0]
        been_in.add(listing.root.resolve())
        folders, files = _look_into(listing.root, listing, shown / listing.root.relative_to(root))
    if listing.root != root:
        inside = listing.root.relative_to(root)
        listing.warnings.insert(0, f"everything in {shown} lies in one folder, {inside.as_posix()}, which is taken")
        shown /= inside
    splits = {} if layout == "classes" else _split_folders(folders, shown, layout)
    if not splits:
        listing.splits["all"] = _list_classes(folders, listing)
    for split, folder in splits.items():
        class_folders, _ = _look_into(folder, listing, shown / folder.name)
        listing.splits[split] = _list_classes(class_folders, listing)
    beside = {folder: list(_images(folder, listing)) for folder in folders if splits and folder not in splits.values()}
    if beside and layout == "auto":
        _check_that_none_are_lost(splits, beside, listing, shown)
    for folder, images in beside.items():
        listing.num_other_files += len(images)
        number = f", with {counted(len(images), 'image')}" if images else ""
        listing.warnings.append(f"folder {folder.name} is none of the splits and is left out{number}")
    return listing


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
        images = {name for name in names if _IMAGES.fullmatch(name)}
        about = {name for name in names if _ABOUT_IMAGES.fullmatch(name)}
        if layout != "classes" and images and about and images | about == set(names):
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
    return in_order(_images(folder, Listing(folder, {})))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's doing, but the system's or a tool's."""
    return _HIDDEN.fullmatch(name) is not None


def visible(folder: Path, listing: Listing | None = None) -> list[Path]:
    """What a folder holds that is not hidden, sorted.

    Args:
        folder: the folder.
        listing: counts what is hidden.

    Raises:
        DataError: if it may not be looked into.
    """
    try:
        contents = sorted(folder.iterdir())
    except OSError as error:
        _refuse(error)
    shown = [path for path in contents if not is_hidden(path.name)]
    if listing is not None:
        listing.num_hidden += len(contents) - len(shown)
    return shown


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to one.

    Raises:
        DataError: if it is a link that leads nowhere, such as to a disk that is not mounted, or cannot be looked at.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        # pathlib's would raise an error in a folder that may be listed and not entered.
        if os.path.islink(path):  # noqa: PTH114
            raise DataError(
                f"{path} is a link to {path.readlink()}, which cannot be reached ({error.strerror}); mount its disk, "
                f"or correct or remove the link"
            ) from error
        if isinstance(error, FileNotFoundError):
            # Somebody has removed it meanwhile.
            return False
        _refuse(error)


def _look_into(folder: Path, listing: Listing, shown: Path) -> tuple[list[Path], list[Path]]:
    """A folder's folders, and its files, which are in no class; the listing counts and notes what is passed over."""
    paths = visible(folder, listing)
    folders = [path for path in paths if is_folder(path)]
    files = [path for path in paths if path.is_file()]
    listing.num_other_files += len(files)
    if images := [path.name for path in files if looks_like_image(path)]:
        listing.num_loose_images += len(images)
        number = counted(len(images), "image")
        listing.warnings.append(f"{number} directly in {shown}, in no class folder, left out: {first_few(images)}")
    return folders, files


def _holds_everything(folders: list[Path], files: list[Path], known_classes: Collection[str]) -> bool:
    """Whether a folder's only folder has folders of its own, and nothing beside it could be data."""
    if len(folders) != 1 or not _has_subfolder(folders[0]):
        return False
    if unicodedata.normalize("NFC", folders[0].name) in known_classes:
        return False
    if folders[0].name.lower() in SPLIT_NAMES:
        named = [path for path in visible(folders[0]) if path.name.lower() in SPLIT_NAMES]
        if not any(_has_subfolder(path) for path in named if is_folder(path)):
            return False
    # A licence or a text beside the one folder is usual; a table may say what the classes are.
    return not any(path.suffix.lower() in TABLE_EXTENSIONS or looks_like_image(path) for path in files)


def _has_subfolder(folder: Path) -> bool:
    # pathlib's would raise an error in a folder that may be listed and not entered.
    return any(os.path.isdir(path) for path in visible(folder))  # noqa: PTH112


def _split_folders(folders: list[Path], shown: Path, layout: Layout) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            continue
        if split in splits:
            raise DataError(
                f"{shown} has both {splits[split].name} and {folder.name}; keep one of them, or say --layout "
                f"classes if every folder is a class"
            )
        splits[split] = folder
    if layout == "splits":
        if not splits:
            raise DataError(f"{shown} has no folder train, valid or test; rename them, or leave --layout out")
        return splits
    # A split holds class folders; a class that happens to be called "train" or "test" holds images.
    return splits if splits and any(_has_subfolder(folder) for folder in splits.values()) else {}


def _check_that_none_are_lost(
    splits: dict[str, Path], beside: dict[Path, list[Path]], listing: Listing, shown: Path
) -> None:
    """Images that a folder's name may give a class are not left out, only because a folder beside it is called train.

    Raises:
        DataError: with both readings, and how to choose.
    """
    in_splits = {name for by_class in listing.splits.values() for name, paths in by_class.items() if paths}
    lost: list[str] = []
    shared: set[str] = set()
    number = 0
    for folder, images in beside.items():
        inside = {unicodedata.normalize("NFC", name) for name in _folders_inside(images, listing.root)} & in_splits
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
            f"{names} in {shown} could be {'splits' if several else 'a split'}, which would leave out "
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


def _list_classes(folders: list[Path], listing: Listing) -> ByClass:
    by_class: ByClass = {}
    for folder in folders:
        # macOS may spell an accented letter with two characters where other systems use one.
        name = unicodedata.normalize("NFC", folder.name)
        if name in by_class:
            listing.warnings.append(
                f"two folders are called {name}, in two ways of writing its letters; they are one class"
            )
        by_class.setdefault(name, []).extend(_images(folder, listing))
    return {name: in_order(paths) for name, paths in by_class.items()}


def _images(folder: Path, listing: Listing) -> Iterator[Path]:
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(current)
        here = Path(current)
        # A link to a folder that it lies in would bring in the images of all classes, as images of this one.
        leads_back = here != listing.root and Path(os.path.realpath(here.parent)).is_relative_to(real)
        if leads_back and real not in seen:
            link = here.relative_to(listing.root).as_posix()
            listing.warnings.append(f"{link} is a link back to {real}, in which it lies, and is not followed")
        if leads_back or real in seen:
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in (*folders, *names) if is_hidden(name)]
        listing.num_hidden += len(hidden)
        folders[:] = sorted(name for name in folders if name not in hidden)
        for name in sorted(set(names) - set(hidden)):
            # What is called like an image counts as one, and is found to be unreadable if it is a link to nothing.
            if looks_like_image(here / name):
                yield here / name
            elif not is_folder(here / name):
                listing.num_other_files += 1


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"cannot look into {error.filename}: {error.strerror}; allow it, or move the folder away"
    ) from error
