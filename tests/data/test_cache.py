"""Folders are made once and whole."""

import os
import time
from pathlib import Path

import pytest

from carnet.data.cache import cache_root, cached_folder, forget_unused
from carnet.data.decoded import Target
from carnet.errors import OutputError

HOUR = 3600


def fill(folder: Path) -> None:
    (folder / "inside").mkdir()
    (folder / "inside" / "a.txt").write_text("a")


def test_the_slower_of_two_leaves_what_the_faster_one_made() -> None:
    """It may be in use: the same files, and not others of the same content, are there afterwards."""

    def slowly(folder: Path) -> None:
        inodes.append((cached_folder("x", "key", fill) / "inside" / "a.txt").stat().st_ino)
        fill(folder)

    inodes: list[int] = []
    folder = cached_folder("x", "key", slowly)
    assert [(folder / "inside" / "a.txt").stat().st_ino] == inodes
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("manifest", [b"", b"{", b'{"num_files": 1}', b"\xff\xfe", None])
def test_a_damaged_manifest_makes_the_folder_anew(manifest: bytes | None) -> None:
    folder = cached_folder("x", "key", fill)
    (folder / "more.txt").write_text("left by a mistake")
    if manifest is None:
        (folder / ".carnet.json").unlink()
    else:
        (folder / ".carnet.json").write_bytes(manifest)
    assert cached_folder("x", "key", fill) == folder
    assert not (folder / "more.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_what_killed_processes_left_is_removed_after_a_day() -> None:
    folder = cached_folder("x", "key", fill)
    for name, age in ((".carnet-old", 30 * HOUR), (".carnet-new", 2 * HOUR), (".carnet-busy", 30 * HOUR)):
        scratch = folder.with_name(name)
        (scratch / "inside").mkdir(parents=True)
        for path in (scratch / "inside", scratch):
            os.utime(path, (time.time() - age,) * 2)
    # A file written into a folder inside changes that folder alone.
    (folder.with_name(".carnet-busy") / "inside" / "a.txt").touch()
    cached_folder("x", "key", fill)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".carnet-busy", ".carnet-new", "key"]


def test_what_the_user_keeps_beside_it_stays() -> None:
    """The environment may name a place that has been in use for other things."""
    folder = cached_folder("decoded", "key", fill)
    long_ago = time.time() - 90 * 24 * HOUR
    for name in (".Trash-1000", ".snapshot-2024", "frames"):
        (folder.with_name(name) / "inside").mkdir(parents=True)
        for path in (folder.with_name(name) / "inside", folder.with_name(name)):
            os.utime(path, (long_ago, long_ago))
    unused = cached_folder("decoded", "other", fill)
    os.utime(unused, (long_ago, long_ago))
    cached_folder("decoded", "key", fill)
    forget_unused("decoded", folder, days=30)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".Trash-1000", ".snapshot-2024", "frames", "key"]


def test_a_cache_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError, match=r"cannot write into the cache .*: Permission denied; .* CARNET_CACHE"):
        cached_folder("x", "key", fill)


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("CARNET_CACHE", "~/carnet")
    assert cache_root() == tmp_path / "carnet"
    monkeypatch.setenv("CARNET_CACHE", "~nobody-of-that-name/carnet")
    assert cache_root() == Path.cwd() / "~nobody-of-that-name" / "carnet"


FREE = 10**12
DEFAULT = Target(48)
