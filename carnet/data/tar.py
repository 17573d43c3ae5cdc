"""Read tar archives, compressed or not, from front to back within limits, and notice when one is not whole.

Python's own reader takes a damaged header for the end of the archive, and believes what headers say of their own
length. Here every archive has to end with its end mark, headers have limits, every byte that comes out of a compressed
archive is counted, whether it is used or passed over, and nothing is read back, which would decompress the archive
again from its beginning.

Source of the format: POSIX.1-2008, "pax Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from carnet.errors import DataError, is_out_of_memory
from carnet.files import open_file
from carnet.preprocess import EXTENSIONS

BLOCK = 512
"""Bytes; everything in a tar archive is a multiple of it."""
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
"""Types of members that are files and nothing else."""
MAX_HEADER = 64 * 2**10
"""Bytes. What one header may hold beyond its block; names take a few hundred."""
MAX_CHAIN = 16
"""How many headers one member may have; two or three are usual."""
_RECORDS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_HEADERS = (*_RECORDS, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Types of members that say something about those after them."""
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
    *(zlib.error, lzma.LZMAError, struct.error, tarfile.TarError, zipfile.BadZipFile),
)
"""What Python's readers let through for damaged archives."""
LABEL_MEMBERS = ("cls", "json", "txt")
"""What holds a sample's label in a WebDataset, the most reliable first."""
_FIRST_MEMBERS = 64
"""So many show whether labels stand beside the images."""


class ArchiveReadError(Exception):
    """An archive could not be read; its cause says why."""


class reading:  # noqa: N801 - written like the function it could be, if that were not slow for each of many members
    """Inside `with reading():`, whatever goes wrong is the archive's fault.

    Raises:
        ArchiveReadError: in place of the reader's own error.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, READ_ERRORS) and not isinstance(error, DataError) and not is_out_of_memory(error):
            raise ArchiveReadError(str(error)) from error


def damaged(path: Path, reason: object) -> DataError:
    """The error for an archive that is not what it was."""
    what = " ".join(str(reason).split())[:120] or type(reason).__name__
    return DataError(f"{path} is damaged or incomplete ({what}); fetch it again")


def quoted_member(member: str) -> str:
    """A member's name as it may stand in a line."""
    return repr(member if len(member) <= 100 else f"{member[:50]}…{member[-49:]}")


def ratio_limit(archive: Path) -> tuple[int, str]:
    """How many bytes may come out of an archive of that size, and what to say if they are not enough."""
    limit = max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size)
    return limit, f"more than {limit / 1e9:,.1f} GB, far more than images of that size could; {WAY_OUT}"


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive, compressed or not, by its content."""
    try:
        with open_file(path) as source, _decompressed(source) as file:
            block = file.read(BLOCK)
        # An archive may be empty: then it begins with its end mark.
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
    """The members of a tar archive, one after the other."""

    def __init__(self, path: Path, file: IO[bytes], source: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._source = source
        self._limit, self._why = ratio_limit(path)
        self._num_bytes = 0
        self._member = ""
        self._left = 0

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[TarReader]:
        """Read the archive at `path`.

        Raises:
            OSError: if it cannot be opened, or is no ordinary file.
            DataError: inside the block too: damaged, cut short, or grown far beyond its size.
        """
        try:
            with open_file(path) as source, _decompressed(source) as file:
                yield cls(path, file, source)
        except ArchiveReadError as error:
            raise damaged(path, error.__cause__ or error) from error

    @property
    def position(self) -> int:
        """Bytes of the archive's file that have been read."""
        return self._source.tell()

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Each member's header; until the next one is asked for, `read` gives its bytes."""
        while True:
            with reading():
                info = self._next_member()
            if info is None:
                break
            # A type that is not known counts as a file, which nobody takes.
            self._left = info.size if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES else 0
            padding = -self._left % BLOCK
            yield info
            with reading():
                self._left += padding
                while self._left:
                    self.read(_CHUNK)
        with reading():
            # To its end, where compressed files keep a checksum. Writers fill up with zeros.
            while rest := self._take(_CHUNK):
                if rest.strip(b"\0"):
                    raise DataError(
                        f"{self._path} goes on after its end mark, as if two archives were joined; "
                        f"unpack it yourself, and name the folder"
                    )

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the present member: at most so many, or all that are left. Call it inside `reading()`."""
        wanted = self._left if size < 0 else min(size, self._left)
        content = self._take(wanted)
        if len(content) < wanted:
            raise ValueError("it ends in the middle of a member")
        self._left -= wanted
        return content

    def _take(self, size: int) -> bytes:
        """The archive's next bytes, decompressed and counted; fewer only at its end."""
        content = self._file.read(size)
        self._num_bytes += len(content)
        if self._num_bytes > self._limit:
            member = f"with {quoted_member(self._member)} " if self._member else ""
            raise DataError(f"{self._path}: {member}it unpacks to {self._why}")
        return content

    def _next_member(self) -> tarfile.TarInfo | None:
        """A member's header, with what the headers before it say of it; None at the end mark."""
        said: dict[str, str] = {}
        for number in range(MAX_CHAIN):
            block = self._take(BLOCK)
            if block == bytes(BLOCK) and not number:
                return None
            if len(block) < BLOCK:
                raise ValueError("it has no end mark")
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if info.type not in _HEADERS:
                return self._described(info, block, said)
            if not 0 <= info.size <= MAX_HEADER:
                raise ValueError(f"a header of {info.size} bytes")
            content = self._take(info.size + -info.size % BLOCK)[: info.size]
            if len(content) < info.size:
                raise ValueError("it ends in the middle of a header")
            # Where two headers say the same of a member, the first one counts. What is said of all members, such as
            # who has packed them, concerns neither names nor sizes.
            if info.type == tarfile.GNUTYPE_LONGNAME:
                said.setdefault("path", content.partition(b"\0")[0].decode("utf-8", "surrogateescape"))
            elif info.type in _RECORDS:
                said = _records(content) | said
        raise ValueError(f"more than {MAX_CHAIN} headers for one member")

    def _described(self, info: tarfile.TarInfo, block: bytes, said: dict[str, str]) -> tarfile.TarInfo:
        """A member as the headers before it say."""
        # Where the holes of a sparse file are is passed over: the file is refused, or passed over itself.
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
    """What a header says in records of the form "LENGTH KEYWORD=VALUE", where LENGTH is that of the whole record."""
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


def is_webdataset(path: Path, pattern: str) -> bool:
    """Return whether the first files of a tar are samples of a WebDataset: an image and its label under one key.

    Args:
        path: the tar; where it is damaged, what stands before the damage counts.
        pattern: what names it as shards, whatever is inside.

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
            f"either could be the classes; for the folders unpack it and name the folder, for the files write {pattern}"
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


def _names(path: Path) -> Iterator[tuple[str, str, str]]:
    """Folder, key and extensions of each file, as far as the tar can be read."""
    with suppress(DataError, *READ_ERRORS), TarReader.open(path) as tar:
        for info in tar.members():
            if info.type in REGULAR:
                folder, _, name = info.name.rpartition("/")
                key, _, extensions = name.lower().partition(".")
                yield folder, key, extensions
