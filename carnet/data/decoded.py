"""Decoded images, kept from run to run: one uint8 array in one file, named by the content of all images and by what is
made of each. Each file is decoded once, when its content is new. A training run maps that file into memory, so the
operating system keeps in memory what fits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from PIL import Image, __version__

from carnet import files
from carnet.data.cache import SCRATCH, cache_root, cached_folder, explaining_failure, is_complete, remove_unused
from carnet.data.scan import inspect_bytes, inspect_images, unreadable
from carnet.data.scanned import ImageFacts
from carnet.errors import ImageError, OutOfMemoryError, RunError
from carnet.files import MAX_IMAGE_BYTES, read_file
from carnet.machine import each_on_threads
from carnet.preprocess import Images, reason_of, to_square
from carnet.spec import Interpolation, ResizeRule
from carnet.text import OnProgress, show_bytes

CacheMode = Literal["auto", "disk", "ram", "off"]
"""Where decoded images are kept; auto: where there is room."""
_FORMAT = 7
"""Version of the decoded images; a new number makes every cache anew."""
_KIND, _PIXELS, _INDEX = "decoded", "images.u8", "index.json"
_SPARE_DISK_BYTES = 2 * 10**9
_MEMORY_SHARE = 0.4
"""Largest share of the free memory that decoded images may take."""


@dataclass(frozen=True)
class Target:
    """What images are resized to."""

    image_size: int
    resize: ResizeRule = "crop"
    in_channels: int = 3
    interpolation: Interpolation = "bilinear"

    def pixels(self, image: Image.Image, path: Path) -> Images:
        """Return the pixels of an opened image."""
        return to_square(image, path, self)


class Result(Protocol):
    """What is kept of each image; a `Target` is one, and dataclasses with other fields are others."""

    @property
    def image_size(self) -> int:
        """Side, in pixels."""

    @property
    def in_channels(self) -> int:
        """Number of channels."""

    def pixels(self, image: Image.Image, path: Path) -> Images:
        """Return the pixels, uint8 (S, S, C), of an opened image."""


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


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image that was decoded once: its facts, and the row of its pixels (-1: it cannot be decoded) in an array."""

    facts: ImageFacts
    row: int = -1
    pixels: Images | None = None
    """The array of another cached data set; None: the array that is being filled."""


@dataclass(frozen=True)
class _Sources:
    """The files to inspect, and the SHA-256 of those that have not changed since they were read."""

    paths: Sequence[Path]
    digests: Mapping[Path, str]


def inspect_and_cache(
    paths: Sequence[Path],
    target: Result,
    mode: CacheMode,
    *,
    free_memory: int,
    shared: bool = False,
    digests: Mapping[Path, str] | None = None,
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
        digests: SHA-256 of the files that have not changed since they were read; if the cache has their pixels, they
            are not read again.
        reading: called with the number of files read and of all files, if the cache has some of the images.
        progress: called with the number of files decoded and of all files, if it has none.

    Raises:
        OutputError: if the cache cannot be written.
    """
    shape = (len(paths), target.image_size, target.image_size, target.in_channels)
    place, reason = _choose_place(mode if paths else "off", math.prod(shape), free_memory, shared=shared)
    if place == "off":
        return Inspected(inspect_images(paths, target.image_size, progress), None, reason)
    sources = _Sources(paths, digests or {})
    if place == "ram":
        rows = _Rows(shape)
        keys, index = _inspect(sources, target, rows, {}, progress)
        pixels = rows.pixels
    else:
        keys, index, pixels = _inspect_on_disk(sources, target, shape, reading, progress)
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
    """An array of images that several threads fill, in memory or in a file."""

    shape: tuple[int, ...]
    file: Path | None = None
    pixels: Images | None = None
    """In memory; None until the first image is added."""
    opened: BinaryIO | None = None
    number: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, image: Images) -> int:
        """Store an image; return its row.

        Raises:
            OSError: if the disk has no room for all images.
        """
        with self.lock:
            if self.file is not None:
                # Written, not mapped: pages of a mapped file would count as memory of this process.
                if self.opened is None:
                    self.opened = self.file.open("wb")
                    _reserve(self.opened.fileno(), math.prod(self.shape))
                self.opened.write(np.ascontiguousarray(image).data)
            elif self.pixels is None:
                self.pixels = np.empty(self.shape, np.uint8)
            row, self.number = self.number, self.number + 1
        if self.pixels is not None:
            self.pixels[row] = image
        return row

    def close(self) -> None:
        """Bring the file to the disk, without the rows that no image needed."""
        if self.opened is not None:
            self.opened.flush()
            os.fsync(self.opened.fileno())
            self.opened.close()
            self.opened = None
            os.truncate(str(self.file), math.prod((self.number, *self.shape[1:])))


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
    sources: _Sources,
    target: Result,
    rows: _Rows,
    known: Mapping[str, _Entry],
    progress: OnProgress | None,
) -> tuple[dict[Path, str | ImageFacts], dict[str, _Entry]]:
    """Look at every file; return the key of each, or the facts of one that cannot be read, and the entry of each key.

    Raises:
        OutOfMemoryError: if memory is short, which says nothing about an image and must not be kept.
    """
    first: dict[str, Path] = {}
    index: dict[str, _Entry] = {}

    def inspect(path: Path) -> str | ImageFacts:
        # Equal files are decoded once. The extension counts because it may be the wrong one for the content.
        extension = path.suffix.lower()
        content = b""
        digest = sources.digests.get(path)
        if f"{digest}{extension}" not in known:
            try:
                content = read_file(path, MAX_IMAGE_BYTES)
            except OSError as error:
                return unreadable(path, error)
            digest = hashlib.sha256(content).hexdigest()
        key = f"{digest}{extension}"
        if first.setdefault(key, path) != path:
            return key
        if key in known:
            index[key] = known[key]
            return key
        made: list[Images] = []
        facts = inspect_bytes(
            content,
            path,
            target.image_size,
            digest=digest,
            keep=lambda image: made.append(target.pixels(image, path)),
        )
        if facts.error is not None and facts.error.reason == reason_of(MemoryError()):
            raise OutOfMemoryError(f"{facts.error}; close other programs, or leave it out with --ignore")
        index[key] = _Entry(facts, rows.add(made[-1]) if facts.error is None else -1)
        return key

    keys = zip(sources.paths, each_on_threads(inspect, sources.paths, progress), strict=True)
    return dict(keys), index


def _inspect_on_disk(
    sources: _Sources,
    target: Result,
    shape: tuple[int, ...],
    reading: OnProgress | None,
    progress: OnProgress | None,
) -> tuple[dict[Path, str | ImageFacts], dict[str, _Entry], Images | None]:
    """Do the same with a folder of the cache, which is made unless it exists; return its pixels as well."""
    transform = hashlib.sha256(json.dumps([_FORMAT, __version__, vars(target)]).encode()).hexdigest()[:16]
    parent = cache_root() / _KIND
    with explaining_failure(parent):
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent, ignore_cleanup_errors=True)
    with scratch:
        rows = _Rows(shape, Path(scratch.name) / _PIXELS)
        known: dict[str, _Entry] = {}
        index: dict[str, _Entry] = {}
        opened: dict[Path, tuple[dict[str, _Entry], Images | None]] = {}
        try:
            # Other data sets may share images. A damaged folder counts as missing.
            for other in parent.glob(f"{transform}-*"):
                with suppress(OSError, RunError):
                    if is_complete(other):
                        opened[other] = _read(other, shape)
                        known |= opened[other][0]
            with explaining_failure(parent):
                keys, index = _inspect(sources, target, rows, known, reading if known else progress)
            # After days of decoding, the folder must not look as if its process had been killed.
            os.utime(scratch.name)
            content = hashlib.sha256("".join(sorted(index)).encode("utf-8", "surrogateescape")).hexdigest()
            folder = cached_folder(_KIND, f"{transform}-{content}", lambda folder: _fill(folder, index, rows))
            kept = opened.get(folder)
        finally:
            # Windows renames and removes no file that is open or mapped.
            rows.close()
            for entries in (known, index, opened):
                entries.clear()
    with suppress(OSError):
        os.utime(folder)
    remove_unused(parent)
    return keys, *(kept or _read(folder, shape))


def _fill(folder: Path, index: dict[str, _Entry], rows: _Rows) -> None:
    """Write the pixels and the facts of all images into a folder of the cache."""
    for key, entry in index.items():
        if entry.pixels is not None:
            index[key] = _Entry(entry.facts, rows.add(entry.pixels[entry.row]) if entry.facts.error is None else -1)
    if rows.file is not None and rows.number:
        # The pixels are on the disk before the folder gets its name.
        rows.close()
        files.rename(rows.file, folder / _PIXELS)
    files.write_json(folder / _INDEX, _columns(index))


_COLUMNS = ("width", "height", "format", "mode")
"""Facts that every image has; the others are listed for the images that have any."""


def _columns(index: Mapping[str, _Entry]) -> dict[str, Any]:
    """Return the entries as lists: of very many images, a document of objects would take a gigabyte."""
    entries = list(index.values())
    return {
        "key": list(index),
        "row": [entry.row for entry in entries],
        **{name: [getattr(entry.facts, name) for entry in entries] for name in _COLUMNS},
        "oddities": {key: list(entry.facts.oddities) for key, entry in index.items() if entry.facts.oddities},
        "error": {key: error.reason for key, entry in index.items() if (error := entry.facts.error) is not None},
    }


def _read(folder: Path, shape: tuple[int, ...]) -> tuple[dict[str, _Entry], Images | None]:
    """Return the entry of each key and the pixels, if there are any.

    Raises:
        RunError: if the cache is damaged.
    """
    # Each image takes a few hundred bytes.
    document = files.read_json(folder / _INDEX, dict[str, Any], max_bytes=2**32)
    try:
        number = 1 + max(document["row"], default=-1)
        pixels = np.memmap(folder / _PIXELS, np.uint8, "r", shape=(number, *shape[1:])) if number else None
        oddities, errors = document["oddities"], document["error"]
        index: dict[str, _Entry] = {}
        columns = (document[name] for name in ("key", "row", *_COLUMNS))
        for key, row, width, height, format_name, mode in zip(*columns, strict=True):
            reason = ImageError(Path(), errors[key]) if key in errors else None
            # A key is the hash of the content and the extension.
            facts = ImageFacts(key[:64], width, height, format_name, mode, tuple(oddities.get(key, ())), reason)
            index[key] = _Entry(facts, row, pixels)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder} is damaged; remove it, and it is made anew") from error
    return index, pixels
