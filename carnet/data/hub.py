"""Data sets that Hugging Face `datasets` reads: what DATA can say, and what opening it can say in turn.

- `hf:NAME` or `hf:OWNER/NAME`, then `:CONFIGURATION` and `@REVISION` where wanted: a data set of the hub
  (`hf:beans`, `hf:owner/birds:small@v2`). `hf:./FOLDER`, or any path that begins with `.`, `/` or `~`: a folder as
  `datasets` understands it.
- Parquet files with images inside, and WebDataset shards, tars of `key.jpg` with `key.cls`, `.json` or `.txt`: a file,
  a folder of them, or a pattern (`shards/{train,valid}-{0000..0146}.tar`, `birds/train-*.parquet`). The split is named
  by the file or a folder.

`?image=NAME,label=NAME` after `hf:…` chooses columns, `?train=NAME,valid=NAME,test=NAME` splits, where their names are
unusual. `carnet.data.opening` opens what is named here.

Shards of a WebDataset: tars in which `key.jpg` stands beside its label in `key.cls`, `.json` or `.txt`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from carnet.data.folder import is_folder, is_hidden
from carnet.data.samples import SPLIT_NAMES, expanded
from carnet.data.tar import READ_ERRORS, TarReader
from carnet.errors import DataError
from carnet.files import MAX_IMAGE_BYTES, check_listed, digest_of, open_file, read_file, state_of
from carnet.preprocess import EXTENSIONS
from carnet.text import OnProgress, counted

FORMAT = 2
"""Of what `carnet.data.stream` and `carnet.data.stream` keep; another number makes it anew."""
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
                is_read = by_content and not (self.is_folder and _is_no_image(path))
                line = f"{name}\t{digest_of(path) if is_read else _stamp(path)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
            if progress is not None:
                progress(number, len(self.files))
        return digest.hexdigest()


def check_whole(source: Source, taken: Iterable[str]) -> None:
    """Refuse a folder of images of which `datasets` would leave some out without a word, or take what is no data.

    It takes what is called like a split for one and leaves out what lies beside it, follows no links to folders, leaves
    out what it does not know (.heic), and knows no folders of systems. Where a README.md says what belongs to the data,
    that counts.

    Args:
        source: the folder.
        taken: the paths of the files that it would read.

    Raises:
        DataError: naming an image, and the way out.
    """
    folder = Path(source.loader)
    if _says_what_belongs(folder / "README.md"):
        return
    way_out = f"name the folder itself, {source.data.removeprefix('hf:').partition('?')[0]}, or move them away"
    found = {Path(path) for path in taken}
    if hidden := sorted(path for path in found if any(map(is_hidden, path.relative_to(folder).parts[:-1]))):
        raise DataError(
            f"{source.data}: {hidden[0].relative_to(folder)} lies in a folder of the system's, which datasets takes "
            f"for data; {way_out}"
        )
    images = [path for _, path in source.files if path.suffix.lower() in EXTENSIONS]
    if left_out := [path for path in images if path not in found]:
        raise DataError(
            f"{source.data}: datasets would leave out {counted(len(left_out), 'image')}, such as "
            f"{left_out[0].relative_to(folder)}, because it follows no links, takes names like train and test for "
            f"splits, and does not know all endings; {way_out}"
        )


def _says_what_belongs(readme: Path) -> bool:
    try:
        return b"data_files" in read_file(readme, MAX_IMAGE_BYTES)
    except OSError:
        return False


def _is_no_image(path: Path) -> bool:
    """Whether a file is called like an image and is larger than any."""
    return path.suffix.lower() in EXTENSIONS and path.stat().st_size > MAX_IMAGE_BYTES


def is_dataset(data: str) -> bool:
    """Whether DATA is one of the forms above; goes by names, and looks into a tar that could be an ordinary archive.

    Raises:
        DataError: if a tar could be either.
    """
    if data.startswith("hf:"):
        return True
    path = expanded(data)
    if path.is_dir():
        files = _data_files(path)
        if any(_loader(file) == "parquet" for file in files):
            return True
        return bool(files) and is_webdataset(files[0], pattern=str(path / "**" / "*.tar"))
    if path.is_file():
        # A pattern of one file, {p}hotos.tar.
        pattern = str(path.with_name(f"{{{path.name[0]}}}{path.name[1:]}"))
        return _loader(path) == "parquet" or (_loader(path) == "webdataset" and is_webdataset(path, pattern))
    return _loader(path) == "parquet" or (_loader(path) == "webdataset" and bool(re.search(r"[*?\[{]", data)))


def find_source(data: str) -> Source:
    """What DATA names, with every local file; asks no network.

    Raises:
        DataError: not a name, no such file, one cut short, files of two kinds, or splits that cannot be told.
    """
    if data.startswith("hf:"):
        return _named(data)
    path = expanded(data)
    with _readable():
        files = _data_files(path) if path.is_dir() else [path] if path.is_file() else _matching(data)
    loaders = {str(_loader(file)) for file in files}
    if len(loaders) != 1 or loaders == {"None"}:
        raise DataError(f"{data} is not parquet files alone, nor tars alone; name the ones or the others")
    with _readable():
        # `datasets` would wait for a pipe.
        cut = next((file for file in files if not _has_end(file)), None)
    if cut is not None:
        raise DataError(f"{cut} is damaged or incomplete, its end is missing; copy or download it again")
    return Source(data, loaders.pop(), _by_split(data, files))


def _named(data: str) -> Source:
    said, _, choice = data.removeprefix("hf:").removeprefix("//datasets/").partition("?")
    chosen = dict(part.partition("=")[::2] for part in choice.split(",") if part)
    if not set(chosen) <= {"image", "label", "train", "valid", "test"} or not all(chosen.values()):
        raise DataError(f"{data}: write image=, label=, train=, valid= or test= after ?, with commas between them")
    if said.startswith((".", "~")) or Path(said).is_absolute():
        folder = expanded(said).resolve()
        with _readable():
            state = state_of(folder)
        if state is None or not stat.S_ISDIR(state.st_mode):
            raise DataError(f"{data}: there is no folder {folder}; a data set of the hub is hf:NAME or hf:OWNER/NAME")
        shown = sorted(_files_in(folder, (".",)))
        if no_file := next((path for path in shown if not path.is_file()), None):
            raise DataError(
                f"{data}: {no_file} is no ordinary file or cannot be reached, and datasets would pass over it; remove "
                f"it, or name the folder itself, {said}"
            )
        return Source(data, str(folder), tuple(("", path) for path in shown), chosen=chosen)
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
    for path in _files_in(folder, (".", "_")):
        if path.suffix.lower() in EXTENSIONS:
            return []
        found += [path] if _loader(path) else []
    return sorted(found)


def _files_in(folder: Path, hidden: tuple[str, ...]) -> Iterator[Path]:
    """Every file in a folder and those inside it, but not what begins with one of `hidden`; links are followed.

    Raises:
        DataError: if a folder may not be looked into, or a link leads nowhere.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    with _readable():
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
    found: dict[Path, None] = {}
    # What exists is a name, even if it looks like a pattern.
    whole = expanded(data)
    start = next((folder for folder in whole.parents if folder.is_dir()), None)
    below = [str(whole)] if start is None else _expand(str(whole.relative_to(start)))
    for pattern in (Path(part) if start is None else start / part for part in below):
        # On Windows the drive itself may be missing.
        base = next((folder for folder in pattern.parents if folder.is_dir()), None)
        try:
            name = "" if base is None else str(pattern.relative_to(base))
            # Brackets that find nothing may be part of a name.
            in_base = [] if base is None else _globbed(base, name) or _globbed(base, name.replace("[", "[[]"))
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
        allow = "; allow it" if isinstance(error, PermissionError) else ""
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}{allow}") from error


def _has_end(path: Path) -> bool:
    """Whether a file ends as all of its kind do, as far as that can be told of it without reading all."""
    with open_file(path) as file:
        file.seek(max(0, path.stat().st_size - 4))
        return file.read(4) == b"PAR1" or _loader(path) != "parquet"


def _stamp(path: Path) -> str:
    state = path.stat()
    return f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"


LABEL_MEMBERS = ("cls", "json", "txt")
"""What holds the label, the surest first."""
_FIRST_MEMBERS = 64
"""So many show whether labels stand beside the images."""


def is_webdataset(path: Path, pattern: str) -> bool:
    """Whether the first files of a tar are samples: an image and its label under one key.

    Args:
        path: the tar; where it is damaged, what stands before the damage counts.
        pattern: what names it as shards, whatever is inside.

    Raises:
        DataError: if its folders could be the classes just as well, as in `cat/1.jpg` beside `cat/1.txt`.
    """
    kinds = _beside_images(path)
    if not kinds or "cls" in kinds:
        return bool(kinds)
    if len(folders := _image_folders(path)) > 1:
        raise DataError(
            f"{path} has images in several folders ({', '.join(map(repr, folders))}) and .{kinds[0]} files beside "
            f"them, and either could be the classes; for the folders unpack it and name the folder, for the files "
            f"write {pattern}"
        )
    return True


def check_tars(paths: Iterable[Path]) -> None:
    """Read shards to their ends; `datasets` takes a damaged header, or the end of a joined archive, for the last one.

    Raises:
        DataError: naming the shard.
    """
    for path in paths:
        try:
            with TarReader.open(path) as tar:
                for _ in tar.members():
                    pass
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _beside_images(path: Path) -> list[str]:
    """Which label members stand beside images, the surest first."""
    found: dict[str, set[str]] = {}
    for folder, key, extension in islice(_names(path), _FIRST_MEMBERS):
        found.setdefault(f"{folder}/{key}", set()).add(extension)
    samples = [
        extensions for extensions in found.values() if {f".{extension}" for extension in extensions} & EXTENSIONS
    ]
    return [kind for kind in LABEL_MEMBERS if any(kind in kinds for kinds in samples)]


def _image_folders(path: Path) -> list[str]:
    """The first two folders that hold images; a tar that is sorted has to be read for the second."""
    with_images = (folder for folder, _, extension in _names(path) if f".{extension}" in EXTENSIONS)
    folders: list[str] = []
    for folder in with_images:
        if folder not in folders:
            folders.append(folder)
        if len(folders) == 2:
            break
    return folders


def _names(path: Path) -> Iterator[tuple[str, str, str]]:
    """Folder, key and extensions of each file, as far as the tar can be read."""
    with suppress(DataError, *READ_ERRORS), TarReader.open(path) as tar:
        for info, content in tar.members():
            if content is not None:
                folder, _, name = info.name.rpartition("/")
                key, _, extensions = name.lower().partition(".")
                yield folder, key, extensions
