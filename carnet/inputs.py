"""Open what a user names: an ordinary file, and no more of it than a thing of its kind can honestly hold.

A named pipe keeps its reader waiting for ever, a device has no end, and a sparse file may claim any size. All of them
can lie among photos, so they count as files that cannot be read: each is an `OSError` that says so in its `strerror`.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import stat
from pathlib import Path
from typing import TextIO

from carnet.text import show_bytes

MAX_IMAGE_BYTES = 256 * 10**6
"""Of an encoded image; those of cameras have up to a few dozen million."""
MAX_TABLE_BYTES = 10**9
"""Of a table, or of a list of paths."""
MAX_MODEL_BYTES = 2**31
"""Of a model file: Protocol Buffers allow no more."""

_KINDS = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))


def open_file(path: Path | str, max_bytes: int | None = None) -> io.BufferedReader:
    """Open an ordinary file to read its bytes.

    Args:
        path: the file.
        max_bytes: how large it may be; None: of any size, for what is read piece by piece under limits of its own.

    Raises:
        OSError: if it cannot be opened, is a folder, a pipe, a device or a socket, or is larger.
    """
    # What is no ordinary file is not even opened: that would wake whoever writes into a pipe, or start a device.
    _check(Path(path).stat(), path, max_bytes)
    # Something else may have the name by now; without waiting for it, it is found out.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        _check(os.fstat(descriptor), path, max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path | str, max_bytes: int) -> bytes:
    """The bytes of an ordinary file.

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
    """Open a table, or a list of paths, in UTF-8 with or without a byte-order mark; line ends stay what they are.

    Args:
        path: the file.
        errors: what becomes of bytes that are not UTF-8, as for `open`.

    Raises:
        OSError: as `open_file`, with `MAX_TABLE_BYTES`.
    """
    return io.TextIOWrapper(open_file(path, MAX_TABLE_BYTES), encoding="utf-8-sig", errors=errors, newline="")


def state_of(path: Path) -> os.stat_result | None:
    """What the system knows of a path; None where nothing is there.

    Raises:
        PermissionError: if that cannot be told, because a folder on the way may not be entered.
    """
    try:
        return path.stat()
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None


def broken_link(path: Path) -> str:
    """A clause about the link that keeps a path from being reached; nothing ("") where no link does."""
    # pathlib's would raise an error for a name that is longer than names can be.
    parts = (path, *path.parents)
    link = next((part for part in parts if os.path.islink(part) and not os.path.exists(part)), None)  # noqa: PTH110, PTH114
    if link is None:
        return ""
    return f"{link} is a link to {link.readlink()}, which cannot be reached; mount its disk, or correct the link"


def check_listed(pattern: Path | str) -> None:
    """Find out whether a pattern without matches may have some, in a folder whose content cannot be listed.

    Args:
        pattern: of paths, such as photos/*.jpg.

    Raises:
        PermissionError: if the folder before the first wildcard may not be looked into.
    """
    folder = next(folder for folder in Path(pattern).parents if not glob.has_magic(str(folder)))
    state = state_of(folder)
    if state is not None and stat.S_ISDIR(state.st_mode):
        os.scandir(folder).close()


def _check(state: os.stat_result, path: Path | str, max_bytes: int | None) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(state.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(state.st_mode)), "a device")
        raise OSError(errno.EINVAL, f"{kind}, not an ordinary file", str(path))
    if max_bytes is not None and state.st_size > max_bytes:
        raise _too_large(path, max_bytes)


def _too_large(path: Path | str, max_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {show_bytes(max_bytes)}", str(path))
