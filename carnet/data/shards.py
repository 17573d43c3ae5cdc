"""Shards of a WebDataset: tars in which `key.jpg` stands beside its label in `key.cls`, `.json` or `.txt`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from carnet.data.damage import READ_ERRORS
from carnet.data.tar import TarReader
from carnet.errors import DataError
from carnet.preprocess import EXTENSIONS

LABEL_MEMBERS = ("cls", "json", "txt")
"""What holds the label, the surest first."""
_FIRST_MEMBERS = 64
"""So many show whether labels stand beside the images."""


def is_webdataset(path: Path, pattern: str) -> bool:
    """Whether the first files of a tar are samples: an image and its label under one key.

    Args:
        path: the tar; where it is damaged, what stands before the damage counts.
        pattern: what names it as shards, whatever is inside.

    Raises:
        DataError: if its folders could be the classes just as well, as in `cat/1.jpg` beside `cat/1.txt`.
    """
    kinds = _beside_images(path)
    if not kinds or "cls" in kinds:
        return bool(kinds)
    if len(folders := _image_folders(path)) > 1:
        raise DataError(
            f"{path} has images in several folders ({', '.join(map(repr, folders))}) and .{kinds[0]} files beside "
            f"them, and either could be the classes; for the folders unpack it and name the folder, for the files "
            f"write {pattern}"
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


def _beside_images(path: Path) -> list[str]:
    """Which label members stand beside images, the surest first."""
    found: dict[str, set[str]] = {}
    for folder, key, extension in islice(_names(path), _FIRST_MEMBERS):
        found.setdefault(f"{folder}/{key}", set()).add(extension)
    samples = [
        extensions for extensions in found.values() if {f".{extension}" for extension in extensions} & EXTENSIONS
    ]
    return [kind for kind in LABEL_MEMBERS if any(kind in kinds for kinds in samples)]


def _image_folders(path: Path) -> list[str]:
    """The first two folders that hold images; a tar that is sorted has to be read for the second."""
    with_images = (folder for folder, _, extension in _names(path) if f".{extension}" in EXTENSIONS)
    folders: list[str] = []
    for folder in with_images:
        if folder not in folders:
            folders.append(folder)
        if len(folders) == 2:
            break
    return folders


def _names(path: Path) -> Iterator[tuple[str, str, str]]:
    """Folder, key and extensions of each file, as far as the tar can be read."""
    with suppress(DataError, *READ_ERRORS), TarReader.open(path) as tar:
        for info, content in tar.members():
            if content is not None:
                folder, _, name = info.name.rpartition("/")
                key, _, extensions = name.lower().partition(".")
                yield folder, key, extensions
