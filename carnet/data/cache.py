"""Folders made once from something else (an archive, a data set of another form) and found again by its content."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from carnet import files
from carnet.data.samples import expanded
from carnet.errors import OutputError, RunError

_MANIFEST = ".carnet.json"
_SCRATCH = ".carnet-"
"""How the names of half-made folders begin: the user may keep other things there, hidden ones too."""
_FORGOTTEN_SECONDS = 24 * 3600
"""A half-made folder in which nothing has changed for so long belongs to a process that was killed."""


def cache_root() -> Path:
    """Where such folders lie: `$CARNET_CACHE`, or the system's place for caches."""
    if named := os.environ.get("CARNET_CACHE"):
        return expanded(named).absolute()
    return Path(platformdirs.user_cache_dir("carnet", appauthor=False))


def cached_folder(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The folder `fill` makes, made at most once for each key.

    It gets its name when it is whole: a kill at any moment leaves nothing half made under it. A folder that has lost
    files since is made anew. What killed processes have left is removed after a day.

    Args:
        kind: a folder of the cache, for those who look into it.
        key: names the content, for example its hash.
        fill: writes into the empty folder it is given.

    Raises:
        OutputError: if the cache cannot be written.
        Exception: whatever `fill` raises.
    """
    folder = cache_root() / kind / key
    with explaining_failure(folder.parent):
        _remove_forgotten(folder.parent)
        if not is_whole(folder):
            _make(folder, fill)
    return folder


@contextmanager
def scratch_folder(kind: str) -> Iterator[Path]:
    """An empty folder beside those of a kind, for what has no name yet; it is gone after the block.

    Raises:
        OutputError: if the cache cannot be written.
    """
    parent = cache_root() / kind
    with explaining_failure(parent):
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def explaining_failure(folder: Path) -> Iterator[None]:
    """Say where the cache lies, and that it may lie elsewhere.

    Raises:
        OutputError: instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write into the cache {folder}: {error.strerror or error}; "
            f"free some space, or name another place in the environment variable CARNET_CACHE"
        ) from error


def forget_unused(kind: str, used: Path, days: float) -> None:
    """Note that a folder of the cache has been used, and remove those of its kind that have not been for long.

    Args:
        kind: as for `cached_folder`.
        used: the folder.
        days: how long is long.

    What has not been made by `cached_folder` stays.
    """
    with suppress(OSError):
        os.utime(used)
        for other in (cache_root() / kind).iterdir():
            if (other / _MANIFEST).is_file() and other.stat().st_mtime < time.time() - days * 24 * 3600:
                shutil.rmtree(other, ignore_errors=True)


def _make(folder: Path, fill: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{folder.name[:12]}-", dir=folder.parent))
    aside = scratch.with_name(f"{scratch.name}-old")
    try:
        fill(scratch)
        files.write_json(scratch / _MANIFEST, _measure(scratch))
        # Another process may have been faster: what it made is the same, and may be in use.
        if is_whole(folder):
            return
        with suppress(FileNotFoundError):
            folder.rename(aside)
        try:
            files.rename(scratch, folder)
        except OSError:
            if not is_whole(folder):
                raise
    finally:
        for path in (scratch, aside):
            shutil.rmtree(path, ignore_errors=True)


def _remove_forgotten(parent: Path) -> None:
    for scratch in parent.glob(f"{_SCRATCH}*"):
        # It may be gone while we look.
        with suppress(OSError):
            # Whoever writes changes one of the folders, though perhaps not the topmost.
            changes = [Path(current).stat().st_mtime for current, _, _ in os.walk(scratch)]
            if changes and max(changes) < time.time() - _FORGOTTEN_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether a kept folder holds what its manifest says; False too where it is just being removed."""
    try:
        return bool(files.read_json(folder / _MANIFEST) == _measure(folder))
    except (OSError, RunError):
        # Missing, damaged, or just being removed.
        return False


def _measure(folder: Path) -> dict[str, int]:
    """How many files with how many bytes."""
    paths = [Path(current) / name for current, _, names in os.walk(folder) for name in names if name != _MANIFEST]
    return {"num_files": len(paths), "num_bytes": sum(path.stat().st_size for path in paths)}
