"""Archives of labelled images: zip, and tar in any of its packings. Unpacked once, then a folder like any other."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

from carnet.data.cache import cached_folder
from carnet.data.tar import TarReader
from carnet.data.unpacking import ArchiveReadError, SafeFolder, damaged, reading
from carnet.documents import Count
from carnet.errors import DataError
from carnet.files import digest_of, read_json, write_json
from carnet.inputs import open_file
from carnet.preprocess import looks_like_image
from carnet.text import OnProgress, counted

ARCHIVE_EXTENSIONS = frozenset(
    (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
)
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_UTF8_FLAG = 0x800
_ENCRYPTED_FLAG = 0x1
_DOS_FOLDER = 0x10
_MAX_DIRECTORY = 256 * 2**20
"""Bytes of the list at a zip archive's end, which Python reads at once; two million members take about as much."""
_ABOUT = ".archive.json"
"""What the cache keeps about an archive, beside what was in it."""
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def unpack(path: Path, progress: OnProgress | None = None) -> Path:
    """The folder that holds what is in an archive, found again by the archive's content.

    All ordinary files are unpacked but hidden ones; `carnet.data.unpacking` says what is refused.

    Args:
        path: the archive.
        progress: told how many percent are done, of 100.

    Raises:
        DataError: naming the member, if it is refused, damaged or encrypted; if there are no images.
        OutputError: if the cache cannot be written.
    """
    try:
        percent = _Percent(2 * path.stat().st_size, progress)
        digest = digest_of(path, percent.show)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    folder = cached_folder("archives", digest, lambda scratch: _fill(scratch, path, percent))
    percent.finish()
    return folder


def num_hidden(folder: Path) -> int:
    """How many hidden files and folders an archive had that `unpack` has unpacked into a folder."""
    about = folder / _ABOUT
    return int(read_json(about, dict[str, Count]).get("num_hidden", 0)) if about.exists() else 0


def is_zip(path: Path) -> bool:
    """Whether a file begins as zip archives do."""
    with open_file(path) as file:
        return file.read(4) in _ZIP_MAGIC


def is_packed_data(name: str) -> bool:
    """Whether a file's name promises what may hold images, an archive or Parquet."""
    return Path(name).suffix.lower() in (*ARCHIVE_EXTENSIONS, ".parquet")


class _ZipSource(io.BufferedReader):
    """The file of a zip archive, which may claim to have a list of any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise ValueError(f"a list of {size} bytes")
        return super().read(size)


class _Percent:
    """Turns bytes of the archive's file, read first for its hash and then for its members, into percent."""

    def __init__(self, num_bytes: int, progress: OnProgress | None) -> None:
        self.num_bytes = num_bytes
        self.progress = progress
        self.shown = 0

    def show(self, num_bytes: int) -> None:
        # Only `finish` says that all is done: a damaged archive may claim any sizes.
        percent = min(99, 100 * num_bytes // max(1, self.num_bytes))
        if percent > self.shown and self.progress is not None:
            self.shown = percent
            self.progress(percent, 100)

    def finish(self) -> None:
        if self.progress is not None:
            self.progress(100, 100)


def _fill(folder: Path, path: Path, percent: _Percent) -> None:
    safe = SafeFolder(folder, path)
    try:
        if is_zip(path):
            with _ZipSource(open_file(path).detach()) as source:
                _unpack_zip(source, safe, percent)
        else:
            _unpack_tar(path, safe, percent)
    except ArchiveReadError as error:
        raise damaged(path, error.__cause__) from error
    _check_content(folder, path)
    write_json(folder / _ABOUT, {"num_hidden": safe.num_hidden})


def _unpack_tar(path: Path, safe: SafeFolder, percent: _Percent) -> None:
    with TarReader.open(path) as tar:
        for info, content in tar.members():
            place = safe.place(info.name, is_folder=info.isdir())
            if place is None:
                continue
            if info.isdir():
                safe.make(place)
            elif content is None:
                raise safe.refusal(info.name, f"is {_KINDS.get(info.type, 'no ordinary file')}")
            else:
                safe.write(place, info.name, info.size, content)
            percent.show(percent.num_bytes // 2 + tar.position)


def _unpack_zip(source: _ZipSource, safe: SafeFolder, percent: _Percent) -> None:
    try:
        with reading():
            archive = zipfile.ZipFile(source)
    except NotImplementedError as error:
        raise damaged(safe.archive, error) from error
    with archive:
        # All names are looked at before anything is written.
        plan = _plan_zip(archive, safe)
        packed = percent.num_bytes // 2
        for info, name, place in plan:
            if _is_folder(info, name):
                safe.make(place)
                continue
            try:
                with reading():
                    content = archive.open(info)
            except NotImplementedError as error:
                raise safe.refusal(name, "is packed in a way that Python does not know") from error
            with content:
                safe.write(place, name, info.file_size, content)
            packed += info.compress_size
            percent.show(packed)


def _plan_zip(archive: zipfile.ZipFile, safe: SafeFolder) -> list[tuple[zipfile.ZipInfo, str, Path]]:
    plan = []
    declared = 0
    for info in archive.infolist():
        name = _zip_name(info)
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


def _zip_name(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _UTF8_FLAG:
        return info.orig_filename
    try:
        # macOS writes UTF-8 without saying so, which reads as code page 437.
        return info.orig_filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.orig_filename


def _is_folder(info: zipfile.ZipInfo, name: str) -> bool:
    return (
        name.endswith(("/", "\\"))
        or stat.S_ISDIR(info.external_attr >> 16)
        or bool(info.external_attr & _DOS_FOLDER and not info.file_size)
    )


def _check_content(folder: Path, path: Path) -> None:
    num_files, packed = 0, []
    for current, _, names in os.walk(folder):
        for name in names:
            if looks_like_image(Path(current) / name):
                return
            num_files += 1
            if is_packed_data(name):
                packed.append((Path(current) / name).relative_to(folder).as_posix())
    if packed:
        what = "a Parquet file" if min(packed).lower().endswith(".parquet") else "another archive"
        raise DataError(f"{path} holds no images but {what}, {min(packed)!r}; unpack it, and name what comes out")
    raise DataError(
        f"{path} holds no images ({counted(num_files, 'other file')}); DATA needs one folder of images per class, "
        f"such as cat/1.jpg"
    )
