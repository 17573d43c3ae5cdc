import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carnet import files
from carnet.data.description import describe
from carnet.data.find import find_images
from carnet.data.scan import inspect_images, scan_images
from carnet.data.scanned import ScannedImages
from carnet.errors import DataError, UnreadableImagesError


def check(root: Path, **options: object) -> ScannedImages:
    return scan_images(find_images(root), image_size=32, **options)  # type: ignore[arg-type]


def test_flat_folder_is_divided_and_described(flat: Path) -> None:
    images = check(flat)
    assert {split: len(samples) for split, samples in images.data.splits.items()} == {"train": 24, "valid": 6}
    assert images.held_out
    assert all(text in describe(images)[0] for text in ("3 classes", "24 train", "6 valid"))
    again = check(flat)
    assert again.content_hash == images.content_hash
    assert check(flat, seed=1).content_hash != images.content_hash


def test_missing_valid_is_held_out_with_a_warning(flat: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(flat, root / "train")
    shutil.copytree(flat, root / "test")
    images = check(root)
    assert set(images.data.splits) == {"train", "valid", "test"}
    assert any("6 images" in warning and "30" in warning for warning in images.warnings)
    assert any("24 images of test" in warning for warning in images.warnings)
    shutil.rmtree(root / "test")
    (warning,) = check(root).warnings
    assert "6 images" in warning


def test_unreadable_images_stop_or_are_counted(flat: Path) -> None:
    (flat / "red" / "3.png").write_bytes((flat / "red" / "3.png").read_bytes()[:300])
    (flat / "blue" / "empty.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImagesError) as caught:
        check(flat)
    assert all(name in str(caught.value) for name in ("2 of 31", "--skip-unreadable", "empty.jpg", "3.png"))
    images = check(flat, skip_unreadable=True)
    assert len(images.unreadable) == 2
    assert len(images.data.samples) == 29
    assert any(line.startswith("2 x ") and "empty.jpg" in line for line in describe(images))
    assert [row["split"] for row in images.rows()].count("unreadable") == 2


def test_at_most_twenty_unreadable_images_are_listed(flat: Path) -> None:
    for number in range(50):
        (flat / "red" / f"phone-{number}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UnreadableImagesError) as caught:
        check(flat)
    first, *files, last = str(caught.value).splitlines()
    assert "50 of 80" in first
    assert (len(files), "30" in last) == (20, True)
    assert all(".heic: " in line and "JPEG" in line for line in files)
    assert len(caught.value.errors) == 50


def test_a_class_of_unreadable_images_only(flat: Path) -> None:
    for path in (flat / "red").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="red"):
        check(flat, skip_unreadable=True)


def test_duplicates_leaks_and_conflicts_are_named(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(photos, root)
    shutil.copy(root / "train" / "red" / "0.jpg", root / "valid" / "red" / "again.jpg")
    shutil.copy(root / "train" / "red" / "1.jpg", root / "train" / "blue" / "one.jpg")
    shutil.copy(root / "train" / "red" / "2.jpg", root / "train" / "red" / "two.jpg")
    images = check(root)
    assert [images.data.relative(s) for s in images.leaked("valid")] == ["valid/red/again.jpg"]
    assert any("1 image of valid" in warning and "red (1)" in warning for warning in images.warnings)
    assert any("train/blue/one.jpg = train/red/1.jpg" in warning for warning in images.warnings)
    assert any(line.startswith("3 x ") and "train/red/2.jpg = train/red/two.jpg" in line for line in describe(images))


def test_every_oddity_is_reported(flat: Path) -> None:
    red = flat / "red"
    picture = Image.open(red / "0.png")
    picture.save(red / "png.jpg", "PNG")
    picture.convert("L").save(red / "grey.jpg")
    picture.convert("RGBA").save(red / "transparent.png")
    picture.save(red / "animated.gif", save_all=True, append_images=[picture.rotate(9)])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(red / "turned.jpg", exif=exif)
    odd = check(flat).oddities
    assert {kind: [Path(name).name for name in names] for kind, names in odd.items()} == {
        "PNG named .jpg": ["png.jpg"],
        "grey": ["grey.jpg"],
        "transparent": ["transparent.png"],
        "palette": ["animated.gif"],
        "several frames": ["animated.gif"],
        "turned by its orientation tag": ["turned.jpg"],
    }


def test_images_that_would_be_nearly_black_or_mostly_cut_off_are_named(flat: Path) -> None:
    red = flat / "red"
    for name, highest in (("dark", 4095), ("bright", 40_000)):
        Image.fromarray(np.linspace(0, highest, 64 * 64).astype(np.uint16).reshape(64, 64)).save(red / f"{name}.png")
    for width in (40, 41, 200):
        Image.new("RGB", (width, 20)).save(red / f"wide-{width}.png")
    checked = check(flat)
    kinds = {kind: [Path(name).name for name in names] for kind, names in checked.oddities.items()}
    assert kinds.pop("16-bit") == ["bright.png"]
    ((kind, names),) = kinds.items()
    assert ("4,096" in kind, names) == (True, ["dark.png"])
    assert any(line.startswith("2 x ") and "--resize crop" in line for line in describe(checked))


def test_few_validation_images_are_a_warning_if_more_could_be_held_out(flat: Path, tmp_path: Path) -> None:
    for split, number in (("train", 60), ("valid", 4)):
        for name in ("red", "blue"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for place in range(number):
                Image.new("RGB", (32, 32), (place, number, len(name))).save(folder / f"{place}.png")
    (warning,) = check(tmp_path / "data").warnings
    assert "8 images in valid" in warning
    assert "±35 points" in warning
    # A held-out fifth cannot be larger.
    assert check(flat).warnings == ()


def test_damaged_animations_and_tiffs_are_errors_not_crashes(flat: Path, tmp_path: Path) -> None:
    """Cut short or with a flipped byte anywhere, a file is either read or reported."""
    frames = [Image.effect_noise((24, 24), sigma).convert("P") for sigma in (10, 40, 90)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:])
    Image.effect_noise((24, 24), 30).save(tmp_path / "whole.tiff")
    paths = []
    for name in ("whole.gif", "whole.tiff"):
        whole = (tmp_path / name).read_bytes()
        for cut in range(1, len(whole), 37):
            for kind, content in (("cut", whole[:cut]), ("bit", whole[:cut] + bytes([255]) + whole[cut + 1 :])):
                paths.append(tmp_path / f"{kind}{cut}-{name}")
                paths[-1].write_bytes(content)
    facts = inspect_images(paths, image_size=32)
    errors = [fact.error for fact in facts.values() if fact.error is not None]
    assert 20 < len(errors) < len(paths)
    assert all(error.reason and error.source in facts for error in errors)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_are_not_utf8(flat: Path, tmp_path: Path) -> None:
    odd = os.fsencode(flat / "red") + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_bytes((flat / "red" / "0.png").read_bytes())
    images = check(flat)
    files.write_text(tmp_path / "data.csv", files.csv_text(images.rows()))
    assert b"red/caf\xe9.png" in (tmp_path / "data.csv").read_bytes()
    assert len(images.content_hash) == 64


def test_the_content_hash_depends_on_every_byte(flat: Path) -> None:
    before = check(flat).content_hash
    with (flat / "red" / "0.png").open("ab") as file:
        file.write(b"\0")
    assert check(flat).content_hash != before


@pytest.mark.data
def test_oddities_of_real_photos(shared_data) -> None:  # type: ignore[no-untyped-def]
    """Counted independently: `file` on every image of the real, messy data set."""
    images = check(shared_data("weather_messy"))
    odd = {kind: len(names) for kind, names in images.oddities.items()}
    assert len(images.data.samples) == 182
    assert odd["PNG named .jpg"] == 6
    assert odd["GIF named .jpg"] == 2
    assert odd["several frames"] == 1
    assert not images.unreadable


def test_the_content_hash_depends_on_the_labels(flat: Path) -> None:
    """In a table, paths do not tell the labels, and the image keeps its place in the order."""
    paths = sorted(flat.glob("*/*.png"))
    hashes = []
    for label in ("blue", "green"):
        rows = [f"{path},{path.parent.name},{'valid' if path.stem < '2' else 'train'}" for path in paths]
        rows[9] = f"{paths[9]},{label},train"
        table = flat.parent / f"{label}.csv"
        table.write_text("\n".join(["filepath,label,split", *rows]))
        hashes.append(check(table).content_hash)
    assert hashes[0] != hashes[1]
