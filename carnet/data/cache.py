"""What is kept from run to run: folders made once from something else, and decoded images.

A folder (an archive that was unpacked, a data set of another form) is found again by its content. Decoded images lie as
one uint8 array in one file, named by the content of all images and by what they are made into: every file is decoded
once, when its content is new. A training run maps that file into memory, so that the system's own cache of files
serves it, as far as memory is free.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
from PIL import __version__

from carnet import files
from carnet.data.samples import expanded
from carnet.data.scan import ImageFacts, inspect_bytes, inspect_images, unreadable
from carnet.errors import ImageError, OutOfMemoryError, OutputError, RunError
from carnet.files import MAX_IMAGE_BYTES, read_file
from carnet.machine import each_on_threads
from carnet.preprocess import Images, reason_of, to_square
from carnet.spec import ResizeRule
from carnet.text import OnProgress, show_bytes

CacheMode = Literal["auto", "disk", "ram", "off"]
"""Where decoded images shall be kept; auto: by what is free."""
_MANIFEST = ".carnet.json"
_SCRATCH = ".carnet-"
"""How the names of half-made folders begin: the user may keep other things there, hidden ones too."""
_FORGOTTEN_DAYS = 1
"""A half-made folder in which nothing has changed for so long belongs to a process that was killed."""
_FORMAT = 6
"""Of decoded images; another number makes them anew."""
_KIND, _PIXELS, _INDEX = "decoded", "images.u8", "index.json"
_UNUSED_DAYS = 30
_SPARE_DISK_BYTES = 2 * 10**9
_SHARE_OF_MEMORY = 0.4
"""Of what is free, at most so much for decoded images."""


def cache_root() -> Path:
    """Where all this lies: `$CARNET_CACHE`, or the system's place for caches."""
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
    parent = cache_root() / kind
    folder = parent / key
    with explaining_failure(parent):
        _remove_unchanged(parent.glob(f"{_SCRATCH}*"), _FORGOTTEN_DAYS)
        if _is_whole(folder):
            return folder
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{key[:12]}-", dir=parent))
        aside = scratch.with_name(f"{scratch.name}-old")
        try:
            fill(scratch)
            files.write_json(scratch / _MANIFEST, _measure(scratch))
            # Another process may have been faster: what it made is the same, and may be in use.
            if not _is_whole(folder):
                with suppress(FileNotFoundError):
                    folder.rename(aside)
                try:
                    files.rename(scratch, folder)
                except OSError:
                    if not _is_whole(folder):
                        raise
        finally:
            for path in (scratch, aside):
                shutil.rmtree(path, ignore_errors=True)
    return folder


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


def _remove_unchanged(folders: Iterable[Path], days: float) -> None:
    """Remove the folders in which nothing has changed for so long."""
    for folder in folders:
        # It may be gone while we look.
        with suppress(OSError):
            # Whoever writes changes one of the folders, though perhaps not the topmost.
            changes = [Path(current).stat().st_mtime for current, _, _ in os.walk(folder)]
            if changes and max(changes) < time.time() - days * 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether a kept folder holds what its manifest says; False too where it is just being removed."""
    try:
        return bool(files.read_json(folder / _MANIFEST) == _measure(folder))
    except (OSError, RunError):
        return False


def _measure(folder: Path) -> dict[str, int]:
    """How many files with how many bytes."""
    paths = [Path(current) / name for current, _, names in os.walk(folder) for name in names if name != _MANIFEST]
    return {"num_files": len(paths), "num_bytes": sum(path.stat().st_size for path in paths)}


@dataclass(frozen=True)
class Target:
    """What images are made into."""

    image_size: int
    resize: ResizeRule = "crop"
    in_channels: int = 3


@dataclass(eq=False)
class DecodedImages:
    """Images as `carnet.preprocess.load_image` gives them, by path.

    Attributes:
        pixels: uint8 (M, S, S, C), in memory or mapped into it.
        row_of: where in it each file's image stands; files of equal content and kind of name share one.
    """

    pixels: Images
    row_of: Mapping[Path, int]

    def load(self, path: Path) -> Images:
        """The image (S, S, C) of a file."""
        pixels: Images = self.pixels[self.row_of[path]]
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the same file instead of getting a copy.
        assert isinstance(self.pixels, np.memmap), "what is kept in one process's memory cannot be shared"
        return {"file": str(self.pixels.filename), "shape": self.pixels.shape, "row_of": self.row_of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.pixels = np.memmap(state["file"], np.uint8, "r", shape=state["shape"])
        self.row_of = state["row_of"]


@dataclass(frozen=True)
class Inspected:
    """What `inspect_and_cache` found."""

    facts: dict[Path, ImageFacts]
    decoded: DecodedImages | None
    """None where they are not kept."""
    reason: str
    """Where they are kept, or why not: a phrase."""


@dataclass(frozen=True)
class _Kept:
    """An image that was decoded once: what is odd about it, and where its pixels stand, unless it cannot be decoded."""

    fact: ImageFacts
    row: int = -1
    pixels: Images | None = None
    """The array of another data set that has it."""


def inspect_and_cache(
    paths: Sequence[Path],
    target: Target,
    wish: CacheMode,
    *,
    free_memory: int,
    shared: bool = False,
    reading: OnProgress | None = None,
    progress: OnProgress | None = None,
) -> Inspected:
    """Look into every image, as `carnet.data.scan.inspect_images` does, and keep what it decodes to.

    Each file is read and hashed once, and decoded from the bytes that were hashed, unless the cache has its pixels.

    Args:
        paths: the files.
        target: what to make of them.
        wish: disk, ram or off as it says; auto: on the disk where there is room, or else in memory, or else not.
        free_memory: bytes that may be used.
        shared: whether several processes will use them, which memory of one process does not allow.
        reading: told how many files are read, of how many, where some are in the cache.
        progress: told how many images are done, of how many, where none is.

    Raises:
        OutputError: if the cache cannot be written.
    """
    shape = (len(paths), target.image_size, target.image_size, target.in_channels)
    place, reason = _place(wish if paths else "off", math.prod(shape), free_memory, shared=shared)
    if place == "off":
        return Inspected(inspect_images(paths, target.image_size, progress), None, reason)
    if place == "ram":
        rows = _Rows(shape)
        keys, index = _look(paths, target, rows, {}, progress)
        pixels = rows.pixels
    else:
        keys, index, pixels = _look_and_write(paths, target, shape, reading, progress)
    facts: dict[Path, ImageFacts] = {}
    row_of: dict[Path, int] = {}
    for path, key in keys.items():
        kept = index[key] if isinstance(key, str) else _Kept(key)
        facts[path] = kept.fact
        if kept.fact.error is None:
            row_of[path] = kept.row
        else:
            # The file may be called otherwise than the one in which it was found.
            facts[path] = replace(kept.fact, error=ImageError(path, kept.fact.error.reason))
    return Inspected(facts, None if pixels is None else DecodedImages(pixels, row_of), reason)


def _place(wish: CacheMode, num_bytes: int, free_memory: int, *, shared: bool) -> tuple[CacheMode, str]:
    size = show_bytes(num_bytes)
    if wish == "off":
        return "off", "images are decoded each time they are needed, as asked"
    if wish == "disk":
        return "disk", f"decoded images are kept in the cache ({size}), as asked"
    if wish == "ram" and not shared:
        return "ram", f"decoded images are kept in memory ({size}), as asked"
    # Where the cache is, or will be made.
    root = cache_root()
    there = next((folder for folder in (root, *root.parents) if folder.exists()), None)
    free_disk = shutil.disk_usage(there).free if there is not None and os.access(there, os.W_OK) else 0
    if free_disk > num_bytes + _SPARE_DISK_BYTES:
        return "disk", f"decoded images are kept in the cache ({size}), so that none is decoded twice"
    if num_bytes < _SHARE_OF_MEMORY * free_memory and not shared:
        return "ram", f"decoded images are kept in memory ({size}), for the cache has no room or no permission"
    return "off", f"images are decoded each time they are needed: {size} fit neither the cache's disk nor memory"


@dataclass(eq=False)
class _Rows:
    """An array of images that several threads fill: in memory, or in a file that is mapped into it."""

    shape: tuple[int, ...]
    file: Path | None = None
    pixels: Images | None = None
    """None until the first image comes."""
    number: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, image: Images) -> int:
        """Take an image up; returns its row.

        Raises:
            OSError: if the disk has no room for all of them.
        """
        with self.lock:
            if self.pixels is None and self.file is not None:
                with self.file.open("wb") as opened:
                    _reserve(opened.fileno(), math.prod(self.shape))
                self.pixels = np.memmap(self.file, np.uint8, "r+", shape=self.shape)
            elif self.pixels is None:
                self.pixels = np.empty(self.shape, np.uint8)
            row, self.number = self.number, self.number + 1
        self.pixels[row] = image
        return row


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its size, or raise an OSError.

    Where a disk becomes full while a file is written through a map, the system kills the process instead.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif os.name == "nt":
        # NTFS sets the room aside.
        os.truncate(descriptor, size)
    else:
        # macOS would leave a hole. So many zeros are written at a time.
        while size:
            size -= os.write(descriptor, bytes(min(2**24, size)))


def _look(
    paths: Sequence[Path], target: Target, rows: _Rows, known: Mapping[str, _Kept], progress: OnProgress | None
) -> tuple[dict[Path, str | ImageFacts], dict[str, _Kept]]:
    """Read every file; returns the key of each, or why it cannot be read, and by key what was found or is known.

    Raises:
        OutOfMemoryError: if memory is short, which says nothing about an image and must not be kept.
    """
    first: dict[str, Path] = {}
    index: dict[str, _Kept] = {}
    size, rule, in_channels = target.image_size, target.resize, target.in_channels

    def look(path: Path) -> str | ImageFacts:
        try:
            content = read_file(path, MAX_IMAGE_BYTES)
        except OSError as error:
            return unreadable(path, error)
        digest = hashlib.sha256(content).hexdigest()
        # Files equal byte for byte are decoded once; what is odd about a file depends on its name's end as well.
        key = f"{digest}{path.suffix.lower()}"
        if first.setdefault(key, path) != path:
            return key
        if key in known:
            index[key] = known[key]
            return key
        squares: list[Images] = []
        fact = inspect_bytes(
            content,
            path,
            size,
            digest=digest,
            keep=lambda image: squares.append(to_square(image, path, size, rule, in_channels)),
        )
        if fact.error is not None and fact.error.reason == reason_of(MemoryError()):
            raise OutOfMemoryError(f"{fact.error}; close other programs, or leave it out with --ignore")
        index[key] = _Kept(fact, rows.add(squares[-1])) if fact.error is None else _Kept(fact)
        return key

    return dict(zip(paths, each_on_threads(look, paths, progress), strict=True)), index


def _look_and_write(
    paths: Sequence[Path],
    target: Target,
    shape: tuple[int, ...],
    reading: OnProgress | None,
    progress: OnProgress | None,
) -> tuple[dict[Path, str | ImageFacts], dict[str, _Kept], Images | None]:
    """The same with a folder of the cache, which is made if no run has made it; returns its pixels as well."""
    kind = hashlib.sha256(json.dumps([_FORMAT, __version__, asdict(target)]).encode()).hexdigest()[:16]
    parent = cache_root() / _KIND
    with explaining_failure(parent):
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent, ignore_cleanup_errors=True)
    with scratch:
        rows = _Rows(shape, Path(scratch.name) / _PIXELS)
        # What earlier data sets have left that were made into the same; what is damaged counts as missing.
        known: dict[str, _Kept] = {}
        index: dict[str, _Kept] = {}
        try:
            for other in parent.glob(f"{kind}-*"):
                with suppress(OSError, RunError):
                    known |= _read(other, shape)[0] if _is_whole(other) else {}
            with explaining_failure(parent):
                keys, index = _look(paths, target, rows, known, reading if known else progress)
            # What takes days is at work nevertheless, and must not be taken for what a killed process has left.
            os.utime(scratch.name)
            content = hashlib.sha256("".join(sorted(index)).encode("utf-8", "surrogateescape")).hexdigest()
            folder = cached_folder(_KIND, f"{kind}-{content}", lambda folder: _fill(folder, index, rows))
        finally:
            # Windows renames and removes no file that is mapped.
            rows.pixels = None
            known.clear()
            index.clear()
    with suppress(OSError):
        os.utime(folder)
    _remove_unchanged((manifest.parent for manifest in parent.glob(f"*/{_MANIFEST}")), _UNUSED_DAYS)
    return keys, *_read(folder, shape)


def _fill(folder: Path, index: dict[str, _Kept], rows: _Rows) -> None:
    """Write the pixels and what is odd about each image into a folder of the cache."""
    for key, kept in index.items():
        if kept.pixels is not None:
            index[key] = _Kept(kept.fact, rows.add(kept.pixels[kept.row]) if kept.fact.error is None else -1)
    if isinstance(rows.pixels, np.memmap) and rows.file is not None:
        # On the disk before the folder gets its name; what no image needed is cut off.
        rows.pixels.flush()
        rows.pixels = None
        os.truncate(rows.file, math.prod((rows.number, *rows.shape[1:])))
        files.rename(rows.file, folder / _PIXELS)
    facts = {
        key: asdict(kept.fact) | {"error": kept.fact.error and kept.fact.error.reason, "row": kept.row}
        for key, kept in index.items()
    }
    files.write_json(folder / _INDEX, facts)


def _read(folder: Path, shape: tuple[int, ...]) -> tuple[dict[str, _Kept], Images | None]:
    """What is odd about each image, by key, and the pixels, if there are any.

    Raises:
        RunError: if the cache is damaged.
    """
    # A few hundred bytes for each image.
    document = files.read_json(folder / _INDEX, dict[str, dict[str, Any]], max_bytes=2**32)
    try:
        number = 1 + max((values["row"] for values in document.values()), default=-1)
        pixels = np.memmap(folder / _PIXELS, np.uint8, "r", shape=(number, *shape[1:])) if number else None
        index: dict[str, _Kept] = {}
        for key, values in document.items():
            row, error = values.pop("row"), values.pop("error")
            fact = ImageFacts(**values, error=None if error is None else ImageError(Path(), error))
            index[key] = _Kept(replace(fact, oddities=tuple(fact.oddities)), row, pixels)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder} is damaged; remove it, and it is made anew") from error
    return index, pixels
