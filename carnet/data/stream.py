"""The images of a data set that `carnet.data.hub` names, streamed from where they lie.

They are counted first, by their labels alone, so that classes, numbers and missing labels are known before
the first image is needed. Streaming keeps no more in memory than its buffer and what `datasets` has read ahead: a row
group of each open parquet file.

The images of a data set that `carnet.data.hub` names, written into files once, with a table of their labels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from carnet import files
from carnet.data import hub
from carnet.data.cache import cache_root, cached_folder
from carnet.data.hub import check_tars
from carnet.data.opening import (
    Columns,
    HubUnreachableError,
    explained,
    fetch,
    image_bytes,
    import_datasets,
    open_source,
    pin,
    split_names,
)
from carnet.data.samples import ByClass, Listing, expanded, leave_out
from carnet.data.scan import ImageFacts, ScannedImages, hash_files, inspect_bytes, scan_images
from carnet.documents import Count
from carnet.errors import DataError, ImageError
from carnet.prefetch import load_ahead, loading_threads
from carnet.preprocess import open_image
from carnet.text import OnProgress, counted, first_few

_MAX_SHARDS = 256
"""Parts of a split that are read in an order of their own; neighbours are taken together where there are more files."""
_FEW_SHARDS = 64
"""Up to so many files, the row groups inside them count as parts: what is sorted by class is mixed better."""
_OPEN_SHARDS = 8
"""Parts read in turns, so that one that holds a single class does not fill the buffer."""

_Row = tuple[int, str, bytes | str]
"""Place in the split's stored order, label, and the image's bytes or where to fetch them."""


class _Counts(TypedDict):
    """What is counted of a split before it is read."""

    shards: list[Count]
    labels: dict[str, Count]
    sha256: str


@dataclass(frozen=True)
class StreamedImage:
    """One labelled image."""

    name: str
    """Split and place in the stored order, whatever the order of reading: train/0000123."""
    label: str
    content: bytes
    """The encoded image, as the data set holds it."""

    @property
    def position(self) -> int:
        """Place in the split's stored order, from 0."""
        return int(self.name.rpartition("/")[2])


class ImageStream:
    """Images read one after the other, in the stored order or mixed.

    Attributes:
        source: where they lie; on the hub, with the revision.
        classes: those of `train`, sorted.
        splits: "train" and perhaps "valid" and "test"; "train" alone for data that is not divided, whatever its name.
        num_images: of each split.
        content_hash: names the data by its labels in order and the sizes of its files, or by its revision.
        warnings: what was left out.
    """

    def __init__(
        self, data: str | hub.Source, *, buffer_bytes: int = 256 * 2**20, progress: OnProgress | None = None
    ) -> None:
        """Open and count.

        Args:
            data: as `carnet.data.hub` describes it.
            buffer_bytes: of encoded images among which one is drawn; what is read in order needs none.
            progress: told how many parts of the data are counted, of how many.

        Raises:
            DataError: it cannot be opened, its columns cannot be told, labels are missing, or there are no two classes.
            MissingExtraError: without Hugging Face `datasets`.
        """
        self.source = pin(hub.find_source(data) if isinstance(data, str) else data)
        self.buffer_bytes = buffer_bytes
        if self.source.tars:
            # They are read once with our own limits, before `datasets` reads them without any.
            key = hashlib.sha256(f"{self.source.key(by_content=False)} tars".encode()).hexdigest()
            cached_folder("streams", key, lambda _: check_tars(self.source.tars))
        self._format, tables = open_source(self.source)
        self._names, self.warnings = split_names(tables, self.source)
        with explained(self.source):
            self._columns = Columns.find(tables[self._names["train"]], self._format, self.source)
        version = import_datasets().__version__
        key = hashlib.sha256(f"{self.source.key(by_content=False)} {self._format} {version}".encode()).hexdigest()
        counts = cached_folder("streams", key, lambda folder: self._count(folder / "counts.json", progress))
        self._counts: dict[str, Any] = files.read_json(counts / "counts.json", dict[str, _Counts])
        for split in [split for split, count in self._counts.items() if not count["labels"]]:
            self.warnings += (f"{split} is left out, none of its images having a label",)
            del self._counts[split]
        self.classes = _classes(self._counts, self.source.data)
        self.splits = tuple(self._counts)
        self.num_images = {split: sum(count["shards"]) for split, count in self._counts.items()}
        sizes = [self.source.revision, *(path.stat().st_size for _, path in self.source.files)]
        self.content_hash = hashlib.sha256(json.dumps([self._counts, sizes], sort_keys=True).encode()).hexdigest()
        self._tables = self._open(self._columns.image, self._columns.label)

    def read(self, split: str, *, order: int | None = None, skip: int = 0) -> Iterator[StreamedImage]:
        """The images of a split, once each.

        Args:
            split: one of `splits`.
            order: None: the stored order. A number, not negative: mixed, in one way for each number.
            skip: how many to pass over at the beginning; they are read, but neither fetched one by one nor decoded.

        Raises:
            DataError: no such split; while reading, whatever is wrong with the data.
        """
        if split not in self.splits:
            raise DataError(f"{self.source.data} has no {split}, but {' and '.join(self.splits)}")
        in_order = chain.from_iterable(rows() for rows in self._shards(split))
        return self._read(split, in_order if order is None else self._mixed(split, order), skip)

    def _read(self, split: str, rows: Iterator[_Row], skip: int) -> Iterator[StreamedImage]:
        def load(row: _Row) -> StreamedImage:
            position, label, image = row
            return StreamedImage(f"{split}/{position:07d}", label, fetch(image) if isinstance(image, str) else image)

        with explained(self.source):
            left = islice(rows, skip, None)
            batches = iter(lambda: list(islice(left, 16)), [])
            # Images in files of their own are fetched side by side; all others are there already.
            for batch in load_ahead(load, batches, threads=0 if self._format in ("parquet", "webdataset") else 16):
                yield from batch

    def _mixed(self, split: str, order: int) -> Iterator[_Row]:
        """Parts in a drawn order, some of them in turns, and then draws from a buffer.

        `datasets` could mix as well, but not number the images while it does, nor alike in all its versions.
        """
        rng = np.random.default_rng(order)
        shards = self._shards(split)
        buffer: list[_Row] = []
        num_bytes = 0
        for row in _in_turns(shards[number]() for number in rng.permutation(len(shards))):
            buffer.append(row)
            num_bytes += len(row[2])
            while num_bytes > self.buffer_bytes:
                drawn = int(rng.integers(len(buffer)))
                buffer[drawn], buffer[-1] = buffer[-1], buffer[drawn]
                num_bytes -= len(buffer[-1][2])
                yield buffer.pop()
        for place in rng.permutation(len(buffer)):
            yield buffer[place]

    def _shards(self, split: str) -> list[Callable[[], Iterator[_Row]]]:
        """How to read each part of a split, in the stored order."""
        sizes = self._counts[split]["shards"]
        starts = accumulate([0, *sizes[:-1]])
        return [partial(self._rows, split, number, start) for number, start in enumerate(starts)]

    def _rows(self, split: str, number: int, start: int) -> Iterator[_Row]:
        table = self._tables[split]
        part = table.shard(_num_shards(table), number)
        for position, row in enumerate(part, start):
            label = self._columns.text(row[self._columns.label]) or ""
            yield position, label, image_bytes(row[self._columns.image], self.source, f"image {position} of {split}")

    def _open(self, *columns: str) -> dict[str, Any]:
        """Only these columns, images undecoded, cut into small parts."""
        datasets = import_datasets()
        _, tables = open_source(self.source, columns if self._format == "parquet" else None)
        opened = {}
        for split, name in self._names.items():
            with explained(self.source):
                table = tables[name].select_columns(list(columns))
                if isinstance(table.features.get(self._columns.image), datasets.Image):
                    # As an Image, a shard's bytes would give way to any file of the same name in the current folder.
                    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
                    feature = plain if self._format == "webdataset" else datasets.Image(decode=False)
                    table = table.cast_column(self._columns.image, feature)
                # On the hub, each row group would cost requests of its own.
                few = table.num_shards < _FEW_SHARDS and not self.source.on_hub
                opened[split] = table.reshard() if few and hasattr(table, "reshard") else table
        return opened

    def _count(self, path: Path, progress: OnProgress | None) -> None:
        tables = self._open(self._columns.label)
        total, done = sum(map(_num_shards, tables.values())), 0
        counts: dict[str, Any] = {}
        for split, table in tables.items():
            labels: Counter[str | None] = Counter()
            digest = hashlib.sha256()
            sizes = []
            for number in range(_num_shards(table)):
                before = labels.total()
                with explained(self.source):
                    for row in table.shard(_num_shards(table), number):
                        label = self._columns.text(row[self._columns.label])
                        labels[label] += 1
                        digest.update(f"{label}\n".encode("utf-8", "surrogatepass"))
                sizes.append(labels.total() - before)
                done += 1
                if progress is not None:
                    progress(done, total)
            unlabelled = labels.pop(None, 0)
            if unlabelled and (labels or split == "train"):
                raise DataError(
                    f"{self.source.data}: {unlabelled:,} of the {counted(sum(sizes), 'image')} in {split} have no "
                    f"label (none, or -1); label them, or take them out"
                )
            counts[split] = {"shards": sizes, "labels": labels, "sha256": digest.hexdigest()}
        files.write_json(path, counts)


def _classes(counts: Mapping[str, Any], data: str) -> tuple[str, ...]:
    classes = tuple(sorted(counts["train"]["labels"])) if "train" in counts else ()
    if len(classes) < 2:
        raise DataError(f"{data} has {counted(len(classes), 'class', 'classes')} to train on; a classifier needs two")
    for split, count in counts.items():
        strange = sorted(set(count["labels"]) - set(classes))
        if strange:
            number = counted(len(strange), "class", "classes")
            raise DataError(f"{split} of {data} has {number} that train does not have: {first_few(strange)}; mend them")
    return classes


def _num_shards(table: Any) -> int:
    return min(int(table.num_shards), _MAX_SHARDS)


def _in_turns(shards: Iterable[Iterator[_Row]]) -> Iterator[_Row]:
    waiting = iter(shards)
    running = deque(islice(waiting, _OPEN_SHARDS))
    while running:
        rows = running.popleft()
        row = next(rows, None)
        if row is None:
            running.extend(islice(waiting, 1))
        else:
            running.append(rows)
            yield row


_EXTENSIONS = {"JPEG": ".jpg", "TIFF": ".tif"}
_TABLE, _ABOUT = "data.csv", "about.json"
"""What `store` writes beside the images."""


class _About(TypedDict):
    warnings: list[str]
    revision: str | None


def store(data: str, progress: OnProgress | None = None, warnings: list[str] | None = None) -> Path:
    """Write the images of a data set into files, once, each exactly as the data set holds it.

    Args:
        data: as `carnet.data.hub` describes it.
        progress: told how much is counted, of how much, and then the same of the images written.
        warnings: takes up what was left out, and that the hub did not answer.

    Returns:
        A table with the columns filepath and label, and split unless the data is not divided, beside its images. If the
        hub does not answer, the one stored last.

    Raises:
        DataError: as `ImageStream`.
        OutputError: if the cache cannot be written.
    """
    source = hub.find_source(data)
    try:
        source = pin(source)
    except HubUnreachableError:
        stored = list((cache_root() / "datasets").glob(f"{source.name}@*/{_TABLE}")) if not source.revision else []
        if not stored:
            raise
        table = max(stored, key=lambda table: table.stat().st_mtime)
    else:
        key = source.key(progress=progress)
        table = cached_folder("datasets", key, lambda folder: _write(source, folder, progress)) / _TABLE
    if warnings is not None:
        about = files.read_json(table.with_name(_ABOUT), _About)
        warnings += about["warnings"]
        if source.on_hub and not source.revision:
            # It could not be pinned.
            revision = about["revision"]
            warnings.append(f"the Hugging Face hub does not answer; {data} is taken as stored, revision {revision}")
    return table


def _write(source: hub.Source, folder: Path, progress: OnProgress | None) -> None:
    stream = ImageStream(source, progress=progress)
    total, done = sum(stream.num_images.values()), 0
    divided = len(stream.splits) > 1
    with (folder / _TABLE).open("w", encoding="utf-8", newline="") as file:
        file.write(files.csv_line(("filepath", "label", "split") if divided else ("filepath", "label")))
        for split in stream.splits:
            (folder / "images" / split).mkdir(parents=True)
            for image in stream.read(split):
                name = f"images/{image.name}{extension_of(image.content)}"
                (folder / name).write_bytes(image.content)
                file.write(files.csv_line((name, image.label, split) if divided else (name, image.label)))
                done += 1
                if progress is not None:
                    progress(done, total)
    about = {"data": stream.source.data, "revision": stream.source.revision, "warnings": stream.warnings}
    files.write_json(folder / _ABOUT, about)


def extension_of(content: bytes) -> str:
    """What an image's file should be called, by its content."""
    try:
        kind = open_image(content).format or ""
    except ImageError:
        # The check before training shall find it and say what is wrong.
        return ".jpg"
    return _EXTENSIONS.get(kind, f".{kind.lower()}")


_BATCH = 64
"""Images that are looked at side by side."""


def check_stream(
    stream: ImageStream,
    *,
    image_size: int,
    skip_unreadable: bool = False,
    valid_fraction: float = 0.2,
    seed: int = 0,
    ignore: Sequence[str] = (),
    progress: OnProgress | None = None,
) -> ScannedImages:
    """Decode every image of a stream once, keep those to validate with as files, and report what is odd.

    Args:
        stream: the data.
        image_size: the model's.
        skip_unreadable: leave out, and count, what cannot be decoded, instead of stopping.
        valid_fraction: share held back for validation where the data has no such split; costs a second pass.
        seed: of that division.
        ignore: images to leave out, as `data.csv` of a run names them: images/train/0000123.jpg.
        progress: told how many images are done, of how many.

    Raises:
        DataError: as `carnet.data.scan.scan_images`, or if the data cannot be read.
        OutputError: if the cache cannot be written.
    """
    choice = f"{stream.content_hash} {seed} {valid_fraction} {skip_unreadable} {sorted(ignore)}"
    key = hashlib.sha256(choice.encode("utf-8", "surrogateescape")).hexdigest()
    # Where the files will lie is known before they are written.
    root = cache_root() / "streamed" / key
    facts, listing = _look(stream, root, image_size, progress)
    leave_out(listing, ignore)
    data = listing.labeled(stream.classes, expanded(stream.source.data))
    checked = scan_images(
        data,
        image_size=image_size,
        skip_unreadable=skip_unreadable,
        valid_fraction=valid_fraction,
        seed=seed,
        facts=facts,
    )
    kept = {sample.path for split, samples in checked.data.splits.items() if split != "train" for sample in samples}
    _keep_as_files(stream, {path: facts[path].sha256 for path in kept}, root)
    return checked


def _look(
    stream: ImageStream, root: Path, image_size: int, progress: OnProgress | None
) -> tuple[dict[Path, ImageFacts], Listing]:
    """What each image holds, and the images of each class in the order in which stored ones would stand."""
    facts: dict[Path, ImageFacts] = {}
    splits: dict[str, ByClass] = {}
    total = sum(stream.num_images.values())

    def look(image: StreamedImage) -> tuple[Path, str, ImageFacts]:
        path = path_of(image, root)
        return path, image.label, inspect_bytes(image.content, path, image_size)

    for split in stream.splits:
        by_class = splits.setdefault(split if len(stream.splits) > 1 else "all", {})
        images = stream.read(split)
        batches = iter(lambda: list(islice(images, _BATCH)), [])  # noqa: B023 - used up before the next split
        for batch in load_ahead(look, batches, threads=loading_threads()):
            for path, label, fact in batch:
                by_class.setdefault(label, []).append(path)
                facts[path] = fact
            if progress is not None:
                progress(len(facts), total)
        for paths in by_class.values():
            paths.sort()
    return facts, Listing(root, splits, warnings=list(stream.warnings))


def path_of(image: StreamedImage, root: Path) -> Path:
    """Where the image would lie if it were stored."""
    return root / "images" / f"{image.name}{extension_of(image.content)}"


def _keep_as_files(stream: ImageStream, kept: Mapping[Path, str], root: Path) -> None:
    """Write the images that are kept, by path and hash, into a folder of the cache."""

    def fill(folder: Path) -> None:
        for split in {path.parent.name for path in kept}:
            for image in stream.read(split):
                path = path_of(image, root)
                if path in kept:
                    target = folder / path.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(image.content)

    cached_folder("streamed", root.name, fill)
    if hash_files(sorted(kept)) != kept:
        # Other images may lie in shards of the same size by now.
        shutil.rmtree(root, ignore_errors=True)
        cached_folder("streamed", root.name, fill)
