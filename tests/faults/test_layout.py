"""Ambiguous folders, broken links, and other files beside images.

`data.csv` of a run, with a line for each image, shows how the data was read.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from pictures import save_picture

from carnet.cli.main import run

NO_LINKS = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
QUICK = ["--model", "carnet_n", "--image-size", "32", "--epochs", "1", "--compile", "off", "--json"]


def draw(root: Path, *names: str) -> Path:
    """Make a folder of images that all have different bytes."""
    for number, name in enumerate(names):
        save_picture(root / name, (40 * (number % 6), 90, 160), seed=number, size=(36, 34))
    return root


def under(*folders: str, number: int = 2) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(number)]


def train(data: Path, *flags: str) -> tuple[int, list[tuple[str, str, str]]]:
    """Train, and return the exit code and (split, class, path) of the images."""
    output = data.parent / f"run-{len(list(data.parent.iterdir()))}"
    code = run(["train", str(data), *QUICK, "--output", str(output), *flags])
    if not (output / "data.csv").exists():
        return code, []
    with (output / "data.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["split"], row["label"], row["filepath"]) for row in csv.DictReader(file)]
    return code, sorted(rows)


def classes(rows: Sequence[tuple[str, str, str]]) -> Counter[str]:
    return Counter(label for _, label, _ in rows)


def refused(data: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Check that training refuses the data, and return the line of the error."""
    code, rows = train(data, *flags)
    message = capsys.readouterr().err.strip().splitlines()
    assert (code, rows) == (2, [])
    assert message[-1].startswith("carnet: ")
    assert not [line for line in message if "Traceback" in line]
    return message[-1]


DAY_AND_NIGHT = ("day", "night")
BOTH_READINGS = {
    **{
        name: [f"{folder}/{part}" for folder in ("car", "bus", name) for part in DAY_AND_NIGHT]
        for name in ("train", "test", "valid", "val", "Training", "dev")
    },
    "images-directly-in-the-others": ["car", "bus", "train/day", "train/night"],
    "two-that-sound-like-splits": ["car", "train/day", "train/night", "test/day", "test/night"],
    "a-holdout": ["train/cat", "train/dog", "holdout/cat"],
    "beside-several-splits": ["train/cat", "train/dog", "valid/cat", "valid/dog", "more"],
    "labelled-in-spite-of-its-name": ["train/cat", "train/dog", "test/cat", "test/dog", "unlabeled/cat"],
    "unlabelled-beside-one": ["train/cat", "train/dog", "unlabeled"],
    "in-the-one-folder-that-holds-everything": ["all/car/day", "all/bus/day", "all/train/day", "all/train/night"],
}


@pytest.mark.parametrize("folders", BOTH_READINGS.values(), ids=BOTH_READINGS)
def test_labelled_images_are_never_left_out_by_a_guess(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(draw(tmp_path / "data", *under(*folders, number=1)), capsys)
    assert "--layout splits" in message
    assert "--layout classes" in message
    assert all(folder.removeprefix("all/").split("/")[0] in message for folder in folders)


def test_folders_that_a_class_and_a_split_share_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [f"{folder}/{part}" for folder in ("car", "train") for part in DAY_AND_NIGHT]
    message = refused(draw(tmp_path / "data", *under(*folders)), capsys)
    assert "day, night" in message


@pytest.fixture(scope="module")
def vehicles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, one of them called train, by day and by night. Read only."""
    names = under(*(f"{folder}/{part}" for folder in ("car", "bus", "train") for part in DAY_AND_NIGHT), number=4)
    return draw(tmp_path_factory.mktemp("vehicles") / "data", *names)


@pytest.fixture(scope="module")
def vehicles_run(vehicles: Path) -> Path:
    """Trained with the folders as classes. Read only."""
    path = vehicles.parent / "classes"
    assert run(["train", str(vehicles), *QUICK, "--output", str(path), "--layout", "classes"]) == 0
    return path


def test_layout_classes_is_kept_by_evaluate_and_resume(
    vehicles: Path, vehicles_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (vehicles_run / "data.csv").open(encoding="utf-8", newline="") as file:
        assert Counter(row["label"] for row in csv.DictReader(file)) == {"bus": 8, "car": 8, "train": 8}
    shutil.copytree(vehicles_run, copy := tmp_path / "copy")
    page = ["--output", str(tmp_path / "page.html"), "--json"]
    capsys.readouterr()
    assert run(["evaluate", str(copy), *page]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 6
    # For data that is named again the layout is unknown.
    assert run(["evaluate", str(copy), str(vehicles), *page]) == 2
    assert "--layout" in capsys.readouterr().err
    assert run(["evaluate", str(copy), str(vehicles), *page, "--layout", "classes", "--split", "all"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 24
    assert run(["train", "--resume", str(copy), "--json"]) == 0
    assert run(["train", "--resume", str(copy), "--layout", "splits"]) == 2
    assert "--layout splits" in capsys.readouterr().err


def test_layout_splits(vehicles: Path, vehicles_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model does not know the classes of this reading, and names them."""
    flags = ["--split", "all", "--layout", "splits"]
    assert run(["evaluate", str(vehicles_run), str(vehicles), *flags]) == 2
    message = capsys.readouterr().err
    assert re.search("2 .*'day' .*4 .*'night' .*4 ", message)


def test_layout_classes_accepts_classes_that_look_like_splits(
    vehicles_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw(tmp_path / "data", *under("train_left", "test_right"))
    assert "--layout classes" in refused(data, capsys)
    assert run(["evaluate", str(vehicles_run), str(data), "--split", "all", "--layout", "classes"]) == 2
    assert "'test_right'" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("car/1.png", "bus/1.png"), ("train_images/1.png", "test_images/1.png")])
def test_layout_splits_without_any(names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "train, valid or test" in refused(draw(tmp_path / "data", *names), capsys, "--layout", "splits")


def test_compare_names_layout_too(vehicles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--models", "carnet_n", "--image-size", "32", "--output", str(tmp_path / "compared")]
    assert run(["compare", str(vehicles), *models]) == 2
    assert "--layout" in capsys.readouterr().err
    assert run(["compare", str(vehicles), *models, "--layout", "everything"]) == 2


DANGLING = {
    "a class": ("data/cow", True),
    "a class of train": ("data/train/cow", False),
    "valid": ("data/valid", False),
    "a folder inside a class": ("data/cat/more", True),
    "the data": ("data", True),
}


@NO_LINKS
@pytest.mark.parametrize(("link", "flat"), DANGLING.values(), ids=DANGLING)
def test_a_link_to_a_disk_that_is_not_mounted(
    link: str, flat: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if link != "data":
        draw(tmp_path / "data", *under("cat", "dog") if flat else under("train/cat", "train/dog"))
    (tmp_path / link).symlink_to("/mnt/not-mounted/photos", target_is_directory=True)
    message = refused(tmp_path / "data", capsys)
    assert str(tmp_path / link) in message
    assert str(Path("/mnt/not-mounted/photos")) in message


@NO_LINKS
def test_a_dangling_link_in_a_folder_to_predict(
    vehicles_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "new", "1.png")
    (tmp_path / "new" / "phone").symlink_to("/mnt/phone")
    assert run(["predict", str(vehicles_run), str(tmp_path / "new")]) == 2
    assert str(tmp_path / "new" / "phone") in capsys.readouterr().err


@NO_LINKS
def test_a_table_of_images_on_a_disk_that_is_not_mounted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (draw(tmp_path, "here/1.png") / "images").symlink_to("/mnt/not-mounted/photos")
    (tmp_path / "table.csv").write_text("filepath,label\nhere/1.png,a\nimages/1.png,b\n")
    message = refused(tmp_path / "table.csv", capsys)
    assert re.search(r"images/1\.png .*line 3", message)
    assert str(tmp_path / "images") in message
    assert "/mnt/not-mounted/photos" in message


def test_names_longer_than_the_system_allows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (draw(tmp_path, "1.png") / "table.csv").write_text(f"filepath,label\n1.png,a\n{'x' * 300}.png,b\n")
    assert "1 of 2 files" in refused(tmp_path / "table.csv", capsys)


def metadata(data: Path, split: str, *rows: str, name: str = "metadata.csv") -> Path:
    (data / split / name).write_text("\n".join(rows), encoding="utf-8")
    return data


TABLES_NAMED = {
    "no-label": (("train/1.png", "valid/1.png"), "metadata.csv", ("file_name,text", "1.png,x")),
    "json-lines": (("train/1.png", "valid/1.png"), "metadata.jsonl", ('{"file_name": "1.png", "label": "x"}',)),
    "json-lines-in-one": (("train/1.png",), "metadata.jsonl", ('{"file_name": "1.png", "label": "x"}',)),
    "other-classes": (("train/a/1.png", "train/b/1.png"), "metadata.csv", ("file_name,label", "a/1.png,x")),
    "images-elsewhere": (("images/1.png", "train/"), "metadata.csv", ("file_name,label", "../images/1.png,x")),
}


@pytest.mark.parametrize(("names", "table", "lines"), TABLES_NAMED.values(), ids=TABLES_NAMED)
def test_a_table_in_a_split_that_cannot_be_used_is_named(
    names: tuple[str, ...], table: str, lines: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw(tmp_path / "data", *(name for name in names if not name.endswith("/")))
    (data / "train").mkdir(exist_ok=True)
    assert f"train/{table}" in refused(metadata(data, "train", *lines, name=table), capsys).replace("\\", "/")


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.json"])
def test_json_is_not_a_table(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text('{"file_name": "1.png", "label": "x"}\n')
    assert re.search(f"{re.escape(name)}.*JSON", refused(tmp_path / name, capsys))


def answered(model: Path, capsys: pytest.CaptureFixture[str], *names: str) -> tuple[int, list[str], str]:
    capsys.readouterr()
    code = run(["predict", str(model), *names, "--csv"])
    out, err = capsys.readouterr()
    return code, [row["image"] for row in csv.DictReader(out.splitlines()) if not row["error"]], err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_patterns_below_folders_with_brackets(
    vehicles_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path, "[2024] Images/1.png", "[2024] Images/deep/2.png", "2/3.png", "a[1].png", "a1.png", "b[1].png")
    monkeypatch.chdir(tmp_path)
    for pattern, wanted in {
        "[2024] Images/*.png": ["[2024] Images/1.png"],
        f"{tmp_path}/[2024] Images/*.png": [f"{tmp_path}/[2024] Images/1.png"],
        "[2024] Images/**/*.png": ["[2024] Images/1.png", "[2024] Images/deep/2.png"],
        "./[2024] Images/[12].png": ["./[2024] Images/1.png"],
        "[0-9]/*.png": ["2/3.png"],
        "a[1].png": ["a[1].png"],
        "b[1]*.png": ["b[1].png"],
    }.items():
        code, found, _ = answered(vehicles_run, capsys, pattern)
        assert (code, found) == (0, wanted), pattern


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("{new} [1]/x-*.parquet", "{new} [1]/x-0.parquet"),
        ("{new} [1]/{x,y}-*.parquet", "{new} [1]/x-0.parquet"),
        ("b[1]-*.parquet", "b[1]-0.parquet"),
    ],
)
def test_patterns_of_data_sets_below_folders_with_brackets(
    pattern: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error about the content of a file shows that the pattern found it."""
    for path in (tmp_path / name, tmp_path / "{new} [1]" / "y-0.parquet"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"PAR1 and no end")
    assert name in refused(tmp_path / pattern, capsys)


def test_a_missing_file_with_brackets_is_a_missing_file(
    vehicles_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path, "there.png")
    monkeypatch.chdir(tmp_path)
    code, found, err = answered(vehicles_run, capsys, "photo[1].jpg", "there.png")
    assert (code, found) == (1, ["there.png"])
    assert "photo[1].jpg" in err
    code, found, err = answered(vehicles_run, capsys, "photo*.jpg")
    assert (code, found, "photo*.jpg" in err) == (2, [], True)


LOOKS_ODD = ("recycled paper", "snapshot", "found", "trash", "lost", "# 1", "@home", "~")
"""Names of classes that resemble those of system folders."""
SYSTEM_FOLDERS = (
    *("#recycle", "@Recycle", "#snapshot", "~snapshot", ".Trash-1000", "lost+found", "@eaDir", ".snapshot", "@tmp"),
    *("$RECYCLE.BIN", "System Volume Information", "FOUND.000", "@Recently-Snapshot", "__MACOSX", ".@__thumb"),
    *("Network Trash Folder", "Temporary Items", "@__thumb", "$Trash", ".zfs", ".TemporaryItems", "~Recycle"),
)


def test_other_folders_are_not_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """System folders, links to folders above, and unlabelled images beside several splits."""
    names = [f"{split}/{name}" for split in ("train", "test") for name in ("cat", *LOOKS_ODD)]
    inside = [f"{place}{name}/1.png" for name in SYSTEM_FOLDERS for place in ("", "train/", "train/cat/old/")]
    data = draw(tmp_path / "data", *under(*names), *under("unlabeled"), *inside)
    if os.name != "nt":
        (data / ".before").symlink_to("/mnt/not-mounted")
        (data / "train" / "cat" / "up").symlink_to("..", target_is_directory=True)
        (data / "train" / "lost" / "again").symlink_to(data / "train" / "lost", target_is_directory=True)
        (data / "test" / "all").symlink_to(data, target_is_directory=True)
    code, rows = train(data)
    said = capsys.readouterr().err
    assert code == 0
    assert {split for split, *_ in rows} == {"train", "valid", "test"}
    assert classes(rows) == dict.fromkeys(("cat", *LOOKS_ODD), 4)
    assert re.search("unlabeled .*2 images", said)
    for link in ("train/cat/up", "test/all") if os.name != "nt" else ():
        assert link in said


def test_tables_in_splits_and_similar_names_in_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["Cat", "cat", "c at", "cat\u200b", "\uff43at", "dog", "nan", "None", "caf\u00e9", "cafe\u0301"]
    splits = {"train": "images/", "valid": ""}
    data = draw(tmp_path / "data", *(f"{s}/{below}{i}.png" for s, below in splits.items() for i in range(len(labels))))
    for split, below in splits.items():
        metadata(data, split, "file_name,label", *(f"{below}{i}.png,{label}" for i, label in enumerate(labels)))
    code, rows = train(data)
    wanted = Counter((split, label) for split in splits for label in labels[:-1])
    wanted += Counter((split, "caf\u00e9") for split in splits)
    assert (code, Counter(row[:2] for row in rows)) == (0, wanted)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note: ")]
    (similar,) = [note for note in notes if repr(labels[0]) in note]
    assert all(repr(name) in similar for name in labels[:5])
    assert "dog" not in similar
    for pattern in ("2 .*'nan'", "2 .*'None'", "caf\u00e9 .*2 "):
        assert [note for note in notes if re.search(pattern, note)], pattern
