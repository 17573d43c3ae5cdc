"""Find labelled images in DATA, which is a folder, a table, an archive or a data set.

The content of DATA decides which form it has, not its name. Each form has a module (`folder`, `table`, `archive`,
`stream`) that lists the images of each class. Here the classes are numbered: all splits use the one sorted list of the
classes in `train`, so a class has the same number everywhere.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from carnet.data.archive import ARCHIVE_EXTENSIONS, is_packed_data, is_zip, num_hidden, unpack
from carnet.data.folder import TABLE_EXTENSIONS, check_classes, images_in, is_unlabeled, list_folder, visible
from carnet.data.hub import is_dataset
from carnet.data.samples import (
    SPLIT_NAMES,
    ByClass,
    LabeledImages,
    Layout,
    Listing,
    expanded,
    leave_out,
)
from carnet.data.shards import is_packed, is_tar
from carnet.data.table import fits, labels_of, list_table
from carnet.errors import ConfigError, DataError
from carnet.files import broken_link, open_file, state_of
from carnet.preprocess import looks_like_image
from carnet.text import OnProgress, counted, first_few

Form = Literal["folder", "table", "archive", "dataset"]
_JSON_LINES = (".jsonl", ".ndjson")
"""Extensions of files in which other tools list images."""
_FORMS = "a folder with one folder of images per class, a table (CSV), a zip or tar archive, or a data set (hf:NAME)"
_UNPACK = "unpack it, and name the folder"
_SAVE_AS_CSV = "save it as 'CSV UTF-8' with the columns filepath and label"
_REFUSED = {
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", _UNPACK),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", _SAVE_AS_CSV),
    b"PAR1": ("a Parquet file", "give it a name that ends in .parquet"),
    b"\x89HDF": ("an HDF5 file", "convert it to a folder, a table or an archive"),
}
"""First bytes -> what the file is, and what to do."""
_OFFICE_MEMBERS = (b"[Content_Types].xml", b"mimetype", b"_rels/")
"""First members of zip archives that are spreadsheets."""
_FETCH = "fetch it again, signed in if necessary"
_FAILED_DOWNLOADS = {
    b"<!doctype html": ("a web page", _FETCH),
    b"<html": ("a web page", _FETCH),
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself (git lfs pull)"),
}
"""How a failed download begins, in lower case -> what it is, and what to do."""


def find_images(
    data: Path | str,
    classes: Sequence[str] | None = None,
    *,
    layout: Layout = "auto",
    ignore: Sequence[str] = (),
    leave_out_new: bool = False,
    unlabeled: Path | str | None = None,
    ignored_elsewhere: Collection[str] = (),
    progress: OnProgress | None = None,
) -> LabeledImages:
    """List the labelled images in DATA.

    Args:
        data: a folder, a table, an archive, or a data set as `carnet.data.hub` describes it.
        classes: number the labels by this list (a trained model's) instead of by the data's own.
        layout: whether the folders are classes or splits, if their names and contents do not tell.
        ignore: paths of images to leave out, as `carnet.data.samples.read_ignore_file` returns them.
        leave_out_new: in data without `valid`, leave out classes that are not in `classes` instead of raising an error.
        unlabeled: a folder of images without labels, which is no class and no part of one, wherever in DATA it is; the
            images of a split keep their labels.
        ignored_elsewhere: lines of `ignore` that name images without labels.
        progress: called with how much of an archive or a data set is unpacked, and its total.

    Raises:
        DataError: no such data, no images, a class that is not in `train` (or `classes`), a single class, or a form
            that is unknown, damaged or ambiguous.
        ConfigError: an unknown layout.
        OutputError: if an archive cannot be unpacked into the cache.
    """
    source = expanded(data)
    listing = list_images(
        source,
        classes or (),
        layout=layout,
        ignore=ignore,
        unlabeled=unlabeled,
        ignored_elsewhere=ignored_elsewhere,
        progress=progress,
    )
    if classes is None:
        classes = own_classes(source, listing)
    else:
        if leave_out_new and "valid" not in listing.splits:
            _leave_out_new(listing, classes)
        _check_known(listing.splits, classes, "the model")
    return listing.labeled(classes, source)


def list_images(
    data: Path | str,
    known_classes: Sequence[str] = (),
    *,
    layout: Layout = "auto",
    ignore: Sequence[str] = (),
    unlabeled: Path | str | None = None,
    ignored_elsewhere: Collection[str] = (),
    progress: OnProgress | None = None,
) -> Listing:
    """List the images in DATA by split and class, whether or not a classifier can be trained on them.

    Args:
        data: as for `find_images`, like the other arguments.
        known_classes: a trained model's, which help to tell classes from splits.
        layout: whether the folders are classes or splits.
        ignore: paths of images to leave out.
        unlabeled: a folder of images without labels.
        ignored_elsewhere: lines of `ignore` that name such images.
        progress: called with how much is unpacked.

    Raises:
        DataError: no such data, no images, or a form that is unknown, damaged or ambiguous.
        ConfigError: an unknown layout.
        OutputError: if an archive cannot be unpacked into the cache.
    """
    source = expanded(data)
    apart = None if unlabeled is None else expanded(unlabeled)
    listing = _list(source, known_classes, layout, progress, apart)
    leave_out(listing, ignore, elsewhere=ignored_elsewhere)
    is_empty = not any(paths for by_class in listing.splits.values() for paths in by_class.values())
    if is_empty and not any(listing.left_out.values()):
        raise DataError(_no_images(str(source), listing))
    return listing


def _list(
    source: Path,
    known_classes: Sequence[str],
    layout: Layout,
    progress: OnProgress | None,
    unlabeled: Path | None = None,
) -> Listing:
    if layout not in get_args(Layout):
        raise ConfigError(f"--layout must be one of {', '.join(get_args(Layout))}, got {layout!r}")
    form = form_of(source)
    if form == "dataset":
        from carnet.data.stream import store

        warnings: list[str] = []
        listing = list_table(store(source.as_posix(), progress, warnings), source)
        listing.warnings += warnings
    elif form == "table":
        listing = list_table(source)
    elif form == "folder":
        listing = _list_folder(source, source, known_classes, layout, unlabeled)
    else:
        folder = unpack(source, progress)
        listing = _list_folder(folder, source, known_classes, layout)
        # Hidden files are not unpacked; those in this folder belong to the cache.
        listing.num_hidden = num_hidden(folder)
    return listing


def _list_folder(
    folder: Path, shown: Path, known_classes: Sequence[str], layout: Layout, unlabeled: Path | None = None
) -> Listing:
    """List images by class folders, or else by the table beside the images or in each split."""
    listing = list_folder(folder, shown, known_classes, layout, unlabeled=unlabeled)
    classes = {name for by_class in listing.splits.values() for name, paths in by_class.items() if paths}
    in_splits = _tables(listing.root)
    here = in_splits.pop(listing.root)
    if layout == "classes":
        in_splits = {}
    within = [path for paths in in_splits.values() for path in paths]
    beside = [path for path in here if path.suffix.lower() in TABLE_EXTENSIONS]
    # Competitions add a table with placeholders for classes.
    tables = [path for path in beside if fits(path) and path.stem.lower() != "sample_submission"]
    unpack_first = "" if folder == shown else "unpack it, and "
    divided = "all" not in listing.splits
    is_known = bool(classes) and classes <= set(known_classes)
    no_classes = len(classes) < 2 if divided else {name.lower() for name in classes} <= SPLIT_NAMES.keys()
    if in_splits and not tables and not is_known and no_classes:
        return _list_split_tables(listing, in_splits, folder, shown)
    if len(classes) > 1 or divided:
        # Folders that only hold the images of a table (train, test; images, masks) are not classes.
        agree = {table: labels_of(table) == classes for table in tables}
        agree |= {table: labels_of(table) <= classes for table in within if fits(table)}
        if other := next((table for table, agrees in agree.items() if not agrees), None):
            either = f"the folders {first_few(sorted(classes))} or {other.relative_to(folder).as_posix()} in {shown}"
            raise DataError(f"{either} could define the classes; {unpack_first}name the table, or move it away")
        if not tables:
            check_classes(listing, shown, layout)
        if skipped := [*beside, *within]:
            names = first_few([path.relative_to(listing.root).as_posix() for path in skipped])
            listing.warnings.append(f"{names} skipped, because the folders define the classes")
        return listing
    if len(tables) > 1:
        names = first_few([path.name for path in tables])
        many = f"{len(tables)} tables that could define the classes"
        raise DataError(f"{shown} has {many}: {names}; {unpack_first}name one of them")
    if not tables:
        unused = [*(path for path in here if path not in beside), *within]
        if unused and not is_known:
            raise _unused(shown / unused[0].relative_to(folder))
        return listing
    by_table = list_table(tables[0], shown / tables[0].relative_to(folder), inside=folder != shown)
    by_table.warnings.insert(0, f"{shown} has no class folders; {tables[0].name} defines the classes")
    by_table.num_hidden, by_table.top = listing.num_hidden, listing.top
    return by_table


def _tables(root: Path) -> dict[Path, list[Path]]:
    """Return possible tables by folder: those in `root`, and in each folder inside it with the name of a split."""
    splits = [path for path in visible(root) if path.name.lower() in SPLIT_NAMES and path.is_dir()]
    extensions = (*TABLE_EXTENSIONS, *_JSON_LINES)
    found = {
        folder: [path for path in visible(folder) if path.suffix.lower() in extensions and path.is_file()]
        for folder in (root, *splits)
    }
    return {folder: tables for folder, tables in found.items() if tables or folder == root}


def _list_split_tables(listing: Listing, tables: dict[Path, list[Path]], folder: Path, shown: Path) -> Listing:
    """List the images that a table in each split's folder names, as in image folders of Hugging Face."""
    by_tables = Listing(listing.root, {}, top=listing.top, num_hidden=listing.num_hidden, unlabeled=listing.unlabeled)
    for split_folder, found in tables.items():
        readable = [path for path in found if path.suffix.lower() in TABLE_EXTENSIONS]
        usable = [path for path in readable if fits(path)] or readable[:1]
        name = shown / (usable or found)[0].relative_to(folder)
        if not usable:
            raise _unused(name)
        if len(usable) > 1:
            raise DataError(f"{name} and {usable[1].name} beside it could define the classes; keep one of them")
        part = list_table(usable[0], name, inside=folder != shown)
        split = SPLIT_NAMES[split_folder.name.lower()]
        if not set(part.splits) <= {"all", split} or split in by_tables.splits:
            raise DataError(f"{name} is not the only table with images of a split; keep one, or name one table")
        (by_tables.splits[split],) = part.splits.values()
        inside = usable[0].relative_to(listing.root).as_posix()
        by_tables.warnings += [f"{inside} defines the classes of {split}", *part.warnings]
    for path in visible(listing.root):
        if path in tables or not path.is_dir() or is_unlabeled(path, by_tables):
            continue
        if number := len(images_in(path)):
            left_out = f"{counted(number, 'image')} in {path.name} left out, unless another table names them"
            by_tables.warnings.append(f"{path.name} has no table: {left_out}")
    return by_tables


def _unused(table: Path) -> DataError:
    """Return the error about a table that probably defines the classes, but is in an unexpected place or form."""
    way_out = "name it as DATA"
    if table.suffix.lower() in _JSON_LINES:
        way_out = (
            "JSON is not read, so save it as a table (CSV) with the columns filepath and label, or let Hugging Face "
            "datasets read the folder (hf:./FOLDER)"
        )
    return DataError(f"no class folders, but {table} could define the classes; {way_out}")


def _leave_out_new(listing: Listing, classes: Sequence[str]) -> None:
    known = set(classes)
    for split in {"all", "train"} & set(listing.splits):
        by_class = listing.splits[split]
        new = [name for name, paths in sorted(by_class.items()) if paths and name not in known]
        if new:
            number = counted(len(new), "class", "classes")
            listing.warnings.append(f"{number} left out, which the model does not have: {first_few(new)}")
        listing.splits[split] = {name: paths for name, paths in by_class.items() if name not in new}


def own_classes(source: Path, listing: Listing) -> tuple[str, ...]:
    """Return the classes of the data, without those that are empty, which are removed from the listing.

    Raises:
        DataError: if there is no `train`, one class only, or a class that is not in `train`.
    """
    splits, first = listing.splits, "all" if "all" in listing.splits else "train"
    if first not in splits:
        raise DataError(f"{source} has {' and '.join(splits)} but no train; add the images to train on")
    for split, by_class in splits.items():
        empty = [name for name, paths in sorted(by_class.items()) if not paths]
        for name in empty:
            del by_class[name]
        if empty:
            number = counted(len(empty), "class", "classes")
            listing.warnings.append(f"{number} of {split} without images left out: {first_few(empty)}")
    classes = tuple(sorted(splits[first]))
    where = str(source) if first == "all" else f"train of {source}"
    if not classes and listing.left_out.get(first):
        raise DataError(f"no images are left in {where}; the ignore list names them all, so shorten it")
    if not classes:
        raise DataError(_no_images(where, listing))
    if len(classes) == 1:
        folders = {path.parent for path in splits[first][classes[0]]}
        nested = len(folders) > 1 and all(classes[0] in folder.parts for folder in folders)
        raise DataError(
            f"{where} has images of one class only ({classes[0]!r}); a classifier needs at least two, so add another"
            + (", or name the folder that contains the class folders" if nested else "")
        )
    _check_known(splits, classes, first)
    for split, by_class in splits.items():
        missing = [name for name in classes if name not in by_class]
        if missing and split != first:
            number = counted(len(missing), "class", "classes")
            listing.warnings.append(f"{number} of train without images in {split}: {first_few(missing)}")
    return classes


def _no_images(where: str, listing: Listing) -> str:
    loose = f" (but {counted(listing.num_loose_images, 'image')} in none)" if listing.num_loose_images else ""
    packed = [path.name for path in visible(listing.root) if is_packed_data(path.name)]
    what = f"unpack {first_few(packed)}: " if packed else ""
    return (
        f"no images in class folders in {where}{loose}; {what}DATA needs one folder of images per class, "
        f"such as cat/1.jpg"
    )


def _check_known(splits: dict[str, ByClass], classes: Sequence[str], whose: str) -> None:
    known = set(classes)
    by_lower_case = {name.lower(): name for name in reversed(classes)}
    for split, by_class in splits.items():
        names = [name for name, paths in sorted(by_class.items()) if paths and name not in known]
        if not names:
            continue
        shown = []
        # Only those that are shown, because finding similar names takes long.
        for name in names[:5]:
            near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.8)
            hint = f"; did you mean {by_lower_case[near[0]]!r}?" if near else ""
            shown.append(f"{name!r} ({counted(len(by_class[name]), 'image')}{hint})")
        where = "DATA" if split == "all" else split
        raise DataError(
            f"{where} has {counted(len(names), 'class', 'classes')} that {whose} does not have: "
            f"{first_few([*shown, *names[5:]])}; rename or remove {'it' if len(names) == 1 else 'them'}"
        )


def form_of(data: Path) -> Form:
    """Return the form of DATA.

    Raises:
        DataError: if it does not exist, cannot be read, or has none of the forms.
    """
    data = expanded(data)
    try:
        state = state_of(data)
        if is_dataset(data.as_posix()):
            return "dataset"
        if state is None:
            raise DataError(_missing(data))
        return "folder" if stat.S_ISDIR(state.st_mode) else _form_of_file(data)
    except OSError as error:
        allow = "; change its permissions" if isinstance(error, PermissionError) else ""
        raise DataError(f"cannot read {error.filename or data}: {error.strerror or error}{allow}") from error


def _form_of_file(path: Path) -> Form:
    if not path.is_file():
        raise DataError(f"{path} is not a regular file; DATA is {_FORMS}")
    with open_file(path) as file:
        start = file.read(512)
    for magic, (what, way_out) in _REFUSED.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {what}; {way_out}")
    if looks_like_image(path):
        raise DataError(f"{path} is one image; DATA is {_FORMS}; carnet predict takes single images")
    if is_zip(path):
        if start[30:].startswith(_OFFICE_MEMBERS):
            raise DataError(f"{path} is a spreadsheet or another office document; {_SAVE_AS_CSV}")
        return "archive"
    if is_tar(path):
        return "archive"
    if is_packed(path):
        raise DataError(f"{path} is packed, but not a tar archive, or a damaged one; unpack it, and name the result")
    # UTF-16 has such bytes as well, after a byte-order mark; `list_table` says how to save it instead.
    if b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} has none of the forms of DATA, or is damaged; DATA is {_FORMS}")
    _check_download(path, start)
    if path.suffix.lower() in (".json", *_JSON_LINES):
        raise DataError(f"{path} is JSON, which is not read; {_SAVE_AS_CSV}")
    return "table"


def _check_download(path: Path, start: bytes) -> None:
    """Raise a DataError for what a failed download leaves: a web page, or an archive without content."""
    begin = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, (what, way_out) in _FAILED_DOWNLOADS.items():
        if begin.startswith(beginning):
            raise DataError(f"{path} is {what} instead of the data; {way_out}")
    if path.suffix.lower() in ARCHIVE_EXTENSIONS:
        what = "a text; fetch it again, or rename it to .csv if it is a table" if start else "empty; fetch it again"
        raise DataError(f"{path} is not an archive but {what}")


def _missing(data: Path) -> str:
    if link := broken_link(data):
        return link
    beside: list[str] = []
    with suppress(OSError):
        beside += [path.name for path in data.parent.iterdir()]
    near = difflib.get_close_matches(data.name, beside, n=1)
    hint = f"; did you mean {data.parent / near[0]}?" if near else "; DATA is searched for in the current folder"
    return f"no {'file' if data.suffix else 'folder'} {data}{hint if near or not data.is_absolute() else ''}"
