"""Where the file lies that a table names: paths of this machine, of another one, and with Windows' backslashes."""

from __future__ import annotations

import posixpath
import re
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from carnet.data.folder import visible
from carnet.errors import DataError
from carnet.preprocess import EXTENSIONS
from carnet.text import counted, first_few


class Locator:
    """Finds files by the names a table gives them, with or without an image's extension.

    Relative names count from the table's folder. Where nothing is there, they are looked for in the folders beside the
    table (of these, where there are such, in those called like it), beside the file that the table is a link to, and
    in the current folder. Absolute names that do not exist are names of another machine: what they end with is looked
    for below the table's folder.

    Attributes:
        root: the table's folder.
    """

    def __init__(self, table: Path, shown: Path | None = None, *, inside: bool = False) -> None:
        """Get ready for one table.

        Args:
            table: its path; the file need not exist.
            shown: what messages call it.
            inside: it comes from an archive, and may name nothing outside its folder.
        """
        self.root = table.parent
        self._shown = shown or table
        self._inside = inside
        self._roots = {self.root.absolute(), self.root.resolve()}
        folders = [path for path in visible(self.root) if path.is_dir()]
        self._beside = [path for path in folders if _is_called_like(path.name, table.stem)] or folders
        elsewhere = () if inside else (table.resolve().parent, Path.cwd())
        self._elsewhere = [folder for folder in elsewhere if folder not in self._roots]
        self._stems: dict[Path, dict[str, list[str]]] = {}
        self._found_in: Counter[Path] = Counter()
        self._foreign: Counter[str] = Counter()
        self._by_name_alone = False

    def find(self, name: str) -> Path | None:
        """The file or folder of that name; None if there is none.

        Raises:
            DataError: if there are two, and nothing says which one is meant.
        """
        plain, path = self._absolute(name)
        if path is None:
            return self._find_relative(plain)
        return path if self._is_there(path) else self._find_foreign(plain)

    def foreign(self, name: str) -> str:
        """A name of another machine, in one way of writing; nothing ("") for any other name."""
        plain, path = self._absolute(name)
        return plain if path is not None and not self._is_there(path) else ""

    def check(self) -> None:
        """To be called when all names have been looked for.

        Raises:
            DataError: if files of several folders of another machine were found by their bare names.
        """
        if self._by_name_alone and len(self._foreign) > 1:
            raise DataError(
                f"{self._shown} has paths of another machine, below {first_few(list(self._foreign))}, of which only "
                f"the last part is found here; bring their folders as well, or mend the paths"
            )

    def warnings(self) -> list[str]:
        """What was done to find the files, for the user to judge."""
        warnings = [
            f"{counted(number, 'path')} of another machine, below {prefix}, found below {self._shown.parent}"
            for prefix, number in self._foreign.items()
        ]
        for folder, number in self._found_in.items():
            where = f"in {folder.name}, beside the table" if folder in self._beside else f"by counting from {folder}"
            warnings.append(f"{counted(number, 'path')} found {where}")
        return warnings

    def _absolute(self, name: str) -> tuple[str, Path | None]:
        """The name in one way of writing, and its path where it is absolute."""
        absolute = PureWindowsPath(name).is_absolute() or name.startswith(("/", "\\"))
        name = posixpath.normpath(name.replace("\\", "/"))
        return name, self._below_root(Path(name)) if absolute else None

    def _find_relative(self, name: str) -> Path | None:
        if here := self._at(self.root, name):
            return here
        found = [(folder, path) for folder in self._beside if (path := self._at(folder, name))]
        if len(found) > 1:
            folders = " and ".join(folder.name for folder, _ in found[:2])
            raise DataError(f"{self._shown}: {name} lies in {folders}; write the folder into the path")
        found = found or [(folder, path) for folder in self._elsewhere if (path := self._at(folder, name))]
        if not found:
            return None
        folder, path = found[0]
        self._found_in[folder] += 1
        return self._below_root(path)

    def _at(self, folder: Path, name: str) -> Path | None:
        """The file of that name in a folder, or of that name and an image's extension."""
        path = folder / name
        if self._is_there(path):
            return path
        if path.suffix.lower() in EXTENSIONS or not path.name:
            return None
        names = self._images_by_stem(path.parent).get(path.name, [])
        if len(names) > 1:
            raise DataError(f"{self._shown}: {name} could be {' or '.join(names[:2])}; write the extension as well")
        return path.with_name(names[0]) if names and self._is_there(path.with_name(names[0])) else None

    def _images_by_stem(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._stems:
            stems = self._stems[folder] = {}
            with suppress(OSError, ValueError):
                for path in sorted(folder.iterdir()):
                    if path.suffix.lower() in EXTENSIONS:
                        stems.setdefault(path.stem, []).append(path.name)
        return self._stems[folder]

    def _is_there(self, path: Path) -> bool:
        return bool(kind_of(path)) and (not self._inside or path.resolve().is_relative_to(self.root.resolve()))

    def _below_root(self, path: Path) -> Path:
        """The same path, written as if it had been relative where it lies below the root."""
        for root in self._roots:
            if path.is_relative_to(root):
                return self.root / path.relative_to(root)
        return path

    def _find_foreign(self, name: str) -> Path | None:
        parts = PurePosixPath(name).parts
        prefixes = ["/".join(parts[:length]).replace("//", "/") for length in range(1, len(parts))]
        # What was found for one path is tried first for the next, so that all are taken from one place if they can be.
        for prefix in sorted(prefixes, key=lambda prefix: prefix not in self._foreign):
            path = self.root / name.removeprefix(prefix).lstrip("/")
            if kind_of(path) == "file" and self._is_there(path):
                self._foreign[prefix] += 1
                self._by_name_alone |= path.parent == self.root
                return path
        return None


def kind_of(path: Path) -> str:
    """file or folder; nothing ("") where there is neither, or the name is none this system could have."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    return "folder" if stat.S_ISDIR(mode) else "file"


def _is_called_like(folder: str, table: str) -> bool:
    """Whether a folder has a table's name, perhaps with a word added: train.csv, train or train_images."""
    return bool(re.match(rf"{re.escape(table)}(?![^\W_])", folder, re.IGNORECASE))
