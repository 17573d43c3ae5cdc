"""Data sets that Hugging Face `datasets` reads: the names they have, and how they are opened.

- `hf:NAME` or `hf:OWNER/NAME`, with `:CONFIGURATION` and `@REVISION` after it if needed, is a data set of the hub
  (`hf:beans`, `hf:owner/birds:small@v2`). `hf:./FOLDER`, or any path that begins with `.`, `/` or `~`, is a folder as
  `datasets` understands it. `?image=NAME,label=NAME` chooses columns, `?train=NAME,valid=NAME,test=NAME` splits.
- Parquet files that hold images, and WebDataset shards (tars of `key.jpg` with `key.cls`, `.json` or `.txt`) are named
  by a file, a folder or a pattern (`shards/{train,valid}-{0000..0146}.tar`, `birds/train-*.parquet`). The split is in
  the name of the file or of a folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from carnet.data import shards
from carnet.data.folder import is_hidden
from carnet.data.samples import SPLIT_NAMES, expanded
from carnet.errors import CarnetError, DataError, MissingExtraError, is_out_of_memory
from carnet.files import MAX_IMAGE_BYTES, digest_of, open_file, read_file, state_of
from carnet.hub_models import meaning_of, quiet_library
from carnet.preprocess import EXTENSIONS
from carnet.text import OnProgress, counted, first_few

_FORMAT = 2
"""Version of what `carnet.data.stream` stores; with another number it is stored again."""
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:@]+))?(?:@(?P<revision>[^:@]+))?")


class HubUnreachableError(DataError):
    """The hub does not answer."""


@dataclass(frozen=True)
class Source:
    """Where a data set lies.

    Attributes:
        data: DATA as the user wrote it.
        kind: what `datasets` is given: a name, a folder that it interprets, or `files`.
        place: the hub's name of the data set, or the folder.
        files: split and path of each local file, in order.
        config: the configuration.
        revision: the revision.
        chosen: columns ("image", "label") and splits ("train", "valid", "test") that have other names.
    """

    data: str
    kind: Literal["hub", "folder", "parquet", "webdataset"]
    place: str = ""
    files: tuple[tuple[str, Path], ...] = ()
    config: str | None = None
    revision: str | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A data set of the hub, its configuration and what is chosen, in letters that any file name may have."""
        parts = [self.place.replace("/", "--"), self.config or ""]
        parts += [f"{key}={value}" for key, value in sorted(self.chosen.items())]
        return "--".join(re.sub(r"[^\w.=-]", "_", part) for part in parts if part)

    def key(self, *, by_content: bool = True, progress: OnProgress | None = None) -> str:
        """Identify the data: a data set of the hub by its revision, local files by their bytes.

        Args:
            by_content: False: identify local files by path, size and time of change, without reading them.
            progress: receives how many files are read, of how many.

        Raises:
            DataError: if a file cannot be read.
        """
        if self.kind == "hub":
            return f"{self.name}@{self.revision}-{_FORMAT}"
        digest = hashlib.sha256(json.dumps([_FORMAT, sorted(self.chosen.items())]).encode())
        for number, (split, path) in enumerate(self.files, start=1):
            # In a plain folder the path is the label.
            name = split or path.relative_to(self.place).as_posix()
            with shards.readable():
                state = path.stat()
                # The scan refuses such an image; its size may be made up.
                is_too_large = path.suffix.lower() in EXTENSIONS and state.st_size > MAX_IMAGE_BYTES
                if by_content and not (self.kind == "folder" and is_too_large):
                    content = digest_of(path)
                else:
                    content = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
            digest.update(f"{name}\t{content}\n".encode("utf-8", "surrogateescape"))
            if progress is not None:
                progress(number, len(self.files))
        return digest.hexdigest()


def is_dataset(data: str) -> bool:
    """Return whether DATA is one of the forms above, by names; a tar that may be an archive is looked into.

    Raises:
        DataError: if a tar could be either.
        OSError: if a folder cannot be listed.
    """
    if data.startswith("hf:"):
        return True
    path = expanded(data)
    files = shards.shards_in(path) if path.is_dir() else [path]
    kinds = {shards.kind_of(file) for file in files}
    if "webdataset" not in kinds or "parquet" in kinds:
        return "parquet" in kinds
    if not path.exists():
        return re.search(r"[*?\[{]", data) is not None
    # {p}hotos.tar is a pattern of one file.
    pattern = path / "**" / "*.tar" if path.is_dir() else path.with_name(f"{{{path.name[0]}}}{path.name[1:]}")
    return shards.is_webdataset(files[0], str(pattern))


def find_source(data: str) -> Source:
    """Find what DATA names, with every local file, without the network.

    Raises:
        DataError: if it is no such name, a file is missing or cut short, files are of two kinds, or splits are unclear.
    """
    with shards.readable():
        if data.startswith("hf:"):
            return _named(data)
        path = expanded(data)
        files = shards.shards_in(path) if path.is_dir() else [path] if path.is_file() else shards.matching(data)
        kind, *others = {shards.kind_of(file) for file in files} or {None}
        if kind is None or others:
            raise DataError(f"{data} is not parquet files alone, nor tars alone; name the ones or the others")
        for file in files:
            # All are opened, since `datasets` would wait for a pipe.
            with open_file(file) as content:
                content.seek(max(0, file.stat().st_size - 4))
                if kind == "parquet" and content.read(4) != b"PAR1":
                    raise DataError(f"{file} is damaged or incomplete, its end is missing; copy or download it again")
    return Source(data, kind, files=shards.with_splits(data, files))


def _named(data: str) -> Source:
    said, _, choice = data.removeprefix("hf:").removeprefix("//datasets/").partition("?")
    chosen = dict(part.partition("=")[::2] for part in choice.split(",") if part)
    if not set(chosen) <= {"image", "label", "train", "valid", "test"} or not all(chosen.values()):
        raise DataError(f"{data}: write image=, label=, train=, valid= or test= after ?, with commas between them")
    if not said.startswith((".", "~")) and not Path(said).is_absolute():
        match = _HUB_NAME.fullmatch(said)
        if match is None:
            raise DataError(f"{data} is no name; write hf:NAME or hf:OWNER/NAME for the hub, hf:./FOLDER for a folder")
        return Source(data, "hub", match["name"], (), match["config"], match["revision"], chosen)
    folder = expanded(said).resolve()
    state = state_of(folder)
    if state is None or not stat.S_ISDIR(state.st_mode):
        raise DataError(f"{data}: there is no folder {folder}; a data set of the hub is hf:NAME or hf:OWNER/NAME")
    files = sorted(shards.files_in(folder, (".",)))
    if no_file := next((path for path in files if not path.is_file()), None):
        raise DataError(
            f"{data}: {no_file} is no ordinary file or cannot be reached, and datasets would pass over it; remove "
            f"it, or name the folder itself, {said}"
        )
    return Source(data, "folder", str(folder), tuple(("", path) for path in files), chosen=chosen)


_UNREACHABLE = "ConnectionError|TransportError|Timeout|HfHubHTTPError"
_REASONS = (
    ("GatedRepo|is a gated", "is not open to everybody; ask for it at {page}, then `hf auth login`"),
    ("RevisionNotFound|Revision '", "has no revision {revision!r}; {page}/commits/main lists them"),
    (
        "RepositoryNotFound|DatasetNotFound",
        "is no data set of the Hugging Face hub, or a private one; find its name at https://huggingface.co/datasets, "
        "or `hf auth login`; a folder is hf:./FOLDER",
    ),
    (_UNREACHABLE, "cannot be read: the Hugging Face hub does not answer ({text}); try again later"),
    ("scripts are no longer", "is a Python script, which `datasets` no longer runs; try {name}@refs/convert/parquet"),
    (r"[Aa]vailable(?: configs)?: \[(.*?)\]", "needs a configuration; name one of {found}, hf:NAME:CONFIGURATION"),
    ("EmptyDataset|DataFilesNotFound", "has no data files of a kind that `datasets` knows; name another"),
    ("TarError|EOFError|LZMAError|zlib.error", "has a damaged tar ({text}); copy or download it again"),
    ("JSONDecodeError", "has a damaged .json member ({text}); write its shards again"),
    (
        "WebDataset format|at least one table|Duplicate field",
        "has tars whose samples do not all have the same members, such as 1.jpg and 1.cls side by side ({text}); "
        "write them again, or unpack them and name the folder",
    ),
    (r"literal for int\(\)", "has a label that should be a number ({text}); put names into .txt members, not .cls"),
    (
        "CastError|ArrowNotImplemented|No match for FieldRef",
        "has files with different columns ({text}); write them all with the same columns",
    ),
    ("BatchSize must be", "has a parquet file without rows; leave it out"),
    ("ArrowException", "has a damaged parquet file ({text}); copy or download it again"),
    ("", "cannot be read ({text}); correct it, or see whether `datasets` itself can load it"),
)
"""What an error's classes and text match -> what to tell."""


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Turn what `datasets` and its libraries raise into one line that names the data and a way out.

    Raises:
        DataError: with that line.
    """
    try:
        yield
    except CarnetError:
        raise
    # Arrow, fsspec, httpx and tarfile each have errors of their own, and `datasets` lets most of them through.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        found, reason, text = meaning_of(error, _REASONS)
        line = reason.format(
            text=text,
            name=f"hf:{source.place}",
            page=f"https://huggingface.co/datasets/{source.place}",
            revision=source.revision,
            found=found[1] if found.re.groups else "",
        )
        kind = HubUnreachableError if found.re.pattern == _UNREACHABLE else DataError
        raise kind(f"{source.data} {line}") from error


def import_datasets() -> Any:
    """Import the package and silence it: its problems come as errors, and we show the progress.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("DATA of this form", "Hugging Face datasets", "datasets") from error
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    quiet_library()
    return datasets


def pin(source: Source) -> Source:
    """Return the source with its present revision, so that everything after this reads the same bytes.

    Raises:
        DataError: if there is no such data set or revision, or access is restricted.
        HubUnreachableError: if the hub does not answer.
    """
    if source.kind != "hub" or re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        return source
    import_datasets()
    import huggingface_hub

    with explained(source):
        found = huggingface_hub.HfApi().dataset_info(source.place, revision=source.revision, timeout=20)
        return replace(source, revision=found.sha)


def open_source(source: Source, columns: Sequence[str] | None = None) -> tuple[str, dict[str, Any]]:
    """Return the name of the source's format, and its splits as `datasets.IterableDataset` under their own names.

    Args:
        source: with its revision.
        columns: the columns to read, for the format "parquet".

    Raises:
        DataError: if anything is wrong with it.
    """
    datasets = import_datasets()
    options = {} if columns is None else {"columns": list(columns)}
    with explained(source):
        if source.kind in ("parquet", "webdataset"):
            by_split: dict[str, list[str]] = {}
            for split, path in source.files:
                by_split.setdefault(split, []).append(str(path.absolute()))
            # Passed this way, `datasets` takes no path for a pattern.
            from datasets.data_files import DataFilesDict, DataFilesList

            lists = {split: DataFilesList(paths, [()] * len(paths)) for split, paths in by_split.items()}
            options["data_files"] = DataFilesDict(lists)
        loader = {"hub": f"hf://datasets/{source.place}", "folder": source.place}.get(source.kind, source.kind)
        builder = datasets.load_dataset_builder(loader, source.config, revision=source.revision, **options)
        if source.kind == "folder" and builder.name == "imagefolder":
            taken = (path for paths in builder.config.data_files.values() for path in paths)
            # It leaves out files with other endings too, but only when it reaches them.
            _check_complete(source, {Path(path) for path in taken if path.lower().endswith(tuple(builder.EXTENSIONS))})
        # It would fetch and decode images of which only the label is read.
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0
        return str(builder.name), dict(builder.as_streaming_dataset())


def _check_complete(source: Source, taken: set[Path]) -> None:
    """Refuse a folder of images of which `datasets` silently leaves some out, or takes what is no data.

    It takes a folder with the name of a split for one and leaves out what lies beside it, follows no links to folders,
    leaves out formats that it does not know (.heic), and reads recycle bins. A README.md that lists data files counts.
    """
    folder = Path(source.place)
    with suppress(OSError):
        if b"data_files" in read_file(folder / "README.md", MAX_IMAGE_BYTES):
            return
    way_out = f"name the folder itself, {source.data.removeprefix('hf:').partition('?')[0]}, or move them away"
    if hidden := sorted(path for path in taken if any(map(is_hidden, path.relative_to(folder).parts[:-1]))):
        raise DataError(
            f"{source.data}: {hidden[0].relative_to(folder)} lies in a folder of the system, which datasets takes "
            f"for data; {way_out}"
        )
    images = [path for _, path in source.files if path.suffix.lower() in EXTENSIONS]
    if left_out := [path for path in images if path not in taken]:
        raise DataError(
            f"{source.data}: datasets would leave out {counted(len(left_out), 'image')}, such as "
            f"{left_out[0].relative_to(folder)}, because it follows no links, takes names like train and test for "
            f"splits, and does not know all endings; {way_out}"
        )


def split_names(tables: Mapping[str, Any], source: Source) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map our splits to the data set's, and tell which of its splits are left out.

    Raises:
        DataError: if two of its splits could be one of ours, or none is `train`.
    """
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


_IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixel_values")
_IMAGE_TYPES = ("binary", "large_binary", "List", "LargeList", "Array2D", "Array3D")
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
"""Names of columns, the preferred one first."""
_LABEL_TYPES = ("int", "uint", "string", "large_string", "bool", "float")
"""Beginnings of the names of types that labels can have."""


@dataclass(frozen=True)
class Columns:
    """The columns of the image and its label.

    Attributes:
        image: its name.
        label: its name.
        member: the member that holds the class, of a label that is a JSON document.
        names: the classes that a label's numbers stand for; empty: the numbers themselves.
    """

    image: str
    label: str
    member: str | None
    names: tuple[str, ...]

    @classmethod
    def find(cls, table: Any, format_name: str, source: Source) -> Columns:
        """Find the columns by type, and by name where the types leave a choice."""
        datasets = import_datasets()
        # CSV and JSON tell their columns only when they are read.
        features = table.features or dict.fromkeys(next(iter(table), {}))
        images = [
            name
            for name, feature in features.items()
            if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)
        ]
        plain = [name for name in _IMAGE_COLUMNS if _type_name(features.get(name)) in _IMAGE_TYPES]
        image = _choose("image", images or plain[:1], _IMAGE_COLUMNS, features, source)
        known = (*_LABEL_COLUMNS, *(shards.LABEL_MEMBERS if format_name == "webdataset" else ()))
        labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        plain = [name for name in known if name != image and _label_member(features.get(name)) is not None]
        label = _choose("label", labels or plain[:1], known, features, source)
        return cls(image, label, _label_member(features[label]) or None, tuple(getattr(features[label], "names", ())))

    def label_of(self, row: Mapping[str, Any]) -> str | None:
        """Return the class of a row, None where it has no label."""
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


def _choose(what: str, found: list[str], known: Iterable[str], features: Mapping[str, Any], source: Source) -> str:
    chosen = source.chosen.get(what)
    if chosen in features:
        return str(chosen)
    candidates = found if len(found) == 1 else [name for name in known if name in found]
    if candidates and chosen is None:
        return candidates[0]
    columns = first_few([f"{name} ({_type_name(feature)})" for name, feature in features.items()], 12)
    problem = f"no column {chosen}" if chosen else f"several {what} columns" if found else f"no {what} column"
    raise DataError(
        f"{source.data} has {problem}; say ?{what}=COLUMN after hf:NAME or hf:./FOLDER, or rename it {what}; "
        f"it has {columns}"
    )


def _type_name(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else {"dict": "members", "NoneType": "unknown"}.get(name, name)


def _label_member(feature: Any) -> str | None:
    """Return the member of a JSON label that holds the class, "" for a plain label, None for other columns."""
    if isinstance(feature, dict):
        return next((name for name in (*_LABEL_COLUMNS, "cls") if _label_member(feature.get(name)) == ""), None)
    return "" if _type_name(feature).startswith(_LABEL_TYPES) else None
