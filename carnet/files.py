"""Read files within limits, and write files that are whole or absent.

A named pipe keeps its reader waiting for ever, a device has no end, and a sparse file may claim any size. All of them
can lie among photos, so they count as files that cannot be read: each is an `OSError` that says so in its `strerror`.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from carnet.documents import MAX_BYTES, DocumentError, conform, parse, sealed
from carnet.errors import OutputError, RunError
from carnet.text import printable, show_bytes

MAX_IMAGE_BYTES = 256 * 10**6
"""Limit of an encoded image; cameras write up to a few dozen million bytes."""
MAX_TABLE_BYTES = 10**9
"""Limit of a table, or of a list of paths."""
MAX_MODEL_BYTES = 2**31
"""Limit of a model file, because Protocol Buffers allow no more."""
_RENAME_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6) if os.name == "nt" else ()
"""Seconds between attempts; on Windows a virus scanner may hold a fresh file open."""
_LOCKED_BYTE = 2**30
"""The byte that Windows locks: past the end of the file, so that others may read the file."""
_TEMPORARY = re.compile(r"\.\d+\.[0-9a-f]{8}\.tmp")
"""Names of files that are not whole yet."""
_cleaned: set[Path] = set()
"""Folders from which this process has removed the files of killed writers."""
_FORMULA = re.compile(r"(^|;)(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""Where a spreadsheet would begin a formula: at a cell's first sign; many begin a new cell at each semicolon."""


def open_file(path: Path | str, max_bytes: int | None = None) -> io.BufferedReader:
    """Open an ordinary file of at most `max_bytes` (None: any size) to read its bytes.

    Raises:
        OSError: if it cannot be opened, is a folder, a pipe, a device or a socket, or is larger.
    """
    # Check before opening: opening would wake the writer of a pipe, or start a device.
    _check(Path(path).stat(), path, max_bytes)
    # Another file may have taken the name since; O_NONBLOCK keeps a pipe from blocking until the second check.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        _check(os.fstat(descriptor), path, max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check(state: os.stat_result, path: Path | str, max_bytes: int | None) -> None:
    mode = state.st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise OSError(errno.EINVAL, f"{kind}, not an ordinary file", str(path))
    if max_bytes is not None and state.st_size > max_bytes:
        raise _too_large(path, max_bytes)


def _too_large(path: Path | str, max_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {show_bytes(max_bytes)}", str(path))


def read_file(path: Path | str, max_bytes: int) -> bytes:
    """Return the bytes of an ordinary file.

    Raises:
        OSError: as `open_file`, also for a file that grows beyond `max_bytes` while it is read.
    """
    with open_file(path, max_bytes) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
        if len(content) > size:
            content += file.read(max_bytes + 1 - len(content))
    if len(content) > max_bytes:
        raise _too_large(path, max_bytes)
    return content


def open_text(path: Path | str, *, errors: str = "strict") -> TextIO:
    """Open a table or a list of paths of at most `MAX_TABLE_BYTES`, in UTF-8 with or without a byte-order mark.

    Line ends are kept as they are; `errors` is that of `open`.

    Raises:
        OSError: as `open_file`.
    """
    return io.TextIOWrapper(open_file(path, MAX_TABLE_BYTES), encoding="utf-8-sig", errors=errors, newline="")


def state_of(path: Path) -> os.stat_result | None:
    """Return what the system knows of a path, or None where nothing is there.

    Raises:
        PermissionError: if a folder on the way may not be entered.
    """
    try:
        return path.stat()
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None


def broken_link(path: Path) -> str:
    """Return a clause about the link that keeps a path from being reached, or "" where no link does."""
    # pathlib's methods would raise an error for a name that is longer than names can be.
    for part in (path, *path.parents):
        if os.path.islink(part) and not os.path.exists(part):  # noqa: PTH110, PTH114
            target = part.readlink()
            return f"{part} is a link to {target}, which cannot be reached; mount its disk, or correct the link"
    return ""


def check_listed(pattern: Path | str) -> None:
    """Check that the folder before the first wildcard of a pattern, such as photos/*.jpg, may be listed.

    Raises:
        PermissionError: if it may not; then the pattern may have matches that nobody sees.
    """
    folder = next(folder for folder in Path(pattern).parents if not glob.has_magic(str(folder)))
    state = state_of(folder)
    if state is not None and stat.S_ISDIR(state.st_mode):
        os.scandir(folder).close()


def digest_of(path: Path, on_bytes: Callable[[int], None] | None = None, *, max_bytes: int | None = None) -> str:
    """Return the SHA-256 of a file, reading a part at a time; `on_bytes` is called with the bytes read so far.

    Raises:
        OSError: as `open_file`.
    """
    digest = hashlib.sha256()
    with open_file(path, max_bytes) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(file.tell())
    return digest.hexdigest()


def read_whole(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file of a run.

    Raises:
        RunError: if it cannot be read, or is larger than `max_bytes`.
    """
    try:
        return read_file(path, max_bytes)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: Path, kind: Any = Any, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON document of ours that is of a type, as `carnet.documents.conform` takes it.

    Raises:
        RunError: if it is missing, larger than `max_bytes`, not JSON, or of another type.
    """
    try:
        return conform(parse(read_file(path, max_bytes), max_bytes=max_bytes), kind)
    except (OSError, DocumentError) as error:
        raise RunError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def write_bytes(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Fill a temporary file beside `path`, flush it to the disk, then rename it.

    A kill at any moment leaves the previous file, whole; with `previous`, under one of the two names. The next process
    that writes into the folder removes the temporary file.

    Args:
        path: the file.
        content: its bytes.
        previous: a new name for the file that was there; None replaces that file.

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
            rename(path, previous)
        try:
            rename(temporary, path)
        except FileNotFoundError:
            # Another process removed it as abandoned before it was locked, or where the file system has no locks.
            _fill(temporary, content)
            rename(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    # Some systems do not let a folder be opened to flush the new name.
    with contextlib.suppress(OSError):
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed writers, when this process first writes into a folder."""
    if (absolute := folder.absolute()) in _cleaned:
        return
    _cleaned.add(absolute)
    left: list[Path] = []
    with contextlib.suppress(OSError):
        left = [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]
    for path in left:
        with contextlib.suppress(OSError):
            # Files of other users cannot be locked, and may be in use.
            with locked(path) as is_abandoned:
                is_ours = os.access(path, os.W_OK)
            if is_abandoned and is_ours:
                path.unlink()


def _fill(path: Path, content: bytes) -> None:
    """Write a file to the disk, locked, so that no other process takes it for abandoned."""
    with path.open("wb") as file:
        _lock(file)
        # On Windows the lock lies far beyond the end.
        file.seek(0)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def rename(path: Path, name: Path, pauses: Sequence[float] = _RENAME_PAUSES) -> None:
    """Give a file or folder another name, replacing a file of that name; try again after each of the pauses.

    Raises:
        OSError: if it is not possible.
    """
    for pause in pauses:
        try:
            path.replace(name)
            return
        except PermissionError:
            time.sleep(pause)
    path.replace(name)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file without changing it; yields False where another process holds the lock.

    The system releases the lock when this process ends, in whatever way. Where the file system has no locks, or the
    file may not be written, nothing is locked and the result is True.
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

            file.seek(_LOCKED_BYTE)
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
    """Write UTF-8 text as `write_bytes` does; undecodable bytes of file names are written as they were."""
    write_bytes(path, content.encode("utf-8", "surrogateescape"))


def write_json(path: Path, document: Any, *, seal: bool = False) -> None:
    """Write a readable JSON document as `write_bytes` does; `seal` adds a checksum for `carnet.documents.unsealed`."""
    write_text(path, to_json(sealed(_finite(document)) if seal else document) + "\n")


def to_json(document: Any, *, ascii_only: bool = False) -> str:
    """Return readable JSON; infinities and NaN become null, `ascii_only` writes other letters as escapes."""
    return json.dumps(_finite(document), indent=2, ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of rows; the first row's keys head the columns."""
    rows = list(rows)
    columns = list(rows[0]) if rows else []
    return "".join(map(csv_line, [columns, *([row[column] for column in columns] for row in rows)]))


def csv_line(cells: Iterable[Any]) -> str:
    """Return one row of a table, with its line end."""
    texts = ["" if cell is None else str(cell) for cell in cells]
    # Python's csv up to 3.11.8 and 3.12.2 does not quote a lone carriage return, and then cannot read it back.
    quote_all = any("\r" in cell for cell in texts)
    line = io.StringIO()
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL).writerow(texts)
    return line.getvalue()


def csv_line_for_people(cells: Iterable[Any]) -> str:
    """Return one row of a table for people: no text in it controls a terminal, or is a formula to a spreadsheet.

    Spreadsheets read an apostrophe as the mark of a text. Programs read tables of `csv_line`, which changes nothing.
    """
    return csv_line(_FORMULA.sub(r"\1'", printable(cell)) if isinstance(cell, str) else cell for cell in cells)


def check_target(path: Path, *endings: str, flag: str = "--output") -> None:
    """Check, before long work, that a file, which a flag names, may be written, and that its name has an ending.

    Raises:
        OutputError: if it is a folder or ends otherwise, or its folder is not there or may not be written.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if path.suffix not in endings:
        raise OutputError(f"{path} does not end in {endings[0]}; choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}; create it, or choose another {flag}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(
            f"nothing may be written into {path.parent}; change its permissions, or choose another {flag}"
        )


def check_folder(path: Path, flag: str = "--output") -> None:
    """Check, before long work, that a folder, which a flag names, may be made, or written into.

    Raises:
        OutputError: if a file has its name, or that of a folder above it, or nothing may be written there.
    """
    absolute = path.absolute()
    there = next((one for one in (absolute, *absolute.parents) if one.exists()), Path(absolute.anchor))
    if not there.is_dir():
        raise OutputError(f"cannot create the folder {path}: {there} is not a folder; choose another {flag}")
    if not os.access(there, os.W_OK):
        raise OutputError(f"nothing may be written into {there}; change its permissions, or choose another {flag}")


def check_replaceable(path: Path, names: Collection[str], mark: tuple[str, bytes], flag: str) -> None:
    """Check, before long work, that a folder, which a flag names, is new, empty, or an earlier one of ours.

    Ours has only files and folders of these `names`, and in one of them bytes that another's would not have: `mark`.

    Raises:
        OutputError: if it holds anything else, or as `check_folder`.
    """
    check_folder(path, flag)
    if not path.name or path.name == ".." or os.path.ismount(path):
        raise OutputError(f"{path} cannot be replaced as a whole; name a folder in it with {flag}")
    if path.exists() and not os.access(path.resolve().parent, os.W_OK):
        raise OutputError(f"nothing may be written beside {path}; name another folder with {flag}")
    there = {one.relative_to(path).as_posix() for one in path.rglob("*")}
    if strange := sorted(there - {*names}):
        raise OutputError(f"{path} holds other files, such as {strange[0]}; name a new folder with {flag}")
    if not there:
        return
    try:
        is_ours = mark[1] in read_file(path / mark[0], MAX_BYTES)
    except OSError:
        is_ours = False
    if not is_ours:
        raise OutputError(f"{path} holds files of the same names that are not ours; name a new folder with {flag}")


def replace_folder(folder: Path, content: Mapping[str, bytes]) -> None:
    """Write a folder, whole or not at all, in place of the one of its name; `content` is by paths inside it.

    Raises:
        OutputError: if it cannot be written; then the folder that was there stays.
    """
    folder = folder.resolve()
    temporary, earlier = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        for name, data in content.items():
            make_folder((temporary / name).parent)
            write_bytes(temporary / name, data)
        if folder.exists():
            rename(folder, earlier)
        rename(temporary, folder)
    except BaseException as error:
        # Ctrl-C as well. If even this fails, the earlier folder stays beside it under its other name.
        if earlier.exists() and not folder.exists():
            with contextlib.suppress(OSError):
                rename(earlier, folder)
        if not isinstance(error, OSError):
            raise
        kept = f"; the earlier one is {earlier}" if earlier.exists() else ""
        raise OutputError(f"cannot write {folder}: {error.strerror or error}{kept}") from error
    else:
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Create a folder and those above it.

    Raises:
        OutputError: if that is not possible, or a file has the name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the folder {path}: {error.strerror or error}") from error
