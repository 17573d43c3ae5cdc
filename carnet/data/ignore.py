"""Leave images out by a list of their paths, one on each line.

A path counts from the data's folder, as the column `filepath` of a run's `data.csv` has it, or from the current folder,
or is absolute. Empty lines and lines that begin with # say nothing.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from carnet.errors import DataError
from carnet.inputs import open_text
from carnet.progress import counted, first_few


def read_ignore_file(path: Path | str) -> tuple[str, ...]:
    """The paths that a list names, as they are written.

    Args:
        path: a text file in UTF-8.

    Raises:
        DataError: if there is no such file, or it is no such text, or larger than `carnet.inputs.MAX_TABLE_BYTES`.
    """
    path = Path(path)
    lines: list[str] = []
    try:
        with open_text(path) as file:
            # A line at a time: a list may be large, and one of empty lines would take many times its size.
            for line in file:
                if "\0" in line:
                    raise DataError(f"{path} is no text; an ignore list is a text with one path on each line")
                if (line := line.strip()) and not line.startswith("#"):
                    lines.append(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8; an ignore list is a text with one path on each line") from error
    except OSError as error:
        raise DataError(f"cannot read the ignore list {path}: {error.strerror or error}") from error
    return tuple(lines)


def named_images(images: Iterable[Path], lines: Sequence[str], roots: Iterable[Path]) -> tuple[set[Path], list[str]]:
    """Which images some lines name.

    Args:
        images: among which to look.
        lines: as `read_ignore_file` gives them.
        roots: folders that relative lines count from, the first one that fits; the current folder is the last.

    Returns:
        (the images that are named, the lines that name none).
    """
    if not lines:
        return set(), []
    known: dict[str, list[Path]] = {}
    for image in images:
        known.setdefault(_key(image), []).append(image)
    places = [(root, root.resolve()) for root in (*roots, Path.cwd())]
    named: set[Path] = set()
    strange = []
    for line in lines:
        found = next((known[key] for key in _keys(line, places) if key in known), None)
        if found is None:
            strange.append(line)
        else:
            named.update(found)
    return named, strange


def about_strange(strange: Sequence[str]) -> str:
    """What to say of lines that name no image."""
    lines = first_few([repr(line[:200]) for line in strange])
    return f"{counted(len(strange), 'line')} of the ignore list name{'s' * (len(strange) == 1)} no image here: {lines}"


def _keys(line: str, places: Sequence[tuple[Path, Path]]) -> Iterable[str]:
    """What the image could be called, the likeliest first."""
    for text in dict.fromkeys((line, line.replace("\\", "/"))):
        for root, resolved in places:
            yield _key(root / text)
            # The data may have been named by way of a link.
            if Path(text).is_relative_to(resolved):
                yield _key(root / Path(text).relative_to(resolved))


def _key(path: Path) -> str:
    """Equal for two ways of writing one path."""
    return unicodedata.normalize("NFC", os.path.normcase(os.path.normpath(Path.cwd() / path)))
