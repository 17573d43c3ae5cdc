"""Read a tar archive, packed in any of the usual ways, from front to back, and notice when it is not whole.

Python's own reader takes a damaged header for the end of the archive. Here every archive has to end with its end mark,
and nothing is ever read back, which would unpack a compressed archive again from its beginning.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from carnet.data.damage import READ_ERRORS, ArchiveReadError, damaged, reading
from carnet.errors import DataError

BLOCK = 512
"""Bytes; everything in a tar archive is a multiple of it."""
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
"""Types of members that are files and nothing else."""
MAX_HEADER = 16 * 2**20
"""Bytes. What Python's reader takes into memory at once: a header may claim to be of any length."""
_PACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive, packed or not, by its content."""
    try:
        with path.open("rb") as source, _unpacked(source) as file:
            block = file.read(BLOCK)
        # An archive may be empty: then it begins with its end mark.
        return block == bytes(BLOCK) or bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    except READ_ERRORS:
        return False


def is_packed(path: Path) -> bool:
    """Whether a file is gzip, bzip2 or xz, whatever it packs."""
    with path.open("rb") as file:
        return file.read(6).startswith(tuple(_PACKERS))


class TarReader:
    """The members of a tar archive, one after the other.

    Attributes:
        position: bytes of the archive's file that have been read.
    """

    def __init__(self, path: Path, file: IO[bytes], source: IO[bytes]) -> None:
        self._path = path
        self._stream = _ForwardStream(file)
        self._source = source

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[TarReader]:
        """Read the archive at `path`.

        Raises:
            DataError: inside the block too: damaged, cut short.
        """
        try:
            with path.open("rb") as source, _unpacked(source) as file:
                yield cls(path, file, source)
        except DataError:
            raise
        except ArchiveReadError as error:
            raise damaged(path, error.__cause__ or error) from error

    @property
    def position(self) -> int:
        """How far in the file, in bytes."""
        return self._source.tell()

    def members(self) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
        """Each member's header with its bytes; None where it has none.

        The bytes have to be read before the next member, inside `carnet.data.damage.reading()`.
        """
        with reading():
            tar = tarfile.open(fileobj=self._stream, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        while True:
            with reading():
                info = tar.next()
                # The list of members would grow with the archive.
                tar.members = []  # type: ignore[attr-defined]
                content = tar.extractfile(info) if info is not None and info.type in REGULAR else None
            if info is None:
                break
            yield info, content
        if self._stream.last != bytes(BLOCK):
            raise damaged(self._path, "it has no end mark")
        with reading():
            # To its end, where packers keep a checksum. Writers fill up with zeros, never with this much.
            rest = self._stream.read(MAX_HEADER)
        if rest.strip(b"\0"):
            raise DataError(
                f"{self._path} goes on after its end mark, as if two archives were joined; "
                f"unpack it yourself, and name the folder"
            )


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


class _ForwardStream(io.RawIOBase):
    """Bytes read once, from front to back.

    Attributes:
        last: what the last reading gave, if it was one block.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise ValueError(f"a header of {size} bytes")
        content = self._file.read(size)
        self._position += len(content)
        self.last = content if size == BLOCK else b""
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._position:
            raise ValueError("a header that points back")
        while self._position < offset:
            if not self.read(min(offset - self._position, 2**20)):
                break
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
