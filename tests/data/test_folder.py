"""Images in folders: splits, classes, links, hidden files and the order."""

import os
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from packing import tree
from pictures import save_picture

from carnet.data.find import find_images
from carnet.data.folder import images_in
from carnet.errors import DataError


@pytest.mark.parametrize("name", ["valid", "val", "validation", "Val"])
def test_names_of_the_validation_split(name: str, tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{name}/a/1.jpg", f"{name}/b/1.jpg", "test/a/1.jpg")
    assert {k: len(v) for k, v in find_images(root).splits.items()} == {"train": 2, "test": 1, "valid": 2}


def test_flat_folder_with_classes_that_sound_like_splits(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "train/1.jpg", "bus/1.jpg", "car/1.jpg"))
    assert (found.is_flat, found.classes) == (True, ("bus", "car", "train"))


def test_skipped_files_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.jpg", "b/deep/er/2.JPG", "b/.hidden.jpg", ".git/x.jpg", "a/Thumbs.db", "1.jpg")
    (root / "a/notes.txt").write_text("text")
    (root / "a/no_extension").write_bytes(b"\xff\xd8\xff image")
    found = find_images(root)
    assert [found.relative(s) for s in found.splits["all"]] == ["a/1.jpg", "a/no_extension", "b/deep/er/2.JPG"]
    assert (found.num_hidden, found.num_other_files) == (3, 2)
    assert "1 image" in found.warnings[0]


def test_accents_encoded_in_two_ways_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    found = find_images(tree(tmp_path, f"train/{decomposed}/1.jpg", "train/tea/1.jpg", f"valid/{composed}/2.jpg"))
    assert found.classes == (composed, "tea")
    assert found.splits["valid"][0].label == 0


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "a/1.jpg", "b/1.jpg")
    (root / "a" / "loop").symlink_to(root / "a", target_is_directory=True)
    tree(tmp_path / "elsewhere", "3.jpg")
    (root / "b" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(find_images(root).samples) == 3


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="root may open any folder")
def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.jpg", "a/closed/2.jpg", "b/1.jpg")
    (root / "a" / "closed").chmod(0)
    with pytest.raises(DataError, match="closed"):
        find_images(root)


@pytest.mark.parametrize(
    ("names", "root", "splits"),
    [
        (["x/a/1.jpg", "x/b/1.jpg"], "x", {"all"}),
        (["x/y/a/1.jpg", "x/y/b/1.jpg", "x/licence.txt", ".git/1.jpg"], "x/y", {"all"}),
        (["x/train/a/1.jpg", "x/train/b/1.jpg", "x/valid/a/1.jpg"], "x", {"train", "valid"}),
        (["train/a/1.jpg", "train/b/1.jpg"], "", {"train"}),
        (["train/train/a/1.jpg", "train/train/b/1.jpg", "train/test/a/1.jpg"], "train", {"train", "test"}),
    ],
)
def test_the_one_folder_that_holds_everything_is_entered(
    names: list[str], root: str, splits: set[str], tmp_path: Path
) -> None:
    found = find_images(tree(tmp_path / "data", *names))
    assert (found.root, set(found.splits), found.classes) == (tmp_path / "data" / root, splits, ("a", "b"))
    assert found.source == tmp_path / "data"
    assert any(f" {root}," in warning for warning in found.warnings) == bool(root)
    assert found.num_hidden == ("licence" in str(names))


def test_a_folder_beside_images_is_not_entered(tmp_path: Path) -> None:
    root = tree(tmp_path, "x/a/1.jpg", "x/b/1.jpg", "1.jpg")
    with pytest.raises(DataError, match="'x'"):
        find_images(root)


def test_the_only_class_of_a_model_is_not_entered(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "cat/old/1.jpg", "cat/new/1.jpg"), classes=("cat", "dog"))
    assert [sample.label for sample in found.samples] == [0, 0]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_folder_that_contains_only_itself_is_not_entered_forever(tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        find_images(tmp_path)


def test_images_in_a_folder_and_those_inside_it(flat: Path) -> None:
    (flat / "red" / "notes.txt").write_text("no image")
    assert len(images_in(flat)) == 30


def test_order_does_not_depend_on_creation(tmp_path: Path) -> None:
    names = ["a/2.png", "a/10.png", "b/1.png", "a/1.png"]
    for i, name in enumerate(names):
        save_picture(tmp_path / "one" / name, (9, 9, 9), seed=i)
    for i, name in reversed(list(enumerate(names))):
        save_picture(tmp_path / "two" / name, (9, 9, 9), seed=i)
    one, two = find_images(tmp_path / "one"), find_images(tmp_path / "two")
    assert [one.relative(s) for s in one.samples] == [two.relative(s) for s in two.samples]
    shutil.rmtree(tmp_path / "one")


def test_folders_of_the_system_are_not_classes(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.jpg", "b/2.jpg", "a/@eaDir/1.jpg", "b/thumbs.DB", "a/Desktop.ini")
    for name in ("System Volume Information", "$RECYCLE.BIN", "lost+found"):
        (root / name).mkdir()
    found = find_images(root)
    assert found.classes == ("a", "b")
    assert [sample.path.name for sample in found.splits["all"]] == ["1.jpg", "2.jpg"]
    assert found.num_other_files == 0
