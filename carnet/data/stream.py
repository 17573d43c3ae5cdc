"""The images of a data set that `carnet.data.hub` names, streamed from where they lie or stored as files once.

Labels are counted first, so that classes, numbers of images and missing labels are known before the first image is
read. Streaming keeps in memory its buffer and what `datasets` reads ahead: a row group of each open Parquet file.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from carnet import files
from carnet.data import hub
from carnet.data.cache import cache_root, cached_folder
from carnet.data.samples import ByClass, Listing, expanded, leave_out
from carnet.data.scan import hash_files, inspect_bytes, scan_images
from carnet.data.scanned import ImageFacts, ScannedImages
from carnet.data.shards import check_tars, kind_of
from carnet.errors import DataError, ImageError
from carnet.files import MAX_IMAGE_BYTES
from carnet.machine import load_ahead, loading_threads
from carnet.preprocess import open_image
from carnet.text import OnProgress, counted, first_few

_MAX_PARTS = 256
"""Parts of a split that are read in an order of their own; neighbouring files share a part where there are more."""
_FEW_FILES = 64
"""Up to this many files, their row groups count as parts, which mixes data sorted by class better."""
_OPEN_PARTS = 8
"""Parts read in turns, so that one with a single class does not fill the buffer."""
_TABLE, _ABOUT = "data.csv", "about.json"
"""What `store` writes beside the images."""

T = TypeVar("T")
_Row = tuple[int, str, bytes | str]
"""Position in the split's stored order, label, and the encoded image or where `_fetch` finds it."""
_Part = Callable[[], Iterable[Mapping[str, Any]]]
"""Opens a part of a split."""


@dataclass(frozen=True)
class StreamedImage:
    """One labelled image.

    Attributes:
        name: split and position in the stored order, whatever the order of reading: train/0000123.
        label: its class.
        content: the encoded image, as the data set holds it.
    """

    name: str
    label: str
    content: bytes

    @property
    def position(self) -> int:
        """Position in the split's stored order, from 0."""
        return int(self.name.rpartition("/")[2])

    def path_below(self, root: Path) -> Path:
        """Return the image's path in a folder in which a data set is stored."""
        try:
            kind = open_image(self.content).format or ""
        except ImageError:
            # The scan before training finds it and says what is wrong.
            kind = "JPEG"
        extension = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
        return root / "images" / f"{self.name}.{extension}"


class ImageStream:
    """Images read one after the other, in the stored order or mixed.

    Attributes:
        source: where they lie; for a data set of the hub, with the revision.
        classes: the classes of `train`, sorted.
        splits: "train" and perhaps "valid" and "test"; only "train" for data with one split, whatever its name.
        num_images: of each split.
        content_hash: identifies the data by its labels in order and the sizes of its files, or by its revision.
        warnings: what is left out.
    """

    def __init__(
        self, data: str | hub.Source, *, buffer_bytes: int = 256 * 2**20, progress: OnProgress | None = None
    ) -> None:
        """Open the data set and count its labels.

        Args:
            data: as `carnet.data.hub` describes it.
            buffer_bytes: encoded images from which the next one is drawn; reading in the stored order needs none.
            progress: receives how many parts of the data are counted, of how many.

        Raises:
            DataError: if it cannot be opened, its columns are ambiguous, labels are missing, or there is one class.
            MissingExtraError: without Hugging Face `datasets`.
        """
        self.source = hub.pin(hub.find_source(data) if isinstance(data, str) else data)
        self.buffer_bytes = buffer_bytes
        key = self.source.key(by_content=False)
        if tars := [path for _, path in self.source.files if kind_of(path) == "webdataset"]:
            # They are read once within our limits, before `datasets` reads them without any.
            cached_folder("streams", _digest(f"{key} tars"), lambda _: check_tars(tars))
        self._format, tables = hub.open_source(self.source)
        self._names, self.warnings = hub.split_names(tables, self.source)
        with hub.explained(self.source):
            self._columns = hub.Columns.find(tables[self._names["train"]], self._format, self.source)
        key = _digest(f"{key} {self._format} {hub.import_datasets().__version__}")
        counts = cached_folder("streams", key, lambda folder: self._count(folder / "counts.json", progress))
        self._counts: dict[str, Any] = files.read_json(counts / "counts.json")
        for split in [split for split, count in self._counts.items() if not count["labels"]]:
            self.warnings += (f"{split} is left out, none of its images having a label",)
            del self._counts[split]
        self.classes = _classes(self._counts, self.source.data)
        self.splits = tuple(self._counts)
        self.num_images = {split: sum(count["shards"]) for split, count in self._counts.items()}
        sizes = [self.source.revision, *(path.stat().st_size for _, path in self.source.files)]
        self.content_hash = _digest(json.dumps([self._counts, sizes], sort_keys=True))
        self._parts = self._open(self._columns.image, self._columns.label)

    def read(self, split: str, *, order: int | None = None, skip: int = 0) -> Iterator[StreamedImage]:
        """Read the images of a split, once each.

        Args:
            split: one of `splits`.
            order: None: the stored order. A number from 0 on: mixed, differently for each number.
            skip: how many to skip at the beginning; they are read, but neither fetched one by one nor decoded.

        Raises:
            DataError: if there is no such split; while reading, if anything is wrong with the data.
        """
        if split not in self.splits:
            raise DataError(f"{self.source.data} has no {split}, but {' and '.join(self.splits)}")
        starts = accumulate([0, *self._counts[split]["shards"][:-1]])
        parts = [self._rows(split, part, start) for part, start in zip(self._parts[split], starts, strict=True)]
        rows = chain.from_iterable(parts) if order is None else self._mixed(parts, order)
        return self._load(split, islice(rows, skip, None))

    def _rows(self, split: str, part: _Part, start: int) -> Iterator[_Row]:
        for position, row in enumerate(part(), start):
            content = _image_bytes(row[self._columns.image], self.source, f"image {position} of {split}")
            yield position, self._columns.label_of(row) or "", content

    def _mixed(self, parts: Sequence[Iterator[_Row]], order: int) -> Iterator[_Row]:
        """Read the parts in a drawn order, some of them in turns, and draw each row from a buffer.

        `datasets` can mix too, but does not number the images meanwhile, and mixes differently in each version.
        """
        rng = np.random.default_rng(order)
        buffer: list[_Row] = []
        num_bytes = 0
        for row in _in_turns(parts[number] for number in rng.permutation(len(parts))):
            buffer.append(row)
            num_bytes += len(row[2])
            while num_bytes > self.buffer_bytes:
                drawn = int(rng.integers(len(buffer)))
                buffer[drawn], buffer[-1] = buffer[-1], buffer[drawn]
                num_bytes -= len(buffer[-1][2])
                yield buffer.pop()
        for place in rng.permutation(len(buffer)):
            yield buffer[place]

    def _load(self, split: str, rows: Iterator[_Row]) -> Iterator[StreamedImage]:
        def load(row: _Row) -> StreamedImage:
            position, label, image = row
            return StreamedImage(f"{split}/{position:07d}", label, _fetch(image) if isinstance(image, str) else image)

        # Images in files of their own are fetched in parallel; all others are there already.
        threads = 0 if self._format in ("parquet", "webdataset") else 16
        with hub.explained(self.source):
            yield from chain.from_iterable(load_ahead(load, _batches(rows, 16), threads=threads))

    def _open(self, *columns: str) -> dict[str, list[_Part]]:
        """Return each split's parts, with these columns and undecoded images."""
        datasets = hub.import_datasets()
        _, tables = hub.open_source(self.source, columns if self._format == "parquet" else None)
        opened: dict[str, list[_Part]] = {}
        for split, name in self._names.items():
            with hub.explained(self.source):
                table = tables[name].select_columns(list(columns))
                if isinstance(table.features.get(self._columns.image), datasets.Image):
                    # As an Image, a shard's bytes would give way to a file of the same name in the current folder.
                    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
                    feature = plain if self._format == "webdataset" else datasets.Image(decode=False)
                    table = table.cast_column(self._columns.image, feature)
                # On the hub, each row group would cost requests of its own.
                few = table.num_shards < _FEW_FILES and self.source.kind != "hub"
                table = table.reshard() if few and hasattr(table, "reshard") else table
                number = min(int(table.num_shards), _MAX_PARTS)
                opened[split] = [partial(table.shard, number, index) for index in range(number)]
        return opened

    def _count(self, path: Path, progress: OnProgress | None) -> None:
        opened = self._open(self._columns.label)
        total, done = sum(map(len, opened.values())), 0
        counts: dict[str, Any] = {}
        for split, parts in opened.items():
            labels: Counter[str | None] = Counter()
            digest = hashlib.sha256()
            sizes = []
            for part in parts:
                with hub.explained(self.source):
                    in_part = list(map(self._columns.label_of, part()))
                labels.update(in_part)
                digest.update("".join(f"{label}\n" for label in in_part).encode("utf-8", "surrogatepass"))
                sizes.append(len(in_part))
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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    return iter(lambda: list(islice(items, size)), [])


def _in_turns(parts: Iterable[Iterator[_Row]]) -> Iterator[_Row]:
    waiting = iter(parts)
    running = deque(islice(waiting, _OPEN_PARTS))
    while running:
        rows = running.popleft()
        row = next(rows, None)
        if row is None:
            running.extend(islice(waiting, 1))
        else:
            running.append(rows)
            yield row


def _classes(counts: Mapping[str, Any], data: str) -> tuple[str, ...]:
    classes = tuple(sorted(counts["train"]["labels"])) if "train" in counts else ()
    if len(classes) < 2:
        raise DataError(f"{data} has {counted(len(classes), 'class', 'classes')} to train on; a classifier needs two")
    for split, count in counts.items():
        if unknown := sorted(set(count["labels"]) - set(classes)):
            number = counted(len(unknown), "class", "classes")
            raise DataError(
                f"{split} of {data} has {number} that train does not have: {first_few(unknown)}; correct them"
            )
    return classes


def _image_bytes(value: Any, source: hub.Source, which: str) -> bytes | str:
    """Return what a row holds of an image: its bytes, or where `_fetch` finds them.

    Raises:
        DataError: if it holds neither.
    """
    held = (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value
    if held and isinstance(held, bytes):
        return held
    if isinstance(held, list | np.ndarray) and len(held):
        return _png(np.asarray(held), f"{source.data}: {which}")
    # A data set of the hub must not make us open files of this machine.
    if isinstance(held, str) and (held.split("::")[-1].startswith("hf://") or source.kind == "folder"):
        return held
    what = f"only a path ({held})" if isinstance(held, str) else "no bytes"
    raise DataError(f"{source.data}: {which} has {what}; put the bytes of the image into the data, or drop it")


def _fetch(path: str) -> bytes:
    """Read an image in a file of its own, on the hub or in a folder that `datasets` reads."""
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        # One byte too many shows the scan that the image is too large.
        return bytes(file.read(MAX_IMAGE_BYTES + 1))


def _png(array: Any, which: str) -> bytes:
    """Encode an array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) without loss."""
    small = array.dtype.kind in "ui" and array.min() >= 0 and array.max() <= 255
    if not small or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise DataError(
            f"{which} is an array of {array.dtype} {array.shape}; needed are 0 to 255 in (height, width, 3)"
        )
    pixels = array.astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if array.shape[2:] == (1,) else pixels).save(content, "PNG")
    return content.getvalue()


def store(data: str, progress: OnProgress | None = None, warnings: list[str] | None = None) -> Path:
    """Write the images of a data set into files, once, each exactly as the data set holds it.

    Args:
        data: as `carnet.data.hub` describes it.
        progress: receives how much is counted, of how much, and then the same of the images written.
        warnings: collects what is left out, and that the hub did not answer.

    Returns:
        The path of a table beside the images, with the columns filepath and label, and split where there are several.
        If the hub does not answer, the table stored last.

    Raises:
        DataError: as `ImageStream`.
        OutputError: if the cache cannot be written.
    """
    source = hub.find_source(data)
    try:
        source = hub.pin(source)
    except hub.HubUnreachableError:
        stored = list((cache_root() / "datasets").glob(f"{source.name}@*/{_TABLE}")) if not source.revision else []
        if not stored:
            raise
        table = max(stored, key=lambda table: table.stat().st_mtime)
    else:
        key = source.key(progress=progress)
        table = cached_folder("datasets", key, lambda folder: _write(source, folder, progress)) / _TABLE
    if warnings is not None:
        about = files.read_json(table.with_name(_ABOUT))
        warnings += about["warnings"]
        if source.kind == "hub" and not source.revision:
            # It could not be pinned.
            revision = about["revision"]
            warnings.append(f"the Hugging Face hub does not answer; {data} is taken as stored, revision {revision}")
    return table


def _write(source: hub.Source, folder: Path, progress: OnProgress | None) -> None:
    stream = ImageStream(source, progress=progress)
    total, done = sum(stream.num_images.values()), 0
    width = 3 if len(stream.splits) > 1 else 2
    with (folder / _TABLE).open("w", encoding="utf-8", newline="") as table:
        table.write(files.csv_line(("filepath", "label", "split")[:width]))
        for split in stream.splits:
            (folder / "images" / split).mkdir(parents=True)
            for image in stream.read(split):
                path = image.path_below(folder)
                path.write_bytes(image.content)
                table.write(files.csv_line((path.relative_to(folder).as_posix(), image.label, split)[:width]))
                done += 1
                if progress is not None:
                    progress(done, total)
    about = {"data": stream.source.data, "revision": stream.source.revision, "warnings": stream.warnings}
    files.write_json(folder / _ABOUT, about)


def check_stream(
    stream: ImageStream,
    *,
    image_size: int,
    ignore: Sequence[str] = (),
    progress: OnProgress | None = None,
    **options: Any,
) -> ScannedImages:
    """Scan a stream: decode every image once, and write those that are not for training into files.

    Args:
        stream: the data; if it has no split to validate with, it is read a second time for the images held out.
        image_size: the model's.
        ignore: images to leave out, as `data.csv` of a run names them: images/train/0000123.jpg.
        progress: receives how many images are done, of how many.
        options: as for `carnet.data.scan.scan_images`.

    Raises:
        DataError: as `scan_images`, or if the data cannot be read.
        OutputError: if the cache cannot be written.
    """
    # The paths of the files are known before these are written.
    root = cache_root() / "streamed" / _digest(f"{stream.content_hash} {sorted(options.items())} {sorted(ignore)}")
    facts, listing = _inspect(stream, root, image_size, progress)
    leave_out(listing, ignore)
    data = listing.labeled(stream.classes, expanded(stream.source.data))
    scanned = scan_images(data, image_size=image_size, facts=facts, **options)
    held_out = {sample.path for split, samples in scanned.data.splits.items() if split != "train" for sample in samples}
    _keep_as_files(stream, {path: facts[path].sha256 for path in held_out}, root)
    return scanned


def _inspect(
    stream: ImageStream, root: Path, image_size: int, progress: OnProgress | None
) -> tuple[dict[Path, ImageFacts], Listing]:
    """Return what each image holds, and the images of each class in the order in which stored ones would stand."""
    facts: dict[Path, ImageFacts] = {}
    splits: dict[str, ByClass] = {}
    total = sum(stream.num_images.values())

    def inspect(image: StreamedImage) -> tuple[Path, str, ImageFacts]:
        path = image.path_below(root)
        return path, image.label, inspect_bytes(image.content, path, image_size)

    for split in stream.splits:
        by_class = splits.setdefault(split if len(stream.splits) > 1 else "all", {})
        for batch in load_ahead(inspect, _batches(stream.read(split), 64), threads=loading_threads()):
            for path, label, fact in batch:
                by_class.setdefault(label, []).append(path)
                facts[path] = fact
            if progress is not None:
                progress(len(facts), total)
        for paths in by_class.values():
            paths.sort()
    return facts, Listing(root, splits, warnings=list(stream.warnings))


def _keep_as_files(stream: ImageStream, kept: Mapping[Path, str], root: Path) -> None:
    """Write images, given by path and SHA-256, into a folder of the cache."""

    def fill(folder: Path) -> None:
        for split in {path.parent.name for path in kept}:
            for image in stream.read(split):
                path = image.path_below(root)
                if path in kept:
                    target = folder / path.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(image.content)

    cached_folder("streamed", root.name, fill)
    if hash_files(sorted(kept)) != kept:
        # Since it was written, the shards have got other images of the same sizes.
        shutil.rmtree(root, ignore_errors=True)
        cached_folder("streamed", root.name, fill)
