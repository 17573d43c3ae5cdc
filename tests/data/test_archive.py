import zipfile
from pathlib import Path

import pytest
from packing import CATS_AND_DOGS, IMAGE, images, write_tar, write_zip

from carnet.data import archive, tar
from carnet.data.archive import num_hidden, unpack
from carnet.data.cache import cache_root
from carnet.errors import DataError, OutputError


def unpacked(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("kind", ["zip", "", "gz", "bz2", "xz"])
def test_every_form_gives_the_same_files(kind: str, tmp_path: Path) -> None:
    contents = images("cat/1.jpg", "dog/é ü.jpg") | {"notes.txt": b"text", "empty.jpg": b""}
    more = {".hidden": b"x", "__MACOSX/cat/1.jpg": b"x", "cat/.DS_Store": b"x", ".git/config": b"x"}
    if kind == "zip":
        path = write_zip(tmp_path / "x", contents | more)
    else:
        path = write_tar(tmp_path / "x", contents | more, packed=kind)
    folder = unpack(path)
    assert unpacked(folder) == contents
    # As in a folder, where what lies in a hidden folder is not counted.
    assert num_hidden(folder) == 4
    (folder / ".archive.json").unlink()
    assert num_hidden(folder) == 0


def test_once_and_again_when_files_are_lost(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", images(*CATS_AND_DOGS))
    folder = unpack(path)
    assert folder.is_relative_to(cache_root() / "archives")
    (folder / "cat" / "1.jpg").write_bytes(IMAGE + b"cat/2.jpg")
    assert unpack(path.rename(tmp_path / "renamed")) == folder
    assert (folder / "cat" / "1.jpg").read_bytes() == IMAGE + b"cat/2.jpg"
    (folder / "cat" / "1.jpg").unlink()
    assert unpacked(unpack(tmp_path / "renamed")) == images(*CATS_AND_DOGS)


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    for path in (
        write_tar(tmp_path / "x", images(*CATS_AND_DOGS, "../x.jpg")),
        write_zip(tmp_path / "y", images(*CATS_AND_DOGS, "../x.jpg")),
    ):
        with pytest.raises(DataError, match="leads out"):
            unpack(path)
    assert not list(cache_root().rglob("*.jpg"))
    assert not list((cache_root() / "archives").iterdir())


def test_folders_stay_though_they_are_empty(tmp_path: Path) -> None:
    assert (unpack(write_zip(tmp_path / "x", {"cow/": b""} | images("cat/1.jpg"))) / "cow").is_dir()


def test_a_zip_that_says_less_than_it_holds(tmp_path: Path) -> None:
    """Neither the size nor the checksum in the header is believed."""
    path = write_zip(tmp_path / "x.zip", {"a.jpg": bytes(100_000)})
    content = path.read_bytes()
    path.write_bytes(content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match="is damaged or incomplete"):
        unpack(path)


def test_bombs_are_counted_while_they_unfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "SMALL_BYTES", 20_000)
    for name, content in (("a.jpg", bytes(5_000_000)), ("b.jpg", IMAGE + bytes(5_000_000))):
        with pytest.raises(DataError, match=rf"with '{name}' it unpacks to more than 0.[0-9] GB, far more than images"):
            unpack(write_tar(tmp_path / "x.tar.xz", images("1.jpg") | {name: content}, packed="xz"))
    many = {f"{number}.jpg": bytes(1000) for number in range(900)}
    with pytest.raises(DataError, match="it unpacks to more than"):
        unpack(write_tar(tmp_path / "x.tar.xz", many, packed="xz"))


def test_the_disk_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SPARE_BYTES", 2**62)
    with pytest.raises(DataError, match=r"can spare; free some space, or name another place in .* CARNET_CACHE"):
        unpack(write_zip(tmp_path / "x.zip", images("1.jpg")))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot write into the cache .*file.*; .* CARNET_CACHE"):
        unpack(write_zip(tmp_path / "x.zip", images("1.jpg")))


def test_other_ways_of_packing_a_zip(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
            archive.writestr("a.jpg", IMAGE)
        assert unpacked(unpack(tmp_path / "x.zip")) == {"a.jpg": IMAGE}
    path = write_zip(tmp_path / "y.zip", {"a.jpg": IMAGE})
    # Deflate64, which Windows uses for large archives.
    path.write_bytes(path.read_bytes().replace(b"\x08\x00\x00\x00\x21\x00", b"\x09\x00\x00\x00\x21\x00"))
    with pytest.raises(DataError, match=r"'a.jpg' is packed in a way that Python does not know; unpack it yourself"):
        unpack(path)
