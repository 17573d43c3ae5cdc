"""The cache on disk: folders made once from something else, and decoded images kept from run to run.

A cached folder (an unpacked archive, a downloaded data set) is found again by its content. Decoded images are one uint8
array in one file, named by the content of all images and by the transform: each file is decoded once, when its content
is new. A training run maps that file into memory, so the operating system keeps in memory what fits.
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
from carnet.spec import Interpolation, ResizeRule
from carnet.text import OnProgress, show_bytes

CacheMode = Literal["auto", "disk", "ram", "off"]
"""Where decoded images are kept; auto: where there is room."""
_MANIFEST = ".carnet.json"
_SCRATCH = ".carnet-"
"""Names of unfinished folders begin with this. The user may keep other hidden folders in the same place."""
_ABANDONED_DAYS = 1
"""An unfinished folder that has not changed for this long belongs to a process that was killed."""
_FORMAT = 6
"""Version of the decoded images; a new number makes every cache anew."""
_KIND, _PIXELS, _INDEX = "decoded", "images.u8", "index.json"
UNUSED_DAYS = 30
"""What no run has used for so long is removed."""
_SPARE_DISK_BYTES = 2 * 10**9
_MEMORY_SHARE = 0.4
"""Largest share of the free memory that decoded images may take."""


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
        _remove_unchanged(parent.glob(f"{_SCRATCH}*"), _ABANDONED_DAYS)
        if _is_complete(folder):
            return folder
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{key[:12]}-", dir=parent))
        aside = scratch.with_name(f"{scratch.name}-old")
        try:
            fill(scratch)
            files.write_json(scratch / _MANIFEST, _measure(scratch))
            # Another process may have finished first. Its folder has the same content and may be in use.
            if not _is_complete(folder):
                with suppress(FileNotFoundError):
                    folder.rename(aside)
                try:
                    files.rename(scratch, folder)
                except OSError:
                    if not _is_complete(folder):
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


def _remove_unchanged(folders: Iterable[Path], days: float) -> None:
    """Remove each folder in which nothing has changed for so many days."""
    for folder in folders:
        # Another process may remove it at the same time.
        with suppress(OSError):
            # Writing changes one of the folders, though perhaps not the topmost.
            changes = [Path(current).stat().st_mtime for current, _, _ in os.walk(folder)]
            if changes and max(changes) < time.time() - days * 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    """Return whether a cached folder holds what its manifest says."""
    try:
        return bool(files.read_json(folder / _MANIFEST) == _measure(folder))
    except (OSError, RunError):
        return False


def _measure(folder: Path) -> dict[str, int]:
    paths = [Path(current) / name for current, _, names in os.walk(folder) for name in names if name != _MANIFEST]
    return {"num_files": len(paths), "num_bytes": sum(path.stat().st_size for path in paths)}


@dataclass(frozen=True)
class Target:
    """What images are resized to."""

    image_size: int
    resize: ResizeRule = "crop"
    in_channels: int = 3
    interpolation: Interpolation = "bilinear"


@dataclass(eq=False)
class DecodedImages:
    """Images as `carnet.preprocess.load_image` returns them, by path.

    Attributes:
        pixels: uint8 (M, S, S, C), in memory or mapped into it.
        row_of: the row of each file's image; files of equal content and extension share a row.
    """

    pixels: Images
    row_of: Mapping[Path, int]

    def load(self, path: Path) -> Images:
        """Return the image (S, S, C) of a file."""
        pixels: Images = self.pixels[self.row_of[path]]
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the same file instead of getting a copy.
        assert isinstance(self.pixels, np.memmap), "images in the memory of one process cannot be shared"
        return {"file": str(self.pixels.filename), "shape": self.pixels.shape, "row_of": self.row_of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.pixels = np.memmap(state["file"], np.uint8, "r", shape=state["shape"])
        self.row_of = state["row_of"]


@dataclass(frozen=True)
class Inspected:
    """What `inspect_and_cache` found.

    Attributes:
        facts: what each file holds.
        decoded: the decoded images; None where they are not kept.
        reason: a clause that says where they are kept, or why they are not.
    """

    facts: dict[Path, ImageFacts]
    decoded: DecodedImages | None
    reason: str


@dataclass(frozen=True)
class _Entry:
    """An image that was decoded once: its facts, and the row of its pixels (-1: it cannot be decoded) in an array."""

    facts: ImageFacts
    row: int = -1
    pixels: Images | None = None
    """The array of another cached data set; None: the array that is being filled."""


def inspect_and_cache(
    paths: Sequence[Path],
    target: Target,
    mode: CacheMode,
    *,
    free_memory: int,
    shared: bool = False,
    reading: OnProgress | None = None,
    progress: OnProgress | None = None,
) -> Inspected:
    """Inspect every image, as `carnet.data.scan.inspect_images` does, and keep the decoded images.

    Each file is read and hashed once, and decoded from the bytes that were hashed unless the cache has its pixels.

    Args:
        paths: the files.
        target: what to resize the images to.
        mode: where to keep them; auto: on disk if there is room, else in memory, else nowhere.
        free_memory: bytes of memory that are free.
        shared: whether several processes will use them, which rules out memory.
        reading: called with the number of files read and of all files, if the cache has some of the images.
        progress: called with the number of files decoded and of all files, if it has none.

    Raises:
        OutputError: if the cache cannot be written.
    """
    shape = (len(paths), target.image_size, target.image_size, target.in_channels)
    place, reason = _choose_place(mode if paths else "off", math.prod(shape), free_memory, shared=shared)
    if place == "off":
        return Inspected(inspect_images(paths, target.image_size, progress), None, reason)
    if place == "ram":
        rows = _Rows(shape)
        keys, index = _inspect(paths, target, rows, {}, progress)
        pixels = rows.pixels
    else:
        keys, index, pixels = _inspect_on_disk(paths, target, shape, reading, progress)
    facts: dict[Path, ImageFacts] = {}
    row_of: dict[Path, int] = {}
    for path, key in keys.items():
        entry = index[key] if isinstance(key, str) else _Entry(key)
        facts[path] = entry.facts
        if entry.facts.error is None:
            row_of[path] = entry.row
        else:
            # An equal file of another name may have been decoded in its place.
            facts[path] = replace(entry.facts, error=ImageError(path, entry.facts.error.reason))
    return Inspected(facts, None if pixels is None else DecodedImages(pixels, row_of), reason)


def _choose_place(mode: CacheMode, num_bytes: int, free_memory: int, *, shared: bool) -> tuple[CacheMode, str]:
    """Return where to keep so many bytes of decoded images, and a clause that says why."""
    size = show_bytes(num_bytes)
    if mode == "off":
        return "off", "images are decoded each time they are needed, as requested"
    if mode == "disk":
        return "disk", f"decoded images are kept in the cache ({size}), as requested"
    if mode == "ram" and not shared:
        return "ram", f"decoded images are kept in memory ({size}), as requested"
    root = cache_root()
    existing = next((folder for folder in (root, *root.parents) if folder.exists()), root)
    free_disk = shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0
    if free_disk > num_bytes + _SPARE_DISK_BYTES:
        return "disk", f"decoded images are kept in the cache ({size}), so that none is decoded twice"
    if num_bytes < _MEMORY_SHARE * free_memory and not shared:
        return "ram", f"decoded images are kept in memory ({size}), because the cache has no room or is not writable"
    return "off", f"images are decoded each time they are needed: {size} fit neither on the cache's disk nor in memory"


@dataclass(eq=False)
class _Rows:
    """An array of images that several threads fill, in memory or mapped to a file."""

    shape: tuple[int, ...]
    file: Path | None = None
    pixels: Images | None = None
    """None until the first image is added."""
    number: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, image: Images) -> int:
        """Store an image; return its row.

        Raises:
            OSError: if the disk has no room for all images.
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
    """Reserve disk space for a file, or raise an OSError.

    When a disk becomes full while a mapped file is written, the system kills the process instead.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif os.name == "nt":
        # NTFS reserves the space.
        os.truncate(descriptor, size)
    else:
        # macOS would leave a hole, so zeros are written, 16 MiB at a time.
        while size:
            size -= os.write(descriptor, bytes(min(2**24, size)))


def _inspect(
    paths: Sequence[Path], target: Target, rows: _Rows, known: Mapping[str, _Entry], progress: OnProgress | None
) -> tuple[dict[Path, str | ImageFacts], dict[str, _Entry]]:
    """Read every file; return the key of each, or the facts of one that cannot be read, and the entry of each key.

    Raises:
        OutOfMemoryError: if memory is short, which says nothing about an image and must not be kept.
    """
    first: dict[str, Path] = {}
    index: dict[str, _Entry] = {}

    def inspect(path: Path) -> str | ImageFacts:
        try:
            content = read_file(path, MAX_IMAGE_BYTES)
        except OSError as error:
            return unreadable(path, error)
        digest = hashlib.sha256(content).hexdigest()
        # Equal files are decoded once. The extension counts because it may be the wrong one for the content.
        key = f"{digest}{path.suffix.lower()}"
        if first.setdefault(key, path) != path:
            return key
        if key in known:
            index[key] = known[key]
            return key
        squares: list[Images] = []
        facts = inspect_bytes(
            content,
            path,
            target.image_size,
            digest=digest,
            keep=lambda image: squares.append(to_square(image, path, target)),
        )
        if facts.error is not None and facts.error.reason == reason_of(MemoryError()):
            raise OutOfMemoryError(f"{facts.error}; close other programs, or leave it out with --ignore")
        index[key] = _Entry(facts, rows.add(squares[-1]) if facts.error is None else -1)
        return key

    return dict(zip(paths, each_on_threads(inspect, paths, progress), strict=True)), index


def _inspect_on_disk(
    paths: Sequence[Path],
    target: Target,
    shape: tuple[int, ...],
    reading: OnProgress | None,
    progress: OnProgress | None,
) -> tuple[dict[Path, str | ImageFacts], dict[str, _Entry], Images | None]:
    """Do the same with a folder of the cache, which is made unless it exists; return its pixels as well."""
    transform = hashlib.sha256(json.dumps([_FORMAT, __version__, asdict(target)]).encode()).hexdigest()[:16]
    parent = cache_root() / _KIND
    with explaining_failure(parent):
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent, ignore_cleanup_errors=True)
    with scratch:
        rows = _Rows(shape, Path(scratch.name) / _PIXELS)
        known: dict[str, _Entry] = {}
        index: dict[str, _Entry] = {}
        try:
            # Other data sets may share images. A damaged folder counts as missing.
            for other in parent.glob(f"{transform}-*"):
                with suppress(OSError, RunError):
                    known |= _read(other, shape)[0] if _is_complete(other) else {}
            with explaining_failure(parent):
                keys, index = _inspect(paths, target, rows, known, reading if known else progress)
            # After days of decoding, the folder must not look as if its process had been killed.
            os.utime(scratch.name)
            content = hashlib.sha256("".join(sorted(index)).encode("utf-8", "surrogateescape")).hexdigest()
            folder = cached_folder(_KIND, f"{transform}-{content}", lambda folder: _fill(folder, index, rows))
        finally:
            # Windows renames and removes no file that is mapped.
            rows.pixels = None
            known.clear()
            index.clear()
    with suppress(OSError):
        os.utime(folder)
    _remove_unchanged((manifest.parent for manifest in parent.glob(f"*/{_MANIFEST}")), UNUSED_DAYS)
    return keys, *_read(folder, shape)


def _fill(folder: Path, index: dict[str, _Entry], rows: _Rows) -> None:
    """Write the pixels and the facts of all images into a folder of the cache."""
    for key, entry in index.items():
        if entry.pixels is not None:
            index[key] = _Entry(entry.facts, rows.add(entry.pixels[entry.row]) if entry.facts.error is None else -1)
    if rows.file is not None and isinstance(rows.pixels, np.memmap):
        # The pixels are on the disk before the folder gets its name; rows that no image needed are cut off.
        rows.pixels.flush()
        rows.pixels = None
        os.truncate(rows.file, math.prod((rows.number, *rows.shape[1:])))
        files.rename(rows.file, folder / _PIXELS)
    document = {
        key: asdict(entry.facts) | {"error": entry.facts.error and entry.facts.error.reason, "row": entry.row}
        for key, entry in index.items()
    }
    files.write_json(folder / _INDEX, document)


def _read(folder: Path, shape: tuple[int, ...]) -> tuple[dict[str, _Entry], Images | None]:
    """Return the entry of each key and the pixels, if there are any.

    Raises:
        RunError: if the cache is damaged.
    """
    # Each image takes a few hundred bytes.
    document = files.read_json(folder / _INDEX, dict[str, dict[str, Any]], max_bytes=2**32)
    try:
        number = 1 + max((values["row"] for values in document.values()), default=-1)
        pixels = np.memmap(folder / _PIXELS, np.uint8, "r", shape=(number, *shape[1:])) if number else None
        index: dict[str, _Entry] = {}
        for key, values in document.items():
            row, reason = values.pop("row"), values.pop("error")
            values["oddities"] = tuple(values["oddities"])
            facts = ImageFacts(**values, error=None if reason is None else ImageError(Path(), reason))
            index[key] = _Entry(facts, row, pixels)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder} is damaged; remove it, and it is made anew") from error
    return index, pixels
