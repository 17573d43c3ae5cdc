"""Archives of labelled images, zip and tar, which are unpacked once and then read as a folder.

They come from anywhere. Names that lead out of the folder, links, two names that some system takes for one, and more
bytes than the archive can honestly hold are refused. Sizes in headers are not believed.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from carnet.data.cache import cached_folder
from carnet.data.folder import is_hidden
from carnet.data.shards import REGULAR, WAY_OUT, TarReader, quoted_member, ratio_limit, reading
from carnet.documents import Count
from carnet.errors import DataError
from carnet.files import digest_of, open_file, read_json, write_json
from carnet.preprocess import looks_like_image
from carnet.text import OnProgress, counted

MAX_BYTES = 500 * 10**9
"""How much an archive may unpack to; ImageNet has 150 GB."""
SPARE_BYTES = 256 * 2**20
"""How much stays free on the disk."""
MAX_MEMBERS = 2_000_000
"""ImageNet has 1.3 million."""
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1000
_CONTROL = re.compile("[\\0-\\x1f\\x7f]")
_UNSEEN = re.compile(r"[ .]+(?=/|\Z)")
"""Windows drops these at the end of a name."""
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\s*(\..*)?$", re.IGNORECASE)
"""Windows takes these names, with any ending, for devices."""
_CHUNK = 2**20


class SafeFolder:
    """A folder that takes the members of one archive, and refuses what could do harm.

    Attributes:
        folder: where they go.
        archive: where they come from.
        num_bytes: written so far.
        hidden: files and folders that are not unpacked, counted as in a folder.
    """

    def __init__(
        self, folder: Path, archive: Path, *, capitals_count: bool | None = None, free_bytes: int | None = None
    ) -> None:
        """Prepare an empty folder.

        Args:
            folder: the folder.
            archive: the archive's path.
            capitals_count: whether the disk can hold two names that differ only in capitals; None: ask the disk.
            free_bytes: free space on the disk; None: ask the disk.
        """
        self.folder = folder
        self.archive = archive
        self.num_bytes = 0
        self.hidden: set[str] = set()
        free_bytes = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
        by_disk = max(0, free_bytes - SPARE_BYTES)
        self._limit, self._why = min(
            (MAX_BYTES, f"more than {MAX_BYTES / 1e9:,.0f} GB; {WAY_OUT}"),
            ratio_limit(archive),
            (
                by_disk,
                f"more than the {by_disk / 1e9:,.1f} GB that the disk of the cache {folder.parent} can spare; "
                f"free some space, or name another place in the environment variable CARNET_CACHE",
            ),
        )
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}
        if capitals_count is None:
            with tempfile.NamedTemporaryFile(prefix="a", dir=folder) as probe:
                capitals_count = not Path(folder, Path(probe.name).name.swapcase()).exists()
        self._capitals_count = capitals_count

    def place(self, member: str, *, is_folder: bool = False) -> Path | None:
        """Return the path for a member's name; None if it is hidden, and not unpacked.

        Raises:
            DataError: if the name could lead out of the folder, or some system takes it for one that is there already.
        """
        parts = self._parts(member)
        if len(self._files) + len(self._folders) + len(self.hidden) >= MAX_MEMBERS:
            raise self.refusal(member, f"is one more than {MAX_MEMBERS:,} files and folders")
        hidden = next((place for place, part in enumerate(parts, 1) if is_hidden(part)), None)
        if hidden is not None:
            # What lies in a hidden folder is not counted.
            self.hidden.add("/".join(parts[:hidden]))
        if not parts or hidden is not None:
            return None
        for length in range(1, len(parts) + is_folder):
            self._enter_folder(member, "/".join(parts[:length]))
        if not is_folder:
            key = self._folded("/".join(parts))
            if key in self._files or key in self._folders:
                capitals = "" if self._capitals_count else " (on the disk of the cache, capitals do not count)"
                raise self.refusal(member, f"has a name that is there twice{capitals}")
            self._files.add(key)
        inside = os.path.join(*parts)  # noqa: PTH118 - pathlib takes ten times as long
        # The rules above let through only names inside the folder, where no links are; if they are wrong, this refuses.
        if os.path.normpath(inside) != inside or inside.startswith(os.sep):
            raise self.refusal(member, "has a name that leads out of its folder")
        return self.folder / inside

    def check_room(self, member: str, num_bytes: int) -> None:
        """Refuse a member with which the total exceeds the limit.

        Raises:
            DataError: naming the member and the limit.
        """
        if num_bytes > self._limit:
            raise DataError(f"{self.archive}: with {quoted_member(member)} it unpacks to {self._why}")

    def write(self, path: Path, member: str, size: int, content: IO[bytes] | TarReader) -> None:
        """Write a member to a path that `place` returned.

        Raises:
            DataError: if the total exceeds the limit, the size is not the header's, or the archive is damaged.
        """
        self.check_room(member, self.num_bytes + size)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = self.num_bytes
        with path.open("xb") as file:
            while True:
                with reading(self.archive):
                    chunk = content.read(_CHUNK)
                if not chunk:
                    break
                self.num_bytes += len(chunk)
                self.check_room(member, self.num_bytes)
                file.write(chunk)
        if self.num_bytes - before != size:
            raise self.refusal(member, f"has {self.num_bytes - before} bytes, not the {size} its header says")

    def refusal(self, member: str, why: str) -> DataError:
        """Return the error for a member that is not unpacked."""
        return DataError(f"{self.archive}: {quoted_member(member)} {why}; {WAY_OUT}")

    def _parts(self, member: str) -> list[str]:
        name = member.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        sizes = [len(os.fsencode(part)) for part in parts]
        on_windows = os.name == "nt"
        rules = (
            (_CONTROL.search(name), "has control characters in its name"),
            (name.startswith("/") or re.match("[A-Za-z]:", name), "has an absolute name"),
            # Where dots and spaces at the end of a name are dropped, ".. " would be "..".
            (any(not part.strip(" .") for part in parts), "has a name that leads out of its folder"),
            (
                max(sizes, default=0) > _MAX_NAME_BYTES or sum(sizes) + len(sizes) > _MAX_PATH_BYTES,
                "has a name that is too long",
            ),
            (on_windows and any(map(_DEVICE.match, parts)), "has the name of a device on Windows"),
            (on_windows and re.search(r'[<>:"|?*]', name), "has a name that Windows does not allow"),
        )
        for is_broken, why in rules:
            if is_broken:
                raise self.refusal(member, why)
        return parts

    def _enter_folder(self, member: str, name: str) -> None:
        if self._folders.get(name) == name:
            return
        key = self._folded(name)
        if key in self._files:
            raise self.refusal(member, "lies in what is also a file")
        if (known := self._folders.setdefault(key, name)) != name:
            raise self.refusal(member, f"lies in a folder that some systems take for {quoted_member(known)}")

    def _folded(self, name: str) -> str:
        """Return the same for two names if some system takes them for one; for capitals, this disk decides."""
        plain = unicodedata.normalize("NFC", name)
        if not self._capitals_count:
            plain = unicodedata.normalize("NFC", plain.casefold())
        return _UNSEEN.sub("", plain)


ARCHIVE_EXTENSIONS = frozenset(
    (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
)
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_UTF8_FLAG = 0x800
_ENCRYPTED_FLAG = 0x1
_DOS_FOLDER = 0x10
_MAX_DIRECTORY = 256 * 2**20
"""Bytes of the list at a zip archive's end, which Python reads at once; two million members take about this much."""
_ABOUT = ".archive.json"
"""The file with facts about an archive, beside its content."""
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    **dict.fromkeys((tarfile.CHRTYPE, tarfile.BLKTYPE), "a device"),
    tarfile.FIFOTYPE: "a pipe",
}


def unpack(path: Path, progress: OnProgress | None = None) -> Path:
    """Unpack an archive into the cache, except hidden files, and return the folder; the same content is unpacked once.

    Args:
        path: the archive.
        progress: receives how many percent are done, of 100.

    Raises:
        DataError: naming the member, if it is refused (see `SafeFolder`), damaged or encrypted; if there are no images.
        OutputError: if the cache cannot be written.
    """
    size = shown = 0

    def show(done: int) -> None:
        nonlocal shown
        # The file is read twice, for its hash and its members, and a damaged one may claim any sizes.
        percent = min(99, 50 * done // max(1, size))
        if percent > shown and progress is not None:
            shown = percent
            progress(percent, 100)

    def fill(folder: Path) -> None:
        safe = SafeFolder(folder, path)
        unpack_into(safe, lambda done: show(size + done))
        _check_content(folder, path)
        write_json(folder / _ABOUT, {"num_hidden": len(safe.hidden)})

    try:
        size = path.stat().st_size
        digest = digest_of(path, show)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    folder = cached_folder("archives", digest, fill)
    if progress is not None:
        progress(100, 100)
    return folder


def num_hidden(folder: Path) -> int:
    """Return how many hidden files and folders the archive had that `unpack` unpacked into a folder."""
    about = folder / _ABOUT
    return int(read_json(about, dict[str, Count]).get("num_hidden", 0)) if about.exists() else 0


def is_zip(path: Path) -> bool:
    """Return whether a file begins as zip archives do."""
    with open_file(path) as file:
        return file.read(4) in _ZIP_MAGIC


def is_packed_data(name: str) -> bool:
    """Return whether a file has the name of an archive or a Parquet file, which may hold images."""
    return Path(name).suffix.lower() in (*ARCHIVE_EXTENSIONS, ".parquet")


class _ZipSource(io.BufferedReader):
    """The file of a zip archive, which may claim a list of any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise ValueError(f"a list of {size} bytes")
        return super().read(size)


def unpack_into(safe: SafeFolder, show: Callable[[int], None]) -> None:
    """Unpack a folder's archive; `show` receives how many bytes of it are done.

    Raises:
        DataError: naming the member, if it is refused, damaged or encrypted.
    """
    if is_zip(safe.archive):
        with _ZipSource(open_file(safe.archive).detach()) as source:
            _unpack_zip(source, safe, show)
    else:
        _unpack_tar(safe, show)


def _unpack_tar(safe: SafeFolder, show: Callable[[int], None]) -> None:
    # From Python 3.11.4 on.
    data_filter = getattr(tarfile, "data_filter", None)
    filtered: set[Path] = set()
    with TarReader.open(safe.archive) as tar:
        for info in tar.members():
            place = safe.place(info.name, is_folder=info.isdir())
            if place is None:
                continue
            if info.type not in REGULAR and not info.isdir():
                raise safe.refusal(info.name, f"is {_KINDS.get(info.type, 'no ordinary file')}")
            if data_filter is not None and place.parent not in filtered:
                # Python's rules, in case ours are wrong, for one member of each folder: they follow a name to its end,
                # which takes as long as unpacking the member.
                filtered.add(place.parent)
                try:
                    data_filter(info, str(safe.folder))
                except tarfile.FilterError as error:
                    raise safe.refusal(info.name, f"is refused by Python ({error})") from error
            if info.isdir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                safe.write(place, info.name, info.size, tar)
            show(tar.position)


def _unpack_zip(source: _ZipSource, safe: SafeFolder, show: Callable[[int], None]) -> None:
    with reading(safe.archive):
        archive = zipfile.ZipFile(source)
    with archive:
        # All names are checked before anything is written.
        plan = _plan_zip(archive, safe)
        packed = 0
        for info, name, place in plan:
            if _is_folder(info, name):
                place.mkdir(parents=True, exist_ok=True)
                continue
            with reading(safe.archive):
                try:
                    content = archive.open(info)
                except NotImplementedError as error:
                    raise safe.refusal(name, "is compressed in a way that Python does not support") from error
            with content:
                safe.write(place, name, info.file_size, content)
            packed += info.compress_size
            show(packed)


def _plan_zip(archive: zipfile.ZipFile, safe: SafeFolder) -> list[tuple[zipfile.ZipInfo, str, Path]]:
    plan = []
    declared = 0
    for info in archive.infolist():
        name = info.orig_filename
        if not info.flag_bits & _UTF8_FLAG:
            # macOS writes UTF-8 without the flag for it, which reads as code page 437.
            with suppress(UnicodeError):
                name = name.encode("cp437").decode("utf-8")
        place = safe.place(name, is_folder=_is_folder(info, name))
        if place is None:
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise safe.refusal(name, f"is {'a symbolic link' if kind == stat.S_IFLNK else 'no ordinary file'}")
        if info.flag_bits & _ENCRYPTED_FLAG:
            raise DataError(f"{safe.archive}: {name!r} is encrypted; unpack it with its password, and name the folder")
        declared += info.file_size
        safe.check_room(name, declared)
        plan.append((info, name, place))
    return plan


def _is_folder(info: zipfile.ZipInfo, name: str) -> bool:
    return (
        name.endswith(("/", "\\"))
        or stat.S_ISDIR(info.external_attr >> 16)
        or bool(info.external_attr & _DOS_FOLDER and not info.file_size)
    )


def _check_content(folder: Path, path: Path) -> None:
    others = []
    for current, _, names in os.walk(folder):
        for file in (Path(current, name) for name in names):
            if looks_like_image(file):
                return
            others.append(file.relative_to(folder).as_posix())
    if packed := min(filter(is_packed_data, others), default=""):
        what = "a Parquet file" if packed.lower().endswith(".parquet") else "another archive"
        raise DataError(f"{path} holds no images but {what}, {packed!r}; unpack it, and name what comes out")
    raise DataError(
        f"{path} holds no images ({counted(len(others), 'other file')}); DATA needs one folder of images per class, "
        f"such as cat/1.jpg"
    )
