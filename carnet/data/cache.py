"""The cache on disk: folders made once from something else, such as an unpacked archive, and found by their content."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from carnet import files
from carnet.data.samples import expanded
from carnet.errors import OutputError, RunError

_MANIFEST = ".carnet.json"
SCRATCH = ".carnet-"
"""Names of unfinished folders begin with this. The user may keep other hidden folders in the same place."""
_ABANDONED_DAYS = 1
"""An unfinished folder that has not changed for this long belongs to a process that was killed."""
UNUSED_DAYS = 30
"""What no run has used for so long is removed."""


def cache_root() -> Path:
    """Return the folder of the cache: `$CARNET_CACHE`, or the system's place for caches."""
    if named := os.environ.get("CARNET_CACHE"):
        return expanded(named).absolute()
    return Path(platformdirs.user_cache_dir("carnet", appauthor=False))


def cached_folder(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder that `fill` makes; it is made once for each key.

    The folder gets its name when it is complete, so a process that is killed leaves nothing unfinished under that name.
    A folder that has lost files is made anew. Unfinished folders are removed after a day.

    Args:
        kind: folder of the cache that holds it.
        key: identifies the content, for example by its hash.
        fill: writes into the empty folder it is given.

    Raises:
        OutputError: if the cache cannot be written.
        Exception: whatever `fill` raises.
    """
    parent = cache_root() / kind
    folder = parent / key
    with explaining_failure(parent):
        _remove_unchanged(parent.glob(f"{SCRATCH}*"), _ABANDONED_DAYS)
        if is_complete(folder):
            return folder
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{key[:12]}-", dir=parent))
        aside = scratch.with_name(f"{scratch.name}-old")
        try:
            fill(scratch)
            files.write_json(scratch / _MANIFEST, _measure(scratch))
            # Another process may have finished first. Its folder has the same content and may be in use.
            if not is_complete(folder):
                with suppress(FileNotFoundError):
                    folder.rename(aside)
                try:
                    files.rename(scratch, folder)
                except OSError:
                    if not is_complete(folder):
                        raise
        finally:
            for path in (scratch, aside):
                shutil.rmtree(path, ignore_errors=True)
    return folder


@contextmanager
def explaining_failure(folder: Path) -> Iterator[None]:
    """Turn an error of the system into one that names the cache and how to move it.

    Raises:
        OutputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write into the cache {folder}: {error.strerror or error}; "
            f"free some space, or set the environment variable CARNET_CACHE to another folder"
        ) from error


def remove_unused(parent: Path) -> None:
    """Remove each folder of the cache in `parent` that nothing has used for long."""
    _remove_unchanged((manifest.parent for manifest in parent.glob(f"*/{_MANIFEST}")), UNUSED_DAYS)


def _remove_unchanged(folders: Iterable[Path], days: float) -> None:
    """Remove each folder in which nothing has changed for so many days."""
    for folder in folders:
        # Another process may remove it at the same time.
        with suppress(OSError):
            # Writing changes one of the folders, though perhaps not the topmost.
            changes = [Path(current).stat().st_mtime for current, _, _ in os.walk(folder)]
            if changes and max(changes) < time.time() - days * 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """Return whether a cached folder holds what its manifest says."""
    try:
        return bool(files.read_json(folder / _MANIFEST) == _measure(folder))
    except (OSError, RunError):
        return False


def _measure(folder: Path) -> dict[str, int]:
    paths = [Path(current) / name for current, _, names in os.walk(folder) for name in names if name != _MANIFEST]
    return {"num_files": len(paths), "num_bytes": sum(path.stat().st_size for path in paths)}
