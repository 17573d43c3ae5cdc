"""Write files so that they are whole or absent."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from carnet.documents import MAX_BYTES, DocumentError, conform, parse, sealed
from carnet.errors import OutputError, RunError
from carnet.inputs import open_file, read_file
from carnet.text import printable

_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds."""
_BEYOND = 2**30
"""Where Windows locks a byte: past the end of the file, so that others may read it."""
_TEMPORARY = re.compile(r"\.\d+\.[0-9a-f]{8}\.tmp")
"""The name that a file of ours has until it is whole."""
_cleaned: set[Path] = set()
"""Folders from which this process has removed what killed writers left."""
_FORMULA = re.compile(r"(^|;)(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""Where a spreadsheet would begin a formula: at a cell's first sign, and many begin a new cell at each semicolon."""


def write_bytes(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Fill a temporary file beside `path`, flush it to the disk, then give it its name.

    A kill at any moment leaves the previous file, whole; with `previous`, under one of the two names. A
    temporary file that it leaves as well is removed by the next process that writes into the folder.

    Args:
        path: the file.
        content: what it shall hold.
        previous: the name under which the file that was there until now stays.

    Raises:
        OutputError: if the folder is missing, read-only or full.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    # Not longer than the name itself, which may be as long as names can be.
    temporary = path.with_name(f".{os.getpid()}.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}.tmp")
    try:
        _remove_abandoned(path.parent)
        _fill(temporary, content)
        if previous is not None and path.exists():
            _name(path, previous)
        try:
            _name(temporary, path)
        except FileNotFoundError:
            # Another process took it for abandoned before it was locked, or where the file system has no locks.
            _fill(temporary, content)
            _name(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of writers that were killed, when this process first writes into a folder."""
    if (absolute := folder.absolute()) in _cleaned:
        return
    _cleaned.add(absolute)
    left: list[Path] = []
    with contextlib.suppress(OSError):
        left = [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]
    for path in left:
        with contextlib.suppress(OSError):
            # What belongs to another user cannot be locked, and may be in use.
            with locked(path) as is_abandoned:
                is_ours = os.access(path, os.W_OK)
            if is_abandoned and is_ours:
                path.unlink()


def _fill(path: Path, content: bytes) -> None:
    """Write a file to the disk, locked, so that no other process takes it for abandoned."""
    with path.open("wb") as file:
        _lock(file)
        # On Windows a lock is taken far beyond the end.
        file.seek(0)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _name(path: Path, name: Path) -> None:
    # The new name counts even if it is taken, on every system.
    patiently(lambda: path.replace(name))


def patiently(rename: Callable[[], object]) -> None:
    """Rename something; on Windows, where a scanner may hold a fresh file open, try again for some seconds.

    Raises:
        OSError: if it is not possible.
    """
    for pause in _PAUSES if os.name == "nt" else ():
        try:
            rename()
            return
        except PermissionError:
            time.sleep(pause)
    rename()


def _flush_folder(folder: Path) -> None:
    """Make new names outlive a loss of power, where the system lets a folder be opened for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_target(path: Path, *endings: str) -> None:
    """Find out before long work whether a file may be written there.

    Args:
        path: the file.
        endings: what its name may end in, the usual one first.

    Raises:
        OutputError: if it is a folder or ends otherwise, or its folder is not there or may not be written.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if path.suffix not in endings:
        raise OutputError(f"{path} does not end in {endings[0]}; name the file so")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}; make it, or choose another --output")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"nothing may be written into {path.parent}; allow it, or choose another --output")


def check_folder(path: Path) -> None:
    """Find out before long work whether a folder may be made, or written into.

    Raises:
        OutputError: if a file has its name, or that of a folder above it, or nothing may be written there.
    """
    there = next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), None)
    if there is None or not there.is_dir():
        raise OutputError(
            f"cannot create the folder {path}: {there or path.absolute().anchor} is no folder; choose another --output"
        )
    if not os.access(there, os.W_OK):
        raise OutputError(f"nothing may be written into {there}; allow it, or choose another --output")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a file, whose content stays; yields False where somebody else holds it.

    The system lets go of it when this process ends, in whatever way. Where a file system has no locks, or the file may
    not be written, nothing is held and nobody is stopped.
    """
    try:
        file = path.open("r+b")
    except OSError:
        yield True
        return
    with file:
        yield _lock(file)


def _lock(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_BEYOND)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text, whole or not at all; undecodable bytes of file names come out as they were.

    Raises:
        OutputError: as `write_bytes`.
    """
    write_bytes(path, content.encode("utf-8", "surrogateescape"))


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document a person can read, whole or not at all.

    Raises:
        OutputError: as `write_bytes`.
    """
    write_text(path, to_json(document) + "\n")


def write_sealed_json(path: Path, document: Mapping[str, Any]) -> None:
    """The same with a checksum of its own in it, which `carnet.documents.unsealed` checks.

    Raises:
        OutputError: as `write_bytes`.
    """
    write_json(path, sealed(_finite(document)))


def to_json(document: Any, *, ascii_only: bool = False) -> str:
    """JSON text a person can read; what is infinite or not a number becomes null, since JSON has no word for it.

    Args:
        document: plain values.
        ascii_only: write other letters as JSON's escapes.
    """
    return json.dumps(_finite(document), indent=2, ensure_ascii=ascii_only, allow_nan=False)


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table, whole or not at all; the first row's keys head the columns.

    Raises:
        OutputError: as `write_bytes`.
    """
    write_text(path, csv_text(rows))


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table that `write_csv` writes."""
    rows = list(rows)
    columns = list(rows[0]) if rows else []
    return "".join(map(csv_line, [columns, *([row[column] for column in columns] for row in rows)]))


def csv_line(cells: Iterable[Any]) -> str:
    """One row of a table, with its end.

    A lone carriage return, which names may have, is not quoted by the csv of Python up to 3.11.8 and 3.12.2, and then
    cannot be read back.
    """
    texts = ["" if cell is None else str(cell) for cell in cells]
    text = io.StringIO()
    quote_all = any("\r" in cell for cell in texts)
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)
    writer.writerow(texts)
    return text.getvalue()


def csv_line_for_people(cells: Iterable[Any]) -> str:
    """One row of a table that people open: no text in it rules a terminal, or is a formula to a spreadsheet.

    Spreadsheets take an apostrophe before it for the sign of a text. What is read back by programs is written by
    `csv_line`, which changes nothing.
    """
    return csv_line(_FORMULA.sub(r"\1'", printable(cell)) if isinstance(cell, str) else cell for cell in cells)


def read_json(path: Path, kind: Any = Any, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON document of ours.

    Args:
        path: the file.
        kind: what it should be, as `carnet.documents.conform` takes it.
        max_bytes: how large it may be.

    Raises:
        RunError: if it is missing, not JSON, or something else than it should be.
    """
    content = read_whole(path, max_bytes)
    try:
        return conform(parse(content, max_bytes=max_bytes), kind)
    except DocumentError as error:
        raise RunError(f"cannot read {path}: {error}") from error


def read_whole(path: Path, max_bytes: int) -> bytes:
    """The content of a file of a run.

    Raises:
        RunError: if it cannot be read, or is larger than it may be.
    """
    try:
        return read_file(path, max_bytes)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error


def digest_of(path: Path, on_bytes: Callable[[int], None] | None = None, *, max_bytes: int | None = None) -> str:
    """SHA-256 of a file's bytes, which never lie in memory all at once.

    Args:
        path: the file.
        on_bytes: told how many bytes are done.
        max_bytes: how large it may be; None: of any size.

    Raises:
        OSError: if it cannot be read, as `carnet.inputs.open_file` has it.
    """
    digest = hashlib.sha256()
    with open_file(path, max_bytes) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(file.tell())
    return digest.hexdigest()


def make_folder(path: Path) -> None:
    """Create a folder and those above it.

    Raises:
        OutputError: if that is not possible, or a file has the name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the folder {path}: {error.strerror or error}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
