"""Decoded images, kept from run to run: every file is decoded once, when its content is new.

They lie as one uint8 array in one file of the cache, named by the content of all images and by what they are made into.
A training run maps that file into memory, so that the system's own cache of files serves it, as far as memory is free.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, __version__

from carnet import files
from carnet.data.cache import cache_root, cached_folder, explaining_failure, forget_unused, is_whole, scratch_folder
from carnet.data.scan import ImageFacts, inspect_bytes, inspect_images, unreadable
from carnet.errors import ImageError, OutOfMemoryError, RunError
from carnet.files import MAX_IMAGE_BYTES, read_file
from carnet.machine import each_on_threads
from carnet.preprocess import Images, reason_of, to_square
from carnet.spec import ResizeRule
from carnet.text import OnProgress, show_bytes

CacheMode = Literal["auto", "disk", "ram", "off"]
"""Where decoded images shall be kept; auto: by what is free."""
_FORMAT = 6
"""Of decoded images; another number makes them anew."""
_KIND, _PIXELS, _INDEX = "decoded", "images.u8", "index.json"
_UNUSED_DAYS = 30
_SPARE_DISK_BYTES = 2 * 10**9
_SHARE_OF_MEMORY = 0.4
"""Of what is free, at most so much for decoded images."""


@dataclass(frozen=True)
class Target:
    """What images are made into."""

    image_size: int
    resize: ResizeRule = "crop"
    in_channels: int = 3

    def shape(self, number: int) -> tuple[int, ...]:
        """Of the array of so many images."""
        return number, self.image_size, self.image_size, self.in_channels


class DecodedImages:
    """Images as `carnet.preprocess.load_image` gives them, by path.

    Attributes:
        pixels: uint8 (M, S, S, C), in memory or mapped into it.
        row_of: where in it each file's image stands; files of equal content and kind of name share one.
    """

    def __init__(self, pixels: Images, row_of: Mapping[Path, int]) -> None:
        self.pixels = pixels
        self.row_of = row_of

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
    place, reason = _place(wish if paths else "off", math.prod(target.shape(len(paths))), free_memory, shared=shared)
    if place == "off":
        return Inspected(inspect_images(paths, target.image_size, progress), None, reason)
    if place == "ram":
        rows = _Rows(target.shape(len(paths)))
        keys, index = _look(paths, target, rows, {}, progress)
        return _inspected(keys, rows.pixels, index, reason)
    kind = hashlib.sha256(json.dumps([_FORMAT, __version__, asdict(target)]).encode()).hexdigest()[:16]
    with scratch_folder(_KIND) as scratch, closing(_Rows(target.shape(len(paths)), scratch / _PIXELS)) as rows:
        known = _known(scratch.parent, kind, target)
        with explaining_failure(scratch.parent):
            keys, index = _look(paths, target, rows, known, reading if known else progress)
        # What takes days is at work nevertheless, and must not be taken for what a killed process has left.
        os.utime(scratch)
        content = hashlib.sha256("".join(sorted(index)).encode("utf-8", "surrogateescape")).hexdigest()
        folder = cached_folder(_KIND, f"{kind}-{content}", lambda made: _fill(made, index, rows))
        # Windows removes no file that is mapped.
        known.clear()
        index.clear()
    forget_unused(_KIND, folder, _UNUSED_DAYS)
    return _inspected(keys, *_read(folder, target), reason)


class _Rows:
    """An array of images that several threads fill: in memory, or in a file that is mapped into it.

    Attributes:
        pixels: None until the first image comes, and where the file is closed.
    """

    def __init__(self, shape: tuple[int, ...], file: Path | None = None) -> None:
        self.pixels: Images | None = None
        self._shape = shape
        self._file = file
        self._number = 0
        self._lock = threading.Lock()

    def add(self, image: Images) -> int:
        """Take an image up; returns its row.

        Raises:
            OSError: if the disk has no room for all of them.
        """
        with self._lock:
            if self.pixels is None:
                self.pixels = self._make()
            row, self._number = self._number, self._number + 1
        self.pixels[row] = image
        return row

    def save(self, target: Path) -> None:
        """Give the file, if an image needed one, its name; what no image needed is cut off."""
        if isinstance(self.pixels, np.memmap) and self._file is not None:
            # On the disk before the folder gets its name.
            self.pixels.flush()
            self.close()
            os.truncate(self._file, math.prod((self._number, *self._shape[1:])))
            files.rename(self._file, target)

    def close(self) -> None:
        """Let go of the file, which Windows could not rename or remove otherwise."""
        self.pixels = None

    def _make(self) -> Images:
        if self._file is None:
            return np.empty(self._shape, np.uint8)
        with self._file.open("wb") as opened:
            _reserve(opened.fileno(), math.prod(self._shape))
        return np.memmap(self._file, np.uint8, "r+", shape=self._shape)


def _look(
    paths: Sequence[Path], target: Target, rows: _Rows, known: Mapping[str, _Kept], progress: OnProgress | None
) -> tuple[dict[Path, str | ImageFacts], dict[str, _Kept]]:
    """Read every file; returns the key of each, or why it cannot be read, and by key what was found or is known.

    Raises:
        OutOfMemoryError: if memory is short, which says nothing about an image and must not be kept.
    """
    first: dict[str, Path] = {}
    index: dict[str, _Kept] = {}

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

        def keep(image: Image.Image) -> None:
            squares.append(to_square(image, path, target.image_size, target.resize, target.in_channels))

        fact = inspect_bytes(content, path, target.image_size, digest=digest, keep=keep)
        if fact.error is not None and fact.error.reason == reason_of(MemoryError()):
            raise OutOfMemoryError(f"{fact.error}; close other programs, or leave it out with --ignore")
        index[key] = _Kept(fact, rows.add(squares[-1])) if fact.error is None else _Kept(fact)
        return key

    return dict(zip(paths, each_on_threads(look, paths, progress), strict=True)), index


def _inspected(
    keys: Mapping[Path, str | ImageFacts], pixels: Images | None, index: Mapping[str, _Kept], reason: str
) -> Inspected:
    facts = {path: key if isinstance(key, ImageFacts) else _named(index[key].fact, path) for path, key in keys.items()}
    row_of = {path: index[str(key)].row for path, key in keys.items() if facts[path].error is None}
    return Inspected(facts, None if pixels is None else DecodedImages(pixels, row_of), reason)


def _named(fact: ImageFacts, path: Path) -> ImageFacts:
    """The fact of a file that may be called otherwise than the one in which it was found."""
    return fact if fact.error is None else replace(fact, error=ImageError(path, fact.error.reason))


def _known(folder: Path, kind: str, target: Target) -> dict[str, _Kept]:
    """What earlier data sets have left that were made into the same; what is damaged counts as missing."""
    known: dict[str, _Kept] = {}
    for other in folder.glob(f"{kind}-*"):
        with suppress(OSError, RunError):
            if is_whole(other):
                pixels, index = _read(other, target)
                known |= {key: replace(kept, pixels=pixels) for key, kept in index.items()}
    return known


def _fill(folder: Path, index: dict[str, _Kept], rows: _Rows) -> None:
    for key, kept in index.items():
        if kept.pixels is not None:
            index[key] = _Kept(kept.fact, rows.add(kept.pixels[kept.row]) if kept.fact.error is None else -1)
    rows.save(folder / _PIXELS)
    reasons = {key: kept.fact.error and kept.fact.error.reason for key, kept in index.items()}
    facts = {key: asdict(kept.fact) | {"error": reasons[key], "row": kept.row} for key, kept in index.items()}
    files.write_json(folder / _INDEX, facts)


def _read(folder: Path, target: Target) -> tuple[Images | None, dict[str, _Kept]]:
    """The pixels, if there are any, and what is odd about each image, by key.

    Raises:
        RunError: if the cache is damaged.
    """
    # A few hundred bytes for each image.
    document = files.read_json(folder / _INDEX, dict[str, dict[str, Any]], max_bytes=2**32)
    try:
        index = {key: _from_json(**values) for key, values in document.items()}
        number = 1 + max((kept.row for kept in index.values()), default=-1)
        pixels = np.memmap(folder / _PIXELS, np.uint8, "r", shape=target.shape(number)) if number else None
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder} is damaged; remove it, and it is made anew") from error
    return pixels, index


def _from_json(row: int, error: str | None, oddities: Sequence[str], **fact: Any) -> _Kept:
    reason = None if error is None else ImageError(Path(), error)
    return _Kept(ImageFacts(oddities=tuple(oddities), error=reason, **fact), row)


def _place(wish: CacheMode, num_bytes: int, free_memory: int, *, shared: bool) -> tuple[CacheMode, str]:
    size = show_bytes(num_bytes)
    if wish == "off":
        return "off", "images are decoded each time they are needed, as asked"
    if wish == "disk":
        return "disk", f"decoded images are kept in the cache ({size}), as asked"
    if wish == "ram" and not shared:
        return "ram", f"decoded images are kept in memory ({size}), as asked"
    if _free_disk_bytes(cache_root()) > num_bytes + _SPARE_DISK_BYTES:
        return "disk", f"decoded images are kept in the cache ({size}), so that none is decoded twice"
    if num_bytes < _SHARE_OF_MEMORY * free_memory and not shared:
        return "ram", f"decoded images are kept in memory ({size}), for the cache has no room or no permission"
    return "off", f"images are decoded each time they are needed: {size} fit neither the cache's disk nor memory"


def _free_disk_bytes(root: Path) -> int:
    """Where a folder is, or will be made; 0 where that is not possible."""
    there = next((folder for folder in (root, *root.parents) if folder.exists()), None)
    return shutil.disk_usage(there).free if there is not None and os.access(there, os.W_OK) else 0


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
