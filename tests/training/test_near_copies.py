"""Near copies stay on one side when images are held out, and are counted where a division leaks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from drawing import draw_photo, save
from runs import small

from carnet import evaluate, load
from carnet.data.find import find_images
from carnet.data.scan import scan_images
from carnet.data.scanned import ScannedImages
from carnet.run_folder import RunFolder
from carnet.text import Silent
from carnet.training.preparation import scan_data
from carnet.training.run import train

PAIRS = 15


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Two classes of 15 photos without splits, each of them saved twice."""
    root = tmp_path / "series"
    for number in range(2 * PAIRS):
        for quality in (95, 60):
            save(root / "ab"[number % 2] / f"{number}-{quality}.jpg", draw_photo(number), quality=quality)
    return root


def sides(split_of: dict[str, str]) -> list[set[str]]:
    """Return the splits of both copies of each photo."""
    return [{split_of[f"{number}-{quality}.jpg"] for quality in (95, 60)} for number in range(2 * PAIRS)]


def split_of(images: ScannedImages) -> dict[str, str]:
    """Return the split of each file."""
    return {sample.path.name: split for split, samples in images.data.splits.items() for sample in samples}


def divided_by_bytes(series: Path) -> ScannedImages:
    """Return the images as earlier versions divided them."""
    return scan_images(find_images(series), image_size=48)


def test_near_copies_stay_on_one_side(series: Path) -> None:
    images = scan_data(series, small(), (), Silent()).images
    assert all(len(one) == 1 for one in sides(split_of(images)))
    assert len(images.data.splits["valid"]) == 12
    assert images.near_leaked("valid") == ()
    assert any(len(one) == 2 for one in sides(split_of(divided_by_bytes(series))))


def test_a_class_that_is_one_series_is_divided_all_the_same(tmp_path: Path) -> None:
    """Nothing could be evaluated otherwise; the scan says that these are near copies."""
    for label, seed in (("a", 0), ("b", 1)):
        for number in range(20):
            save(tmp_path / "photos" / label / f"{number}.jpg", draw_photo(seed), quality=50 + 2 * number)
    images = scan_data(tmp_path / "photos", small(), (), Silent()).images
    assert images.data.counts("valid") == {"a": 4, "b": 4}
    assert len(images.near_leaked("valid")) == 8
    assert any("near copies" in warning for warning in images.warnings)


def test_a_class_of_few_series_gives_its_smallest(tmp_path: Path) -> None:
    for label, seeds in (("a", (0, 1, 2)), ("b", (3, 4, 5))):
        for seed in seeds:
            for number in range(10 if seed % 3 else 6):
                save(tmp_path / "photos" / label / f"{seed}-{number}.jpg", draw_photo(seed), quality=50 + 4 * number)
    images = scan_data(tmp_path / "photos", small(), (), Silent()).images
    assert images.data.counts("valid") == {"a": 6, "b": 6}
    assert images.near_leaked("valid") == ()


@pytest.mark.parametrize("cache", ["disk", "ram", "off"])
def test_the_division_does_not_depend_on_side_or_cache(series: Path, cache: str) -> None:
    images = [
        scan_data(series, config, (), Silent()).images
        for config in (small(), small(image_size=64, cache=cache))  # type: ignore[arg-type]
    ]
    assert images[0].content_hash == images[1].content_hash


def test_a_run_of_an_earlier_version_keeps_its_division(series: Path, tmp_path: Path) -> None:
    """Before version 0.2, near copies could be on both sides."""
    run = tmp_path / "run"
    train(series, small(epochs=1), output=run)
    record = json.loads((run / "config.json").read_text())
    apart = divided_by_bytes(series)
    assert apart.content_hash != record["data"]["content_hash"]
    shutil.rmtree(run)
    earlier = RunFolder.new(run)
    record["data"]["content_hash"] = apart.content_hash
    earlier.create(apart.rows(), {key: value for key, value in record.items() if key != "checksums"})
    assert train(resume=run).report.num_images == 12
    rows = {Path(row["filepath"]).name: row["split"] for row in RunFolder(run).images()}
    assert any(len(one) == 2 for one in sides(rows))


def test_near_copies_of_training_images_are_counted_apart(series: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "photos", tmp_path / "run"
    for number in range(2 * PAIRS):
        split = "valid" if number >= 20 else "train"
        save(data / split / "ab"[number % 2] / f"{number}.jpg", draw_photo(number))
    save(data / "valid" / "a" / "near.jpg", draw_photo(0), quality=50)
    shutil.copy(data / "train" / "a" / "2.jpg", data / "valid" / "a" / "equal.jpg")
    result = train(data, small(epochs=1), output=run)
    assert (result.report.num_images, result.report.num_leaked, result.report.num_near_leaked) == (12, 1, 1)
    report = evaluate(run, data)
    assert (report.num_leaked, report.num_near_leaked) == (1, 1)
    clean = [sample.path.name not in ("near.jpg", "equal.jpg") for sample in report.samples]
    assert report.summary()["top1_without_copies"] == report.correct[clean].mean()
    near = [sample.path.name for sample, is_near in zip(report.samples, report.near_leaked, strict=True) if is_near]
    assert near == ["near.jpg"]
    # Elsewhere they are found as well, until the training images are gone.
    shutil.copytree(data / "valid", tmp_path / "new")
    assert load(run).evaluate(tmp_path / "new", split="all").num_near_leaked == 1
    shutil.rmtree(data)
    report = load(run).evaluate(tmp_path / "new", split="all")
    assert (report.num_leaked, report.num_near_leaked) == (1, None)


def test_the_scan_says_what_matters(series: Path, tmp_path: Path) -> None:
    data = tmp_path / "photos"
    for number in range(24):
        save(data / "train" / "ab"[number % 2] / f"{number}.jpg", draw_photo(number))
    for number in range(24, 28):
        save(data / "valid" / "ab"[number % 2] / f"{number}.jpg", draw_photo(number))
    save(data / "valid" / "a" / "near.jpg", draw_photo(0), quality=50)
    save(data / "train" / "b" / "conflict.jpg", draw_photo(2), quality=50)
    save(data / "train" / "rare" / "1.jpg", draw_photo(100))
    warnings = scan_data(data, small(), (), Silent()).images.warnings
    for names in (("near.jpg", "near cop"), ("conflict.jpg", "2.jpg"), ("'rare'", "macro recall")):
        assert any(all(name in warning for name in names) for warning in warnings), names
