"""Folders that Hugging Face datasets reads: what it silently leaves out, or takes for data."""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import save_picture

from carnet.cli.main import run
from carnet.data.hub import is_dataset
from carnet.errors import DataError

pytest.importorskip("datasets")

NO_LINKS = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
QUICK = ["--model", "carnet_n", "--image-size", "32", "--epochs", "1", "--compile", "off", "--json"]
AWAY = "/mnt/not-mounted/photos"


def draw(root: Path, *folders: str, number: int = 2) -> Path:
    """A folder of images, each with bytes of its own."""
    for place, folder in enumerate(folders):
        for i in range(number):
            save_picture(root / folder / f"{i}.png", (40 * (place % 6), 90, 160), seed=100 * place + i, size=(36, 34))
    return root


def shard(path: Path, first: int) -> None:
    """A tar with two images of each of two classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + 4):
            save_picture(image := path.with_name("image.png"), (40, 90, 160), seed=number, size=(36, 34))
            for ending, content in (("png", image.read_bytes()), ("cls", b"%d" % (number % 2))):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            image.unlink()


def train(data: str, output: Path, *flags: str) -> tuple[int, Counter[str]]:
    """The exit code, and how many images each split has."""
    code = run(["train", data, *QUICK, "--output", str(output), *flags])
    if not (output / "data.csv").exists():
        return code, Counter()
    with (output / "data.csv").open(encoding="utf-8", newline="") as file:
        return code, Counter(row["split"] for row in csv.DictReader(file))


def refused(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line of the error."""
    assert train(data, tmp_path / "none", *flags) == (2, Counter())
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("carnet: ")
    return line


def a_split_among_classes(root: Path) -> str:
    draw(root, *(f"{name}/{part}" for name in ("bus", "car", "train") for part in ("day", "night")))
    return "bus/day/0.png"


def a_recycle_bin(root: Path) -> str:
    draw(root, "cat", "dog", "#recycle")
    return "#recycle/0.png"


def a_linked_class(root: Path) -> str:
    draw(root, "cat", "dog")
    draw(root.parent / "elsewhere", "cow")
    (root / "cow").symlink_to(root.parent / "elsewhere" / "cow")
    return "cow/0.png"


def a_class_on_another_disk(root: Path) -> str:
    (draw(root, "cat", "dog") / "cow").symlink_to(AWAY)
    return AWAY


def a_split_on_another_disk(root: Path) -> str:
    (draw(root, "train/cat", "train/dog") / "valid").symlink_to(AWAY)
    return AWAY


def a_pipe(root: Path) -> str:
    os.mkfifo(draw(root, "cat", "dog") / "cat" / "pipe.jpg")
    return "pipe.jpg"


def an_image_that_is_gone(root: Path) -> str:
    (draw(root, "cat", "dog") / "cat" / "gone.jpg").symlink_to(AWAY)
    return "gone.jpg"


def an_ending_that_it_does_not_know(root: Path) -> str:
    (draw(root, "cat", "dog") / "cat" / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    return "phone.HEIC"


@NO_LINKS
@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["stored", "streamed"])
@pytest.mark.parametrize(
    "make",
    [
        *(a_split_among_classes, a_recycle_bin, a_linked_class, a_class_on_another_disk, a_split_on_another_disk),
        *(a_pipe, an_image_that_is_gone, an_ending_that_it_does_not_know),
    ],
)
def test_what_would_be_left_out_of_a_folder_is_named(
    make: Callable[[Path], str], stream: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = make(tmp_path / "data")
    assert named in refused(f"hf:{tmp_path / 'data'}", tmp_path, capsys, *stream).replace("\\", "/")


def test_a_folder_of_which_nothing_is_left_out(tmp_path: Path) -> None:
    draw(tmp_path / "data", "train/cat", "train/dog", "validation/cat", "validation/dog")
    (tmp_path / "data" / "train" / "cat" / "0.png").rename(tmp_path / "data" / "train" / "cat" / "0.PNG")
    (tmp_path / "data" / "notes.txt").write_text("No image.")
    assert train(f"hf:{tmp_path / 'data'}", tmp_path / "run") == (0, Counter(train=4, valid=4))


def test_a_readme_may_say_what_belongs_to_the_data(tmp_path: Path) -> None:
    draw(tmp_path / "data", "photos/cat", "photos/dog", "drafts/cat")
    configuration = "---\nconfigs:\n- config_name: default\n  data_files: photos/**\n---\n"
    (tmp_path / "data" / "README.md").write_text(configuration)
    code, splits = train(f"hf:{tmp_path / 'data'}", tmp_path / "run")
    assert (code, splits.total()) == (0, 4)


def test_an_image_of_a_folder_may_claim_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sparse = draw(tmp_path / "data", "cat", "dog", number=3) / "cat" / "sparse.jpg"
    sparse.touch()
    os.truncate(sparse, 40 * 10**9)
    assert run(["train", f"hf:{tmp_path / 'data'}", *QUICK, "--output", str(tmp_path / "none")]) == 2
    assert re.search(r"1 of 7 .*\n.*images/train/0000003\.jpg: .* 256 MB", capsys.readouterr().err)


@NO_LINKS
@pytest.mark.parametrize("kind", ["a folder", "a file"])
def test_shards_on_a_disk_that_is_not_mounted(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(tmp_path / "data" / "train" / "0.tar", 0)
    link = tmp_path / "data" / ("valid" if kind == "a folder" else "valid-0.tar")
    link.symlink_to(AWAY)
    line = refused(str(tmp_path / "data"), tmp_path, capsys)
    assert str(link) in line
    assert AWAY in line


@NO_LINKS
def test_shards_in_linked_folders_are_read(tmp_path: Path) -> None:
    shard(tmp_path / "data" / "train" / "0.tar", 0)
    shard(tmp_path / "elsewhere" / "0.tar", 4)
    (tmp_path / "data" / "valid").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "train" / "back").symlink_to(tmp_path / "data")
    assert train(str(tmp_path / "data"), tmp_path / "run") == (0, Counter(train=4, valid=4))


def test_a_pattern_finds_nothing_in_a_recycle_bin(tmp_path: Path) -> None:
    shard(tmp_path / "data" / "train" / "0.tar", 0)
    shard(tmp_path / "data" / "valid" / "0.tar", 4)
    shard(tmp_path / "data" / "#recycle" / "train" / "0.tar", 8)
    assert train(str(tmp_path / "data" / "**" / "*.tar"), tmp_path / "run") == (0, Counter(train=4, valid=4))


@NO_LINKS
def test_a_second_way_to_the_same_files_is_told(tmp_path: Path) -> None:
    """If followed, the files would count twice; if skipped, a split would be missing."""
    shards = tmp_path / "shards"
    (shards / "train").mkdir(parents=True)
    (shards / "train" / "a.parquet").write_bytes(b"")
    (shards / "train" / "back").symlink_to(shards)
    (shards / "valid").symlink_to(shards / "train")
    with pytest.raises(DataError, match=r"shards/valid .*shards/train,"):
        is_dataset(str(shards))
    (shards / "valid").unlink()
    assert is_dataset(str(shards))
