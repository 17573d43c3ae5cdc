"""Folders made once from something else (an archive, a data set of another form) and found again by its content.

Decoded images, kept from run to run: every file is decoded once, when its content is new.

They lie as one uint8 array in one file of the cache, named by the content of all images and by what they are made into.
A training run maps that file into memory, so that the system's own cache of files serves it, as far as memory is free.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, __version__

from carnet import files
from carnet.data.samples import expanded
from carnet.data.scan import ImageFacts, hash_files, inspect_bytes, inspect_images
from carnet.errors import DataError, ImageError, OutOfMemoryError, OutputError, RunError
from carnet.inputs import MAX_IMAGE_BYTES, read_file
from carnet.prefetch import each_on_threads
from carnet.preprocess import Images, reason_of, to_square
from carnet.spec import ResizeRule
from carnet.text import OnProgress, show_bytes

CacheWish = Literal["auto", "disk", "ram", "off"]
"""Where decoded images shall be kept; auto: by what is free."""
_MANIFEST = ".carnet.json"
_SCRATCH = ".carnet-"
"""How the names of half-made folders begin: the user may keep other things there, hidden ones too."""
_FORGOTTEN_SECONDS = 24 * 3600
"""A half-made folder in which nothing has changed for so long belongs to a process that was killed."""


def cache_root() -> Path:
    """Where such folders lie: `$CARNET_CACHE`, or the system's place for caches."""
    if named := os.environ.get("CARNET_CACHE"):
        return expanded(named).absolute()
    import platformdirs

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
    try:
        _remove_forgotten(folder.parent)
        if not _is_whole(folder):
            _make(folder, fill)
    except OSError as error:
        raise OutputError(
            f"cannot write into the cache {folder.parent}: {error.strerror or error}; "
            f"free some space, or name another place in the environment variable CARNET_CACHE"
        ) from error
    return folder


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
        try:
            fill(scratch)
        except BaseException as error:
            # What it had mapped into memory could not be removed on Windows.
            traceback.clear_frames(error.__traceback__)
            raise
        files.write_json(scratch / _MANIFEST, _measure(scratch))
        # Another process may have been faster: what it made is the same, and may be in use.
        if _is_whole(folder):
            return
        with suppress(FileNotFoundError):
            folder.rename(aside)
        try:
            files.patiently(lambda: scratch.rename(folder))
        except OSError:
            if not _is_whole(folder):
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


def _is_whole(folder: Path) -> bool:
    try:
        return bool(files.read_json(folder / _MANIFEST) == _measure(folder))
    except (OSError, RunError):
        # Missing, damaged, or just being removed.
        return False


def _measure(folder: Path) -> dict[str, int]:
    """How many files with how many bytes."""
    sizes = [
        (Path(current) / name).stat().st_size
        for current, _, names in os.walk(folder)
        for name in names
        if name != _MANIFEST
    ]
    return {"num_files": len(sizes), "num_bytes": sum(sizes)}


_FORMAT = 5
"""Of the files; another number makes them anew."""
_PIXELS, _INDEX = "images.u8", "index.json"
_KIND = "decoded"
_UNUSED_DAYS = 30
_ZEROS = 2**24
"""Bytes written at a time."""
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
        row_of: where in it each file's image stands; files of equal content share one.
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
    """What `inspect_and_keep` found."""

    facts: dict[Path, ImageFacts]
    decoded: DecodedImages | None
    """None where they are not kept."""
    reason: str
    """Where they are kept, or why not: a phrase."""


def inspect_and_keep(
    paths: Sequence[Path],
    target: Target,
    wish: CacheWish,
    *,
    free_memory: int,
    shared: bool = False,
    reading: OnProgress | None = None,
    progress: OnProgress | None = None,
) -> Inspected:
    """Look into every image, as `carnet.data.scan.inspect_images` does, and keep what it decodes to.

    Args:
        paths: the files.
        target: what to make of them.
        wish: disk, ram or off as it says; auto: on the disk where there is room, or else in memory, or else not.
        free_memory: bytes that may be used.
        shared: whether several processes will use them, which memory of one process does not allow.
        reading: told how many files are read, of how many, to see which are known already.
        progress: told how many images are done, of how many.

    Raises:
        DataError: if a file changes meanwhile.
        OutputError: if the cache cannot be written.
    """
    digests = {} if wish == "off" else hash_files(paths, reading)
    size = math.prod(target.shape(len(set(digests.values()))))
    # Where no file can be read there is nothing to keep.
    place, reason = _place(wish if digests else "off", size, free_memory, shared=shared)
    if place == "off":
        return Inspected(inspect_images(paths, target.image_size, progress), None, reason)
    keys = {path: f"{digest}{path.suffix.lower()}" for path, digest in digests.items()}
    # Files equal byte for byte are decoded once; what is odd about a file depends on its name's end as well.
    unique = {key: path for path, key in sorted(keys.items(), reverse=True)}
    row_of = {digest: row for row, digest in enumerate(sorted(set(digests.values())))}
    shape = target.shape(len(row_of))
    if place == "ram":
        pixels: Images = np.empty(shape, np.uint8)
        found = _decode(unique, row_of, pixels, target, progress)
    else:
        folder = cached_folder(
            _KIND, _name(unique, target), lambda scratch: _fill(scratch, unique, row_of, target, progress)
        )
        forget_unused(_KIND, folder, _UNUSED_DAYS)
        pixels = np.memmap(folder / _PIXELS, np.uint8, "r", shape=shape)
        found = _read_index(folder / _INDEX)
    facts = {path: _named(found[keys[path]], path) if path in keys else _gone(path, target) for path in paths}
    return Inspected(facts, DecodedImages(pixels, {path: row_of[digests[path]] for path in keys}), reason)


def _place(wish: CacheWish, size: int, free_memory: int, *, shared: bool) -> tuple[CacheWish, str]:
    if wish == "off":
        return "off", "images are decoded each time they are needed, as asked"
    if wish == "disk":
        return "disk", f"decoded images are kept in the cache ({show_bytes(size)}), as asked"
    if wish == "ram" and not shared:
        return "ram", f"decoded images are kept in memory ({show_bytes(size)}), as asked"
    if _free_disk_bytes(cache_root()) > size + _SPARE_DISK_BYTES:
        return "disk", f"decoded images are kept in the cache ({show_bytes(size)}), so that none is decoded twice"
    if size < _SHARE_OF_MEMORY * free_memory and not shared:
        return (
            "ram",
            f"decoded images are kept in memory ({show_bytes(size)}), for the cache has no room or no permission",
        )
    return (
        "off",
        f"images are decoded each time they are needed: {show_bytes(size)} fit neither the cache's disk nor memory",
    )


def _free_disk_bytes(root: Path) -> int:
    """Where a folder is, or will be made; 0 where that is not possible."""
    there = next((folder for folder in (root, *root.parents) if folder.exists()), None)
    return shutil.disk_usage(there).free if there is not None and os.access(there, os.W_OK) else 0


def _fill(
    folder: Path,
    unique: Mapping[str, Path],
    row_of: Mapping[str, int],
    target: Target,
    progress: OnProgress | None,
) -> None:
    shape = target.shape(len(row_of))
    with (folder / _PIXELS).open("wb") as file:
        _reserve(file.fileno(), math.prod(shape))
    pixels = np.memmap(folder / _PIXELS, np.uint8, "r+", shape=shape)
    found = _decode(unique, row_of, pixels, target, progress)
    # On the disk before the folder gets its name.
    pixels.flush()
    files.write_json(folder / _INDEX, {key: _to_json(fact) for key, fact in found.items()})


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
        # macOS would leave a hole.
        while size:
            size -= os.write(descriptor, bytes(min(_ZEROS, size)))


def _decode(
    unique: Mapping[str, Path],
    row_of: Mapping[str, int],
    pixels: Images,
    target: Target,
    progress: OnProgress | None,
) -> dict[str, ImageFacts]:
    """Fill `pixels`, and return what was found under each key.

    Raises:
        DataError: if a file is not what it was a moment ago; such a failure must not be kept.
        OutOfMemoryError: if memory is short, which says nothing about an image either.
    """

    def look(item: tuple[str, Path]) -> ImageFacts:
        key, path = item
        try:
            content = read_file(path, MAX_IMAGE_BYTES)
        except OSError as error:
            raise DataError(f"{path} could be read a moment ago, and now not ({error.strerror}); try again") from error

        def keep(image: Image.Image, digest: str) -> None:
            if digest in row_of:
                square = to_square(image, path, target.image_size, target.resize, target.in_channels)
                pixels[row_of[digest]] = square

        fact = inspect_bytes(content, path, target.image_size, keep)
        if fact.error is not None and fact.error.reason == reason_of(MemoryError()):
            raise OutOfMemoryError(f"{fact.error}; close other programs, or leave it out with --ignore")
        if not key.startswith(fact.sha256):
            raise DataError(f"{path} changed while it was looked at; start again when the images stay as they are")
        return fact

    return dict(zip(unique, each_on_threads(look, list(unique.items()), progress), strict=True))


def _name(unique: Mapping[str, Path], target: Target) -> str:
    # Another version of Pillow may decode to other pixels.
    about = json.dumps([_FORMAT, __version__, asdict(target), sorted(unique)])
    return hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()


def _to_json(fact: ImageFacts) -> dict[str, Any]:
    return asdict(fact) | {"error": None if fact.error is None else fact.error.reason}


def _read_index(path: Path) -> dict[str, ImageFacts]:
    """What is odd about each image, by key.

    Raises:
        RunError: if the cache is damaged.
    """
    # A few hundred bytes for each image.
    index = files.read_json(path, dict[str, dict[str, Any]], max_bytes=2**32)
    try:
        return {key: _from_json(values) for key, values in index.items()}
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged; remove its folder, and it is made anew") from error


def _from_json(values: Mapping[str, Any]) -> ImageFacts:
    error = None if values["error"] is None else ImageError(Path(), values["error"])
    return ImageFacts(**{**values, "oddities": tuple(values["oddities"]), "error": error})


def _named(fact: ImageFacts, path: Path) -> ImageFacts:
    if fact.error is None:
        return fact
    return ImageFacts(fact.sha256, error=ImageError(path, fact.error.reason))


def _gone(path: Path, target: Target) -> ImageFacts:
    """What to say of a file that could not even be hashed."""
    return inspect_images([path], target.image_size)[path]
