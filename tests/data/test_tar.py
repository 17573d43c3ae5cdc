import gzip
import io
import re
import tarfile
from pathlib import Path

import pytest
from packing import images, write_tar

from carnet.data.shards import MAX_HEADER, REGULAR, TarReader, is_packed, is_tar, reading
from carnet.errors import DataError

FILES = images("a/1.jpg", "b/2.jpg") | {"whole-block": bytes(1024), "empty": b""}


def read(path: Path) -> dict[str, bytes]:
    with TarReader.open(path) as tar, reading(path):
        return {info.name: tar.read(2**20) for info in tar.members() if info.type in REGULAR}


@pytest.mark.parametrize("packed", ["", "gz", "bz2", "xz"])
def test_every_packing(packed: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x", FILES, packed=packed)
    assert (is_tar(path), is_packed(path)) == (True, bool(packed))
    assert read(path) == FILES


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_with_long_names(form: int, tmp_path: Path) -> None:
    name = "/".join(["x" * 60] * 3)
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as archive:
        archive.addfile(tarfile.TarInfo(name))
    assert read(tmp_path / "x.tar") == {name: b""}


@pytest.mark.parametrize("packed", ["", "gz"])
def test_cut_anywhere_it_is_damaged(packed: str, tmp_path: Path) -> None:
    """Python's own reader takes some of these for a whole archive with fewer members."""
    whole = write_tar(tmp_path / "x", FILES, packed=packed).read_bytes()
    lengths = range(20, len(whole), 7) if packed else range(512, len(whole.rstrip(b"\0")), 128)
    for length in lengths:
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(DataError, match=re.escape(str(tmp_path / "x"))):
            read(tmp_path / "x")


def test_a_flipped_bit_in_compressed_data_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", compresslevel=0) as packed:
        packed.write(write_tar(tmp_path / "plain", FILES, packed="").read_bytes())
    content = bytearray(path.read_bytes())
    content[content.index(b"image") + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read(path)


def test_a_damaged_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x", FILES, packed="")
    content = bytearray(path.read_bytes())
    content[content.index(b"b/2.jpg")] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read(path)


def test_two_archives_joined_are_not_half_read(tmp_path: Path) -> None:
    one, two = (write_tar(tmp_path / name, images(name), packed="").read_bytes() for name in ("1.jpg", "2.jpg"))
    (tmp_path / "x").write_bytes(one + two)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "x"))):
        read(tmp_path / "x")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_header_does_not_fill_the_memory(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 100 * MAX_HEADER
    with gzip.open(tmp_path / "x", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(10**6))
    with pytest.raises(DataError, match=str(100 * MAX_HEADER)):
        read(tmp_path / "x")


def test_texts_are_no_archives(tmp_path: Path) -> None:
    for content in (b"", b"path,label\n" * 99, gzip.compress(b"path,label\n" * 99), b"\x1f\x8b"):
        (tmp_path / "x").write_bytes(content)
        assert not is_tar(tmp_path / "x")


def test_members_may_be_skipped_unread(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("a", "b", "c"):
            info = tarfile.TarInfo(name)
            info.size = 3_000_000
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    with TarReader.open(path) as tar:
        assert [info.name for info in tar.members()] == ["a", "b", "c"]
        assert tar.position == path.stat().st_size
