"""Data sets that Hugging Face `datasets` reads: what DATA can say, and what opening it can say in turn.

- `hf:NAME` or `hf:OWNER/NAME`, then `:CONFIGURATION` and `@REVISION` where wanted: a data set of the hub
  (`hf:beans`, `hf:owner/birds:small@v2`). `hf:./FOLDER`, or any path that begins with `.`, `/` or `~`: a folder as
  `datasets` understands it.
- Parquet files with images inside, and WebDataset shards, tars of `key.jpg` with `key.cls`, `.json` or `.txt`: a file,
  a folder of them, or a pattern (`shards/{train,valid}-{0000..0146}.tar`, `birds/train-*.parquet`). The split is named
  by the file or a folder.

`?image=NAME,label=NAME` after `hf:…` chooses columns, `?train=NAME,valid=NAME,test=NAME` splits, where their names are
unusual. `carnet.data.stream` reads what is named here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from carnet.data.samples import SPLIT_NAMES
from carnet.errors import CarnetError, DataError, MissingExtraError
from carnet.preprocess import EXTENSIONS

LABEL_MEMBERS = ("cls", "json", "txt")
"""What holds the label in a WebDataset shard, the surest first."""
_FORMAT = 1
"""Of what `carnet.data.stream` keeps; another number makes it anew."""
_HUB = "hf://datasets/"
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:@]+))?(?:@(?P<revision>[^:@]+))?")
_UNREACHABLE = "ConnectionError|TransportError|Timeout|HfHubHTTPError"
_REASONS = (
    ("GatedRepo|is a gated", "is not open to everybody; ask for it at {page}, then `hf auth login`"),
    ("RevisionNotFound|Revision '", "has no revision {revision!r}; {page}/commits/main lists them"),
    (
        "RepositoryNotFound|DatasetNotFound",
        "is no data set of the Hugging Face hub, or a private one; find its name at https://huggingface.co/datasets, "
        "or `hf auth login`; a folder is hf:./FOLDER",
    ),
    (_UNREACHABLE, "cannot be read, for the Hugging Face hub does not answer; try again later ({text})"),
    ("scripts are no longer", "is a Python script, which `datasets` no longer runs; try {name}@refs/convert/parquet"),
    (r"[Aa]vailable(?: configs)?: \[(.*?)\]", "needs a configuration; name one of {found}, hf:NAME:CONFIGURATION"),
    ("EmptyDataset|DataFilesNotFound", "has no data files of a kind that `datasets` knows; name another"),
    ("TarError|EOFError|LZMAError|zlib.error", "has a damaged tar ({text}); copy or download it again"),
    ("JSONDecodeError", "has a damaged .json member ({text}); write its shards again"),
    (
        "WebDataset format|at least one table|Duplicate field",
        "has tars whose samples are not all of the same members, such as 1.jpg and 1.cls side by side ({text}); "
        "write them again, or unpack them and name the folder",
    ),
    (r"literal for int\(\)", "has a label that should be a number ({text}); names belong into .txt members, not .cls"),
    (
        "CastError|ArrowNotImplemented|No match for FieldRef",
        "has files with different columns ({text}); write them all with the same",
    ),
    ("BatchSize must be", "has a parquet file without rows; leave it out"),
    ("ArrowException", "has a damaged parquet file ({text}); copy or download it again"),
    ("", "cannot be read ({text}); mend it, or see whether `datasets` itself can load it"),
)
"""What to find in an error's kinds and text -> what to tell."""


@dataclass(frozen=True)
class Source:
    """Where a data set lies."""

    data: str
    """As it was said."""
    loader: str
    """"parquet" or "webdataset", which read `files`; else a folder, or a data set of the hub."""
    files: tuple[tuple[str, Path], ...] = ()
    """Split and path of each local file, in order."""
    config: str | None = None
    revision: str | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Columns ("image", "label") and splits ("train", "valid", "test") that go by other names."""

    @property
    def on_hub(self) -> bool:
        """Whether it has to be fetched."""
        return self.loader.startswith(_HUB)

    @property
    def is_folder(self) -> bool:
        """Whether `datasets` is left to make something of a folder of this machine."""
        return not self.on_hub and self.loader not in ("parquet", "webdataset")

    @property
    def name(self) -> str:
        """Names a data set of the hub, its configuration and what is chosen of it, in letters any file may have."""
        parts = [self.loader.removeprefix(_HUB).replace("/", "--"), self.config or ""]
        parts += [f"{key}={value}" for key, value in sorted(self.chosen.items())]
        return "--".join(re.sub(r"[^\w.=-]", "_", part) for part in parts if part)

    def key(self, *, by_content: bool = True) -> str:
        """Names the data: a data set of the hub by its revision, local files by their bytes.

        Args:
            by_content: False: local files by path, size and time of change, which takes no reading.

        Raises:
            DataError: if a file cannot be read.
        """
        if self.on_hub:
            return f"{self.name}@{self.revision}-{_FORMAT}"
        digest = hashlib.sha256(json.dumps([_FORMAT, sorted(self.chosen.items())]).encode())
        for split, path in self.files:
            # In a plain folder the path is the label.
            name = split or path.relative_to(self.loader).as_posix()
            with _readable():
                line = f"{name}\t{_digest(path) if by_content else _stamp(path)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class HubUnreachableError(DataError):
    """The hub does not answer."""


def is_dataset(data: str) -> bool:
    """Whether DATA is one of the forms above; goes by names, and looks into a tar that could be an ordinary archive."""
    if data.startswith("hf:"):
        return True
    path = Path(data).expanduser()
    if path.is_dir():
        files = _data_files(path)
        return any(_loader(file) == "parquet" for file in files) or (bool(files) and is_webdataset(files[0]))
    if path.is_file():
        return _loader(path) == "parquet" or (_loader(path) == "webdataset" and is_webdataset(path))
    return _loader(path) == "parquet" or (_loader(path) == "webdataset" and bool(re.search(r"[*?\[{]", data)))


def is_webdataset(path: Path) -> bool:
    """Whether the first files of a tar are samples: an image and its label under one key."""
    found: dict[str, set[str]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in islice(archive, 64):
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.lower().partition(".")
                found.setdefault(f"{folder}/{key}", set()).add(extension)
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError):
        return False
    return any(kinds & set(LABEL_MEMBERS) and {f".{kind}" for kind in kinds} & EXTENSIONS for kinds in found.values())


def find_source(data: str) -> Source:
    """What DATA names, with every local file; asks no network.

    Raises:
        DataError: not a name, no such file, one cut short, files of two kinds, or splits that cannot be told.
    """
    if data.startswith("hf:"):
        return _named(data)
    path = Path(data).expanduser()
    files = _data_files(path) if path.is_dir() else [path] if path.is_file() else _matching(data)
    loaders = {str(_loader(file)) for file in files}
    if len(loaders) != 1 or loaders == {"None"}:
        raise DataError(f"{data} is not parquet files alone, nor tars alone; name the ones or the others")
    with _readable():
        cut = next((file for file in files if not _has_end(file)), None)
    if cut is not None:
        raise DataError(f"{cut} is damaged or incomplete, its end is missing; copy or download it again")
    return Source(data, loaders.pop(), _by_split(data, files))


def pin(source: Source) -> Source:
    """The source with its present revision, so that all that follows reads the same bytes.

    Raises:
        DataError: no such data set or revision, not open to everybody, or `HubUnreachableError`.
    """
    if not source.on_hub or re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        return source
    import_datasets()
    import huggingface_hub

    with explained(source):
        name = source.loader.removeprefix(_HUB)
        found = huggingface_hub.HfApi().dataset_info(name, revision=source.revision, timeout=20)
        return replace(source, revision=found.sha)


def open_source(source: Source, columns: Sequence[str] | None = None) -> tuple[str, dict[str, Any]]:
    """The source's format, and its splits as `datasets.IterableDataset` under their own names.

    Args:
        source: pinned.
        columns: only these are read; for the format "parquet".

    Raises:
        DataError: whatever is wrong with it.
    """
    datasets = import_datasets()
    options = {} if columns is None else {"columns": list(columns)}
    with explained(source):
        if source.loader in ("parquet", "webdataset"):
            by_split: dict[str, list[str]] = {}
            for split, path in source.files:
                by_split.setdefault(split, []).append(str(path.absolute()))
            # Said this way, a path may hold what `datasets` would take for a pattern.
            from datasets.data_files import DataFilesDict, DataFilesList

            lists = {split: DataFilesList(paths, [()] * len(paths)) for split, paths in by_split.items()}
            options["data_files"] = DataFilesDict(lists)
        builder = datasets.load_dataset_builder(source.loader, source.config, revision=source.revision, **options)
        # It would fetch and decode images of which only the label is asked.
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0
        return str(builder.name), dict(builder.as_streaming_dataset())


def check_tars(source: Source) -> None:
    """Look at every header in the local shards; `datasets` takes a damaged one for the end of its shard.

    Raises:
        DataError: naming the shard.
    """
    for _, path in source.files if source.loader == "webdataset" else ():
        with explained(source), tarfile.open(path) as archive:
            while archive.next() is not None:
                # The list of members would grow with the archive.
                archive.members = []  # type: ignore[attr-defined]
            assert archive.fileobj is not None
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(512).strip(b"\0"):
                raise DataError(f"{path} is damaged at byte {archive.offset:,}; copy or download it again")


def import_datasets() -> Any:
    """The package, silent from here on: what it has to say comes as errors, and progress is shown by us.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import datasets
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise MissingExtraError("DATA of this form", "Hugging Face datasets", "datasets") from error
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    disable_progress_bars()
    return datasets


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Turn what `datasets` and all it stands on raise into one line that names the data and a way out.

    Raises:
        DataError: that line.
    """
    try:
        yield
    except CarnetError:
        raise
    # Arrow, fsspec, httpx and tarfile each have errors of their own, and `datasets` lets most of them through.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        pattern, reason = next((p, reason) for p, reason in _REASONS if re.search(p, f"{kinds}: {text}"))
        found = re.search(pattern, f"{kinds}: {text}")
        name = source.loader.removeprefix(_HUB)
        raise (HubUnreachableError if pattern == _UNREACHABLE else DataError)(
            f"{source.data} "
            + reason.format(
                text=text or type(error).__name__,
                name=f"hf:{name}",
                page=f"https://huggingface.co/datasets/{name}",
                revision=source.revision,
                found=found[1] if found and found.re.groups else "",
            )
        ) from error


def _named(data: str) -> Source:
    said, _, choice = data.removeprefix("hf:").removeprefix("//datasets/").partition("?")
    chosen = dict(part.partition("=")[::2] for part in choice.split(",") if part)
    if not set(chosen) <= {"image", "label", "train", "valid", "test"} or not all(chosen.values()):
        raise DataError(f"{data}: write image=, label=, train=, valid= or test= after ?, with commas between them")
    if said.startswith((".", "~")) or Path(said).is_absolute():
        folder = Path(said).expanduser().resolve()
        if not folder.is_dir():
            raise DataError(f"{data}: there is no folder {folder}; a data set of the hub is hf:NAME or hf:OWNER/NAME")
        shown = [
            path for path in folder.rglob("*") if not any(p.startswith(".") for p in path.relative_to(folder).parts)
        ]
        return Source(data, str(folder), tuple(("", path) for path in sorted(shown) if path.is_file()), chosen=chosen)
    match = _HUB_NAME.fullmatch(said)
    if match is None:
        raise DataError(f"{data} is no name; a data set of the hub is hf:NAME or hf:OWNER/NAME, a folder hf:./FOLDER")
    return Source(data, _HUB + match["name"], (), match["config"], match["revision"], chosen)


def _loader(path: Path) -> str | None:
    if path.suffix.lower() == ".parquet":
        return "parquet"
    return "webdataset" if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")) else None


def _data_files(folder: Path) -> list[Path]:
    """Every parquet file and tar in a folder; none if there are images beside them."""
    found = []
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        for name in sorted(name for name in names if not name.startswith((".", "_"))):
            if Path(name).suffix.lower() in EXTENSIONS:
                return []
            found += [Path(current, name)] if _loader(Path(name)) else []
    return sorted(found)


def _matching(data: str) -> list[Path]:
    found: dict[Path, None] = {}
    for pattern in map(Path, _expand(str(Path(data).expanduser()))):
        # What exists is a name, even if it looks like a pattern.
        base = next(folder for folder in pattern.parents if folder.is_dir())
        matches = [pattern] if pattern.is_file() else sorted(base.glob(str(pattern.relative_to(base))))
        if not matches:
            asked = f", which {data} asks for" if str(pattern) != data else ""
            raise DataError(f"there is no file {pattern}{asked}; correct the name, or fetch it")
        found.update(dict.fromkeys(matches))
    return list(found)


def _expand(pattern: str) -> list[str]:
    """`{a,b}` and `{008..011}` written out, as a shell does."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    options = match[1].split(",")
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        options = [str(number).zfill(len(numbers[1])) for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    return [whole for part in options for whole in _expand(pattern[: match.start()] + part + pattern[match.end() :])]


def _by_split(data: str, files: Sequence[Path]) -> tuple[tuple[str, Path], ...]:
    base = os.path.commonpath([path.parent for path in files])
    splits = {}
    for path in files:
        for part in path.relative_to(base).parts:
            words = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_NAMES}
            if len(words) > 1:
                raise DataError(f"{path} names the splits {' and '.join(sorted(words))}; rename it after one of them")
            if words:
                splits[path] = words.pop()
                break
    without = [path for path in files if path not in splits]
    if splits and without:
        raise DataError(
            f"{data}: {next(iter(splits)).name} names a split and {without[0].name} none; "
            f"name train, valid or test in all of them, or in none"
        )
    return tuple((splits.get(path, "train"), path) for path in files)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}; see to its rights") from error


def _has_end(path: Path) -> bool:
    """Whether a file ends as its kind does; what is packed shows it only when it is read."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))
        end = file.read()
    return end.endswith(b"PAR1") if _loader(path) == "parquet" else path.suffix.lower() != ".tar" or end == bytes(1024)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> str:
    state = path.stat()
    return f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
