"""Labelled images listed in a table: CSV or TSV, with a header.

One column names the file, one its class, and perhaps one the split, in any order; other columns are ignored. Capitals,
spaces and underscores in a header make no difference. Paths are relative to the table's folder; `Locator` finds them
also where they are paths of another machine.
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
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, TextIO

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
"""Columns that hold the path if no other does: many tables have them for something else."""
_LABEL = ("label", "labels", "class", "classes", "classname", "category", "categories")
_SPLIT = ("split", "dataset", "set", "subset")
"""Names of columns, the preferred one first."""
_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon"}
_MAX_SHOWN = 5
"""How many missing files an error names."""
_EXAMPLE = "a header such as filepath,label and a row for each image"
_NEEDED = (
    "needed are a column for the image's path (filepath, path, file, filename or image) and one for its class "
    "(label, class or category)"
)


class _Columns(NamedTuple):
    """The header's cells, the delimiter, and the indices of the columns."""

    cells: list[str]
    delimiter: str
    path: int
    label: int
    split: int | None


class _Row(NamedTuple):
    """What a line tells of one image; `written` is the label before its spelling was made uniform."""

    line: int
    name: str
    label: str
    split: str
    written: str


def list_table(path: Path, shown: Path | None = None, *, inside: bool = False) -> Listing:
    """List the images that a table names.

    Args:
        path: the table.
        shown: its name in messages, if it lies in the cache.
        inside: whether it comes from an archive, and may name nothing outside its folder.

    Raises:
        DataError: naming the line, if the header or a row cannot be understood, a file is missing or a folder, or an
            image has two classes or splits.
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
    # Training depends on the order, which is that of a folder of the same images.
    listing.splits = {
        split: {label: in_order(by_class[label]) for label in sorted(by_class)}
        for split, by_class in sorted(listing.splits.items())
    }
    return listing


def fits(path: Path) -> bool:
    """Return whether a file's header has the columns of a table of images."""
    try:
        # Reading the rows reports what is not UTF-8.
        with open_text(path, errors="replace") as file:
            _find_columns(file, path, [])
    except (DataError, OSError):
        return False
    return True


def labels_of(path: Path) -> set[str]:
    """Return the classes in a table's rows; none if it cannot be read as a table of images."""
    try:
        return {row.label for row in _read_rows(path, path, [])}
    except DataError:
        return set()


def _place(
    rows: Iterator[_Row], table: Path, locator: Locator, listing: Listing, written: dict[str, set[str]]
) -> list[int]:
    """Sort the rows' images into the listing, and the spellings of each class; return the lines that repeat another."""
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
            # A table of a gigabyte may name only missing files.
            missing += [row] if len(missing) < _MAX_SHOWN else []
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
            f"one is here; bring the other one as well, or correct the paths"
        )
    for was, now in ((first.label, row.label), (first.split, row.split)):
        if was != now:
            raise DataError(
                f"{table} line {row.line}: {row.name} is {now!r}, but {was!r} in line {first.line}; keep one of the two"
            )


def _read_rows(path: Path, shown: Path, warnings: list[str]) -> Iterator[_Row]:
    try:
        with open_text(path) as file:
            columns = _find_columns(file, shown, warnings)
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
    """Return the rows, header included, without empty ones and without `sep=;`, a note for spreadsheets."""
    filled = (cells for cells in rows if any(cell.strip() for cell in cells))
    first = next(filled, None)
    if first is not None and not first[0].startswith("sep="):
        yield first
    yield from filled


def _row(cells: list[str], line: int, columns: _Columns, path: Path) -> _Row:
    if len(cells) != len(columns.cells):
        raise DataError(
            f"{path} line {line} has {counted(len(cells), 'column')} where the header has {len(columns.cells)}; "
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


def _find_columns(file: TextIO, path: Path, warnings: list[str]) -> _Columns:
    """Read the header with the delimiter that gives the columns."""
    headers: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        file.seek(0)
        with suppress(csv.Error):
            headers[delimiter] = next(_filled(csv.reader(file, delimiter=delimiter)), [])
    for delimiter, cells in headers.items():
        place, label = _indices(cells, _PATH) or _indices(cells, _ID), _indices(cells, _LABEL)
        if place and label:
            split = _indices(cells, _SPLIT)
            for indices in (place, label, split):
                if len(indices) > 1:
                    names = " and ".join(cells[index].strip() for index in indices)
                    warnings.append(f"{path.name} has the columns {names}; the first is taken")
            return _Columns(cells, delimiter, place[0], label[0], split[0] if split else None)
    cells = max(headers.values(), key=len, default=[])
    if not cells:
        raise DataError(f"{path} is empty; it needs {_EXAMPLE}")
    if any(Path(cell).suffix.lower() in EXTENSIONS for cell in cells):
        raise DataError(f"{path} line 1 names an image already; put a header above it, such as filepath,label")
    found = first_few([repr(cell.strip()[:40]) for cell in cells], 8)
    raise DataError(f"{path} line 1: found {counted(len(cells), 'column')}, {found}; {_NEEDED}")


def _indices(cells: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the indices of the columns with one of the names, the preferred name first."""
    plain = [cell.strip().lower().replace(" ", "").replace("_", "").replace("-", "") for cell in cells]
    return [index for name in names for index, cell in enumerate(plain) if cell == name]


def _first_undecodable_line(path: Path) -> int:
    with open_file(path, MAX_TABLE_BYTES) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


class Locator:
    """Finds files by the names that a table gives them, with or without an image's extension.

    Relative names count from the table's folder. Names that are not there are looked for in the folders beside the
    table (only in those with its name, if there are any), beside the file that the table is a link to, and in the
    current folder. Absolute names that do not exist are of another machine: their last parts are looked for below the
    table's folder.

    Attributes:
        root: the table's folder.
    """

    def __init__(self, table: Path, shown: Path | None = None, *, inside: bool = False) -> None:
        """Prepare for one table.

        Args:
            table: its path; the file need not exist.
            shown: its name in messages.
            inside: whether it comes from an archive, and may name nothing outside its folder.
        """
        self.root = table.parent
        self._shown = shown or table
        self._inside = inside
        self._roots = {self.root.absolute(), self.root.resolve()}
        folders = [path for path in visible(self.root) if path.is_dir()]
        # A folder may have the table's name, or that and another word: train.csv, train or train_images.
        named = re.compile(rf"{re.escape(table.stem)}(?![^\W_])", re.IGNORECASE)
        self._beside = [path for path in folders if named.match(path.name)] or folders
        elsewhere = () if inside else (table.resolve().parent, Path.cwd())
        self._elsewhere = [folder for folder in elsewhere if folder not in self._roots]
        self._stems: dict[Path, dict[str, list[str]]] = {}
        self._found_in: Counter[Path] = Counter()
        self._foreign: Counter[str] = Counter()
        self._by_name_alone = False

    def find(self, name: str) -> Path | None:
        """Return the file or folder of that name; None if there is none.

        Raises:
            DataError: if there are two, and nothing tells which one is meant.
        """
        plain, path = self._absolute(name)
        if path is None:
            return self._find_relative(plain)
        return path if self._is_there(path) else self._find_foreign(plain)

    def foreign(self, name: str) -> str:
        """Return a name of another machine with forward slashes, "" for any other name."""
        plain, path = self._absolute(name)
        return plain if path is not None and not self._is_there(path) else ""

    def warnings(self) -> list[str]:
        """Return what was done to find the files; call it after all of them.

        Raises:
            DataError: if files of several folders of another machine were found by their bare names.
        """
        if self._by_name_alone and len(self._foreign) > 1:
            raise DataError(
                f"{self._shown} has paths of another machine, below {first_few(list(self._foreign))}, of which only "
                f"the last part is found here; bring their folders as well, or correct the paths"
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
        """Return the name with forward slashes, and its path if it is absolute."""
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
        """Return the file of that name in a folder, or of that name and an image's extension."""
        path = folder / name
        if self._is_there(path):
            return path
        if path.suffix.lower() in EXTENSIONS or not path.name:
            return None
        if path.parent not in self._stems:
            stems = self._stems[path.parent] = {}
            with suppress(OSError, ValueError):
                for file in sorted(path.parent.iterdir()):
                    if file.suffix.lower() in EXTENSIONS:
                        stems.setdefault(file.stem, []).append(file.name)
        names = self._stems[path.parent].get(path.name, [])
        if len(names) > 1:
            raise DataError(f"{self._shown}: {name} could be {' or '.join(names[:2])}; write the extension as well")
        return path.with_name(names[0]) if names and self._is_there(path.with_name(names[0])) else None

    def _is_there(self, path: Path) -> bool:
        # pathlib's raises an error for a name that no file could have, and in a folder that may not be entered.
        is_there = os.path.exists(path)  # noqa: PTH110
        return is_there and (not self._inside or path.resolve().is_relative_to(self.root.resolve()))

    def _below_root(self, path: Path) -> Path:
        """Return the path as if it had been relative, if it lies below the root."""
        below = next((path.relative_to(root) for root in self._roots if path.is_relative_to(root)), None)
        return path if below is None else self.root / below

    def _find_foreign(self, name: str) -> Path | None:
        parts = PurePosixPath(name).parts
        prefixes = ["/".join(parts[:length]).replace("//", "/") for length in range(1, len(parts))]
        # What was found for one path is tried first for the next, so that all come from one place if they can.
        for prefix in sorted(prefixes, key=lambda prefix: prefix not in self._foreign):
            path = self.root / name.removeprefix(prefix).lstrip("/")
            if self._is_there(path) and not path.is_dir():
                self._foreign[prefix] += 1
                self._by_name_alone |= path.parent == self.root
                return path
        return None
