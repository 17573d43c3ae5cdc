"""Where the file lies that a table names: paths of this machine, of another one, and with Windows' backslashes."""

from __future__ import annotations

import posixpath
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from carnet.data.folder import visible
from carnet.progress import counted


class Locator:
    """Finds files by the names a table gives them.

    Relative names count from the table's folder, and where nothing is there, from the one folder beside the table.
    Absolute names that do not exist are names of another machine: what they end with is looked for below the folder.

    Attributes:
        root: the table's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._roots = {root.absolute(), root.resolve()}
        folders = [path for path in visible(root) if path.is_dir()]
        self._beside = folders[0] if len(folders) == 1 else None
        self._num_beside = 0
        self._foreign: dict[str, int] = {}

    def find(self, name: str) -> Path | None:
        """The file or folder of that name; None if there is none."""
        absolute = PureWindowsPath(name).is_absolute() or name.startswith(("/", "\\"))
        name = posixpath.normpath(name.replace("\\", "/"))
        if absolute:
            path = self._below_root(Path(name))
            return path if kind_of(path) else self._find_foreign(name)
        if kind_of(self.root / name):
            return self.root / name
        if self._beside is not None and kind_of(self._beside / name):
            self._num_beside += 1
            return self._beside / name
        return None

    def warnings(self) -> list[str]:
        """What was done to find the files, for the user to judge."""
        warnings = [
            f"{counted(number, 'path')} of another machine, below {prefix}, found below {self.root}"
            for prefix, number in self._foreign.items()
        ]
        if self._beside is not None and self._num_beside:
            warnings.append(f"{counted(self._num_beside, 'path')} found in {self._beside.name}, beside the table")
        return warnings

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
            if kind_of(path) == "file":
                self._foreign[prefix] = self._foreign.get(prefix, 0) + 1
                return path
        return None


def kind_of(path: Path) -> str:
    """file or folder; nothing ("") where there is neither, or the name is none this system could have."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    return "folder" if stat.S_ISDIR(mode) else "file"
