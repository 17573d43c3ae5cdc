"""Which form of data a path names, told by its content and not by its name."""

from __future__ import annotations

import difflib
import stat
from contextlib import suppress
from pathlib import Path
from typing import Literal

from carnet.data.archive import ARCHIVE_EXTENSIONS, is_zip
from carnet.data.hub import is_dataset
from carnet.data.samples import expanded
from carnet.data.tar import is_packed, is_tar
from carnet.errors import DataError
from carnet.inputs import broken_link, open_file, state_of
from carnet.preprocess import looks_like_image

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
