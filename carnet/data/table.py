"""Labelled images listed in a table: CSV or TSV, with a header.

One column names the file, one its class, and perhaps one the split; the order of the columns does not matter, others
are left alone. Capitals, spaces and underscores in a header make no difference. Paths count from the table's folder.

`Locator` finds where a named file lies: paths of this machine, of another one, and with Windows' backslashes.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TextIO

from carnet.data.folder import visible
from carnet.data.samples import SPLIT_NAMES, Listing, in_order
from carnet.errors import DataError
from carnet.files import MAX_TABLE_BYTES, broken_link, open_file, open_text, state_of
from carnet.preprocess import EXTENSIONS
from carnet.text import counted, first_few

_PATH = (
    *("filepath", "filepaths", "path", "paths", "imagepath", "imagepaths"),
    *("file", "files", "filename", "filenames", "imagefile", "imagename", "image", "images"),
)
_ID = ("imageid", "id")
"""What may stand for the path where no column is called so: many tables have it for something else."""
_LABEL = ("label", "labels", "class", "classes", "classname", "category", "categories")
_SPLIT = ("split", "dataset", "set", "subset")
"""Names of columns, in the order in which they are preferred."""
_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon"}
_SHOWN = 5
"""Of files that are not there, so many are named."""
_EXAMPLE = "a header such as filepath,label and a row for each image"
_NEEDED = (
    "needed are a column for the image's path (filepath, path, file, filename or image) and one for its class "
    "(label, class or category)"
)


@dataclass(frozen=True)
class _Columns:
    """Where in a row to look."""

    names: tuple[str, ...]
    delimiter: str
    path: int
    label: int
    split: int | None


@dataclass(frozen=True)
class _Row:
    """What a line says of one image."""

    line: int
    name: str
    label: str
    split: str
    written: str
    """The label as the table has it, with blanks and ways of writing a letter."""


def list_table(path: Path, shown: Path | None = None, *, inside: bool = False) -> Listing:
    """List the images that a table names.

    Args:
        path: the table.
        shown: what messages call it, if it lies in the cache.
        inside: it comes from an archive, and may name nothing outside its folder.

    Raises:
        DataError: naming the line, for a header or a row that cannot be understood, a file that is missing or a
            folder, and an image with two classes or in two splits.
    """
    shown = shown or path
    locator = Locator(path, shown, inside=inside)
    listing = Listing(path.parent, {})
    written: dict[str, set[str]] = {}
    repeated = _place(_read_rows(path, shown, listing.warnings), shown, locator, listing, written)
    if not listing.splits:
        raise DataError(f"{shown} has a header and no rows below it; it needs {_EXAMPLE}")
    listing.warnings += locator.warnings()
    for label, spellings in sorted(written.items()):
        if len(spellings) > 1:
            what = f"{len(spellings)} ways, with other blanks or ways of writing a letter"
            listing.warnings.append(f"{path.name} writes the class {label} in {what}; they are one class")
    if repeated:
        lines = first_few([f"{line:,}" for line in repeated])
        what = f"{counted(len(repeated), 'row')} of {path.name}"
        listing.warnings.append(f"{what} repeated word for word, counted once: line {lines}")
    # The same order as a folder of the same images gives, since training depends on it.
    listing.splits = {
        split: {label: in_order(by_class[label]) for label in sorted(by_class)}
        for split, by_class in sorted(listing.splits.items())
    }
    return listing


def fits(path: Path) -> bool:
    """Whether a file's header names the columns that a table of images needs."""
    try:
        # Whether all of it is UTF-8 shall be told where it is read.
        with open_text(path, errors="replace") as file:
            _columns(file, path, [])
    except (DataError, OSError):
        return False
    return True


def labels_of(path: Path) -> set[str]:
    """The classes that a table's rows name; empty if it cannot be read as a table of images."""
    try:
        return {row.label for row in _read_rows(path, path, [])}
    except DataError:
        return set()


def _place(
    rows: Iterator[_Row], table: Path, locator: Locator, listing: Listing, written: dict[str, set[str]]
) -> list[int]:
    """Sort the rows' images into the listing, and how each class is written; return the lines that repeat another."""
    first: dict[Path, _Row] = {}
    missing: list[_Row] = []
    num_missing = 0
    repeated: list[int] = []
    for row in rows:
        written.setdefault(row.label, set()).add(row.written)
        path = locator.find(row.name)
        if path is None:
            try:
                state_of(locator.root / row.name)
            except PermissionError as error:
                way_out = f"cannot be looked for ({error.strerror}); allow that, or drop it"
                raise DataError(f"{table} line {row.line}: {row.name} {way_out}") from error
            num_missing += 1
            # A table of a gigabyte may name nothing that is there.
            missing += [row] if len(missing) < _SHOWN else []
        elif path.is_dir():
            raise DataError(
                f"{table} line {row.line}: {row.name} is a folder; name each image in a row of its own, "
                f"or give the folder itself as DATA"
            )
        elif path in first:
            _check_repeated(first[path], row, table, locator)
            repeated.append(row.line)
        else:
            first[path] = row
            listing.splits.setdefault(row.split, {}).setdefault(row.label, []).append(path)
    if missing:
        names = ", ".join(f"{row.name} (line {row.line})" for row in missing)
        more = f" and {num_missing - len(missing):,} more" if num_missing > len(missing) else ""
        link = broken_link(locator.root / missing[0].name)
        way_out = link or "paths count from the table's folder, so correct them or move the table"
        all_rows = num_missing + len(first)
        raise DataError(f"{table}: {num_missing:,} of {all_rows:,} files are not there: {names}{more}; {way_out}")
    return repeated


def _check_repeated(first: _Row, row: _Row, table: Path, locator: Locator) -> None:
    names = [locator.foreign(first.name), locator.foreign(row.name)]
    if all(names) and names[0] != names[1]:
        raise DataError(
            f"{table} lines {first.line} and {row.line} name different files, {first.name} and {row.name}, but only "
            f"one is here; bring the other one as well, or mend the paths"
        )
    for was, now in ((first.label, row.label), (first.split, row.split)):
        if was != now:
            raise DataError(
                f"{table} line {row.line}: {row.name} is {now!r}, but {was!r} in line {first.line}; keep one of the two"
            )


def _read_rows(path: Path, shown: Path, warnings: list[str]) -> Iterator[_Row]:
    try:
        with open_text(path) as file:
            columns = _columns(file, shown, warnings)
            file.seek(0)
            reader = csv.reader(file, delimiter=columns.delimiter, strict=True)
            try:
                filled = _filled(reader)
                next(filled)
                for cells in filled:
                    yield _row(cells, reader.line_num, columns, shown)
            except csv.Error as error:
                raise DataError(f"{shown} line {reader.line_num}: {error}; is a quotation mark missing?") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown} line {_first_undecodable_line(path)}: is not UTF-8; save the table as UTF-8 "
            f"(a spreadsheet calls it 'CSV UTF-8')"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {shown}: {error.strerror or error}") from error


def _filled(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """The header and the rows: no empty ones, and no `sep=;`, by which a spreadsheet is told the separator."""
    filled = (cells for cells in rows if any(cell.strip() for cell in cells))
    first = next(filled, None)
    if first is not None and not first[0].startswith("sep="):
        yield first
    yield from filled


def _row(cells: list[str], line: int, columns: _Columns, path: Path) -> _Row:
    if len(cells) != len(columns.names):
        raise DataError(
            f"{path} line {line} has {counted(len(cells), 'column')} where the header has {len(columns.names)}; "
            f"put what holds a {_DELIMITERS[columns.delimiter]} into quotation marks"
        )
    name, written = cells[columns.path].strip(), cells[columns.label]
    label = unicodedata.normalize("NFC", written.strip())
    for what, value in (("path", name), ("class", label)):
        if not value:
            raise DataError(f"{path} line {line}: the {what} is empty; fill it in, or remove the row")
        if any(ord(character) < 32 for character in value):
            raise DataError(f"{path} line {line}: the {what} {value[:60]!r} has a line break or the like; remove it")
    if columns.split is None:
        return _Row(line, name, label, "all", written)
    said = cells[columns.split].strip()
    split = SPLIT_NAMES.get(said.lower())
    if split is None:
        what = f"unknown split {said[:60]!r}" if said else "the split is empty"
        raise DataError(f"{path} line {line}: {what}; write train, valid or test")
    return _Row(line, name, label, split, written)


def _columns(file: TextIO, path: Path, warnings: list[str]) -> _Columns:
    """Read the header: of the possible delimiters the one that gives the columns, or else the most of them."""
    headers = [(delimiter, _header(file, delimiter)) for delimiter in _DELIMITERS]
    if not any(cells for _, cells in headers):
        raise DataError(f"{path} is empty; it needs {_EXAMPLE}")
    for delimiter, cells in headers:
        place, label = _choose(cells, _PATH) or _choose(cells, _ID), _choose(cells, _LABEL)
        if place and label:
            split = _choose(cells, _SPLIT)
            for places in (place, label, split):
                if len(places) > 1:
                    names = " and ".join(cells[number].strip() for number in places)
                    warnings.append(f"{path.name} has the columns {names}; the first is taken")
            return _Columns(tuple(cells), delimiter, place[0], label[0], split[0] if split else None)
    cells = max((cells for _, cells in headers), key=len)
    if any(Path(cell).suffix.lower() in EXTENSIONS for cell in cells):
        raise DataError(f"{path} line 1 names an image already; put a header above it, such as filepath,label")
    found = first_few([repr(cell.strip()[:40]) for cell in cells], 8)
    raise DataError(f"{path} line 1: found {counted(len(cells), 'column')}, {found}; {_NEEDED}")


def _header(file: TextIO, delimiter: str) -> list[str]:
    file.seek(0)
    try:
        return next(_filled(csv.reader(file, delimiter=delimiter)), [])
    except csv.Error:
        return []


def _choose(cells: Sequence[str], names: Sequence[str]) -> list[int]:
    """Places of the columns that go by one of the names, the preferred name first."""
    plain = [cell.strip().lower().replace(" ", "").replace("_", "").replace("-", "") for cell in cells]
    return [place for name in names for place, cell in enumerate(plain) if cell == name]


def _first_undecodable_line(path: Path) -> int:
    with open_file(path, MAX_TABLE_BYTES) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


class Locator:
    """Finds files by the names a table gives them, with or without an image's extension.

    Relative names count from the table's folder. Where nothing is there, they are looked for in the folders beside the
    table (of these, where there are such, in those called like it), beside the file that the table is a link to, and
    in the current folder. Absolute names that do not exist are names of another machine: what they end with is looked
    for below the table's folder.

    Attributes:
        root: the table's folder.
    """

    def __init__(self, table: Path, shown: Path | None = None, *, inside: bool = False) -> None:
        """Get ready for one table.

        Args:
            table: its path; the file need not exist.
            shown: what messages call it.
            inside: it comes from an archive, and may name nothing outside its folder.
        """
        self.root = table.parent
        self._shown = shown or table
        self._inside = inside
        self._roots = {self.root.absolute(), self.root.resolve()}
        folders = [path for path in visible(self.root) if path.is_dir()]
        # A folder may have the table's name, or that and another word: train.csv, train or train_images.
        called_like = re.compile(rf"{re.escape(table.stem)}(?![^\W_])", re.IGNORECASE)
        self._beside = [path for path in folders if called_like.match(path.name)] or folders
        elsewhere = () if inside else (table.resolve().parent, Path.cwd())
        self._elsewhere = [folder for folder in elsewhere if folder not in self._roots]
        self._stems: dict[Path, dict[str, list[str]]] = {}
        self._found_in: Counter[Path] = Counter()
        self._foreign: Counter[str] = Counter()
        self._by_name_alone = False

    def find(self, name: str) -> Path | None:
        """The file or folder of that name; None if there is none.

        Raises:
            DataError: if there are two, and nothing says which one is meant.
        """
        plain, path = self._absolute(name)
        if path is None:
            return self._find_relative(plain)
        return path if self._is_there(path) else self._find_foreign(plain)

    def foreign(self, name: str) -> str:
        """A name of another machine, in one way of writing; nothing ("") for any other name."""
        plain, path = self._absolute(name)
        return plain if path is not None and not self._is_there(path) else ""

    def warnings(self) -> list[str]:
        """What was done to find the files, for the user to judge; to be asked for when all have been looked for.

        Raises:
            DataError: if files of several folders of another machine were found by their bare names.
        """
        if self._by_name_alone and len(self._foreign) > 1:
            raise DataError(
                f"{self._shown} has paths of another machine, below {first_few(list(self._foreign))}, of which only "
                f"the last part is found here; bring their folders as well, or mend the paths"
            )
        warnings = [
            f"{counted(number, 'path')} of another machine, below {prefix}, found below {self._shown.parent}"
            for prefix, number in self._foreign.items()
        ]
        for folder, number in self._found_in.items():
            where = f"in {folder.name}, beside the table" if folder in self._beside else f"by counting from {folder}"
            warnings.append(f"{counted(number, 'path')} found {where}")
        return warnings

    def _absolute(self, name: str) -> tuple[str, Path | None]:
        """The name in one way of writing, and its path where it is absolute."""
        absolute = PureWindowsPath(name).is_absolute() or name.startswith(("/", "\\"))
        name = posixpath.normpath(name.replace("\\", "/"))
        return name, self._below_root(Path(name)) if absolute else None

    def _find_relative(self, name: str) -> Path | None:
        if here := self._at(self.root, name):
            return here
        found = [(folder, path) for folder in self._beside if (path := self._at(folder, name))]
        if len(found) > 1:
            folders = " and ".join(folder.name for folder, _ in found[:2])
            raise DataError(f"{self._shown}: {name} lies in {folders}; write the folder into the path")
        found = found or [(folder, path) for folder in self._elsewhere if (path := self._at(folder, name))]
        if not found:
            return None
        folder, path = found[0]
        self._found_in[folder] += 1
        return self._below_root(path)

    def _at(self, folder: Path, name: str) -> Path | None:
        """The file of that name in a folder, or of that name and an image's extension."""
        path = folder / name
        if self._is_there(path):
            return path
        if path.suffix.lower() in EXTENSIONS or not path.name:
            return None
        names = self._images_by_stem(path.parent).get(path.name, [])
        if len(names) > 1:
            raise DataError(f"{self._shown}: {name} could be {' or '.join(names[:2])}; write the extension as well")
        return path.with_name(names[0]) if names and self._is_there(path.with_name(names[0])) else None

    def _images_by_stem(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._stems:
            stems = self._stems[folder] = {}
            with suppress(OSError, ValueError):
                for path in sorted(folder.iterdir()):
                    if path.suffix.lower() in EXTENSIONS:
                        stems.setdefault(path.stem, []).append(path.name)
        return self._stems[folder]

    def _is_there(self, path: Path) -> bool:
        # pathlib's raises an error for a name that no file could have, and in a folder that may not be entered.
        is_there = os.path.exists(path)  # noqa: PTH110
        return is_there and (not self._inside or path.resolve().is_relative_to(self.root.resolve()))

    def _below_root(self, path: Path) -> Path:
        """The same path, written as if it had been relative where it lies below the root."""
        for root in self._roots:
            if path.is_relative_to(root):
                return self.root / path.relative_to(root)
        return path

    def _find_foreign(self, name: str) -> Path | None:
        parts = PurePosixPath(name).parts
        prefixes = ["/".join(parts[:length]).replace("//", "/") for length in range(1, len(parts))]
        # What was found for one path is tried first for the next, so that all are taken from one place if they can be.
        for prefix in sorted(prefixes, key=lambda prefix: prefix not in self._foreign):
            path = self.root / name.removeprefix(prefix).lstrip("/")
            if self._is_there(path) and not path.is_dir():
                self._foreign[prefix] += 1
                self._by_name_alone |= path.parent == self.root
                return path
        return None
