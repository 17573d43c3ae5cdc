import os
import unicodedata
from pathlib import Path

import pytest
from packing import tree

from carnet.data.samples import about_strange, named_images, read_ignore_file


def test_lines_that_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ignore.txt"
    path.write_bytes("\ufeff# blurred\r\n\r\n a b.jpg \r\n./#1.jpg\r\nx\u2028y.jpg".encode())
    assert read_ignore_file(path) == ("a b.jpg", "./#1.jpg", "x\u2028y.jpg")


def test_the_datas_folder_comes_before_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.jpg", "photos/a/1.jpg", "photos/b/1.jpg")
    monkeypatch.chdir(tmp_path)
    images = [Path("photos/a/1.jpg"), Path("a/1.jpg"), Path("photos/b/1.jpg")]
    assert named_images(images, ["a/1.jpg"], [Path("photos")]) == ({images[0]}, [])
    assert named_images(images, ["a/1.jpg"], []) == ({images[1]}, [])
    assert named_images(images, ["photos/b/1.jpg"], [tmp_path / "photos"]) == ({images[2]}, [])
    assert named_images(images, [str(tmp_path / "photos/b/1.jpg")], []) == ({images[2]}, [])


def test_accents_spelled_two_ways(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    assert named_images([tmp_path / decomposed], [composed], [tmp_path])[0] == {tmp_path / decomposed}


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_the_data_may_be_named_by_way_of_a_link(tmp_path: Path) -> None:
    tree(tmp_path / "real", "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    line = str(tmp_path / "real" / "a.jpg")
    assert named_images([tmp_path / "link/a.jpg"], [line], [tmp_path / "link"])[0] == {tmp_path / "link/a.jpg"}


def test_lines_without_images_are_counted() -> None:
    _, strange = named_images([Path("a.jpg")], [f"{number}.jpg" for number in range(9)], [])
    assert about_strange(strange) == (
        "9 lines of the ignore list name no image here: '0.jpg', '1.jpg', '2.jpg', '3.jpg', '4.jpg' and 4 more"
    )
