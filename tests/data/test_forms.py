import bz2
import gzip
import lzma
import os
from pathlib import Path

import pytest
from packing import CATS_AND_DOGS, images, tree, write_tar, write_zip

from carnet.data.find import form_of
from carnet.errors import DataError


@pytest.mark.parametrize("packed", ["", "gz", "bz2", "xz"])
def test_archives_by_their_content(packed: str, tmp_path: Path) -> None:
    assert form_of(write_tar(tmp_path / "any.name", images(*CATS_AND_DOGS), packed=packed)) == "archive"
    assert form_of(write_zip(tmp_path / "other.name", images(*CATS_AND_DOGS))) == "archive"
    assert form_of(write_zip(tmp_path / "empty", {})) == "archive"


def test_what_is_neither_is_a_table(tmp_path: Path) -> None:
    assert form_of(tmp_path) == "folder"
    for content in (b"", b"a,b", b"PKZIP", b"\xff\xfea\0"):
        (tmp_path / "file").write_bytes(content)
        assert form_of(tmp_path / "file") == "table"


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_one_packed_file_is_no_archive(pack, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.csv.gz").write_bytes(pack(b"path,label\n" * 99))
    with pytest.raises(DataError, match="is packed, but is no tar archive"):
        form_of(tmp_path / "a.csv.gz")


def test_a_shard_says_what_to_do(tmp_path: Path) -> None:
    assert form_of(write_tar(tmp_path / "0.tar", images("0.jpg", "0.cls"), packed="")) == "dataset"


def test_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree(tmp_path, "photos/a.jpg"))
    for name, message in (
        ("photo", "no folder photo; did you mean photos?"),
        ("pets.zip", "no file pets.zip; DATA is looked for in the current folder"),
        ("/nowhere/pets", "no folder /nowhere/pets"),
    ):
        with pytest.raises(DataError) as caught:
            form_of(Path(name))
        assert str(caught.value) == message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is no ordinary file"):
        form_of(tmp_path / "pipe")


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree(tmp_path, "photos/a.jpg")))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert form_of(Path("~/photos")) == "folder"
