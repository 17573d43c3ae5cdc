"""Check out another commit, for scripts that compare two versions of the code."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def worktree(commit: str, repository: Path = ROOT) -> Iterator[Path]:
    """Check out a commit into a temporary folder, which is removed at the end, also after an error.

    Args:
        commit: a name of the commit, such as `HEAD~1`.
        repository: any work tree of the repository.

    Raises:
        SystemExit: if git does not know the commit.
    """
    with tempfile.TemporaryDirectory(prefix="carnet-worktree-") as folder:
        tree = Path(folder).resolve() / "tree"
        git(repository, "worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git(repository, "worktree", "remove", "--force", str(tree))


def commit_name(commit: str, repository: Path = ROOT) -> str:
    """Return the short hash of a commit, because a name such as `HEAD~1` soon means another one.

    Raises:
        SystemExit: if git does not know the commit.
    """
    return git(repository, "rev-parse", "--short", f"{commit}^{{commit}}").strip()


def git(repository: Path, *arguments: str) -> str:
    """Run git, and return what it printed.

    Raises:
        SystemExit: with git's message, if it fails.
    """
    command = ["git", "-C", str(repository), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def environment_of(tree: Path, cache: Path) -> Mapping[str, str]:
    """Return an environment in which Python imports the `carnet` of a tree, with its own cache.

    Args:
        tree: the root of a work tree.
        cache: folder of the cache.
    """
    return os.environ | {"PYTHONPATH": str(tree), "CARNET_CACHE": str(cache), "COLUMNS": "200"}
