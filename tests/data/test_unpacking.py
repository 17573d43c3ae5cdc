"""Archives come from anywhere: whatever they say, nothing is written outside the cache, and no error is a surprise."""

import contextlib
import io
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import CATS_AND_DOGS, IMAGE, images, write_tar, write_zip

from carnet.data import archive
from carnet.data.archive import SafeFolder, unpack
from carnet.errors import CarnetError, DataError

PIECES = (
    *("..", "../", "/..", ".", "/", "\\", "//", "a", "A", "a/", "b.jpg", "C:", "~", "...", ".. ", " "),
    *("\0", "é", "e\u0301", "con", ".h", "x" * 90),
)
NAMES = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(st.characters(min_codepoint=33), max_size=3)), max_size=8
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


@settings(max_examples=100, deadline=None)
@given(members=MEMBERS, as_zip=st.booleans())
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_name_leads_out_of_the_cache(members: list[tuple[str, bytes, str]], as_zip: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder).resolve() / "archive"
        (write_any_zip if as_zip else write_any_tar)(archive, [("good.jpg", tarfile.REGTYPE, ""), *members])
        try_to_unpack(archive.parent, archive)


@settings(max_examples=100, deadline=None)
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
    ("names", "message"),
    [
        (["a/b", "a"], "there is twice|is there twice"),
        (["a", "a/b"], "lies in what is also a file"),
        (["a.", "A"], "is there twice"),
        (["é", "e\u0301"], "is there twice"),
        (["straße/1", "STRASSE/2"], "some systems take for"),
        (["x" * 300], "too long"),
        (["x/" * 600 + "y"], "too long"),
        (["a\nb"], "control characters"),
        ([".hidden/../../x"], "leads out"),
        (["a/.. /x"], "leads out"),
        (["\\\\server\\x"], "absolute"),
        (["c:x"], "absolute"),
    ],
)
def test_names_that_are_refused(
    names: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "tells_capitals", lambda _: False)
    (tmp_path / "archive").touch()
    safe = SafeFolder(tmp_path, tmp_path / "archive")
    for name in names[:-1]:
        assert safe.place(name) is not None
    with pytest.raises(DataError, match=message) as caught:
        safe.place(names[-1])
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tells", [True, False])
def test_capitals_count_where_the_disk_tells_them(tells: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archive").touch()
    monkeypatch.setattr(archive, "tells_capitals", lambda _: tells)
    safe = SafeFolder(tmp_path, tmp_path / "archive")
    assert safe.place("cat/1.jpg") == tmp_path / "cat" / "1.jpg"
    with contextlib.nullcontext() if tells else pytest.raises(DataError, match=r"twice .*capitals do not count"):
        assert safe.place("cat/1.JPG") == tmp_path / "cat" / "1.JPG"
    with pytest.raises(DataError, match="is there twice"):
        safe.place("./cat/1.jpg")


def test_the_disk_is_asked_about_capitals(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert archive.tells_capitals(tmp_path) == (not (tmp_path / "A").exists())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "archive").touch()
    safe = SafeFolder(tmp_path, tmp_path / "archive")
    assert safe.place("./a//b\\c.jpg") == tmp_path / "a" / "b" / "c.jpg"
    assert safe.place("a/b/", is_folder=True) == tmp_path / "a" / "b"
    assert safe.place("a/.b/c.jpg") is None
    assert safe.place("./", is_folder=True) is None
    if os.name != "nt":
        assert safe.place("what?.jpg") == tmp_path / "what?.jpg"
