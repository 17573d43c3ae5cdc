"""What images look like: thumbnails, their statistics, and which images are near copies of others.

All of it depends on the content of the files, and is kept in the cache by content. To look again, only the sizes and
dates of the files are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from carnet import files
from carnet.data.cache import cache_root, cached_folder, remove_unused
from carnet.data.copies import NearCopies, find_near_copies
from carnet.data.decoded import CacheMode, inspect_and_cache
from carnet.data.scanned import ImageFacts
from carnet.data.thumbnails import Statistics, Thumbnail
from carnet.errors import OutputError, RunError
from carnet.text import Progress, Silent

_KIND, _RESULTS, _SEEN = "appearance", "appearance.npz", "seen"
_VERSION = 1
"""Of what is computed from thumbnails; a new number computes it anew."""
FREE_MEMORY = 10**9
"""Bytes of memory that are taken to be free where nothing tells."""
_UNSETTLED_SECONDS = 3.0
"""A file that was changed so shortly before it was read may change again and keep its date."""


@dataclass(frozen=True)
class Appearance:
    """What images look like.

    Attributes:
        facts: what each file holds.
        digests: SHA-256 of the different contents that can be decoded, in the order in which they occur.
        statistics: of the thumbnail of each content.
        copies: near copies among the contents, by their index in `digests`.
    """

    facts: Mapping[Path, ImageFacts]
    digests: tuple[str, ...]
    statistics: Statistics
    copies: NearCopies

    @cached_property
    def near_copies(self) -> Mapping[str, frozenset[str]]:
        """Content -> the contents that are near copies of it; contents without any are not listed."""
        near: dict[str, set[str]] = defaultdict(set)
        for first, second in zip(self.copies.first.tolist(), self.copies.second.tolist(), strict=True):
            near[self.digests[first]].add(self.digests[second])
            near[self.digests[second]].add(self.digests[first])
        return {digest: frozenset(others) for digest, others in near.items()}


def look_at(
    paths: Sequence[Path],
    mode: CacheMode,
    *,
    free_memory: int = FREE_MEMORY,
    facts: Mapping[Path, ImageFacts] | None = None,
    place: str | None = None,
    progress: Progress | None = None,
) -> Appearance:
    """Look at images: read what has changed since they were last looked at, and compare all of them.

    Args:
        paths: the files.
        mode: where thumbnails and results are kept, see `carnet.data.decoded.inspect_and_cache`.
        free_memory: bytes of memory that are free.
        facts: what each file holds, if that is known; then no file is read whose thumbnail is in the cache.
        place: a name of the data, under which sizes and dates of the files are kept; None: they are not.
        progress: shows how far it is.

    Raises:
        OutputError: if the cache cannot be written.
    """
    bar = (progress or Silent()).bar
    digests = {path: one.sha256 for path, one in facts.items()} if facts is not None else _unchanged(paths, place)
    begun = time.time()

    inspected = inspect_and_cache(
        paths,
        Thumbnail(),
        mode,
        free_memory=free_memory,
        digests=digests,
        reading=None if len(digests) == len(paths) else partial(bar, "looking at the images"),
        progress=partial(bar, "looking at the images"),
    )
    if place is not None and len(digests) < len(paths):
        _remember(inspected.facts, place, begun)
    contents = {one.sha256: path for path in paths if (one := inspected.facts[path]).error is None}
    decoded = inspected.decoded
    if decoded is None:
        # There is room for thumbnails neither on the disk nor in memory.
        return Appearance(inspected.facts, (), Statistics.joined([]), NearCopies.none())
    rows = np.array([decoded.row_of[path] for path in contents.values()], np.int64)

    def compute() -> tuple[Statistics, NearCopies]:
        with ThreadPoolExecutor(1) as beside:
            statistics = beside.submit(Statistics.of, decoded.pixels, rows)
            copies = find_near_copies(decoded.pixels[..., 0], rows, partial(bar, "comparing the images"))
            return statistics.result(), copies

    is_kept = isinstance(decoded.pixels, np.memmap)
    statistics, copies = _kept(tuple(contents), compute) if is_kept else compute()
    return Appearance(inspected.facts, tuple(contents), statistics, copies)


def _kept(
    digests: Sequence[str], compute: Callable[[], tuple[Statistics, NearCopies]]
) -> tuple[Statistics, NearCopies]:
    """Return what was computed for these contents before, or compute and keep it."""
    key = hashlib.sha256("".join((str(_VERSION), *digests)).encode()).hexdigest()

    def fill(folder: Path) -> None:
        with (folder / _RESULTS).open("wb") as file:
            np.savez(file, **{name: values for part in compute() for name, values in vars(part).items()})

    try:
        folder = cached_folder(_KIND, key, fill)
    except OutputError:
        # The cache only saves time.
        return compute()
    remove_unused(folder.parent)
    try:
        with np.load(folder / _RESULTS, allow_pickle=False) as kept:
            statistics, copies = (
                {one.name: kept[one.name] for one in fields(kind)} for kind in (Statistics, NearCopies)
            )
        with suppress(OSError):
            os.utime(folder)
        return Statistics(**statistics), NearCopies(**copies | {"cut": float(copies["cut"])})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        # The cache is damaged.
        shutil.rmtree(folder, ignore_errors=True)
        return compute()


def _seen_file(place: str) -> Path:
    return cache_root() / _SEEN / f"{hashlib.sha256(place.encode('utf-8', 'surrogatepass')).hexdigest()}.json"


def _unchanged(paths: Sequence[Path], place: str | None) -> dict[Path, str]:
    """Return the content hashes of the files whose size and date are those of the last look."""
    if place is None:
        return {}
    try:
        seen = files.read_json(_seen_file(place), max_bytes=2**32)
        digests = {}
        for path in paths:
            if (entry := seen.get(str(path))) is not None:
                state = path.stat()
                if entry[:2] == [state.st_size, state.st_mtime_ns]:
                    digests[path] = str(entry[2])
        return digests
    except (OSError, RunError, IndexError, TypeError, AttributeError):
        # The file is damaged, or not of this version.
        return {}


def _remember(facts: Mapping[Path, ImageFacts], place: str, begun: float) -> None:
    """Keep size, date and content hash of each file, unless it has changed just before it was read."""
    seen = {}
    for path, one in facts.items():
        with suppress(OSError):
            state = path.stat()
            if one.sha256 and state.st_mtime < begun - _UNSETTLED_SECONDS:
                seen[str(path)] = [state.st_size, state.st_mtime_ns, one.sha256]
    file = _seen_file(place)
    # The cache only saves time.
    with suppress(OSError, OutputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, seen)
