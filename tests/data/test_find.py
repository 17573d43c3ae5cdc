"""DATA of any form becomes one list of labelled images; its content tells the form."""

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packing import CATS_AND_DOGS, images, tree, write_tar, write_zip

from carnet.data.description import describe
from carnet.data.find import find_images, form_of
from carnet.data.scan import scan_images
from carnet.errors import DataError


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def as_table(photos: Path, tmp: Path) -> Path:
    """Return a table like that of the published sports data, in another order, and not beside the images."""
    lines = ["class id,filepaths,labels,data set"]
    lines += [f"7,{path.as_posix()},{path.parts[-2]},{path.parts[-3]}" for path in photos.glob("*/*/*")]
    (tmp / "sports.csv").write_text("\n".join([lines[0], *sorted(lines[1:], reverse=True)]))
    return tmp / "sports.csv"


def as_table_beside(photos: Path, tmp: Path) -> Path:
    root = tree(tmp / "photos")
    for name, content in contents(photos).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    lines = [f"{name};{Path(name).parts[-2]};{Path(name).parts[-3]}" for name in sorted(contents(photos), reverse=True)]
    (root / "labels.csv").write_text("\n".join(["File Name;Category;Subset", *lines]))
    return root / "labels.csv"


def as_zip(photos: Path, tmp: Path) -> Path:
    return write_zip(tmp / "photos.zip", contents(photos))


def as_tar(photos: Path, tmp: Path) -> Path:
    return write_tar(tmp / "photos.tar.xz", {f"x/{k}": v for k, v in contents(photos).items()}, packed="xz")


@pytest.mark.parametrize("form", [as_table, as_table_beside, as_zip, as_tar])
def test_every_form_gives_what_the_folder_gives(
    form: Callable[[Path, Path], Path], photos: Path, tmp_path: Path
) -> None:
    folder, other = find_images(photos), find_images(form(photos, tmp_path))
    assert other.classes == folder.classes
    assert list(other.splits) == list(folder.splits)
    assert [s.label for s in other.samples] == [s.label for s in folder.samples]
    assert [s.path.read_bytes() for s in other.samples] == [s.path.read_bytes() for s in folder.samples]
    assert (other.num_hidden, other.num_other_files) == (0, 0)
    if form is not as_table:
        hashes = [scan_images(found, image_size=32).content_hash for found in (folder, other)]
        assert hashes[0] == hashes[1]


def test_one_sorted_class_list_for_all_splits(tmp_path: Path) -> None:
    names = ("train/b/1.jpg", "train/a/1.jpg", "train/c/1.jpg", "valid/c/9.jpg", "valid/b/2.jpg")
    found = find_images(tree(tmp_path, *names))
    assert found.classes == ("a", "b", "c")
    assert [(found.relative(s), s.label) for s in found.splits["valid"]] == [("valid/b/2.jpg", 1), ("valid/c/9.jpg", 2)]
    (warning,) = found.warnings
    assert "1 class" in warning
    assert warning.endswith(" a")


def test_empty_class_is_left_out_and_named(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "valid/a/1.jpg", "valid/b/1.jpg", "train/empty/")
    found = find_images(root)
    assert found.classes == ("a", "b")
    assert [warning.endswith(" empty") for warning in found.warnings] == [True]


def test_a_models_classes_give_the_labels(tmp_path: Path) -> None:
    root = tree(tmp_path, "valid/b/1.jpg")
    assert find_images(root, classes=("a", "b")).splits["valid"][0].label == 1
    with pytest.raises(DataError, match=r"valid .*'b' \(1 image\)"):
        find_images(root, classes=("a", "c"))


def test_two_tables_that_could_give_the_classes(tmp_path: Path) -> None:
    root = tree(tmp_path, "all/1.jpg", "all/2.jpg")
    for name in ("a.csv", "b.CSV"):
        (root / name).write_text("file,label\nall/1.jpg,x\nall/2.jpg,y\n")
    with pytest.raises(DataError, match=r"a\.csv, b\.CSV"):
        find_images(root)
    (root / "b.CSV").write_text("file\nall/3.jpg\n")
    assert find_images(root).classes == ("x", "y")


def test_what_is_ignored_is_counted_by_split(photos: Path) -> None:
    ignore = ("train/red/0.jpg", "train/red/1.jpg", "valid/red/8.jpg")
    found = find_images(photos, ignore=ignore)
    assert found.ignored == ignore
    assert {split: len(paths) for split, paths in found.left_out.items()} == {"train": 2, "valid": 1}
    assert found.counts("train") == {"blue": 8, "green": 8, "red": 6}
    lines = "\n".join(describe(scan_images(found, image_size=32)))
    assert "22 train, 11 valid" in lines
    assert "Ignored: 3 images" in lines


def test_an_archive_reports_its_progress_once(photos: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    for _ in range(2):
        find_images(as_zip(photos, tmp_path), progress=lambda done, total: told.append((done, total)))
    assert told.count((100, 100)) == 2
    assert told[-1] == (100, 100)


@pytest.mark.data
def test_real_data_in_every_form(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = find_images(shared_data("trashnet150"))
    for form in (as_table, as_zip, as_tar):
        other = find_images(form(folder.root, tmp_path))
        assert summary(other) == summary(folder)


def summary(found: Any) -> tuple[Any, ...]:
    names = [[(s.label, s.path.name) for s in samples] for samples in found.splits.values()]
    return found.classes, list(found.splits), names


def test_a_tilde_in_data_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree(tmp_path, "photos/a/1.jpg", "photos/b/1.jpg")))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    found = find_images("~/photos")
    assert (found.root, found.location) == (tmp_path / "photos", str(tmp_path / "photos"))


def test_archives_by_class_are_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": b"\xff\xd8\xff"}, packed="")
    with pytest.raises(DataError, match=r"cat\.tar, dog\.tar"):
        find_images(tmp_path)


def test_hidden_files_are_counted_in_folders_and_archives(tmp_path: Path) -> None:
    hidden = ("._x", "a/.DS_Store", ".git/1.jpg", ".git/2.jpg", "__MACOSX/a/._1.jpg")
    root = tree(tmp_path / "photos", "a/1.jpg", "b/1.jpg", *hidden)
    archive = write_zip(tmp_path / "photos.zip", {f"photos/{name}": data for name, data in contents(root).items()})
    assert find_images(archive).num_hidden == find_images(root).num_hidden == 4


def test_a_table_in_an_archive_is_called_by_the_archives_name(tmp_path: Path) -> None:
    rows = "file,class\n/home/ann/all/1.jpg,x\n/home/ann/all/2.jpg,y\n"
    images = {f"all/{number}.jpg": b"\xff\xd8\xff" + bytes(number) for number in (1, 2)}
    found = find_images(write_zip(tmp_path / "photos.zip", images | {"t.csv": rows.encode()}))
    (warning,) = found.warnings[1:]
    assert all(name in warning for name in ("2 paths", "/home/ann", str(tmp_path / "photos.zip")))


@pytest.mark.parametrize("packed", ["", "gz", "bz2", "xz"])
def test_archives_by_their_content(packed: str, tmp_path: Path) -> None:
    assert form_of(write_tar(tmp_path / "any.name", images(*CATS_AND_DOGS), packed=packed)) == "archive"
    assert form_of(write_zip(tmp_path / "other.name", images(*CATS_AND_DOGS))) == "archive"
    assert form_of(write_zip(tmp_path / "empty", {})) == "archive"


def test_any_other_file_is_a_table(tmp_path: Path) -> None:
    assert form_of(tmp_path) == "folder"
    for content in (b"", b"a,b", b"PKZIP", b"\xff\xfea\0"):
        (tmp_path / "file").write_bytes(content)
        assert form_of(tmp_path / "file") == "table"


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_one_packed_file_is_not_an_archive(pack, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.csv.gz").write_bytes(pack(b"path,label\n" * 99))
    with pytest.raises(DataError, match=r"a\.csv\.gz"):
        form_of(tmp_path / "a.csv.gz")


def test_a_webdataset_shard_is_a_data_set(tmp_path: Path) -> None:
    assert form_of(write_tar(tmp_path / "0.tar", images("0.jpg", "0.cls"), packed="")) == "dataset"


def test_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree(tmp_path, "photos/a.jpg"))
    for name, named in (
        ("photo", r"\bphoto\b.*\bphotos\b"),
        ("pets.zip", r"pets\.zip"),
        ("/nowhere/pets", "/nowhere/pets"),
    ):
        with pytest.raises(DataError, match=named):
            form_of(Path(name))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe"):
        form_of(tmp_path / "pipe")


def test_the_form_of_data_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree(tmp_path, "photos/a.jpg")))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert form_of(Path("~/photos")) == "folder"
