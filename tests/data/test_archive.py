"""Archives come from anywhere: whatever they hold, nothing is written outside the cache, and every error is ours."""

import contextlib
import io
import os
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import BOMB_BYTES, CATS_AND_DOGS, IMAGE, images, write_tar, write_zip

from carnet.data import archive
from carnet.data.archive import SafeFolder, num_hidden, unpack
from carnet.data.cache import cache_root
from carnet.data.shards import quoted_member
from carnet.errors import CarnetError, DataError, OutputError


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
        with pytest.raises(DataError, match=r"'\.\./x\.jpg'"):
            unpack(path)
    assert not list(cache_root().rglob("*.jpg"))
    assert not list((cache_root() / "archives").iterdir())


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python has no filter for tar archives")
def test_pythons_rules_hold_if_ours_are_wrong(tmp_path: Path) -> None:
    class Careless(archive.SafeFolder):
        def place(self, member: str, *, is_folder: bool = False) -> Path:
            return self.folder / member

    path, folder = write_tar(tmp_path / "x", images("cat/1.jpg", "cat/../../2.jpg")), tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match=r"'cat/\.\./\.\./2\.jpg'") as caught:
        archive.unpack_into(Careless(folder, path), lambda done: None)
    assert isinstance(caught.value.__cause__, tarfile.FilterError)
    assert [found.name for found in tmp_path.rglob("*.jpg")] == ["1.jpg"]


def test_folders_stay_though_they_are_empty(tmp_path: Path) -> None:
    assert (unpack(write_zip(tmp_path / "x", {"cow/": b""} | images("cat/1.jpg"))) / "cow").is_dir()


def test_a_zip_whose_header_understates_its_size(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.jpg": bytes(100_000)})
    content = path.read_bytes()
    path.write_bytes(content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match=re.escape(str(path))):
        unpack(path)


def test_zip_bombs_are_counted_while_they_are_decompressed(tmp_path: Path) -> None:
    for name, content in (("a.jpg", bytes(BOMB_BYTES)), ("b.jpg", IMAGE + bytes(BOMB_BYTES))):
        with pytest.raises(DataError, match=rf"'{name}' .* 0\.\d GB"):
            unpack(write_tar(tmp_path / "x.tar.gz", images("1.jpg") | {name: content}, packed="gz"))
    many = {f"{number}.jpg": bytes(BOMB_BYTES // 100) for number in range(101)}
    with pytest.raises(DataError, match=r"'\d+\.jpg' .* 0\.\d GB"):
        unpack(write_tar(tmp_path / "x.tar.gz", many, packed="gz"))


def test_the_disk_is_not_filled(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (write_zip(tmp_path / "x.zip", images("1.jpg")), write_tar(tmp_path / "x.tar", images("1.jpg"))):
        safe = SafeFolder(tmp_path / "folder", path, free_bytes=archive.SPARE_BYTES + len(IMAGE))
        with pytest.raises(DataError, match=r"1.jpg.* CARNET_CACHE"):
            archive.unpack_into(safe, lambda done: None)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"/file/archives.* CARNET_CACHE"):
        unpack(write_zip(tmp_path / "x.zip", images("1.jpg")))


def test_other_ways_of_packing_a_zip(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
            archive.writestr("a.jpg", IMAGE)
        assert unpacked(unpack(tmp_path / "x.zip")) == {"a.jpg": IMAGE}
    path = write_zip(tmp_path / "y.zip", {"a.jpg": IMAGE})
    # Deflate64, which Windows uses for large archives.
    path.write_bytes(path.read_bytes().replace(b"\x08\x00\x00\x00\x21\x00", b"\x09\x00\x00\x00\x21\x00"))
    with pytest.raises(DataError, match=r"'a\.jpg'"):
        unpack(path)


PARTS = (
    *("..", "../", "/..", ".", "/", "\\", "//", "a", "A", "a/", "b.jpg", "C:", "~", "...", ".. ", " "),
    *("\0", "é", "e\u0301", "con", ".h", "x" * 90),
)
NAMES = st.lists(
    st.one_of(st.sampled_from(PARTS), st.text(st.characters(min_codepoint=33), max_size=3)), max_size=8
).map("".join)
KINDS = st.sampled_from((*[tarfile.REGTYPE] * 6, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE))
MEMBERS = st.lists(st.tuples(NAMES, KINDS, NAMES), max_size=6)


def try_to_unpack(sandbox: Path, archive: Path) -> None:
    """Unpack in a folder several levels deep, and look whether anything came to lie beside the cache."""
    here = sandbox / "a" / "b" / "c"
    here.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARNET_CACHE", str(here / "cache"))
        patch.chdir(here)
        # Any other error is a failure.
        with contextlib.suppress(CarnetError):
            unpack(archive)
    outside = [path for path in sandbox.rglob("*") if path.is_file() and (here / "cache") not in path.parents]
    assert outside == [archive]
    assert not [path for path in sandbox.rglob("*") if path.is_symlink()]


def write_any_tar(path: Path, members: list[tuple[str, bytes, str]]) -> None:
    with tarfile.open(path, "w", errors="surrogatepass") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = len(IMAGE) if kind == tarfile.REGTYPE else 0
            with contextlib.suppress(ValueError):
                tar.addfile(info, io.BytesIO(IMAGE))


def write_any_zip(path: Path, members: list[tuple[str, bytes, str]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, kind, target in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 3
            if kind == tarfile.SYMTYPE:
                info.external_attr = 0o120777 << 16
            with contextlib.suppress(ValueError):
                archive.writestr(info, IMAGE if kind == tarfile.REGTYPE else target.encode("utf-8", "replace"))


@settings(max_examples=100)
@given(members=MEMBERS, as_zip=st.booleans())
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_name_leads_out_of_the_cache(members: list[tuple[str, bytes, str]], as_zip: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder).resolve() / "archive"
        (write_any_zip if as_zip else write_any_tar)(archive, [("good.jpg", tarfile.REGTYPE, ""), *members])
        try_to_unpack(archive.parent, archive)


@settings(max_examples=100)
@given(
    kind=st.sampled_from(("zip", "", "gz", "bz2", "xz")),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_anywhere_it_is_read_or_refused(kind: str, changes: list[tuple[float, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder).resolve() / "archive"
        if kind == "zip":
            write_zip(archive, images(*CATS_AND_DOGS))
        else:
            write_tar(archive, images(*CATS_AND_DOGS), packed=kind)
        content = bytearray(archive.read_bytes())
        for place, value in changes:
            content[int(place * len(content))] = value
        archive.write_bytes(content)
        try_to_unpack(archive.parent, archive)


@pytest.mark.parametrize(
    "names",
    [
        ["a/b", "a"],
        ["a", "a/b"],
        ["a.", "A"],
        ["é", "e\u0301"],
        ["straße/1", "STRASSE/2"],
        ["x" * 300],
        ["x/" * 600 + "y"],
        ["a\nb"],
        [".hidden/../../x"],
        ["a/.. /x"],
        ["\\\\server\\x"],
        ["c:x"],
    ],
)
def test_names_that_are_refused(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "archive").touch()
    safe = SafeFolder(tmp_path, tmp_path / "archive", capitals_count=False)
    for name in names[:-1]:
        assert safe.place(name) is not None
    with pytest.raises(DataError, match=re.escape(quoted_member(names[-1]))) as caught:
        safe.place(names[-1])
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tells", [True, False])
def test_capitals_count_where_the_disk_tells_them(tells: bool, tmp_path: Path) -> None:
    (tmp_path / "archive").touch()
    safe = SafeFolder(tmp_path, tmp_path / "archive", capitals_count=tells)
    assert safe.place("cat/1.jpg") == tmp_path / "cat" / "1.jpg"
    with contextlib.nullcontext() if tells else pytest.raises(DataError, match=r"'cat/1\.JPG'"):
        assert safe.place("cat/1.JPG") == tmp_path / "cat" / "1.JPG"
    with pytest.raises(DataError, match=r"'\./cat/1\.jpg'"):
        safe.place("./cat/1.jpg")


def test_the_disk_is_asked_about_capitals(tmp_path: Path) -> None:
    (tmp_path / "archive").touch()
    safe = SafeFolder(tmp_path, tmp_path / "archive")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
    assert safe.place("cat/1.jpg") is not None
    with pytest.raises(DataError) if (tmp_path / "ARCHIVE").exists() else contextlib.nullcontext():
        assert safe.place("cat/1.JPG") is not None


def test_names_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "archive").touch()
    safe = SafeFolder(tmp_path, tmp_path / "archive")
    assert safe.place("./a//b\\c.jpg") == tmp_path / "a" / "b" / "c.jpg"
    assert safe.place("a/b/", is_folder=True) == tmp_path / "a" / "b"
    assert safe.place("a/.b/c.jpg") is None
    assert safe.place("./", is_folder=True) is None
    if os.name != "nt":
        assert safe.place("what?.jpg") == tmp_path / "what?.jpg"
