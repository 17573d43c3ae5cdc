"""`carnet check`: what it prints and writes, and its exit codes."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from drawing import draw_photo, save
from PIL import Image

from carnet.checks.kinds import KINDS

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Photos in which there is nothing to be found."""
    root = tmp_path / "photos"
    for number in range(44):
        split = "train" if number < 24 else "valid"
        save(root / split / ("cat", "dog")[number % 2] / f"{number}.jpg", draw_photo(number))
    return root


@pytest.fixture
def faulty(clean: Path) -> Path:
    """The same with a blank photo and a leak."""
    save(clean / "train" / "cat" / "blank.png", Image.new("RGB", (160, 120)))
    shutil.copy(clean / "valid" / "dog" / "25.jpg", clean / "train" / "dog" / "copy.jpg")
    return clean


def test_clean_data(clean: Path, call: Call) -> None:
    code, out, err = call("check", clean, "--skip", "labels", "--strict")
    assert (code, err) == (0, "")
    assert all(text in out for text in ("2 classes", "24 train, 20 valid", "Nothing was found"))


def test_findings_come_with_examples_and_advice(faulty: Path, call: Call) -> None:
    code, out, _ = call("check", faulty, "--skip", "labels")
    assert code == 0
    for text in ("blank: 1 image", "train/cat/blank.png", "leak-bytes: 1 pair", "--write-ignore"):
        assert text in out
    assert call("check", faulty, "--skip", "labels", "--strict")[0] == 1
    assert call("check", faulty, "--only", "classes", "--strict")[0] == 0


def test_json_is_one_document(faulty: Path, call: Call) -> None:
    code, out, _ = call("check", faulty, "--skip", "labels", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["trainable"] is True
    assert {finding["id"] for finding in document["findings"]} == {"blank", "leak-bytes"}
    assert document["images"] == {"train": 26, "valid": 20}


def test_data_that_cannot_be_trained_on_is_told_from_a_wrong_flag(clean: Path, tmp_path: Path, call: Call) -> None:
    (clean / "train" / "cat" / "broken.jpg").write_bytes(b"no picture")
    code, out, err = call("check", clean, "--skip", "labels", "--json")
    assert (code, err, json.loads(out)["trainable"]) == (2, "", False)
    code, out, err = call("check", tmp_path / "missing", "--json")
    assert (code, json.loads(out)["trainable"], err.count("\n")) == (2, False, 1)
    code, out, err = call("check", clean, "--only", "blnak", "--json")
    assert (code, out, "blank" in err) == (2, "", True)


def test_an_ignore_list_is_written_and_taken_by_train(faulty: Path, tmp_path: Path, call: Call) -> None:
    ignore = tmp_path / "ignore.txt"
    assert call("check", faulty, "--skip", "labels", "--write-ignore", ignore)[0] == 0
    code, out, _ = call("check", faulty, "--skip", "labels", "--ignore", ignore, "--strict")
    assert (code, "Nothing was found" in out) == (0, True)
    code, _, err = call("check", faulty, "--write-ignore", tmp_path / "data.csv")
    assert (code, "data.csv" in err) == (2, True)


def test_the_page_holds_what_was_found(faulty: Path, tmp_path: Path, call: Call) -> None:
    save(faulty / "train" / "cat" / "<b>&\"'.png", Image.new("RGB", (160, 120), (9, 9, 9)))
    page = tmp_path / "check.html"
    assert call("check", faulty, "--skip", "labels", "--report", page)[0] == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert re.findall(r'data-kind="([^"]*)"', text) == ["unportable-name", "blank", "leak-bytes"]
    assert "<b>&" not in text
    # A photo of each, besides two of the pair; nothing is fetched from anywhere.
    assert text.count('src="data:image/jpeg') == 5
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", text)
    ticked = {json.loads(html.unescape(name)) for name in re.findall(r'data-name="([^"]*)" checked', text)}
    assert ticked == {"train/cat/<b>&\"'.png", "train/cat/blank.png", "train/dog/copy.jpg"}


def test_layout(clean: Path, call: Call) -> None:
    code, out, _ = call("check", clean, "--only", "classes", "--layout", "classes")
    assert (code, "2 classes, 44 images, not divided" in out) == (0, True)


def test_every_kind_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == set(KINDS)
