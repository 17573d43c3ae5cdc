"""What `carnet.check` finds: each kind of finding, planted into photos in which there is nothing to be found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drawing import draw_photo, save
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

import carnet
from carnet import CheckReport
from carnet.checks.kinds import KINDS
from carnet.data.samples import read_ignore_file
from carnet.errors import ConfigError, DataError


def check(root: Path, **options: object) -> CheckReport:
    return carnet.check(root, skip=("labels",), **options)  # type: ignore[arg-type]


def found(root: Path, **options: object) -> dict[str, list[str]]:
    """Return the examples of each finding, by id."""
    return {one.id: [str(example) for example in one.examples] for one in check(root, **options).findings}


def test_nothing_is_found_where_nothing_is_wrong(photos: Path) -> None:
    report = check(photos)
    assert report.findings == ()
    assert report.is_trainable
    assert report.num_images == {"train": 24, "valid": 20}


def photo(seed: int = 1000) -> Image.Image:
    return draw_photo(seed)


def broken(path: Path, keep: Callable[[bytes], bytes]) -> None:
    save(path, photo(), quality=95)
    path.write_bytes(keep(path.read_bytes()))


def progressive_with_a_scan_missing(path: Path) -> None:
    save(path, photo(), progressive=True)
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\xff\xda")] + b"\xff\xd9")


def animated(path: Path) -> None:
    photo().save(path, save_all=True, append_images=[photo(1001)], duration=100, loop=0)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(path, exif=exif)


def wide(path: Path) -> None:
    save(path, draw_photo(1000, (900, 60)))


def noise_of(low: int, high: int) -> Image.Image:
    """Return a photo whose brightness is between two values."""
    grey = np.asarray(photo().convert("L"), np.float32) / 255
    return Image.fromarray((low + grey * (high - low)).astype(np.uint8))


PLANTED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "unreadable": ("text.jpg", lambda path: path.write_bytes(b"This is not a picture.\n")),
    "truncated": ("cut.png", lambda path: broken(path, lambda content: content[: len(content) // 2])),
    "half-lost": ("lost.jpg", progressive_with_a_scan_missing),
    "wrong-extension": ("png.jpg", lambda path: photo().save(path, "PNG")),
    "color-mode": ("grey.jpg", lambda path: save(path, photo().convert("L"))),
    "rotated": ("turned.jpg", rotated),
    "animated": ("moving.gif", animated),
    "large": ("large.jpg", lambda path: save(path, photo().resize((6000, 4100)))),
    "unportable-name": ("what?.jpg", lambda path: save(path, photo())),
    "blank": ("blank.png", lambda path: save(path, Image.new("RGB", (160, 120), (90, 90, 90)))),
    "dark": ("dark.png", lambda path: save(path, noise_of(0, 18))),
    "bright": ("bright.png", lambda path: save(path, noise_of(244, 255))),
    "blurred": ("blurred.jpg", lambda path: save(path, photo().filter(ImageFilter.GaussianBlur(14)))),
    "low-information": ("lines.png", lambda path: save(path, Image.fromarray(np.eye(120, dtype=np.uint8) * 255))),
    "aspect-ratio": ("wide.jpg", wide),
    "tiny": ("tiny.png", lambda path: save(path, photo().resize((14, 10)))),
}
"""Id of a finding -> name of a file, and how it is written."""


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_image_is_found(photos: Path, kind: str) -> None:
    name, write = PLANTED[kind]
    if os.name == "nt" and kind == "unportable-name":
        pytest.skip("Windows has no such names")
    write(photos / "train" / "cat" / name)
    examples = found(photos)
    assert len(examples[kind]) == 1
    assert examples[kind][0].startswith(f"train/cat/{name}")
    assert check(photos).is_trainable == (KINDS[kind].severity != "error")


COPIES: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: shutil.copy(path.parents[2] / "original.jpg", path),
    "pixels": lambda path: Image.open(path.parents[2] / "original.jpg").save(path, "PNG"),
    "near": lambda path: save(path, ImageEnhance.Brightness(photo()).enhance(1.2), quality=60),
    "mirrored": lambda path: save(path, ImageOps.mirror(photo()), quality=60),
}
"""Kind of copy -> how a copy of a photo is written."""
PLACES = {"copy": "train/cat", "conflict": "train/dog", "leak": "valid/cat"}
"""Relation -> the folder of the copy of a photo in train/cat."""


@pytest.mark.parametrize("relation", PLACES)
@pytest.mark.parametrize("kind", COPIES)
def test_a_planted_copy_is_found(photos: Path, kind: str, relation: str) -> None:
    save(photos.parent / "photos" / "train" / "cat" / "one.jpg", photo())
    shutil.copy(photos / "train" / "cat" / "one.jpg", photos / "original.jpg")
    name = f"{PLACES[relation]}/two.{'png' if kind == 'pixels' else 'jpg'}"
    COPIES[kind](photos / name)
    (photos / "original.jpg").unlink()
    examples = found(photos)
    assert list(examples) == [f"{relation}-{kind}"]
    (example,) = examples[f"{relation}-{kind}"]
    assert example.partition(":")[0].split(" = ") == ["train/cat/one.jpg", name]


def test_a_copy_in_another_class_of_another_split_is_both(photos: Path) -> None:
    shutil.copy(next((photos / "train" / "cat").iterdir()), photos / "valid" / "dog" / "copy.jpg")
    assert set(found(photos)) == {"leak-bytes", "conflict-bytes"}


def rename(photos: Path, old: str, new: str) -> None:
    for split in ("train", "valid"):
        if (photos / split / old).exists():
            (photos / split / old).rename(photos / split / new)


def test_classes_that_do_not_fit_are_found(photos: Path) -> None:
    shutil.copytree(photos / "valid" / "cat", photos / "valid" / "bird")
    report = check(photos)
    assert {one.id for one in report.of("error")} == {"class-extra"}
    assert not report.is_trainable
    shutil.rmtree(photos / "valid" / "bird")
    shutil.rmtree(photos / "valid" / "dog")
    (photos / "train" / "empty").mkdir()
    assert set(found(photos)) == {"class-missing", "class-empty"}


def test_tiny_classes_and_unequal_ones_are_found(photos: Path) -> None:
    save(photos / "train" / "rare" / "1.jpg", photo())
    save(photos / "valid" / "rare" / "1.jpg", photo(1001))
    examples = found(photos)
    assert set(examples) == {"class-tiny", "class-imbalance"}
    assert examples["class-imbalance"] == ["'rare' has 1 image"]
    # The Wilson interval of one image that is right.
    assert "21% and 100%" in examples["class-tiny"][0]


def test_few_images_to_evaluate_with_are_told(photos: Path) -> None:
    for path in sorted((photos / "valid" / "cat").iterdir())[3:]:
        path.unlink()
    (example,) = found(photos)["class-few-valid"]
    assert all(text in example for text in ("1 class", "at most 3 images", "44% and 100%"))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("Wet-Sand", "wet sand"), "class-alike"),
        (("file", "\N{LATIN SMALL LIGATURE FI}le"), "class-alike"),
        (("elephant", "nan"), "class-no-label"),
    ],
)
def test_names_that_may_mean_one_class(photos: Path, names: tuple[str, str], kind: str) -> None:
    rename(photos, "cat", names[0])
    rename(photos, "dog", names[1])
    assert kind in found(photos)


@pytest.mark.parametrize(
    ("typo", "is_found"), [("elphant", True), ("elehpant", True), ("elephaant", True), ("giraffe", False)]
)
def test_a_rare_class_with_a_misspelt_name(photos: Path, typo: str, is_found: bool) -> None:
    rename(photos, "cat", "elephant")
    for split in ("train", "valid"):
        save(photos / split / typo / "1.jpg", photo(hash(split) % 999 + 1000))
    assert ("class-alike" in found(photos)) == is_found


def test_numbered_classes_are_not_misspelt(photos: Path) -> None:
    rename(photos, "cat", "class 10")
    for split in ("train", "valid"):
        save(photos / split / "class 11" / "1.jpg", photo(1000 + len(split)))
    assert "class-alike" not in found(photos)


def test_data_that_cannot_be_trained_on_says_what_training_says(photos: Path) -> None:
    shutil.rmtree(photos / "train" / "dog")
    shutil.rmtree(photos / "valid" / "dog")
    report = check(photos)
    (finding,) = [one for one in report.of("error") if one.id == "untrainable"]
    with pytest.raises(DataError) as caught:
        carnet.train(photos)
    assert str(finding.examples[0]) == str(caught.value)


def test_only_and_skip_choose(photos: Path) -> None:
    save(photos / "train" / "cat" / "blank.png", Image.new("RGB", (160, 120)))
    shutil.copy(next((photos / "train" / "dog").iterdir()), photos / "valid" / "dog" / "copy.jpg")

    def ids(**options: object) -> set[str]:
        return {one.id for one in carnet.check(photos, **options).findings}  # type: ignore[arg-type]

    assert ids(only=("leak",)) == {"leak-bytes"}
    assert ids(only=("photos",)) == {"blank"}
    assert ids(skip=("photos", "labels")) == {"leak-bytes"}
    assert ids(only=("duplicates", "photos"), skip=("leak-bytes",)) == {"blank"}
    with pytest.raises(ConfigError, match=r"--only blnak.*blank"):
        carnet.check(photos, only=("blnak",))
    with pytest.raises(ConfigError, match=r"--only.*--skip"):
        carnet.check(photos, only=("blank",), skip=("photos",))


def test_a_fast_check_decodes_nothing(photos: Path) -> None:
    (photos / "train" / "cat" / "text.jpg").write_bytes(b"no picture")
    shutil.copy(next((photos / "train" / "dog").iterdir()), photos / "train" / "cat" / "copy.jpg")
    report = carnet.check(photos, fast=True)
    assert {one.id for one in report.findings} == {"conflict-bytes"}
    assert "labels" in report.skipped


def test_a_second_look_reads_what_has_changed(photos: Path) -> None:
    """A file of the same size and date is not read again, and another content goes unnoticed."""
    paths = sorted(photos.rglob("*.jpg"))
    for path in paths:
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert found(photos) == {}
    for path in paths:
        path.write_bytes(b"x" * path.stat().st_size)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    save(photos / "train" / "cat" / "new.png", Image.new("RGB", (160, 120)))
    assert set(found(photos)) == {"blank"}
    os.utime(paths[0], (1_000_000_001, 1_000_000_001))
    (unreadable,) = found(photos)["unreadable"]
    assert unreadable.startswith(paths[0].relative_to(photos).as_posix())


def test_no_file_of_the_data_is_changed(photos: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in photos.rglob("*.*")}

    before = state()
    check(photos)
    assert state() == before


def test_a_damaged_cache_is_made_anew(photos: Path) -> None:
    save(photos / "train" / "cat" / "blank.png", Image.new("RGB", (160, 120)))
    first = found(photos)
    kept = [*Path(os.environ["CARNET_CACHE"]).glob("appearance/*/*.npz")]
    kept += Path(os.environ["CARNET_CACHE"]).glob("seen/*.json")
    assert len(kept) == 2
    for file in kept:
        file.write_bytes(b"x" * file.stat().st_size)
    assert found(photos) == first


def test_the_document_is_complete(photos: Path) -> None:
    save(photos / "train" / "cat" / "blank.png", Image.new("RGB", (160, 120)))
    document = json.loads(json.dumps(check(photos).to_json()))
    assert document["trainable"] is True
    (finding,) = document["findings"]
    assert finding["id"] == "blank"
    assert finding["severity"] == "warning"
    assert finding["count"] == 1
    assert finding["advice"]
    assert finding["examples"][0]["images"] == [{"path": "train/cat/blank.png", "class": "cat", "split": "train"}]


def test_the_ignore_list_leaves_out_what_was_found(photos: Path) -> None:
    save(photos / "train" / "cat" / "blank.png", Image.new("RGB", (160, 120)))
    save(photos / "train" / "cat" / "dark.png", noise_of(0, 18))
    shutil.copy(next((photos / "valid" / "dog").iterdir()), photos / "train" / "dog" / "copy.jpg")
    text = check(photos).ignore_list()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert sorted(lines) == ["train/cat/blank.png", "train/dog/copy.jpg"]
    assert "# train/cat/dark.png" in text.splitlines()
    left = {one.id for one in check(photos, ignore=lines).findings}
    assert "dark" in left
    assert not left & {"blank", "leak-bytes"}


def test_the_ignore_list_holds_for_names_of_all_kinds(photos: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("#1.png", " 2.png", "3 4.png", "\N{ZERO WIDTH NON-JOINER}5.png")):
        save(photos / "train" / "cat" / name, Image.new("RGB", (160, 120), (number, 9, 9)))
    blank = [example.images[0].name for example in check(photos, only=("blank",)).findings[0].examples]
    assert len(blank) == 4
    ignore = tmp_path / "ignore.txt"
    ignore.write_text(check(photos).ignore_list(), encoding="utf-8")
    left = found(photos, ignore=read_ignore_file(ignore)).get("blank", [])
    # No line can name an image whose name is not printable, and the list says so.
    assert left == [name for name in blank if not name.isprintable()]
    assert "1 image with a name" in ignore.read_text(encoding="utf-8")
    assert "train/cat/#1.png" in check(photos, ignore=read_ignore_file(ignore)).ignore_list()


def test_the_ignore_list_empties_no_class(photos: Path) -> None:
    """All of a class in train are near copies of one image in valid: a person has to decide."""
    for path in (photos / "train" / "cat").iterdir():
        path.unlink()
    for number in range(12):
        save(photos / "train" / "cat" / f"{number}.jpg", photo(), quality=40 + 4 * number)
    save(photos / "valid" / "cat" / "leak.jpg", photo(), quality=95)
    lines = check(photos).ignore_list().splitlines()
    assert "# train/cat/3.jpg" in lines
    assert "train/cat/3.jpg" not in lines


def test_of_many_equal_files_each_is_found_once(photos: Path) -> None:
    content = next((photos / "train" / "cat").iterdir()).read_bytes()
    for number in range(3000):
        (photos / "train" / "cat" / f"copy-{number}.jpg").write_bytes(content)
    (finding,) = carnet.check(photos, fast=True, only=("copy-bytes",)).findings
    assert finding.count == 3000


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="there is no folder that even an administrator cannot write into")
def test_a_cache_that_cannot_be_written_costs_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(photos / "train" / "cat" / "blank.png", Image.new("RGB", (160, 120)))
    monkeypatch.setenv("CARNET_CACHE", "/sys/carnet")
    assert "blank" in found(photos)


def test_a_run_for_labels_that_are_not_checked_is_refused(photos: Path) -> None:
    with pytest.raises(ConfigError, match="--model"):
        carnet.check(photos, fast=True, model="run")
