"""The images of a data set that `carnet.data.hub` names: streamed from where they lie, or written into files once.

Images are counted first, by their labels alone, so that classes, numbers and missing labels are known before the first
image is needed. Streaming keeps no more in memory than its buffer and what `datasets` has read ahead: a row group of
each open parquet file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import numpy as np
from PIL import Image

from carnet import files
from carnet.data import hub
from carnet.data.cache import cache_root, cached_folder
from carnet.data.samples import SPLIT_NAMES, ByClass, LabeledImages, Listing, expanded, leave_out, numbered
from carnet.data.scan import ImageFacts, ScannedImages, hash_files, inspect_bytes, scan_images
from carnet.data.tar import LABEL_MEMBERS, check_tars
from carnet.documents import Count
from carnet.errors import DataError, ImageError
from carnet.files import MAX_IMAGE_BYTES
from carnet.machine import load_ahead, loading_threads
from carnet.preprocess import open_image
from carnet.text import OnProgress, counted, first_few

_IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixel_values")
_IMAGE_KINDS = ("binary", "large_binary", "List", "LargeList", "Array2D", "Array3D")
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
"""Names of columns, in the order in which they are preferred."""
_LABEL_KINDS = ("int", "uint", "string", "large_string", "bool", "float")
"""What the kinds of columns begin with that can be labels."""
_MAX_SHARDS = 256
"""Parts of a split that are read in an order of their own; neighbours are taken together where there are more files."""
_FEW_SHARDS = 64
"""Up to so many files, the row groups inside them count as parts: what is sorted by class is mixed better."""
_OPEN_SHARDS = 8
"""Parts read in turns, so that one that holds a single class does not fill the buffer."""
_EXTENSIONS = {"JPEG": ".jpg", "TIFF": ".tif"}
_TABLE, _ABOUT = "data.csv", "about.json"
"""What `store` writes beside the images."""

T = TypeVar("T")


class _Counts(TypedDict):
    """What is counted of a split before it is read."""

    shards: list[Count]
    labels: dict[str, Count]
    sha256: str


class _About(TypedDict):
    warnings: list[str]
    revision: str | None


class _Row(NamedTuple):
    position: int
    """In the split's stored order."""
    label: str
    content: bytes | str
    """The encoded image, or where `_fetch` finds it."""


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

    def path_below(self, root: Path) -> Path:
        """Where the image lies in a folder that holds a data set as files."""
        try:
            kind = open_image(self.content).format or ""
        except ImageError:
            # The check before training shall find it and say what is wrong.
            kind = "JPEG"
        return root / "images" / f"{self.name}{_EXTENSIONS.get(kind, f'.{kind.lower()}')}"


@dataclass(frozen=True)
class _Columns:
    """Where in a row the image and its label stand."""

    image: str
    label: str
    member: str | None
    """Of a label that is a JSON document."""
    names: tuple[str, ...]
    """What the labels' numbers stand for; empty: themselves."""

    @classmethod
    def find(cls, table: Any, loader: str, source: hub.Source) -> _Columns:
        """By kind, and by name where the kind leaves a choice."""
        datasets = hub.import_datasets()
        # CSV and JSON say what their columns are only as they are read.
        features = table.features or dict.fromkeys(next(iter(table), {}))
        images = [
            name
            for name, feature in features.items()
            if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)
        ]
        plain = [name for name in _IMAGE_COLUMNS if _kind(features.get(name)) in _IMAGE_KINDS]
        image = _choose("image", images or plain[:1], _IMAGE_COLUMNS, features, source)
        known = (*_LABEL_COLUMNS, *(LABEL_MEMBERS if loader == "webdataset" else ()))
        named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        plain = [name for name in known if name != image and _label_member(features.get(name)) is not None]
        label = _choose("label", named or plain[:1], known, features, source)
        return cls(image, label, _label_member(features[label]) or None, tuple(getattr(features[label], "names", ())))

    def label_of(self, row: Mapping[str, Any]) -> str | None:
        """What a row's label says; None where there is none."""
        value = row[self.label]
        if self.member is not None and value is not None:
            value = value[self.member]
        if value is None or value == -1 or (isinstance(value, float) and math.isnan(value)):
            return None
        if self.names:
            if not 0 <= value < len(self.names):
                raise ValueError(f"label {value} where there are {len(self.names)} classes")
            value = self.names[value]
        elif isinstance(value, float):
            value = f"{value:g}"
        # As `carnet.data.table` reads names.
        return unicodedata.normalize("NFC", str(value).strip()) or None


def _choose(what: str, found: list[str], known: Iterable[str], features: Mapping[str, Any], source: hub.Source) -> str:
    chosen = source.chosen.get(what)
    if chosen in features:
        return str(chosen)
    candidates = found if len(found) == 1 else [name for name in known if name in found]
    if candidates and chosen is None:
        return candidates[0]
    columns = first_few([f"{name} ({_kind(feature)})" for name, feature in features.items()], 12)
    problem = f"no column {chosen}" if chosen else f"several {what} columns" if found else f"no {what} column"
    raise DataError(
        f"{source.data} has {problem}; say ?{what}=COLUMN after hf:NAME or hf:./FOLDER, or rename it {what}; "
        f"it has {columns}"
    )


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else {"dict": "members", "NoneType": "unknown"}.get(name, name)


def _label_member(feature: Any) -> str | None:
    """The member of a JSON label that holds the class; empty for a plain label; None for what is none."""
    if isinstance(feature, dict):
        return next((name for name in (*_LABEL_COLUMNS, "cls") if _label_member(feature.get(name)) == ""), None)
    return "" if _kind(feature).startswith(_LABEL_KINDS) else None


def _split_names(tables: Mapping[str, Any], source: hub.Source) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our splits -> the data set's, and what is said about the others."""
    names = {split: name for split, name in source.chosen.items() if split not in ("image", "label")}
    if not names and len(tables) == 1:
        return {"train": next(iter(tables))}, ()
    for name in tables if not names else ():
        split = SPLIT_NAMES.get(name.lower(), name)
        if split in names:
            raise DataError(f"{source.data} has both {names[split]} and {name}; choose one, hf:…?{split}={name}")
        names[split] = name
    names = {split: names[split] for split in ("train", "valid", "test") if split in names}
    others = [name for name in tables if name not in names.values()]
    if "train" not in names or not set(names.values()) <= set(tables):
        raise DataError(f"{source.data} has the splits {', '.join(tables)}; say which to train on, hf:…?train=SPLIT")
    return names, (f"{counted(len(others), 'split')} left out: {first_few(others)}",) if others else ()


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
        self.source = hub.pin(hub.find_source(data) if isinstance(data, str) else data)
        self.buffer_bytes = buffer_bytes
        key = self.source.key(by_content=False)
        if tars := self.source.tars:
            # They are read once with our own limits, before `datasets` reads them without any.
            cached_folder("streams", _digest(f"{key} tars"), lambda _: check_tars(tars))
        self._format, tables = hub.open_source(self.source)
        self._names, self.warnings = _split_names(tables, self.source)
        with hub.explained(self.source):
            self._columns = _Columns.find(tables[self._names["train"]], self._format, self.source)
        key = _digest(f"{key} {self._format} {hub.import_datasets().__version__}")
        counts = cached_folder("streams", key, lambda folder: self._count(folder / "counts.json", progress))
        self._counts: dict[str, Any] = files.read_json(counts / "counts.json", dict[str, _Counts])
        for split in [split for split, count in self._counts.items() if not count["labels"]]:
            self.warnings += (f"{split} is left out, none of its images having a label",)
            del self._counts[split]
        self.classes = _classes(self._counts, self.source.data)
        self.splits = tuple(self._counts)
        self.num_images = {split: sum(count["shards"]) for split, count in self._counts.items()}
        sizes = [self.source.revision, *(path.stat().st_size for _, path in self.source.files)]
        self.content_hash = _digest(json.dumps([self._counts, sizes], sort_keys=True))
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
        shards = self._shards(split)
        rows = chain.from_iterable(shards) if order is None else self._mixed(shards, order)
        return self._read(split, islice(rows, skip, None))

    def _read(self, split: str, rows: Iterator[_Row]) -> Iterator[StreamedImage]:
        def load(row: _Row) -> StreamedImage:
            content = _fetch(row.content) if isinstance(row.content, str) else row.content
            return StreamedImage(f"{split}/{row.position:07d}", row.label, content)

        # Images in files of their own are fetched side by side; all others are there already.
        threads = 0 if self._format in ("parquet", "webdataset") else 16
        with hub.explained(self.source):
            yield from chain.from_iterable(load_ahead(load, _batches(rows, 16), threads=threads))

    def _mixed(self, shards: Sequence[Iterator[_Row]], order: int) -> Iterator[_Row]:
        """Parts in a drawn order, some of them in turns, and then draws from a buffer.

        `datasets` could mix as well, but not number the images while it does, nor alike in all its versions.
        """
        rng = np.random.default_rng(order)
        buffer: list[_Row] = []
        num_bytes = 0
        for row in _in_turns(shards[number] for number in rng.permutation(len(shards))):
            buffer.append(row)
            num_bytes += len(row.content)
            while num_bytes > self.buffer_bytes:
                drawn = int(rng.integers(len(buffer)))
                buffer[drawn], buffer[-1] = buffer[-1], buffer[drawn]
                num_bytes -= len(buffer[-1].content)
                yield buffer.pop()
        for place in rng.permutation(len(buffer)):
            yield buffer[place]

    def _shards(self, split: str) -> list[Iterator[_Row]]:
        """The rows of each part of a split, in the stored order."""
        starts = accumulate([0, *self._counts[split]["shards"][:-1]])
        return [self._rows(split, part, start) for part, start in zip(_parts(self._tables[split]), starts, strict=True)]

    def _rows(self, split: str, part: Iterable[Mapping[str, Any]], start: int) -> Iterator[_Row]:
        for position, row in enumerate(part, start):
            content = _image_bytes(row[self._columns.image], self.source, f"image {position} of {split}")
            yield _Row(position, self._columns.label_of(row) or "", content)

    def _open(self, *columns: str) -> dict[str, Any]:
        """Only these columns, images undecoded, cut into small parts."""
        datasets = hub.import_datasets()
        _, tables = hub.open_source(self.source, columns if self._format == "parquet" else None)
        opened = {}
        for split, name in self._names.items():
            with hub.explained(self.source):
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
        parts = {split: _parts(table) for split, table in self._open(self._columns.label).items()}
        total, done = sum(map(len, parts.values())), 0
        counts: dict[str, Any] = {}
        for split, tables in parts.items():
            labels: Counter[str | None] = Counter()
            digest = hashlib.sha256()
            sizes = []
            for table in tables:
                before = labels.total()
                with hub.explained(self.source):
                    for label in map(self._columns.label_of, table):
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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    return iter(lambda: list(islice(items, size)), [])


def _parts(table: Any) -> list[Any]:
    number = min(int(table.num_shards), _MAX_SHARDS)
    return [table.shard(number, index) for index in range(number)]


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


def _image_bytes(value: Any, source: hub.Source, which: str) -> bytes | str:
    """What a row holds of an image: its bytes, or where `_fetch` finds them.

    Raises:
        DataError: if there is neither.
    """
    held = (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value
    if held and isinstance(held, bytes):
        return held
    if isinstance(held, list | np.ndarray) and len(held):
        return _png(np.asarray(held), f"{source.data}: {which}")
    # A data set of the hub shall not make us open files of this machine.
    if isinstance(held, str) and (held.split("::")[-1].startswith("hf://") or source.is_folder):
        return held
    what = f"only a path ({held})" if isinstance(held, str) else "no bytes"
    raise DataError(f"{source.data}: {which} has {what}; put the bytes of the image into the data, or drop it")


def _fetch(path: str) -> bytes:
    """An image that lies in a file of its own, on the hub or in a folder that `datasets` reads."""
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        # Of one that is larger, so much that whoever looks into it refuses it.
        return bytes(file.read(MAX_IMAGE_BYTES + 1))


def _png(array: Any, which: str) -> bytes:
    """An image that is held as numbers, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), without loss."""
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
                path = image.path_below(folder)
                path.write_bytes(image.content)
                name = path.relative_to(folder).as_posix()
                file.write(files.csv_line((name, image.label, split) if divided else (name, image.label)))
                done += 1
                if progress is not None:
                    progress(done, total)
    about = {"data": stream.source.data, "revision": stream.source.revision, "warnings": stream.warnings}
    files.write_json(folder / _ABOUT, about)


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
    # Where the files will lie is known before they are written.
    root = cache_root() / "streamed" / _digest(choice)
    facts, listing = _look(stream, root, image_size, progress)
    left_out = leave_out(listing, ignore)
    data = LabeledImages(
        root=root,
        classes=stream.classes,
        splits=numbered(listing, stream.classes),
        left_out=left_out,
        source=expanded(stream.source.data),
        warnings=tuple(listing.warnings),
    )
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
        path = image.path_below(root)
        return path, image.label, inspect_bytes(image.content, path, image_size)

    for split in stream.splits:
        by_class = splits.setdefault(split if len(stream.splits) > 1 else "all", {})
        for batch in load_ahead(look, _batches(stream.read(split), 64), threads=loading_threads()):
            for path, label, fact in batch:
                by_class.setdefault(label, []).append(path)
                facts[path] = fact
            if progress is not None:
                progress(len(facts), total)
        for paths in by_class.values():
            paths.sort()
    return facts, Listing(root, splits, warnings=list(stream.warnings))


def _keep_as_files(stream: ImageStream, kept: Mapping[Path, str], root: Path) -> None:
    """Write the images that are kept, by path and hash, into a folder of the cache."""

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
        # Other images may lie in shards of the same size by now.
        shutil.rmtree(root, ignore_errors=True)
        cached_folder("streamed", root.name, fill)
