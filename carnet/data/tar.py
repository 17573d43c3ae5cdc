"""Read a tar archive, packed in any of the usual ways, from front to back, and notice when it is not whole.

Python's own reader takes a damaged header for the end of the archive, and believes what headers say of their own
length. Here every archive has to end with its end mark, headers have limits, all that comes out of a packed archive is
counted, whether it is used or passed over, and nothing is ever read back, which would unpack the archive again from its
beginning.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from carnet.errors import DataError, is_out_of_memory
from carnet.files import open_file

BLOCK = 512
"""Bytes; everything in a tar archive is a multiple of it."""
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
"""Types of members that are files and nothing else."""
MAX_HEADER = 64 * 2**10
"""Bytes. What one header may hold beyond its block; names take a few hundred."""
MAX_CHAIN = 16
"""How many headers one member may have; two or three are usual."""
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_RECORDS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_MORE_HOLES, _STILL_MORE_HOLES = 482, 504
"""Where the first block of a sparse file, and each further one, says that another one follows."""
_CHUNK = 2**20
_PACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
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
    """Whether a file is a tar archive, packed or not, by its content."""
    try:
        with open_file(path) as source, _unpacked(source) as file:
            block = file.read(BLOCK)
        # An archive may be empty: then it begins with its end mark.
        return block == bytes(BLOCK) or bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    except READ_ERRORS:
        return False


def is_packed(path: Path) -> bool:
    """Whether a file is gzip, bzip2 or xz, whatever it packs."""
    with open_file(path) as file:
        return file.read(6).startswith(tuple(_PACKERS))


class TarReader:
    """The members of a tar archive, one after the other.

    Attributes:
        position: bytes of the archive's file that have been read.
    """

    def __init__(self, path: Path, file: IO[bytes], source: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._source = source
        self._limit, self._why = ratio_limit(path)
        self._num_bytes = 0
        self._member = ""

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[TarReader]:
        """Read the archive at `path`.

        Raises:
            OSError: if it cannot be opened, or is no ordinary file.
            DataError: inside the block too: damaged, cut short, or grown far beyond its size.
        """
        try:
            with open_file(path) as source, _unpacked(source) as file:
                yield cls(path, file, source)
        except DataError:
            raise
        except ArchiveReadError as error:
            raise damaged(path, error.__cause__ or error) from error

    @property
    def position(self) -> int:
        """How far in the file, in bytes."""
        return self._source.tell()

    def members(self) -> Iterator[tuple[tarfile.TarInfo, Content | None]]:
        """Each member's header with its bytes; None where it has none, or is no plain file.

        The bytes have to be read before the next member, inside `reading()`.
        """
        while True:
            with reading():
                info = self._next_member()
            if info is None:
                break
            # A type that is not known counts as a file, which nobody takes.
            size = info.size if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES else 0
            content = Content(self, size)
            yield info, content if info.type in REGULAR else None
            with reading():
                self._pass_over(content.left + -size % BLOCK)
        with reading():
            # To its end, where packers keep a checksum. Writers fill up with zeros.
            while rest := self.read(_CHUNK):
                if rest.strip(b"\0"):
                    raise DataError(
                        f"{self._path} goes on after its end mark, as if two archives were joined; "
                        f"unpack it yourself, and name the folder"
                    )

    def read(self, size: int) -> bytes:
        """The next bytes of what is packed, fewer only at its end.

        Raises:
            DataError: if it becomes far more than images in an archive of that size could be.
        """
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
            block = self.read(BLOCK)
            if block == bytes(BLOCK) and not number:
                return None
            if len(block) < BLOCK:
                raise ValueError("it has no end mark")
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if info.type in _LONG:
                text = self._read_header(info).partition(b"\0")[0].decode("utf-8", "surrogateescape")
                # Where two headers say the same of a member, the first one counts.
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    said.setdefault("path", text)
            elif info.type in _RECORDS:
                said = _records(self._read_header(info)) | said
            elif info.type == tarfile.XGLTYPE:
                # What it says of all members, such as who has packed them, concerns neither names nor sizes.
                self._read_header(info)
            else:
                if info.type == tarfile.GNUTYPE_SPARSE:
                    self._pass_over_map(block[_MORE_HOLES])
                self._member = info.name = said.get("path", info.name)
                return _described(info, said)
        raise ValueError(f"more than {MAX_CHAIN} headers for one member")

    def _pass_over_map(self, goes_on: int) -> None:
        """Leave out where the holes of a sparse file are: such a file is refused, or passed over itself."""
        while goes_on:
            goes_on = self.read(BLOCK)[_STILL_MORE_HOLES]

    def _read_header(self, info: tarfile.TarInfo) -> bytes:
        if not 0 <= info.size <= MAX_HEADER:
            raise ValueError(f"a header of {info.size} bytes")
        content = self.read(info.size + -info.size % BLOCK)
        if len(content) < info.size:
            raise ValueError("it ends in the middle of a header")
        return content[: info.size]

    def _pass_over(self, size: int) -> None:
        while size:
            passed = len(self.read(min(size, _CHUNK)))
            if not passed:
                raise ValueError("it ends in the middle of a member")
            size -= passed


class Content:
    """The bytes of one member.

    Attributes:
        left: how many are still to be read.
    """

    def __init__(self, tar: TarReader, size: int) -> None:
        self._tar = tar
        self.left = size

    def read(self, size: int = -1) -> bytes:
        """The next bytes: at most so many, or all that are left."""
        wanted = self.left if size < 0 else min(size, self.left)
        content = self._tar.read(wanted)
        if len(content) < wanted:
            raise ValueError("it ends in the middle of a member")
        self.left -= wanted
        return content


def _described(info: tarfile.TarInfo, said: dict[str, str]) -> tarfile.TarInfo:
    """A member as the headers before it say."""
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


@contextmanager
def _unpacked(source: IO[bytes]) -> Iterator[IO[bytes]]:
    start = source.read(6)
    source.seek(0)
    packer = next((packer for magic, packer in _PACKERS.items() if start.startswith(magic)), None)
    if packer is None:
        yield source
    else:
        with packer(source, "rb") as file:
            yield file
