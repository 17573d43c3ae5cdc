"""Tell an archive that cannot be read from files that cannot be written: both fail in the same ways."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from carnet.errors import DataError, is_out_of_memory

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
