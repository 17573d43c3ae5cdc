"""From what was named, a folder, a table, an archive or a data set, to one sorted list of labelled images.

Which form of data it is, its content tells and not its name. Each form has a file of its own (`folder`, `table`,
`archive`, `stream`) that lists the images of each class. Here the classes become numbers: every split counts them in
the one sorted list that `train` gives, so a class has the same number everywhere.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from carnet.data.archive import ARCHIVE_EXTENSIONS, is_packed_data, is_zip, num_hidden, unpack
from carnet.data.folder import TABLE_EXTENSIONS, check_classes, images_in, list_folder, visible
from carnet.data.hub import is_dataset
from carnet.data.samples import SPLIT_NAMES, ByClass, LabeledImages, Layout, Listing, expanded, leave_out
from carnet.data.shards import is_packed, is_tar
from carnet.data.table import fits, labels_of, list_table
from carnet.errors import ConfigError, DataError
from carnet.files import broken_link, open_file, state_of
from carnet.preprocess import looks_like_image
from carnet.text import OnProgress, counted, first_few

_JSON_LINES = (".jsonl", ".ndjson")
"""What other tools list images in, as we do in tables."""


def find_images(
    data: Path | str,
    classes: Sequence[str] | None = None,
    *,
    layout: Layout = "auto",
    ignore: Sequence[str] = (),
    leave_out_new: bool = False,
    progress: OnProgress | None = None,
) -> LabeledImages:
    """List the labelled images in a folder, a table or an archive.

    Args:
        data: the folder, table or archive, or what `carnet.data.hub` calls a data set.
        classes: number the labels by this list (a trained model's) instead of by the data's own.
        layout: what the folders are, classes or splits, where their names and contents do not tell; says nothing of
            data without folders.
        ignore: paths of images to leave out, as `carnet.data.samples.read_ignore_file` gives them.
        leave_out_new: in data that training has to divide itself, leave out classes that are not among `classes`,
            instead of refusing them.
        progress: told how much of an archive or a data set is unpacked, of how much.

    Raises:
        DataError: no such data, no images, a class that `train` (or `classes`) does not have, one class only,
            or a form that is unknown, damaged, or could mean two things.
        ConfigError: a layout that does not exist.
        OutputError: if an archive cannot be unpacked into the cache.
    """
    source = expanded(data)
    listing = _list(source, classes or (), layout, progress)
    leave_out(listing, ignore)
    is_empty = not any(paths for by_class in listing.splits.values() for paths in by_class.values())
    if is_empty and not any(listing.left_out.values()):
        raise DataError(_no_images(str(source), listing))
    if classes is None:
        classes = _own_classes(source, listing)
    else:
        if leave_out_new and "valid" not in listing.splits:
            _leave_out_new(listing, classes)
        _check_known(listing.splits, classes, "the model")
    return listing.labeled(classes, source)


def _list(source: Path, known_classes: Sequence[str], layout: Layout, progress: OnProgress | None) -> Listing:
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
        listing = _list_folder(source, source, known_classes, layout)
    else:
        folder = unpack(source, progress)
        listing = _list_folder(folder, source, known_classes, layout)
        # What was hidden is not unpacked, and what is hidden here is the cache's own.
        listing.num_hidden = num_hidden(folder)
    return listing


def _list_folder(folder: Path, shown: Path, known_classes: Sequence[str], layout: Layout) -> Listing:
    """By folders, or where these are no classes, by the table that lies beside the images or one in each split."""
    listing = list_folder(folder, shown, known_classes, layout)
    classes = {name for by_class in listing.splits.values() for name, paths in by_class.items() if paths}
    in_splits = _tables(listing.root)
    here = in_splits.pop(listing.root)
    if layout == "classes":
        in_splits = {}
    within = [path for paths in in_splits.values() for path in paths]
    beside = [path for path in here if path.suffix.lower() in TABLE_EXTENSIONS]
    # A competition has one beside the table that gives the classes; in it they are made up.
    tables = [path for path in beside if fits(path) and path.stem.lower() != "sample_submission"]
    unpack_first = "" if folder == shown else "unpack it, and "
    divided = "all" not in listing.splits
    is_known = bool(classes) and classes <= set(known_classes)
    no_classes = len(classes) < 2 if divided else {name.lower() for name in classes} <= SPLIT_NAMES.keys()
    if in_splits and not tables and not is_known and no_classes:
        return _list_split_tables(listing, in_splits, folder, shown)
    if len(classes) > 1 or divided:
        # Folders that only hold a table's images (train, test; images, masks) are not classes.
        agree = {table: labels_of(table) == classes for table in tables}
        agree |= {table: labels_of(table) <= classes for table in within if fits(table)}
        if other := next((table for table, agrees in agree.items() if not agrees), None):
            either = f"the folders {first_few(sorted(classes))} or {other.relative_to(folder).as_posix()} in {shown}"
            raise DataError(f"{either} could give the classes; {unpack_first}name the table, or move it away")
        if not tables:
            check_classes(listing, shown, layout)
        if passed_over := [*beside, *within]:
            names = first_few([path.relative_to(listing.root).as_posix() for path in passed_over])
            listing.warnings.append(f"{names} passed over, since the folders give the classes")
        return listing
    if len(tables) > 1:
        names = first_few([path.name for path in tables])
        many = f"{len(tables)} tables that could give the classes"
        raise DataError(f"{shown} has {many}: {names}; {unpack_first}name one of them")
    if not tables:
        unused = [*(path for path in here if path not in beside), *within]
        if unused and not is_known:
            raise _unused(shown / unused[0].relative_to(folder))
        return listing
    by_table = list_table(tables[0], shown / tables[0].relative_to(folder), inside=folder != shown)
    by_table.warnings.insert(0, f"{shown} has no class folders; {tables[0].name} gives the classes")
    by_table.num_hidden, by_table.top = listing.num_hidden, listing.top
    return by_table


def _tables(root: Path) -> dict[Path, list[Path]]:
    """What may be tables, directly in a folder and in each folder in it that is called like a split and has some."""
    splits = [path for path in visible(root) if path.name.lower() in SPLIT_NAMES and path.is_dir()]
    extensions = (*TABLE_EXTENSIONS, *_JSON_LINES)
    found = {
        folder: [path for path in visible(folder) if path.suffix.lower() in extensions and path.is_file()]
        for folder in (root, *splits)
    }
    return {folder: tables for folder, tables in found.items() if tables or folder == root}


def _list_split_tables(listing: Listing, tables: dict[Path, list[Path]], folder: Path, shown: Path) -> Listing:
    """The images that a table in each split's folder names, as image folders of Hugging Face have it."""
    by_tables = Listing(listing.root, {}, top=listing.top, num_hidden=listing.num_hidden)
    for split_folder, found in tables.items():
        readable = [path for path in found if path.suffix.lower() in TABLE_EXTENSIONS]
        usable = [path for path in readable if fits(path)] or readable[:1]
        said = [shown / path.relative_to(folder) for path in usable or found]
        if not usable:
            raise _unused(said[0])
        if len(usable) > 1:
            raise DataError(f"{said[0]} and {usable[1].name} beside it could give the classes; keep one of them")
        part = list_table(usable[0], said[0], inside=folder != shown)
        split = SPLIT_NAMES[split_folder.name.lower()]
        if not set(part.splits) <= {"all", split} or split in by_tables.splits:
            raise DataError(f"{said[0]} is not the only one that names images of a split; keep one, or name one table")
        (by_tables.splits[split],) = part.splits.values()
        name = usable[0].relative_to(listing.root).as_posix()
        by_tables.warnings += [f"{name} gives the classes of {split}", *part.warnings]
    for path in visible(listing.root):
        if path.is_dir() and path not in tables and (number := len(images_in(path))):
            left_out = f"{counted(number, 'image')} in {path.name}, left out unless a table elsewhere names them"
            by_tables.warnings.append(f"{path.name} has no table: {left_out}")
    return by_tables


def _unused(table: Path) -> DataError:
    """Where no folders give the classes, a table in a place or a form that is not read probably does."""
    way_out = "name it as DATA"
    if table.suffix.lower() in _JSON_LINES:
        way_out = (
            "JSON is not read, so write it as a table (CSV) with the columns filepath and label, or let Hugging Face "
            "datasets read the folder (hf:./FOLDER)"
        )
    return DataError(f"no folders, but {table} could give the classes; {way_out}")


def _leave_out_new(listing: Listing, classes: Sequence[str]) -> None:
    known = set(classes)
    for split in {"all", "train"} & set(listing.splits):
        by_class = listing.splits[split]
        new = [name for name, paths in sorted(by_class.items()) if paths and name not in known]
        if new:
            number = counted(len(new), "class", "classes")
            listing.warnings.append(f"{number} left out, which the model does not have: {first_few(new)}")
        listing.splits[split] = {name: paths for name, paths in by_class.items() if name not in new}


def _own_classes(source: Path, listing: Listing) -> tuple[str, ...]:
    splits, first = listing.splits, "all" if "all" in listing.splits else "train"
    if first not in splits:
        raise DataError(f"{source} has {' and '.join(splits)} but no train; add the images to train on")
    for split, by_class in splits.items():
        empty = [name for name, paths in sorted(by_class.items()) if not paths]
        for name in empty:
            del by_class[name]
        if empty:
            number = counted(len(empty), "class", "classes")
            listing.warnings.append(f"{number} of {split} left out, having no images: {first_few(empty)}")
    classes = tuple(sorted(splits[first]))
    where = str(source) if first == "all" else f"train of {source}"
    if not classes and listing.left_out.get(first):
        raise DataError(f"no images are left in {where}; the ignore list names them all, so shorten it")
    if not classes:
        raise DataError(_no_images(where, listing))
    if len(classes) == 1:
        folders = {path.parent for path in splits[first][classes[0]]}
        nested = len(folders) > 1 and all(classes[0] in folder.parts for folder in folders)
        instead = ", or name the folder whose folders are the classes" if nested else ""
        raise DataError(
            f"{where} has images of one class only ({classes[0]!r}); a classifier needs at least two, so add another"
            f"{instead}"
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
    for split, by_class in splits.items():
        names = [name for name, paths in sorted(by_class.items()) if paths and name not in known]
        if not names:
            continue
        # The others are not shown, and to find what is like them takes long.
        shown = [f"{n!r} ({counted(len(by_class[n]), 'image')}{_similar(n, classes)})" for n in names[:5]]
        where = "DATA" if split == "all" else split
        raise DataError(
            f"{where} has {counted(len(names), 'class', 'classes')} that {whose} does not have: "
            f"{first_few([*shown, *names[5:]])}; rename or remove {'it' if len(names) == 1 else 'them'}"
        )


def _similar(name: str, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in classes], n=1, cutoff=0.8)
    matches = [known for known in classes if near and known.lower() == near[0]]
    return f"; did you mean {matches[0]!r}?" if matches else ""


Form = Literal["folder", "table", "archive", "dataset"]

_FORMS = "a folder with one folder of images per class, a table (CSV), a zip or tar archive, or a data set (hf:NAME)"
_UNPACK = "unpack it, and name the folder"
_SAVE_AS_CSV = "save it as 'CSV UTF-8' with the columns filepath and label"
_OTHERS = {
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", _UNPACK),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", _SAVE_AS_CSV),
    b"PAR1": ("a Parquet file", "give it a name that ends in .parquet"),
    b"\x89HDF": ("an HDF5 file", "name a folder, a table or an archive that was made from it"),
}
"""First bytes -> what it is, and the way out."""
_OFFICE_MEMBERS = (b"[Content_Types].xml", b"mimetype", b"_rels/")
"""What the zip archives that are spreadsheets begin with."""


_FETCH = "fetch it again, signed in where that is asked for"
_INSTEAD = {
    b"<!doctype html": ("a web page", _FETCH),
    b"<html": ("a web page", _FETCH),
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself (git lfs pull)"),
}
"""What a failed download begins with, in small letters -> what it is, and the way out."""


def form_of(data: Path) -> Form:
    """The form of some data.

    Raises:
        DataError: if it does not exist, cannot be read, or is in none of the forms; with the way out.
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
        allow = "; allow it" if isinstance(error, PermissionError) else ""
        raise DataError(f"cannot read {error.filename or data}: {error.strerror or error}{allow}") from error


def _form_of_file(path: Path) -> Form:
    if not path.is_file():
        raise DataError(f"{path} is no ordinary file; DATA is {_FORMS}")
    with open_file(path) as file:
        start = file.read(512)
    for magic, (what, way_out) in _OTHERS.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {what}; {way_out}")
    if looks_like_image(path):
        raise DataError(f"{path} is one image; DATA is {_FORMS}; carnet predict takes single images")
    if is_zip(path):
        if start[30:].startswith(_OFFICE_MEMBERS):
            raise DataError(f"{path} is a spreadsheet or another document of an office suite; {_SAVE_AS_CSV}")
        return "archive"
    if is_tar(path):
        return "archive"
    if is_packed(path):
        raise DataError(
            f"{path} is packed, but is no tar archive, or a damaged one; unpack it, and name what comes out"
        )
    # UTF-16, which has such bytes as well, begins with its mark; the table says how to save it otherwise.
    if b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is none of the forms of DATA, or damaged; DATA is {_FORMS}")
    _check_download(path, start)
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        raise DataError(f"{path} is JSON, which is not read; {_SAVE_AS_CSV}")
    return "table"


def _check_download(path: Path, start: bytes) -> None:
    """Name what a download that failed leaves; a table does not begin like that, and is not called like an archive."""
    begun = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, (what, way_out) in _INSTEAD.items():
        if begun.startswith(beginning):
            raise DataError(f"{path} is {what} in place of the data; {way_out}")
    if path.suffix.lower() in ARCHIVE_EXTENSIONS:
        what = "a text; fetch it again, or name it .csv if it is a table" if start else "empty; fetch it again"
        raise DataError(f"{path} is no archive but {what}")


def _missing(data: Path) -> str:
    if link := broken_link(data):
        return link
    beside: list[str] = []
    with suppress(OSError):
        beside += [path.name for path in data.parent.iterdir()]
    near = difflib.get_close_matches(data.name, beside, n=1)
    hint = f"; did you mean {data.parent / near[0]}?" if near else "; DATA is looked for in the current folder"
    return f"no {'file' if data.suffix else 'folder'} {data}{hint if near or not data.is_absolute() else ''}"
