"""Tell an archive that cannot be read from files that cannot be written: both fail in the same ways."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carnet.errors import DataError, is_out_of_memory

READ_ERRORS = (
    *(OSError, EOFError, ValueError, OverflowError, IndexError, KeyError, AttributeError, RecursionError),
    *(zlib.error, lzma.LZMAError, struct.error, tarfile.TarError, zipfile.BadZipFile),
)
"""What Python's readers let through for damaged archives."""


class ArchiveReadError(Exception):
    """An archive could not be read; its cause says why."""


@contextmanager
def reading() -> Iterator[None]:
    """Inside, whatever goes wrong is the archive's fault.

    Raises:
        ArchiveReadError: in place of the reader's own error.
    """
    try:
        yield
    except DataError:
        raise
    except READ_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise ArchiveReadError(str(error)) from error


def damaged(path: Path, reason: object) -> DataError:
    """The error for an archive that is not what it was."""
    what = " ".join(str(reason).split())[:120] or type(reason).__name__
    return DataError(f"{path} is damaged or incomplete ({what}); fetch it again")
