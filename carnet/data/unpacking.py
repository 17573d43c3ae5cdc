"""A folder that takes the members of an archive, and nothing that could reach beyond it or fill the disk.

Archives come from anywhere. A name that leads out of the folder, a link, two names that some system takes for one, and
more bytes than the archive can honestly hold are refused; no header's word is taken for how many bytes there are.

Tell an archive that cannot be read from files that cannot be written: both fail in the same ways.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Protocol

from carnet.data.folder import is_hidden
from carnet.errors import DataError, is_out_of_memory

MAX_BYTES = 500 * 10**9
"""What an archive may unpack to; ImageNet has 150 GB."""
MAX_RATIO = 100
"""How many times its own size an archive may unpack to; images hardly shrink."""
SMALL_BYTES = 256 * 2**20
"""What any archive may unpack to, whatever the ratio: drawings without compression shrink well."""
SPARE_BYTES = 256 * 2**20
"""What stays free on the disk."""
MAX_MEMBERS = 2_000_000
"""ImageNet has 1.3 million."""
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1000
_CONTROL = re.compile("[\\0-\\x1f\\x7f]")
_UNSEEN = re.compile(r"[ .]+(?=/|\Z)")
"""Windows leaves these out at the end of a name."""
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\s*(\..*)?$", re.IGNORECASE)
"""Windows takes these names, with any ending, for devices."""
_CHUNK = 2**20
_WAY_OUT = "unpack it yourself if you trust it, and name the folder"


class Readable(Protocol):
    """Where a member's bytes come from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


class SafeFolder:
    """Takes the members of one archive.

    Attributes:
        folder: where they go.
        archive: where they come from, for messages.
        num_bytes: written so far.
    """

    def __init__(self, folder: Path, archive: Path) -> None:
        self.folder = folder
        self.archive = archive
        self.num_bytes = 0
        self._limit, self._why = _limit(folder, archive)
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}
        self._hidden: set[str] = set()
        self._capitals_count = tells_capitals(folder)
        self._made: set[Path] = set()

    @property
    def num_hidden(self) -> int:
        """Hidden files and folders that stayed out, as they would be counted in a folder."""
        return len(self._hidden)

    def place(self, member: str, *, is_folder: bool = False) -> Path | None:
        """Where a member goes, by its name in the archive; None for what is hidden and stays out.

        Raises:
            DataError: if the name could mean a place outside the folder, or is one that some system has already.
        """
        parts = self._parts(member)
        if len(self._files) + len(self._folders) + len(self._hidden) >= MAX_MEMBERS:
            raise self.refusal(member, f"is one more than {MAX_MEMBERS:,} files and folders")
        hidden = next((place for place, part in enumerate(parts, 1) if is_hidden(part)), None)
        if hidden is not None:
            # What lies in a hidden folder is not looked at.
            self._hidden.add("/".join(parts[:hidden]))
        if not parts or hidden is not None:
            return None
        for length in range(1, len(parts) + is_folder):
            self._enter_folder(member, "/".join(parts[:length]))
        if not is_folder:
            self._enter_file(member, "/".join(parts))
        inside = os.path.join(*parts)  # noqa: PTH118 - pathlib takes ten times as long
        # What the rules above have let through is inside, where no links are; should they be wrong, nothing is written.
        if os.path.normpath(inside) != inside or inside.startswith(os.sep):
            raise self.refusal(member, "has a name that leads out of its folder")
        return self.folder / inside

    def check_room(self, member: str, num_bytes: int) -> None:
        """Refuse a member that would bring the total above what is allowed.

        Raises:
            DataError: naming the member and the limit.
        """
        if num_bytes > self._limit:
            raise DataError(f"{self.archive}: with {quoted_member(member)} it unpacks to {self._why}")

    def make(self, path: Path) -> None:
        """Make a folder that `place` gave."""
        if path not in self._made:
            path.mkdir(parents=True, exist_ok=True)
            self._made.add(path)

    def write(self, path: Path, member: str, size: int, content: Readable) -> None:
        """Fill a file that `place` gave.

        Raises:
            DataError: if the total grows too large, or there are fewer bytes than the header says.
            ArchiveReadError: if the archive cannot be read.
        """
        self.check_room(member, self.num_bytes + size)
        self.make(path.parent)
        before = self.num_bytes
        with path.open("xb") as file:
            while True:
                with reading():
                    chunk = content.read(_CHUNK)
                if not chunk:
                    break
                self.num_bytes += len(chunk)
                self.check_room(member, self.num_bytes)
                file.write(chunk)
        if self.num_bytes - before != size:
            raise self.refusal(member, f"has {self.num_bytes - before} bytes, not the {size} its header says")

    def refusal(self, member: str, why: str) -> DataError:
        """The error for a member that cannot be taken."""
        return DataError(f"{self.archive}: {quoted_member(member)} {why}; {_WAY_OUT}")

    def _parts(self, member: str) -> list[str]:
        name = member.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if _CONTROL.search(name):
            raise self.refusal(member, "has control characters in its name")
        if name.startswith("/") or re.match("[A-Za-z]:", name):
            raise self.refusal(member, "has an absolute name")
        # Where dots and spaces at the end of a name are left out, ".. " would be "..".
        if any(not part.strip(" .") for part in parts):
            raise self.refusal(member, "has a name that leads out of its folder")
        if len(os.fsencode(name)) > _MAX_NAME_BYTES:
            sizes = [len(os.fsencode(part)) for part in parts]
            if max(sizes, default=0) > _MAX_NAME_BYTES or sum(sizes) + len(sizes) > _MAX_PATH_BYTES:
                raise self.refusal(member, "has a name that is too long")
        if os.name == "nt" and any(_DEVICE.match(part) for part in parts):
            raise self.refusal(member, "has the name of a device on Windows")
        if os.name == "nt" and any(character in '<>:"|?*' for character in name):
            raise self.refusal(member, "has a name that Windows does not know")
        return parts

    def _enter_folder(self, member: str, name: str) -> None:
        if self._folders.get(name) == name:
            return
        key = self._folded(name)
        if key in self._files:
            raise self.refusal(member, "lies in what is also a file")
        if (known := self._folders.setdefault(key, name)) != name:
            raise self.refusal(member, f"lies in a folder that some systems take for {quoted_member(known)}")

    def _enter_file(self, member: str, name: str) -> None:
        key = self._folded(name)
        if key in self._files or key in self._folders:
            capitals = "" if self._capitals_count else " (on the disk of the cache, capitals do not count)"
            raise self.refusal(member, f"has a name that is there twice{capitals}")
        self._files.add(key)

    def _folded(self, name: str) -> str:
        """Equal for two names where a system exists that takes them for one; of capitals, this disk's word counts."""
        plain = unicodedata.normalize("NFC", name)
        if not self._capitals_count:
            plain = unicodedata.normalize("NFC", plain.casefold())
        return _UNSEEN.sub("", plain)


def tells_capitals(folder: Path) -> bool:
    """Whether a folder's disk can hold two names that differ in capitals only."""
    with tempfile.NamedTemporaryFile(prefix="a", dir=folder) as probe:
        return not Path(folder, Path(probe.name).name.swapcase()).exists()


def quoted_member(member: str) -> str:
    """A member's name as it may stand in a line."""
    return repr(member if len(member) <= 100 else f"{member[:50]}…{member[-49:]}")


def ratio_limit(archive: Path) -> tuple[int, str]:
    """How many bytes may come out of an archive of that size, and what to say if they are not enough."""
    limit = max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size)
    return limit, f"more than {limit / 1e9:,.1f} GB, far more than images of that size could; {_WAY_OUT}"


def _limit(folder: Path, archive: Path) -> tuple[int, str]:
    """How many bytes may be written, and what to say if they are not enough."""
    by_disk = max(0, shutil.disk_usage(folder).free - SPARE_BYTES)
    return min(
        (MAX_BYTES, f"more than {MAX_BYTES / 1e9:,.0f} GB; {_WAY_OUT}"),
        ratio_limit(archive),
        (
            by_disk,
            f"more than the {by_disk / 1e9:,.1f} GB that the disk of the cache {folder.parent} can spare; "
            f"free some space, or name another place in the environment variable CARNET_CACHE",
        ),
    )


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
