"""Folders, tables, archives and ignore lists that tests make for themselves. Their images only begin like images."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

IMAGE = b"\xff\xd8\xff image"
CATS_AND_DOGS = ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg")

Contents = Mapping[str, bytes]
Make = Callable[[Path], tuple[Path, Path | None]]
"""Makes data in an empty folder; gives (DATA, the ignore list)."""


def images(*names: str) -> dict[str, bytes]:
    """An image under each name, each with other bytes."""
    return {name: IMAGE + name.encode() for name in names}


def tree(root: Path, *names: str) -> Path:
    """A folder with an image under each name; one that ends with / is a folder, with .txt a text."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in images(*names).items():
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content if not name.endswith(".txt") else b"text")
    return root


def write_zip(path: Path, contents: Contents) -> Path:
    """A zip archive; a name that ends with / is a folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=zipfile.ZIP_DEFLATED)
    return path


BOMB_BYTES = 280 * 2**20
"""More than a small archive may unpack to, whatever its size; zeros of that many are packed in a second."""


def write_tar(path: Path, contents: Contents, *, packed: str = "gz", others: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """A tar archive of files, and then of `others`, which hold nothing; `packed`: gz, bz2, xz or nothing."""
    with tarfile.open(path, f"w:{packed}") as archive:  # type: ignore[call-overload]
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A link, or another member without bytes, for a tar archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def add_link(path: Path) -> None:
    """Add a symbolic link to a zip archive, as Unix writes it."""
    info = zipfile.ZipInfo("link.jpg")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")


def encrypt(path: Path) -> None:
    """Say of every member of a zip archive that it is encrypted."""
    content = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(magic)
        while at >= 0:
            content[at + place] |= 1
            at = content.find(magic, at + 4)
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Lose the end of a file."""
    path.write_bytes(path.read_bytes()[:-40])


def a_folder(*names: str, data: str = "photos") -> Make:
    """The folder photos; `data` is what is named."""

    def make(tmp: Path) -> tuple[Path, None]:
        tree(tmp / "photos", *names)
        return tmp / data, None

    return make


def a_table(
    *lines: str, name: str = "labels.csv", encoding: str = "utf-8", of: tuple[str, ...] = CATS_AND_DOGS
) -> Make:
    """A table beside the images `of`; {root} in a line is their folder."""

    def make(tmp: Path) -> tuple[Path, None]:
        path = tree(tmp / "photos", *of) / name
        path.write_bytes("\n".join(lines).replace("{root}", path.parent.as_posix()).encode(encoding))
        return path, None

    return make


def a_folder_with_a_table(*lines: str, of: tuple[str, ...], encoding: str = "utf-8") -> Make:
    """The same, but the folder is named."""
    make = a_table(*lines, of=of, encoding=encoding)
    return lambda tmp: (make(tmp)[0].parent, None)


def a_zip(*names: str, name: str = "photos.zip", then: Callable[[Path], None] | None = None, **texts: str) -> Make:
    """A zip archive of images and of texts (`labels="…"` is labels.csv), and what was done to it `then`."""

    def make(tmp: Path) -> tuple[Path, None]:
        path = tmp / name
        write_zip(path, images(*names) | {f"{stem}.csv": text.encode() for stem, text in texts.items()})
        if then is not None:
            then(path)
        return path, None

    return make


def a_zip_that_names(row: str) -> Make:
    """A zip archive of two images, its table with one row more; {elsewhere} in it is an image outside the archive."""

    def make(tmp: Path) -> tuple[Path, None]:
        elsewhere = tree(tmp / "secret", "9.jpg") / "9.jpg"
        text = "\n".join(("file,class", "1.jpg,x", "2.jpg,y", row.replace("{elsewhere}", str(elsewhere))))
        return a_zip("all/1.jpg", "all/2.jpg", labels=text)(tmp)

    return make


def a_tar(
    *names: str,
    name: str = "photos.tar.gz",
    packed: str = "gz",
    others: tuple[tarfile.TarInfo, ...] = (),
    then: Callable[[Path], None] | None = None,
) -> Make:
    """A tar archive of images and others, and what was done to it `then`."""

    def make(tmp: Path) -> tuple[Path, None]:
        path = write_tar(tmp / name, images(*names), packed=packed, others=others)
        if then is not None:
            then(path)
        return path, None

    return make


def a_file(name: str, content: bytes) -> Make:
    """One file."""

    def make(tmp: Path) -> tuple[Path, None]:
        (tmp / name).write_bytes(content)
        return tmp / name, None

    return make


def a_list(
    *lines: str, encoding: str = "utf-8", name: str = "ignore.txt", of: tuple[str, ...] = (*CATS_AND_DOGS, "dog/2.jpg")
) -> Make:
    """The folder photos, and an ignore list, which has `name` when it is looked for; {root} in a line is the folder."""

    def make(tmp: Path) -> tuple[Path, Path]:
        root = tree(tmp / "photos", *of)
        (tmp / "ignore.txt").write_bytes("\n".join(lines).replace("{root}", str(root)).encode(encoding))
        os.chdir(tmp)
        return root, tmp / name

    return make
