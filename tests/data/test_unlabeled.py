"""Images without labels: where their folder may be, and which of them are left out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from drawing import draw_photo, save
from runs import small
from teaching import scanned

from carnet.config import TrainingConfig
from carnet.data.find import find_images
from carnet.data.scan import Earlier
from carnet.data.scanned import LEFT_OUT
from carnet.data.unlabeled import find_unlabeled
from carnet.text import Silent
from carnet.training.scanning import DataScan, scan_data

NO_LINKS = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")


def draw(root: Path, *names: str, first: int = 0) -> Path:
    """Make a folder of different photos."""
    for number, name in enumerate(names, start=first):
        save(root / name, draw_photo(number))
    return root


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos", *(f"{label}/{number}.jpg" for label in "ab" for number in range(4)))


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    names = (f"{split}/{label}/{number}.jpg" for split in ("train", "valid") for label in "ab" for number in range(2))
    return draw(tmp_path / "photos", *names)


def scan(data: Path, unlabeled: Path, *ignore: str) -> DataScan:
    return scan_data(data, small(teacher="efficientnet_lite0", unlabeled=str(unlabeled)), ignore, Silent())


def test_beside_the_classes_it_is_none(classes: Path) -> None:
    images = scan(classes, draw(classes / "unsorted", "1.jpg", "2.jpg", first=50)).images
    assert (images.data.classes, images.num_unlabeled) == (("a", "b"), 2)
    assert any("unsorted" in warning for warning in images.warnings)


def test_by_another_way_of_writing_it(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(classes / "unsorted", "1.jpg", first=50)
    monkeypatch.chdir(classes / "a")
    assert scan(Path("../../photos"), Path("../unsorted")).images.data.classes == ("a", "b")


@NO_LINKS
def test_behind_a_link(classes: Path, tmp_path: Path) -> None:
    more = draw(tmp_path / "elsewhere", "1.jpg", first=50)
    (classes / "unsorted").symlink_to(more)
    images = scan(classes, more).images
    assert (images.data.classes, images.num_unlabeled) == (("a", "b"), 1)


def test_inside_a_class_its_images_have_no_label(classes: Path) -> None:
    images = scan(classes, draw(classes / "a" / "unsure", "1.jpg", first=50)).images
    assert (len(images.data.samples), images.num_unlabeled) == (8, 1)


@pytest.mark.parametrize("place", ["unsorted", "train/unsorted", "train/a/unsorted"])
def test_beside_and_inside_splits(place: str, divided: Path) -> None:
    images = scan(divided, draw(divided / place, "1.jpg", first=50)).images
    assert images.num_images == {"train": 4, "valid": 4, "unlabeled": 1}
    assert images.data.classes == ("a", "b")


def test_a_folder_of_images_with_the_name_of_a_split_is_none(classes: Path) -> None:
    images = scan(classes, draw(classes / "test", "1.jpg", first=50)).images
    assert (images.data.classes, images.num_unlabeled) == (("a", "b"), 1)


def test_a_split_keeps_its_labels(divided: Path) -> None:
    """Otherwise the images that are evaluated would be trained on."""
    draw(divided / "valid", "loose.jpg", first=50)
    images = scan(divided, divided / "valid").images
    assert images.num_images == {"train": 4, "valid": 4, "unlabeled": 1}


def test_a_table_beside_it_keeps_a_class_of_its_name(tmp_path: Path) -> None:
    data = draw(tmp_path / "photos", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    draw(data / "unsorted", "5.jpg", first=50)
    rows = ["filepath,label", "1.jpg,unsorted", "2.jpg,unsorted", "3.jpg,b", "4.jpg,b"]
    (data / "labels.csv").write_text("\n".join(rows))
    images = scan(data / "labels.csv", data / "unsorted").images
    assert (images.data.classes, images.num_unlabeled) == (("b", "unsorted"), 1)


def test_near_copies_of_images_that_are_evaluated_are_left_out(divided: Path, tmp_path: Path) -> None:
    more = draw(tmp_path / "more", "new.jpg", first=50)
    save(more / "of-train.jpg", draw_photo(0), quality=50)
    save(more / "of-valid.jpg", draw_photo(5), quality=50)
    images = scan(divided, more).images
    assert images.unlabeled is not None
    assert [path.name for path in images.unlabeled.paths] == ["new.jpg", "of-train.jpg"]
    assert any("of-valid.jpg" in warning and "near copies" in warning for warning in images.warnings)
    assert [row["filepath"] for row in images.rows() if row["split"] == LEFT_OUT] == ["of-valid.jpg"]


def test_a_resumed_run_leaves_out_what_it_left_out(divided: Path, tmp_path: Path) -> None:
    """Another machine, or one without room for thumbnails, may find other near copies."""
    more = draw(tmp_path / "more", "1.jpg", "2.jpg", first=50)
    digest = scan(divided, more).images.facts[more / "2.jpg"].sha256
    for left_out, number in (((digest,), 1), ((), 2)):
        config = small(teacher="efficientnet_lite0", unlabeled=str(more))
        images = scan_data(divided, config, (), Silent(), earlier=Earlier(left_out=left_out)).images
        assert images.num_unlabeled == number


def test_what_cannot_be_compared_is_said(divided: Path, tmp_path: Path) -> None:
    more = draw(tmp_path / "more", "new.jpg", first=50)
    said = "thumbnails need room"
    assert any(said in warning for warning in scanned(divided, more).warnings)
    assert not any(said in warning for warning in scan(divided, more).images.warnings)


def test_images_without_labels_do_not_decide_which_are_held_out(tmp_path: Path) -> None:
    """Copies of all photos would make groups of them, if they counted."""
    data = draw(tmp_path / "photos", *(f"{label}/{number}.jpg" for label in "ab" for number in range(10)))
    more = tmp_path / "more"
    for number in range(20):
        save(more / f"{number}.jpg", draw_photo(number), quality=50)
    alone = scan_data(data, TrainingConfig(), (), Silent()).images
    both = scan(data, more).images
    assert both.data.splits == alone.data.splits
    # Four images are held out, whose copies are not trained on.
    assert both.num_unlabeled == 16


def test_a_second_folder_with_the_name_of_a_split_is_none(divided: Path) -> None:
    draw(divided / "test" / "a", "1.jpg", first=40)
    images = scan(divided, draw(divided / "testing", "1.jpg", first=50)).images
    assert images.num_images == {"train": 4, "valid": 4, "test": 1, "unlabeled": 1}


def test_a_line_of_the_ignore_list_counts_in_both_places(classes: Path) -> None:
    lines = [str(classes / "a" / "0.jpg"), "b/1.jpg"]
    shutil.copytree(classes, classes.parent / "all")
    more = draw(classes.parent / "all", "new.jpg", "other.jpg", first=50)
    found = scan(classes, more, *lines, str(more / "other.jpg")).images
    assert found.data.ignored == ("a/0.jpg", "b/1.jpg")
    assert found.unlabeled is not None
    assert found.unlabeled.ignored == ("other.jpg",)
    assert not any("ignore list" in warning for warning in found.warnings)
    draw(classes, "loose.jpg", first=60)
    images = scan(classes, classes, str(classes / "a" / "0.jpg")).images
    assert images.unlabeled is not None
    assert (images.data.ignored, images.unlabeled.ignored) == (("a/0.jpg",), ("a/0.jpg",))
    (unmatched,) = (one for one in scan(classes, more, "nowhere.jpg").images.warnings if "ignore list" in one)
    assert "nowhere.jpg" in unmatched


@NO_LINKS
def test_a_line_may_name_an_image_by_way_of_a_link(classes: Path, tmp_path: Path) -> None:
    more = draw(tmp_path / "elsewhere", "1.jpg", "2.jpg", "3.jpg", first=50)
    (tmp_path / "link").symlink_to(more)
    for folder, line in ((tmp_path / "link", more / "1.jpg"), (more, tmp_path / "link" / "1.jpg")):
        images = scan(classes, folder, str(line)).images
        assert images.num_unlabeled == 2
        assert not any("ignore list" in warning for warning in images.warnings)


def test_an_ignored_labelled_image_does_not_come_back_without_its_label(classes: Path) -> None:
    draw(classes, "loose.jpg", first=50)
    (classes / "a" / "0.jpg").write_bytes(b"damaged")
    images = scan(classes, classes, "a/0.jpg").images
    assert (len(images.data.samples), images.num_unlabeled) == (7, 1)


def test_a_folder_that_holds_all_images_gives_those_without_labels(classes: Path) -> None:
    draw(classes, "loose.jpg", first=50)
    assert [path.name for path in find_unlabeled(classes).paths if path.parent == classes] == ["loose.jpg"]
    assert scanned(classes, classes).num_unlabeled == 1
    assert len(find_images(classes, unlabeled=classes).samples) == 8
