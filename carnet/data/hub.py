"""Data sets that Hugging Face `datasets` reads: what DATA can say, and how they are opened.

- `hf:NAME` or `hf:OWNER/NAME`, then `:CONFIGURATION` and `@REVISION` where wanted: a data set of the hub
  (`hf:beans`, `hf:owner/birds:small@v2`). `hf:./FOLDER`, or any path that begins with `.`, `/` or `~`: a folder as
  `datasets` understands it.
- Parquet files with images inside, and WebDataset shards, tars of `key.jpg` with `key.cls`, `.json` or `.txt`: a file,
  a folder of them, or a pattern (`shards/{train,valid}-{0000..0146}.tar`, `birds/train-*.parquet`). The split is named
  by the file or a folder.

`?image=NAME,label=NAME` after `hf:…` chooses columns, `?train=NAME,valid=NAME,test=NAME` splits, where their names are
unusual.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from carnet.data.folder import is_folder, is_hidden
from carnet.data.samples import SPLIT_NAMES, expanded
from carnet.data.tar import is_webdataset
from carnet.errors import CarnetError, DataError, MissingExtraError, is_out_of_memory
from carnet.files import MAX_IMAGE_BYTES, check_listed, digest_of, open_file, read_file, state_of
from carnet.preprocess import EXTENSIONS
from carnet.text import OnProgress, counted

FORMAT = 2
"""Of what `carnet.data.stream` keeps; another number makes it anew."""
_HUB = "hf://datasets/"
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:@]+))?(?:@(?P<revision>[^:@]+))?")


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
    def repository(self) -> str:
        """What the hub calls it; a local source's loader."""
        return self.loader.removeprefix(_HUB)

    @property
    def tars(self) -> list[Path]:
        """The shards among the local files."""
        return [path for _, path in self.files if _loader(path) == "webdataset"]

    @property
    def name(self) -> str:
        """Names a data set of the hub, its configuration and what is chosen of it, in letters any file may have."""
        parts = [self.repository.replace("/", "--"), self.config or ""]
        parts += [f"{key}={value}" for key, value in sorted(self.chosen.items())]
        return "--".join(re.sub(r"[^\w.=-]", "_", part) for part in parts if part)

    def key(self, *, by_content: bool = True, progress: OnProgress | None = None) -> str:
        """Names the data: a data set of the hub by its revision, local files by their bytes.

        Args:
            by_content: False: local files by path, size and time of change, which takes no reading.
            progress: told how many files are read, of how many.

        Raises:
            DataError: if a file cannot be read.
        """
        if self.on_hub:
            return f"{self.name}@{self.revision}-{FORMAT}"
        digest = hashlib.sha256(json.dumps([FORMAT, sorted(self.chosen.items())]).encode())
        for number, (split, path) in enumerate(self.files, start=1):
            # In a plain folder the path is the label.
            name = split or path.relative_to(self.loader).as_posix()
            with _readable():
                state = path.stat()
                # What is called like an image and is larger than any is refused when it is looked into.
                is_too_large = path.suffix.lower() in EXTENSIONS and state.st_size > MAX_IMAGE_BYTES
                if by_content and not (self.is_folder and is_too_large):
                    content = digest_of(path)
                else:
                    content = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
            digest.update(f"{name}\t{content}\n".encode("utf-8", "surrogateescape"))
            if progress is not None:
                progress(number, len(self.files))
        return digest.hexdigest()


def is_dataset(data: str) -> bool:
    """Return whether DATA is one of the forms above; goes by names, and looks into a tar that could be an archive.

    Raises:
        DataError: if a tar could be either.
        OSError: if a folder cannot be listed.
    """
    if data.startswith("hf:"):
        return True
    path = expanded(data)
    files = _data_files(path) if path.is_dir() else [path]
    loaders = {_loader(file) for file in files}
    if "webdataset" not in loaders or "parquet" in loaders:
        return "parquet" in loaders
    if not path.exists():
        return re.search(r"[*?\[{]", data) is not None
    # {p}hotos.tar is a pattern of one file.
    pattern = path / "**" / "*.tar" if path.is_dir() else path.with_name(f"{{{path.name[0]}}}{path.name[1:]}")
    return is_webdataset(files[0], str(pattern))


def find_source(data: str) -> Source:
    """What DATA names, with every local file; asks no network.

    Raises:
        DataError: not a name, no such file, one cut short, files of two kinds, or splits that cannot be told.
    """
    with _readable():
        if data.startswith("hf:"):
            return _named(data)
        path = expanded(data)
        files = _data_files(path) if path.is_dir() else [path] if path.is_file() else _matching(data)
        loaders = {_loader(file) for file in files}
        if len(loaders) != 1 or None in loaders:
            raise DataError(f"{data} is not parquet files alone, nor tars alone; name the ones or the others")
        loader = str(loaders.pop())
        for file in files:
            # All are opened, since `datasets` would wait for a pipe.
            with open_file(file) as content:
                content.seek(max(0, file.stat().st_size - 4))
                if loader == "parquet" and content.read(4) != b"PAR1":
                    raise DataError(f"{file} is damaged or incomplete, its end is missing; copy or download it again")
    return Source(data, loader, _by_split(data, files))


def _named(data: str) -> Source:
    said, _, choice = data.removeprefix("hf:").removeprefix("//datasets/").partition("?")
    chosen = dict(part.partition("=")[::2] for part in choice.split(",") if part)
    if not set(chosen) <= {"image", "label", "train", "valid", "test"} or not all(chosen.values()):
        raise DataError(f"{data}: write image=, label=, train=, valid= or test= after ?, with commas between them")
    if not said.startswith((".", "~")) and not Path(said).is_absolute():
        match = _HUB_NAME.fullmatch(said)
        if match is None:
            raise DataError(
                f"{data} is no name; a data set of the hub is hf:NAME or hf:OWNER/NAME, a folder hf:./FOLDER"
            )
        return Source(data, _HUB + match["name"], (), match["config"], match["revision"], chosen)
    folder = expanded(said).resolve()
    state = state_of(folder)
    if state is None or not stat.S_ISDIR(state.st_mode):
        raise DataError(f"{data}: there is no folder {folder}; a data set of the hub is hf:NAME or hf:OWNER/NAME")
    files = sorted(_files_in(folder, (".",)))
    if no_file := next((path for path in files if not path.is_file()), None):
        raise DataError(
            f"{data}: {no_file} is no ordinary file or cannot be reached, and datasets would pass over it; remove "
            f"it, or name the folder itself, {said}"
        )
    return Source(data, str(folder), tuple(("", path) for path in files), chosen=chosen)


def _loader(path: Path) -> str | None:
    if path.suffix.lower() == ".parquet":
        return "parquet"
    return "webdataset" if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")) else None


def _data_files(folder: Path) -> list[Path]:
    """Every parquet file and tar in a folder; none if there are images beside them."""
    found = []
    for path in _files_in(folder, (".", "_")):
        if path.suffix.lower() in EXTENSIONS:
            return []
        found += [path] if _loader(path) else []
    return sorted(found)


def _files_in(folder: Path, hidden: tuple[str, ...]) -> Iterator[Path]:
    """Every file in a folder and those inside it, but not what begins with one of `hidden`; links are followed.

    Raises:
        OSError: if a folder may not be looked into.
        DataError: if a link leads nowhere, or to files that are there already.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for current, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(current)) in seen:
            inside = os.path.realpath(Path(current).parent)
            if not f"{inside}{os.sep}".startswith(f"{real}{os.sep}"):
                raise DataError(f"{current} leads to {real}, whose files are there already; remove the link")
            # A link back to a folder in which it lies.
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not (name.startswith(hidden) or is_hidden(name)))
        for path in (Path(current, name) for name in sorted(names) if not name.startswith(hidden)):
            # An image that is a link to nothing is one that cannot be read.
            if path.suffix.lower() not in EXTENSIONS and path.is_symlink():
                is_folder(path)
            yield path


def _matching(data: str) -> list[Path]:
    """The files that a pattern names, in order."""
    found: dict[Path, None] = {}
    # What exists is a name, even if it looks like a pattern. On Windows the drive itself may be missing.
    whole = expanded(data)
    start = next((folder for folder in whole.parents if folder.is_dir()), whole.parents[-1])
    for pattern in (start / part for part in _expand(str(whole.relative_to(start)))):
        base = next((folder for folder in pattern.parents if folder.is_dir()), start)
        name = str(pattern.relative_to(base))
        try:
            # Brackets that find nothing may be part of a name.
            in_base = _globbed(base, name) or _globbed(base, name.replace("[", "[[]"))
        except ValueError as error:
            raise DataError(f"{data} is no pattern ({error}); ** stands alone, as in shards/**/*.tar") from error
        matches = [pattern] if pattern.is_file() else in_base
        if not matches:
            check_listed(pattern)
            asked = f", which {data} asks for" if str(pattern) != data else ""
            raise DataError(f"there is no file {pattern}{asked}; correct the name, or fetch it")
        found.update(dict.fromkeys(matches))
    return list(found)


def _globbed(base: Path, pattern: str) -> list[Path]:
    """What a pattern finds below a folder, sorted; not in folders of systems and hidden ones."""
    found = base.glob(pattern)
    return sorted(path for path in found if not any(map(is_hidden, path.relative_to(base).parts[:-1])))


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
    splits: dict[Path, str] = {}
    for path in files:
        words = [re.split(r"[^a-z]+", part.lower()) for part in path.relative_to(base).parts]
        named = [{SPLIT_NAMES[word] for word in part if word in SPLIT_NAMES} for part in words]
        first = next(filter(None, named), set())
        if len(first) > 1:
            raise DataError(f"{path} names the splits {' and '.join(sorted(first))}; rename it after one of them")
        splits[path] = next(iter(first), "")
    without = next((path for path, split in splits.items() if not split), None)
    if without is not None and (within := next((path for path, split in splits.items() if split), None)):
        raise DataError(
            f"{data}: {within.name} names a split and {without.name} none; "
            f"name train, valid or test in all of them, or in none"
        )
    return tuple((split or "train", path) for path, split in splits.items())


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        allow = "; allow it" if isinstance(error, PermissionError) else ""
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}{allow}") from error


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


class HubUnreachableError(DataError):
    """The hub does not answer."""


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
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:300]
        told = f"{' '.join(kind.__name__ for kind in type(error).__mro__)}: {text}"
        found, reason = next((found, reason) for p, reason in _REASONS if (found := re.search(p, told)))
        line = reason.format(
            text=text or type(error).__name__,
            name=f"hf:{source.repository}",
            page=f"https://huggingface.co/datasets/{source.repository}",
            revision=source.revision,
            found=found[1] if found.re.groups else "",
        )
        kind = HubUnreachableError if found.re.pattern == _UNREACHABLE else DataError
        raise kind(f"{source.data} {line}") from error


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
        found = huggingface_hub.HfApi().dataset_info(source.repository, revision=source.revision, timeout=20)
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
        if source.is_folder and builder.name == "imagefolder":
            taken = (path for paths in builder.config.data_files.values() for path in paths)
            # What is called otherwise, it leaves out as well, but only when it comes to it.
            _check_whole(source, {Path(path) for path in taken if path.lower().endswith(tuple(builder.EXTENSIONS))})
        # It would fetch and decode images of which only the label is asked.
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0
        return str(builder.name), dict(builder.as_streaming_dataset())


def _check_whole(source: Source, taken: set[Path]) -> None:
    """Refuse a folder of images of which `datasets` would leave some out without a word, or take what is no data.

    It takes what is called like a split for one and leaves out what lies beside it, follows no links to folders, leaves
    out what it does not know (.heic), and knows no folders of systems. Where a README.md says what belongs to the data,
    that counts.
    """
    folder = Path(source.loader)
    with suppress(OSError):
        if b"data_files" in read_file(folder / "README.md", MAX_IMAGE_BYTES):
            return
    way_out = f"name the folder itself, {source.data.removeprefix('hf:').partition('?')[0]}, or move them away"
    if hidden := sorted(path for path in taken if any(map(is_hidden, path.relative_to(folder).parts[:-1]))):
        raise DataError(
            f"{source.data}: {hidden[0].relative_to(folder)} lies in a folder of the system's, which datasets takes "
            f"for data; {way_out}"
        )
    images = [path for _, path in source.files if path.suffix.lower() in EXTENSIONS]
    if left_out := [path for path in images if path not in taken]:
        raise DataError(
            f"{source.data}: datasets would leave out {counted(len(left_out), 'image')}, such as "
            f"{left_out[0].relative_to(folder)}, because it follows no links, takes names like train and test for "
            f"splits, and does not know all endings; {way_out}"
        )
