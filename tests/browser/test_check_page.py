"""The page of `carnet check` in a browser: filters, ticks, the saved list, the keyboard, a phone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from drawing import draw_photo, save
from PIL import Image

import carnet
from carnet.report.check import check_html


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about photos with blank ones in two classes, a leak, a conflict, and a name full of markup."""
    folder = tmp_path_factory.mktemp("check")
    root = folder / "photos"
    for number in range(44):
        split = "train" if number < 24 else "valid"
        save(root / split / ("cat", "dog")[number % 2] / f"{number}.jpg", draw_photo(number))
    for red, label in enumerate(("cat", "dog")):
        save(root / "train" / label / f"blank {label} \"<b>'&.png", Image.new("RGB", (160, 120), (red, 9, 9)))
    shutil.copy(root / "valid" / "dog" / "25.jpg", root / "train" / "dog" / "copy.jpg")
    save(root / "train" / "dog" / "conflict.jpg", draw_photo(2), quality=60)
    page = folder / "check.html"
    page.write_text(check_html(carnet.check(root, skip=("labels", "unportable-name"))), encoding="utf-8")
    return page


@pytest.fixture
def opened(visit: Any, report: Path) -> Any:
    return visit(report.as_uri())


def visible(page: Any) -> list[str]:
    """Return the kinds that are shown."""
    return [section.get_attribute("data-kind") for section in page.locator("[data-kind]").all() if section.is_visible()]


def saved(page: Any) -> list[str]:
    """Save the list, and return its lines without comments."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save ignore list").click()
    assert download.value.suggested_filename == "ignore.txt"
    text = Path(download.value.path()).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_filters_by_kind_and_class(opened: Any) -> None:
    assert visible(opened) == ["blank", "leak-bytes", "conflict-near"]
    opened.get_by_label("Kind").select_option("blank")
    assert visible(opened) == ["blank"]
    assert opened.get_by_role("status").inner_text() == "2 cases shown"
    opened.get_by_label("Class").select_option("cat")
    assert opened.get_by_role("status").inner_text() == "1 case shown"
    opened.get_by_label("Kind").select_option("all")
    assert visible(opened) == ["blank", "conflict-near"]


def test_ticks_make_an_ignore_list_that_carnet_reads(opened: Any, report: Path) -> None:
    safe = ["train/cat/blank cat \"<b>'&.png", "train/dog/blank dog \"<b>'&.png", "train/dog/copy.jpg"]
    assert saved(opened) == safe
    opened.get_by_label("train/dog/conflict.jpg").check()
    opened.get_by_label("train/dog/copy.jpg").uncheck()
    lines = saved(opened)
    assert lines == [*safe[:2], "train/dog/conflict.jpg"]
    left = carnet.check(report.parent / "photos", skip=("labels",), ignore=lines)
    assert [finding.id for finding in left.findings] == ["leak-bytes"]


def test_the_keyboard_alone_ticks_and_saves(opened: Any) -> None:
    box = opened.get_by_label("train/dog/copy.jpg")
    for _ in range(40):
        opened.keyboard.press("Tab")
        if box.evaluate("one => one === document.activeElement"):
            break
    opened.keyboard.press("Space")
    assert not box.is_checked()
    assert opened.locator("#number").inner_text() == "2"
    button = opened.get_by_role("button", name="Save ignore list")
    for _ in range(40):
        opened.keyboard.press("Tab")
        if button.evaluate("one => one === document.activeElement"):
            break
    with opened.expect_download():
        opened.keyboard.press("Enter")


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen(opened: Any, width: int, scheme: str, tmp_path: Path) -> None:
    opened.set_viewport_size({"width": width, "height": 844})
    opened.emulate_media(color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    folder = Path(os.environ.get("CARNET_SCREENSHOTS", tmp_path))
    opened.screenshot(path=folder / f"check-{width}-{scheme}.png", full_page=True)


def test_it_is_complete_without_its_script(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert visible(page) == ["blank", "leak-bytes", "conflict-near"]
    assert not page.locator("#filters").is_visible()
    assert page.locator("noscript").count() == 1
    context.close()
