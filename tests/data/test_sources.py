import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from pictures import save_picture

from carnet.data.sources import find_images, images_in
from carnet.errors import DataError


def touch(path: Path, content: bytes = b"\xff\xd8\xff image") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def tree(root: Path, *names: str) -> Path:
    for name in names:
        touch(root / name)
    return root


def test_one_sorted_class_list_for_all_splits(tmp_path: Path) -> None:
    names = ("train/b/1.jpg", "train/a/1.jpg", "train/c/1.jpg", "valid/c/9.jpg", "valid/b/2.jpg")
    found = find_images(tree(tmp_path, *names))
    assert found.classes == ("a", "b", "c")
    assert [(found.relative(s), s.label) for s in found.splits["valid"]] == [("valid/b/2.jpg", 1), ("valid/c/9.jpg", 2)]
    assert found.warnings == ("1 class of train without images in valid: a",)


@pytest.mark.parametrize("name", ["valid", "val", "validation", "Val"])
def test_names_of_the_validation_split(name: str, tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{name}/a/1.jpg", f"{name}/b/1.jpg", "test/a/1.jpg")
    assert {k: len(v) for k, v in find_images(root).splits.items()} == {"train": 2, "test": 1, "valid": 2}


def test_flat_folder_with_classes_that_sound_like_splits(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "train/1.jpg", "bus/1.jpg", "car/1.jpg"))
    assert (found.is_flat, found.classes) == (True, ("bus", "car", "train"))


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.jpg", "b/deep/er/2.JPG", "b/.hidden.jpg", ".git/x.jpg", "a/Thumbs.db", "1.jpg")
    touch(root / "a/notes.txt", b"text")
    touch(root / "a/no_extension")
    found = find_images(root)
    assert [found.relative(s) for s in found.splits["all"]] == ["a/1.jpg", "a/no_extension", "b/deep/er/2.JPG"]
    assert (found.num_hidden, found.num_other_files) == (3, 2)
    assert "1 image directly in" in found.warnings[0]


def test_accents_spelled_two_ways_are_one_class(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images in"),
        (["a/1.txt", "b/2.txt"], "no images in"),
        (["a/1.jpg"], "one class only"),
        (["valid/a/1.jpg", "test/b/1.jpg"], "has test and valid but no train folder"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "valid/b/1.jpg"], "has both val and valid"),
        (
            ["train/Cat/1.jpg", "train/dog/1.jpg", "valid/cat/1.jpg", "valid/cat/2.jpg", "valid/dog/1.jpg"],
            r"valid has 1 class that train does not have: 'cat' \(2 images; did you mean 'Cat'\?\)",
        ),
    ],
)
def test_refusals(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        touch(tmp_path / "data" / name, b"text" if name.endswith("txt") else b"\xff\xd8\xff image")
    (tmp_path / "data").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / "data")


def test_empty_class_is_left_out_and_named(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "valid/a/1.jpg", "valid/b/1.jpg")
    (root / "train" / "empty").mkdir()
    found = find_images(root)
    assert found.classes == ("a", "b")
    assert "1 class folder of train without images: empty" in found.warnings


def test_missing_folder_and_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"no folder .*photo; did you mean .*photos\?"):
        find_images(tmp_path / "photo")
    touch(tmp_path / "photos.zip")
    with pytest.raises(DataError, match="is a file"):
        find_images(tmp_path / "photos.zip")


def test_a_models_classes_give_the_labels(tmp_path: Path) -> None:
    root = tree(tmp_path, "valid/b/1.jpg")
    assert find_images(root, classes=("a", "b")).splits["valid"][0].label == 1
    with pytest.raises(DataError, match=r"valid has 1 class that the model does not have: 'b' \(1 image\)"):
        find_images(root, classes=("a", "c"))


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="root may look everywhere")
def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.jpg", "a/closed/2.jpg", "b/1.jpg")
    (root / "a" / "closed").chmod(0)
    with pytest.raises(DataError, match=r"cannot look into .*closed: Permission denied"):
        find_images(root)


def test_images_in(flat: Path) -> None:
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
