"""Labelled images in folders.

There are two layouts: `DATA/train/<class>/…`, with `valid` and `test` beside `train` (`SPLIT_NAMES` has other names),
and `DATA/<class>/…`, of which some images are held out for validation. Images may lie in folders inside a class's
folder. If one folder holds everything, it is entered. If a folder beside apparent splits holds images as well, both
layouts are possible and the user is asked to choose (`--layout`).
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

from carnet.data.samples import SPLIT_NAMES, ByClass, Layout, Listing, identity, in_order
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
"""Names that macOS, Linux, Windows and network drives put beside files, such as #recycle, ~snapshot and @eaDir."""
_UNLABELED = frozenset(("unlabeled", "unlabelled", "unannotated", "unsupervised"))
"""Names of folders beside the splits whose images have no class."""
_IMAGES = re.compile("images?|imgs?|jpegimages|photos|pictures", re.IGNORECASE)
_ABOUT_IMAGES = re.compile(
    "annotations?|labels|ground_?truth|gt|depth|masks?|trimaps|segmentation(s|class|object)?", re.IGNORECASE
)
"""Names of folders that hold the images of a data set, and of folders that hold annotations, which may be images."""


def list_folder(
    root: Path,
    shown: Path,
    known_classes: Collection[str] = (),
    layout: Layout = "auto",
    *,
    unlabeled: Path | None = None,
) -> Listing:
    """List the images in a folder, in either layout.

    Args:
        root: the folder.
        shown: its name in messages; images from an archive have the archive's name.
        known_classes: a folder with one of these names is a class, even if it is the only folder.
        layout: the layout, if the user has chosen one.
        unlabeled: a folder of images without labels, which is neither a class nor a part of one.

    Raises:
        DataError: if two folders are the same split, folders could be splits or classes, a folder cannot be opened, or
            a link is broken.
    """
    listing = Listing(root, {}, top=root, unlabeled=None if unlabeled is None else identity(unlabeled))
    folders, files = _look_into(root, listing, shown)
    entered = {root.resolve()}
    while _holds_everything(folders, files, known_classes) and folders[0].resolve() not in entered:
        listing.root = folders[0]
        entered.add(listing.root.resolve())
        folders, files = _look_into(listing.root, listing, shown / listing.root.relative_to(root))
    if listing.root != root:
        inside = listing.root.relative_to(root)
        listing.warnings.insert(
            0, f"everything in {shown} is in one folder, {inside.as_posix()}, which is used as DATA"
        )
        shown /= inside
    splits = {} if layout == "classes" else _split_folders(folders, shown, layout, listing)
    if not splits:
        listing.splits["all"] = _list_classes(folders, listing)
    for split, folder in splits.items():
        class_folders, _ = _look_into(folder, listing, shown / folder.name)
        listing.splits[split] = _list_classes(class_folders, listing)
    others = [folder for folder in folders if splits and folder not in splits.values()]
    beside = {folder: list(_images(folder, listing)) for folder in others if not is_unlabeled(folder, listing)}
    if beside and layout == "auto":
        _check_that_none_is_lost(splits, beside, listing, shown)
    for folder, images in beside.items():
        listing.num_other_files += len(images)
        number = f", with {counted(len(images), 'image')}" if images else ""
        listing.warnings.append(f"folder {folder.name} is none of the splits and is left out{number}")
    return listing


def check_classes(listing: Listing, shown: Path, layout: Layout = "auto") -> None:
    """Check that the folders that count as classes are not something else: `seg_train` and `seg_test`, or `masks`.

    Args:
        listing: the result of `list_folder`; gets a warning if folders in several classes have the same name.
        shown: the folder's name in messages.
        layout: the layout, if the user has chosen one; then no error is raised.

    Raises:
        DataError: if their names are those of splits, all of them or those that hold folders of the same names; or
            those of images and their annotations.
    """
    for split, classes in listing.splits.items():
        names = sorted(name for name, paths in classes.items() if paths)
        images = {name for name in names if _IMAGES.fullmatch(name)}
        about = {name for name in names if _ABOUT_IMAGES.fullmatch(name)}
        if layout != "classes" and images and about and images | about == set(names):
            raise DataError(
                f"the folders {first_few(names)} in {shown} look like images and annotations, not like classes; name "
                "the folder that holds one folder per class, or a table with the classes"
                + (", or add --layout classes if they are classes" if split == "all" else "")
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
                f"the folders {first_few(sorted(suspects))} in {shown} look like splits, not like classes; rename them "
                "to train, valid and test, with one folder per class in each, or name a table with the classes, or "
                "add --layout classes if they are classes"
            )
    if shared:
        what = f"folders with the same names ({first_few(shared)}), which count as parts of these classes"
        listing.warnings.append(f"{first_few(alike)} contain {what}")


def images_in(folder: Path, listing: Listing | None = None) -> list[Path]:
    """Return every image in a folder and in the folders inside it, sorted; `listing` counts what is skipped."""
    return in_order(_images(folder, listing or Listing(folder, {})))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder was made by the system or a tool, not by the user."""
    return _HIDDEN.fullmatch(name) is not None


def visible(folder: Path, listing: Listing | None = None) -> list[Path]:
    """Return the sorted contents of a folder except what is hidden, which `listing` counts.

    Raises:
        DataError: if the folder cannot be opened.
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
    """Return whether a path is a folder, or a link to one.

    Raises:
        DataError: if it is a broken link, such as one to a disk that is not mounted, or is not accessible.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        # pathlib would raise an error in a folder that can be listed but not entered.
        if os.path.islink(path):  # noqa: PTH114
            raise DataError(
                f"{path} is a link to {path.readlink()}, which cannot be reached ({error.strerror}); mount its disk, "
                "or correct or remove the link"
            ) from error
        if isinstance(error, FileNotFoundError):
            # It has been removed since the folder was listed.
            return False
        _refuse(error)


def _look_into(folder: Path, listing: Listing, shown: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders in a folder, and its files, which have no class; count and warn of what is skipped."""
    paths = visible(folder, listing)
    # Whether a folder with the name of a split is one, is decided later.
    folders = [
        path
        for path in paths
        if is_folder(path) and (path.name.lower() in SPLIT_NAMES or not is_unlabeled(path, listing))
    ]
    files = [path for path in paths if path.is_file()]
    listing.num_other_files += len(files)
    if images := [path.name for path in files if looks_like_image(path)]:
        listing.num_loose_images += len(images)
        number = counted(len(images), "image")
        listing.warnings.append(f"{number} directly in {shown}, in no class folder, left out: {first_few(images)}")
    return folders, files


def is_unlabeled(folder: Path, listing: Listing) -> bool:
    """Return whether a folder is the one with the images without labels, and warn that it is passed over."""
    if listing.unlabeled is None or identity(folder) != listing.unlabeled:
        return False
    warning = f"folder {folder.relative_to(listing.root).as_posix()} holds the images without labels, and is no class"
    if warning not in listing.warnings:
        listing.warnings.append(warning)
    return True


def _holds_everything(folders: list[Path], files: list[Path], known_classes: Collection[str]) -> bool:
    """Return whether there is one folder only, it has folders of its own, and no file beside it could be data."""
    if len(folders) != 1 or not _has_subfolder(folders[0]):
        return False
    if unicodedata.normalize("NFC", folders[0].name) in known_classes:
        return False
    if folders[0].name.lower() in SPLIT_NAMES:
        named = [path for path in visible(folders[0]) if path.name.lower() in SPLIT_NAMES]
        if not any(_has_subfolder(path) for path in named if is_folder(path)):
            return False
    # A licence or a readme beside the folder is usual, but a table may list the classes.
    return not any(path.suffix.lower() in TABLE_EXTENSIONS or looks_like_image(path) for path in files)


def _has_subfolder(folder: Path) -> bool:
    # pathlib would raise an error in a folder that can be listed but not entered.
    return any(os.path.isdir(path) for path in visible(folder))  # noqa: PTH112


def _split_folders(folders: list[Path], shown: Path, layout: Layout, listing: Listing) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    names = Counter(SPLIT_NAMES.get(folder.name.lower()) for folder in folders)
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None or (names[split] > 1 and is_unlabeled(folder, listing)):
            continue
        if split in splits:
            raise DataError(
                f"{shown} has both {splits[split].name} and {folder.name}; keep one of them, or add --layout classes "
                "if every folder is a class"
            )
        splits[split] = folder
    if layout == "splits":
        if not splits:
            raise DataError(f"{shown} has no folder train, valid or test; rename the folders, or omit --layout")
        return splits
    # A split contains class folders; a class that happens to be called "train" or "test" contains images.
    return splits if splits and any(_has_subfolder(folder) for folder in splits.values()) else {}


def _check_that_none_is_lost(
    splits: dict[str, Path], beside: dict[Path, list[Path]], listing: Listing, shown: Path
) -> None:
    """Check that no images are left out only because a folder beside theirs has the name of a split.

    Raises:
        DataError: with both layouts that are possible, and how to choose.
    """
    in_splits = {name for by_class in listing.splits.values() for name, paths in by_class.items() if paths}
    lost: list[str] = []
    shared: set[str] = set()
    number = 0
    for folder, images in beside.items():
        inside = {unicodedata.normalize("NFC", name) for name in _folders_inside(images, listing.root)} & in_splits
        # Beside several splits, a folder with such a name has no classes, unless it contains folders of their classes.
        unlabeled = folder.name.lower() in _UNLABELED and len(splits) > 1 and not inside
        if images and not unlabeled:
            lost.append(folder.name)
            shared |= inside
            number += len(images)
    if lost:
        names = first_few([folder.name for folder in splits.values()])
        alike = f" (they contain folders with the same names, {first_few(sorted(shared))})" if shared else ""
        raise DataError(
            f"{names} in {shown} could be splits or classes; as splits, they would leave out "
            f"{counted(number, 'image')} in {first_few(lost)}{alike}; add --layout splits or --layout classes, or move "
            "away what is neither"
        )


def _folders_inside(images: list[Path], root: Path) -> set[str]:
    """Return the names of the folders between a class's folder and its images."""
    return {part for folder in {path.parent for path in images} for part in folder.relative_to(root).parts[1:]}


def _split_in(name: str) -> str:
    """Return the split that a word in a name means (`train_images`: train), or "" if none does."""
    words = re.split(r"[\W_\d]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _list_classes(folders: list[Path], listing: Listing) -> ByClass:
    by_class: ByClass = {}
    for folder in folders:
        if is_unlabeled(folder, listing):
            continue
        # macOS may write an accented letter as two characters, where other systems use one.
        name = unicodedata.normalize("NFC", folder.name)
        if name in by_class:
            listing.warnings.append(
                f"two folders are named {name}, with its letters encoded in two ways; they are one class"
            )
        by_class.setdefault(name, []).extend(_images(folder, listing))
    return {name: in_order(paths) for name, paths in by_class.items()}


def _images(folder: Path, listing: Listing) -> Iterator[Path]:
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(current)
        here = Path(current)
        # A link to a folder above it would add the images of all classes to this class.
        leads_back = here != listing.root and Path(os.path.realpath(here.parent)).is_relative_to(real)
        if leads_back and real not in seen:
            link = here.relative_to(listing.root).as_posix()
            listing.warnings.append(f"{link} is a link back to {real}, which contains it, and is not followed")
        if leads_back or real in seen:
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in (*folders, *names) if is_hidden(name)]
        listing.num_hidden += len(hidden)
        shown = (name for name in folders if name not in hidden)
        folders[:] = sorted(name for name in shown if not is_unlabeled(here / name, listing))
        for name in sorted(set(names) - set(hidden)):
            # A broken link with an image's name counts as an image that cannot be read.
            if looks_like_image(here / name):
                yield here / name
            elif not is_folder(here / name):
                listing.num_other_files += 1


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"cannot open {error.filename}: {error.strerror}; change its permissions, or move it away"
    ) from error
