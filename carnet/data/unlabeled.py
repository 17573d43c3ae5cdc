"""Images without labels: all that a folder holds, in the folders inside it as well."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from carnet.data.folder import images_in
from carnet.data.samples import Listing, expanded, identity, named_images
from carnet.errors import DataError


@dataclass(frozen=True)
class UnlabeledImages:
    """Images without labels: all that a folder holds, in the folders inside it as well.

    Attributes:
        root: the folder.
        paths: the images.
        ignored: images that the ignore list names, by their paths inside the folder.
        lines: of the ignore list that name them.
        num_hidden: how many hidden files and folders were skipped.
        num_other_files: how many files are not images.
        warnings: what the user should know.
    """

    root: Path
    paths: tuple[Path, ...]
    ignored: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    num_hidden: int = 0
    num_other_files: int = 0
    warnings: tuple[str, ...] = ()

    def without(self, paths: Iterable[Path]) -> UnlabeledImages:
        """Return the images, but ignore those that are among some others."""
        others = {identity(path) for path in paths}
        named = {path for path in self.paths if identity(path) in others} if others else set()
        ignored = (*self.ignored, *(path.relative_to(self.root).as_posix() for path in self.paths if path in named))
        return replace(self, paths=tuple(path for path in self.paths if path not in named), ignored=ignored)


def find_unlabeled(folder: Path | str, ignore: Sequence[str] = ()) -> UnlabeledImages:
    """List the images in a folder, whatever folders inside it they are in.

    Args:
        folder: the folder.
        ignore: lines of an ignore list; those that name its images are absolute, or from the current folder.

    Raises:
        DataError: if it is no folder, cannot be opened, or holds no images.
    """
    root = expanded(folder)
    if not root.is_dir():
        raise DataError(f"--unlabeled {folder} is not a folder; name one that holds images")
    listing = Listing(root, {})
    paths = images_in(root, listing)
    # Relative lines count from the current folder alone. A line, or the folder, may be written by way of a link.
    given = [Path.cwd() / line for line in ignore]
    real = [_without_links(path) for path in given]
    named, unmatched = named_images(paths, [str(path) for path in (*given, *real)], (root,))
    nobody = set(unmatched)
    lines = [line for line, *ways in zip(ignore, given, real, strict=True) if not nobody.issuperset(map(str, ways))]
    if not (kept := tuple(path for path in paths if path not in named)):
        raise DataError(f"--unlabeled {folder} holds no images; name a folder that holds some, or leave it out")
    ignored = tuple(path.relative_to(root).as_posix() for path in paths if path in named)
    return UnlabeledImages(
        root,
        kept,
        ignored,
        tuple(lines),
        listing.num_hidden,
        listing.num_other_files,
        tuple(listing.warnings),
    )


def _without_links(path: Path) -> Path:
    """Return the path in a folder that is written without links; the file itself may be one."""
    with suppress(OSError, ValueError):
        return Path(os.path.realpath(path.parent)) / path.name
    return path
