"""Folders made once from something else (an archive, a data set of another form) and found again by its content."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from carnet import files
from carnet.errors import OutputError

_MANIFEST = ".carnet.json"


def cache_root() -> Path:
    """Where such folders lie: `$CARNET_CACHE`, or the system's place for caches."""
    if named := os.environ.get("CARNET_CACHE"):
        return Path(named).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("carnet", appauthor=False))


def cached_folder(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The folder `fill` makes, made at most once for each key.

    It gets its name when it is whole: a kill at any moment leaves nothing half made. A folder that has lost files since
    is made anew.

    Args:
        kind: a folder of the cache, for those who look into it.
        key: names the content, for example its hash.
        fill: writes into the empty folder it is given.

    Raises:
        OutputError: if the cache cannot be written.
        Exception: whatever `fill` raises.
    """
    folder = cache_root() / kind / key
    if _is_whole(folder):
        return folder
    files.make_folder(folder.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=folder.parent))
    try:
        fill(scratch)
        files.write_json(scratch / _MANIFEST, _measure(scratch))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            scratch.rename(folder)
        except OSError:
            # Another process may have been faster; what it made is the same.
            if not _is_whole(folder):
                raise
    except OSError as error:
        raise OutputError(
            f"cannot write into the cache {folder.parent}: {error.strerror or error}; "
            f"free some space, or name another place in the environment variable CARNET_CACHE"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    manifest = folder / _MANIFEST
    return manifest.exists() and files.read_json(manifest) == _measure(folder)


def _measure(folder: Path) -> dict[str, int]:
    """How many files with how many bytes."""
    sizes = [
        (Path(current) / name).stat().st_size
        for current, _, names in os.walk(folder)
        for name in names
        if name != _MANIFEST
    ]
    return {"num_files": len(sizes), "num_bytes": sum(sizes)}
