"""Files that hold many images: which of them DATA names, and how tar archives are read within limits.

Python's own tar reader takes a damaged header for the end of the archive, and believes what headers say of their own
length. Here every archive must end with its end mark, headers have limits, every byte that is decompressed counts,
also of members that are skipped, and nothing is read twice, which would decompress the archive again from its start.

Source of the format: POSIX.1-2008, "pax Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from carnet.data.folder import is_folder, is_hidden
from carnet.data.samples import SPLIT_NAMES, expanded
from carnet.errors import DataError, is_out_of_memory
from carnet.files import check_listed, open_file
from carnet.preprocess import EXTENSIONS

LABEL_MEMBERS = ("cls", "json", "txt")
"""Members of a WebDataset that hold a label, the most reliable first."""
_FIRST_MEMBERS = 64
"""Members that show whether labels stand beside the images."""


@contextmanager
def readable() -> Iterator[None]:
    """Raise `DataError` for files and folders that cannot be read, naming them."""
    try:
        yield
    except OSError as error:
        allow = "; allow it" if isinstance(error, PermissionError) else ""
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}{allow}") from error


def kind_of(path: Path) -> Literal["parquet", "webdataset"] | None:
    """Return the kind of shard that a file's name promises."""
    if path.suffix.lower() == ".parquet":
        return "parquet"
    return "webdataset" if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")) else None


def shards_in(folder: Path) -> list[Path]:
    """Return every Parquet file and tar in a folder, sorted; none if there are images beside them.

    Raises:
        OSError, DataError: as `files_in`.
    """
    found = []
    for path in files_in(folder, (".", "_")):
        if path.suffix.lower() in EXTENSIONS:
            return []
        found += [path] if kind_of(path) else []
    return sorted(found)


def files_in(folder: Path, hidden: tuple[str, ...]) -> Iterator[Path]:
    """Return every file in a folder and those inside it, except what begins with one of `hidden`; follow links.

    Raises:
        OSError: if a folder cannot be listed.
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


def matching(data: str) -> list[Path]:
    """Return the files that a pattern names, in its order; what exists is a name, even if it looks like a pattern.

    Raises:
        PermissionError: if a folder cannot be listed.
        DataError: if it is no pattern, or a part of it matches nothing.
    """
    found: dict[Path, None] = {}
    whole = expanded(data)
    # On Windows not even the drive may exist.
    start = next((folder for folder in whole.parents if folder.is_dir()), whole.parents[-1])
    for pattern in (start / part for part in _expand(str(whole.relative_to(start)))):
        base = next((folder for folder in pattern.parents if folder.is_dir()), start)
        name = str(pattern.relative_to(base))
        try:
            # Brackets that match nothing may be part of a name.
            globbed = [*base.glob(name)] or [*base.glob(name.replace("[", "[[]"))]
        except ValueError as error:
            raise DataError(f"{data} is no pattern ({error}); ** stands alone, as in shards/**/*.tar") from error
        visible = sorted(path for path in globbed if not any(map(is_hidden, path.relative_to(base).parts[:-1])))
        matches = [pattern] if pattern.is_file() else visible
        if not matches:
            check_listed(pattern)
            asked = f", which {data} asks for" if str(pattern) != data else ""
            raise DataError(f"there is no file {pattern}{asked}; correct the name, or fetch it")
        found.update(dict.fromkeys(matches))
    return list(found)


def _expand(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{008..011}` as a shell does."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    options = match[1].split(",")
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        options = [str(number).zfill(len(numbers[1])) for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    return [whole for part in options for whole in _expand(pattern[: match.start()] + part + pattern[match.end() :])]


def with_splits(data: str, files: Sequence[Path]) -> tuple[tuple[str, Path], ...]:
    """Return each file with the split that its name or that of a folder tells; `train` if none tells any.

    Raises:
        DataError: if a name tells two splits, or only some names tell one.
    """
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


def is_webdataset(path: Path, pattern: str) -> bool:
    """Return whether the first members of a tar are samples of a WebDataset: an image and its label with one key.

    Args:
        path: the tar; if it is damaged, what stands before the damage counts.
        pattern: a name for it that means shards, whatever they hold.

    Raises:
        DataError: if its folders could be the classes just as well, as in `cat/1.jpg` beside `cat/1.txt`.
    """
    samples: dict[str, set[str]] = {}
    for folder, key, extension in islice(_names(path), _FIRST_MEMBERS):
        samples.setdefault(f"{folder}/{key}", set()).add(extension)
    with_image = [kinds for kinds in samples.values() if any(f".{kind}" in EXTENSIONS for kind in kinds)]
    labels = [kind for kind in LABEL_MEMBERS if any(kind in kinds for kinds in with_image)]
    if not labels or "cls" in labels:
        return bool(labels)
    # A sorted tar has to be read up to its second folder.
    folders = (folder for folder, _, extension in _names(path) if f".{extension}" in EXTENSIONS)
    first = next(folders, None)
    second = next((folder for folder in folders if folder != first), None)
    if second is not None:
        raise DataError(
            f"{path} has images in several folders ({first!r}, {second!r}) and .{labels[0]} files beside them, and "
            f"either could be the classes; unpack it and name the folder to take the folders, or write {pattern} to "
            f"take the files"
        )
    return True


def _names(path: Path) -> Iterator[tuple[str, str, str]]:
    """Return folder, key and extensions of each file, as far as the tar can be read."""
    with suppress(DataError, *READ_ERRORS), TarReader.open(path) as tar:
        for info in tar.members():
            if info.type in REGULAR:
                folder, _, name = info.name.rpartition("/")
                key, _, extensions = name.lower().partition(".")
                yield folder, key, extensions


def check_tars(paths: Iterable[Path]) -> None:
    """Read shards to their ends, since `datasets` ends silently at a damaged header and where two tars are joined.

    Raises:
        DataError: naming the shard.
    """
    for path in paths:
        with readable(), TarReader.open(path) as tar:
            for _ in tar.members():
                pass


BLOCK = 512
"""Bytes; everything in a tar archive is a multiple of it."""
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
"""Types of members that are files and nothing else."""
MAX_HEADER = 64 * 2**10
"""Bytes that one header may hold beyond its block; names take a few hundred."""
MAX_CHAIN = 16
"""Headers that one member may have; two or three are usual."""
_RECORDS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_HEADERS = (*_RECORDS, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Types of members that describe those after them."""
_MORE_HOLES, _STILL_MORE_HOLES = 482, 504
"""Where the first block of a sparse file, and each further one, says that another one follows."""
_CHUNK = 2**20
_COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
MAX_RATIO = 100
"""How many times its own size an archive may unpack to; images hardly shrink."""
SMALL_BYTES = 256 * 2**20
"""What any archive may unpack to, whatever the ratio: drawings without compression shrink well."""
WAY_OUT = "unpack it yourself if you trust it, and name the folder"
READ_ERRORS = (
    *(OSError, EOFError, ValueError, OverflowError, IndexError, KeyError, AttributeError, RecursionError),
    NotImplementedError,
    *(zlib.error, lzma.LZMAError, struct.error, tarfile.TarError, zipfile.BadZipFile),
)
"""What Python's readers raise for damaged archives."""


class reading:  # noqa: N801 - a function in use, but a generator would be slow for each of many members
    """Inside `with reading(path):`, errors are the archive's fault.

    Raises:
        DataError: that it is damaged, in place of the reader's own error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, READ_ERRORS) and not isinstance(error, DataError) and not is_out_of_memory(error):
            raise damaged(self._path, error) from error


def damaged(path: Path, error: Exception) -> DataError:
    """Return the error for a damaged archive."""
    what = " ".join(str(error).split())[:120] or type(error).__name__
    return DataError(f"{path} is damaged or incomplete ({what}); fetch it again")


def quoted_member(member: str) -> str:
    """Return a member's name, shortened, as one line may hold it."""
    return repr(member if len(member) <= 100 else f"{member[:50]}…{member[-49:]}")


def ratio_limit(archive: Path) -> tuple[int, str]:
    """Return how many bytes an archive of that size may unpack to, and what to say of one that exceeds it."""
    limit = max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size)
    return limit, f"more than {limit / 1e9:,.1f} GB, far more than images of that size could; {WAY_OUT}"


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive, compressed or not, by its content."""
    try:
        with open_file(path) as source, _decompressed(source) as file:
            block = file.read(BLOCK)
        # An empty archive begins with its end mark.
        return block == bytes(BLOCK) or bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    except READ_ERRORS:
        return False


def is_packed(path: Path) -> bool:
    """Return whether a file is compressed with gzip, bzip2 or xz, whatever it holds."""
    with open_file(path) as file:
        return file.read(6).startswith(tuple(_COMPRESSIONS))


@contextmanager
def _decompressed(source: IO[bytes]) -> Iterator[IO[bytes]]:
    start = source.read(6)
    source.seek(0)
    opener = next((opener for magic, opener in _COMPRESSIONS.items() if start.startswith(magic)), None)
    with nullcontext(source) if opener is None else opener(source, "rb") as file:
        yield file


class TarReader:
    """Reads the members of a tar archive, one after the other."""

    def __init__(self, path: Path, file: IO[bytes], source: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._source = source
        self._reading = reading(path)
        self._limit, self._why = ratio_limit(path)
        self._num_bytes = 0
        self._member = ""
        self._left = 0

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[TarReader]:
        """Open the archive at `path`.

        Raises:
            OSError: if it cannot be opened, or is no ordinary file.
            DataError: also inside the block: if it is damaged, cut short, or exceeds its limit.
        """
        with open_file(path) as source, _decompressed(source) as file:
            yield cls(path, file, source)

    @property
    def position(self) -> int:
        """Bytes of the archive's file that have been read."""
        return self._source.tell()

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Return each member's header; `read` gives its bytes until the next one is asked for."""
        while True:
            with self._reading:
                info = self._next_member()
            if info is None:
                break
            # A member of unknown type counts as a file, which nobody takes.
            self._left = info.size if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES else 0
            padding = -self._left % BLOCK
            yield info
            with self._reading:
                self._left += padding
                while self._left:
                    self.read(_CHUNK)
        with self._reading:
            # Compressed files keep a checksum at their end. Writers fill up with zeros.
            while rest := self._take(_CHUNK):
                if rest.strip(b"\0"):
                    raise DataError(
                        f"{self._path} goes on after its end mark, as if two archives were joined; "
                        f"unpack it yourself, and name the folder"
                    )

    def read(self, size: int) -> bytes:
        """Return the next bytes of the member, at most `size`; call it inside `reading`."""
        wanted = min(size, self._left)
        content = self._take(wanted)
        if len(content) < wanted:
            raise ValueError("it ends in the middle of a member")
        self._left -= wanted
        return content

    def _take(self, size: int) -> bytes:
        """Return the archive's next bytes, decompressed and counted; fewer only at its end."""
        content = self._file.read(size)
        self._num_bytes += len(content)
        if self._num_bytes > self._limit:
            member = f"with {quoted_member(self._member)} " if self._member else ""
            raise DataError(f"{self._path}: {member}it unpacks to {self._why}")
        return content

    def _next_member(self) -> tarfile.TarInfo | None:
        """Return a member's header as the headers before it complete it; None at the end mark."""
        said: dict[str, str] = {}
        for number in range(MAX_CHAIN):
            block = self._take(BLOCK)
            if block == bytes(BLOCK) and not number:
                return None
            if len(block) < BLOCK:
                raise ValueError("it has no end mark")
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if info.type not in _HEADERS:
                return self._completed(info, block, said)
            if not 0 <= info.size <= MAX_HEADER:
                raise ValueError(f"a header of {info.size} bytes")
            content = self._take(info.size + -info.size % BLOCK)[: info.size]
            if len(content) < info.size:
                raise ValueError("it ends in the middle of a header")
            # If two headers say the same of a member, the first one counts. Headers for all members, such as who has
            # packed them, concern neither names nor sizes.
            if info.type == tarfile.GNUTYPE_LONGNAME:
                said.setdefault("path", content.partition(b"\0")[0].decode("utf-8", "surrogateescape"))
            elif info.type in _RECORDS:
                said = _records(content) | said
        raise ValueError(f"more than {MAX_CHAIN} headers for one member")

    def _completed(self, info: tarfile.TarInfo, block: bytes, said: dict[str, str]) -> tarfile.TarInfo:
        # The blocks that list the holes of a sparse file are skipped: such a file is refused, or skipped itself.
        goes_on = info.type == tarfile.GNUTYPE_SPARSE and block[_MORE_HOLES]
        while goes_on:
            goes_on = self._take(BLOCK)[_STILL_MORE_HOLES]
        self._member = info.name = said.get("path", info.name)
        info.size = int(said.get("size", info.size))
        if info.size < 0:
            raise ValueError("a member of less than no bytes")
        if any(keyword.startswith("GNU.sparse.") for keyword in said):
            info.type = tarfile.GNUTYPE_SPARSE
        if info.isdir():
            info.name = info.name.rstrip("/")
        return info


def _records(content: bytes) -> dict[str, str]:
    """Parse a header's records, "LENGTH KEYWORD=VALUE" each, where LENGTH is that of the whole record."""
    said: dict[str, str] = {}
    place = 0
    while place < len(content) and content[place]:
        digits, blank, _ = content[place : place + 8].partition(b" ")
        length = int(digits)
        keyword, equals, value = content[place + len(digits) + 1 : place + length].partition(b"=")
        if not blank or not equals or not value.endswith(b"\n") or place + length > len(content):
            raise ValueError("a header that cannot be understood")
        # Without a value it takes back what was said of all members.
        if value != b"\n":
            said[keyword.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        place += length
    return said
