from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import encoded, parquet, shard
from PIL import Image

from carnet.data.find import find_images
from carnet.data.scan import scan_images
from carnet.data.stream import ImageStream, StreamedImage, store
from carnet.errors import DataError, UnreadableImagesError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, rows: list[dict[str, Any]], classes: list[str] | None = None) -> Path:
    """Rows of an image and a label; with classes, as `datasets` writes them, and else as anybody would."""
    if classes is None:
        return parquet(path, rows, group=5)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    return parquet(path, rows, features, group=5)


def images(number: int, label: Callable[[int], Any], first: int = 0) -> list[dict[str, Any]]:
    numbers = range(first, first + number)
    return [{"image": {"bytes": encoded(i), "path": f"{i}.jpg"}, "label": label(i)} for i in numbers]


def read_table(table: Path) -> list[tuple[str, str, bytes]]:
    """(split, label, the image's bytes) of every row, in order."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [(row.get("split", "all"), row["label"], (table.parent / row["filepath"]).read_bytes()) for row in rows]


NAMES = ["b/c", "..", "CON", "Cat", "cat", "co:lon", "x, y", 'say "q"', "ünï", "a"]


def test_stored_bytes_and_classes_are_the_data_sets_own(tmp_path: Path) -> None:
    train, valid = images(100, lambda i: i % 10), images(20, lambda i: i % 10, first=100)
    write(tmp_path / "data" / "train-0.parquet", train[:60], NAMES)
    write(tmp_path / "data" / "train-1.parquet", train[60:], NAMES)
    write(tmp_path / "data" / "validation.parquet", valid, NAMES)
    steps: list[tuple[int, int]] = []
    table = store(str(tmp_path / "data"), lambda *step: steps.append(step))
    expected = [("train", NAMES[row["label"]], row["image"]["bytes"]) for row in train]
    expected += [("valid", NAMES[row["label"]], row["image"]["bytes"]) for row in valid]
    assert read_table(table) == expected
    assert steps[-1] == (120, 120)
    found = find_images(table)
    assert found.classes == tuple(sorted(NAMES))
    assert {split: len(samples) for split, samples in found.splits.items()} == {"train": 100, "valid": 20}
    assert found.relative(found.splits["train"][0]) == "images/train/0000001.jpg"
    assert scan_images(found, image_size=24).data.classes == found.classes


@pytest.mark.parametrize(
    ("image", "label", "classes"),
    [
        (lambda i: {"bytes": encoded(i)}, lambda i: ("dog", "cat")[i % 2], ("cat", "dog")),
        (encoded, lambda i: (" dog\n", "cat")[i % 2], ("cat", "dog")),
        (lambda i: {"bytes": encoded(i), "path": None}, lambda i: i % 12, tuple(sorted(map(str, range(12))))),
        (lambda i: {"path": f"{i}.jpg", "bytes": encoded(i)}, lambda i: float(i % 2), ("0", "1")),
        (lambda i: {"bytes": encoded(i)}, lambda i: i % 2 == 0, ("False", "True")),
    ],
    ids=["words", "bytes alone", "numbers", "floats", "truth"],
)
def test_plain_columns(
    image: Callable[[int], Any], label: Callable[[int], Any], classes: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [{"size": 3, "img": image(i), "extra": {"bytes": 5}, "class": label(i)} for i in range(24)]
    rows = [{name: value for name, value in row.items() if name != "extra"} for row in rows]
    data = str(write(tmp_path / "birds.parquet", rows))
    assert ImageStream(data).classes == classes
    table = store(data)
    assert table.read_text().startswith("filepath,label\nimages/train/0000000.jpg,")
    assert [content for _, _, content in read_table(table)] == [encoded(i) for i in range(24)]
    assert find_images(table).is_flat


@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_webdataset(kind: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"cls": ("0", "1"), "txt": ("cat", "dog"), "json": ("cat", "dog")}[kind]
    for split, numbers in {"train": range(20), "val": range(20, 26)}.items():
        members: dict[str, bytes] = {}
        for i in numbers:
            text = labels[i % 2]
            members[f"birds/{i:05d}.JPG"] = encoded(i)
            members[f"birds/{i:05d}.{kind}"] = (
                json.dumps({"label": text, "n": i}) if kind == "json" else text
            ).encode()
        half = len(members) // 2 // 2 * 2
        shard(tmp_path / f"{split}-0.{ending}", list(members.items())[:half])
        shard(tmp_path / f"{split}-1.{ending}", list(members.items())[half:])
    # `datasets` by itself would take this file for the first image.
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "00000.JPG").write_bytes(b"another")
    monkeypatch.chdir(tmp_path)
    data = f"{{train,val}}-{{0..1}}.{ending}"
    assert ImageStream(data).classes == labels
    expected = [("train" if i < 20 else "valid", labels[i % 2], encoded(i)) for i in range(26)]
    assert read_table(store(data)) == expected


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (6, 5, 4)])
def test_arrays_become_images_without_loss(shape: tuple[int, ...], tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    rows = [{"image": array.tolist(), "label": "ab"[i % 2]} for i, array in enumerate(arrays)]
    table = store(str(write(tmp_path / "birds.parquet", rows)))
    for (_, _, content), array in zip(read_table(table), arrays):
        read = Image.open(io.BytesIO(content))
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read).reshape(shape), array)


def test_a_folder_as_datasets_understands_it(flat: Path) -> None:
    found = find_images(flat)
    table = store(f"hf:{flat}")
    assert find_images(table).classes == found.classes
    assert [content for _, _, content in read_table(table)] == [s.path.read_bytes() for s in found.samples]
    stream = ImageStream(f"hf:{flat}")
    mixed = list(stream.read("train", order=1))
    assert sorted(image.content for image in mixed) == sorted(s.path.read_bytes() for s in found.samples)


@pytest.fixture
def sorted_by_class(tmp_path: Path) -> Path:
    """Three files of four classes of 25 images, one class after the other."""
    rows = images(100, lambda i: "abcd"[i // 25])
    for number in range(3):
        write(tmp_path / "data" / f"train-{number}.parquet", rows[number * 35 : number * 35 + 35])
    return tmp_path / "data"


@pytest.mark.parametrize("buffer_bytes", [0, 10_000, 10**9])
def test_orders(buffer_bytes: int, sorted_by_class: Path) -> None:
    stream = ImageStream(str(sorted_by_class), buffer_bytes=buffer_bytes)
    assert (stream.classes, stream.splits, stream.num_images) == (("a", "b", "c", "d"), ("train",), {"train": 100})
    stored = list(stream.read("train"))
    assert [image.name for image in stored] == [f"train/{i:07d}" for i in range(100)]
    assert [image.position for image in stored] == list(range(100))
    assert [image.content for image in stored] == [encoded(i) for i in range(100)]
    mixed = list(stream.read("train", order=7))
    # The same name is the same image in every order.
    assert sorted(mixed, key=lambda image: image.name) == stored
    again = ImageStream(str(sorted_by_class), buffer_bytes=buffer_bytes)
    assert list(again.read("train", order=7)) == mixed
    assert list(stream.read("train", order=8)) != mixed
    for skip in (1, 50, 99, 100, 200):
        assert list(stream.read("train", order=7, skip=skip)) == mixed[skip:]
        assert list(stream.read("train", skip=skip)) == stored[skip:]


def test_a_file_of_many_row_groups(tmp_path: Path) -> None:
    """More parts than are read separately: neighbours are read together, and no row is lost."""
    rows = images(100, lambda i: "abcd"[i // 25])
    pq.write_table(pa.Table.from_pylist(rows * 3), tmp_path / "birds.parquet", row_group_size=1)
    stream = ImageStream(str(tmp_path / "birds.parquet"))
    assert stream.num_images == {"train": 300}
    stored = {f"train/{i:07d}": encoded(i % 100) for i in range(300)}
    assert {image.name: image.content for image in stream.read("train", order=0)} == stored
    assert [image.content for image in stream.read("train")] == list(stored.values())


@pytest.mark.parametrize("files", [1, 3])
def test_classes_are_mixed_though_they_are_stored_one_after_the_other(
    files: int, sorted_by_class: Path, tmp_path: Path
) -> None:
    one = write(tmp_path / "one.parquet", images(100, lambda i: "abcd"[i // 25]))
    mixed = ImageStream(str(one if files == 1 else sorted_by_class), buffer_bytes=8_000).read("train", order=0)
    labels = [image.label for image in mixed]
    assert all(len(set(labels[start : start + 25])) >= 3 for start in range(0, 100, 25))


def test_names_stand_for_the_same_images_stored_and_streamed(sorted_by_class: Path) -> None:
    table = store(str(sorted_by_class))
    for image in ImageStream(str(sorted_by_class)).read("train", order=2):
        assert (table.parent / "images" / f"{image.name}.jpg").read_bytes() == image.content


def test_reading_may_stop_at_any_time(sorted_by_class: Path) -> None:
    images = ImageStream(str(sorted_by_class)).read("train", order=0)
    assert isinstance(next(images), StreamedImage)
    images.close()  # type: ignore[attr-defined]


def test_splits_without_labels_and_unknown_ones_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "birds" / "data" / "train-00000-of-00001.parquet", images(6, lambda i: i % 2), ["b", "a"])
    write(tmp_path / "birds" / "data" / "test-00000-of-00001.parquet", images(6, lambda i: -1), ["b", "a"])
    write(tmp_path / "birds" / "data" / "extra-00000-of-00001.parquet", images(4, lambda i: i % 2), ["b", "a"])
    stream = ImageStream(f"hf:{tmp_path / 'birds'}")
    assert (stream.splits, stream.classes) == (("train",), ("a", "b"))
    warnings: list[str] = []
    store(f"hf:{tmp_path / 'birds'}", warnings=warnings)
    assert stream.warnings == tuple(warnings)
    assert [re.search(r"1 split|test", warning)[0] for warning in warnings] == ["1 split", "test"]  # type: ignore[index]
    assert "extra" in warnings[0]
    with pytest.raises(DataError, match=r" test, .*train"):
        stream.read("test")
    chosen = ImageStream(f"hf:{tmp_path / 'birds'}?train=extra,valid=train")
    assert chosen.num_images == {"train": 4, "valid": 6}


def test_a_column_can_be_chosen(tmp_path: Path) -> None:
    rows = images(6, lambda i: i % 2)
    rows = [{**row, "fine_label": "xy"[i % 2], "left": {"bytes": encoded(50 + i)}} for i, row in enumerate(rows)]
    write(tmp_path / "birds" / "data" / "train.parquet", rows)
    stream = ImageStream(f"hf:{tmp_path / 'birds'}?label=fine_label,image=left")
    assert [(i.label, i.content) for i in stream.read("train")] == [("xy"[i % 2], encoded(50 + i)) for i in range(6)]


def test_stored_once_for_the_same_bytes(sorted_by_class: Path) -> None:
    table = store(str(sorted_by_class))
    written = table.stat()
    moved = sorted_by_class.with_name("moved")
    shutil.move(sorted_by_class, moved)
    assert store(str(moved)) == table
    assert (table.stat().st_ino, table.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    write(moved / "train-2.parquet", images(5, lambda i: "abcd"[i % 4]))
    assert store(str(moved)) != table


def test_content_hash_follows_the_data(sorted_by_class: Path) -> None:
    first = ImageStream(str(sorted_by_class)).content_hash
    moved = shutil.copytree(sorted_by_class, sorted_by_class.with_name("moved"))
    assert ImageStream(str(moved)).content_hash == first
    write(moved / "train-2.parquet", images(30, lambda i: "abcd"[i % 4]))
    assert ImageStream(str(moved)).content_hash != first


def test_what_is_no_image_is_left_for_the_check(tmp_path: Path) -> None:
    rows = images(12, lambda i: "ab"[i % 2])
    rows[3]["image"] = {"bytes": b"no image", "path": "3.jpg"}
    rows[4]["image"] = {"bytes": encoded(4, "png"), "path": "4.jpg"}
    table = store(str(write(tmp_path / "birds.parquet", rows)))
    assert (table.parent / "images/train/0000004.png").read_bytes() == encoded(4, "png")
    with pytest.raises(UnreadableImagesError, match=r"1 of 12 .*\n.*/0000003\.jpg"):
        scan_images(find_images(table), image_size=24)


def test_nothing_is_printed(sorted_by_class: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store(str(sorted_by_class))
    (sorted_by_class / "train-9.parquet").write_bytes(b"PAR1" * 99)
    with pytest.raises(DataError):
        store(str(sorted_by_class))
    assert capfd.readouterr() == ("", "")
