"""The names that DATA may have, what becomes of mistakes in files, and a hub that is not reached."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from data_sets import Make, encoded, parquet, rows, samples, shard
from pictures import save_picture

from carnet.data.hub import HubUnreachableError, find_source, is_dataset
from carnet.data.stream import ImageStream, store
from carnet.errors import DataError, MissingExtraError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize(
    ("data", "is_one"),
    [
        ("hf:beans", True),
        ("birds.parquet", True),
        ("nowhere/birds.parquet", True),
        ("birds", True),
        ("shards", True),
        ("shards/train-0.tar", True),
        ("shards/train-{0..1}.tar", True),
        ("shards/*.tar", True),
        ("archive.tar", False),
        ("nowhere/archive.tar", False),
        ("photos", False),
        ("photos.csv", False),
    ],
)
def test_forms_are_told_apart(data: str, is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("birds.parquet", "birds/data/train.parquet", "photos/cat/stray.parquet"):
        parquet(Path(place), rows())
    save_picture(Path("photos/cat/1.jpg"), (9, 9, 9), 0)
    shard(Path("shards/train-0.tar"), samples())
    shard(Path("archive.tar"), [("cat/1.jpg", encoded(1)), ("cat/2.jpg", encoded(2)), ("README.txt", b"text")])
    assert is_dataset(data) is is_one


@pytest.mark.parametrize(
    ("data", "name", "config", "revision", "chosen"),
    [
        ("hf:beans", "beans", None, None, {}),
        ("hf:me/birds", "me/birds", None, None, {}),
        ("hf://datasets/me/birds", "me/birds", None, None, {}),
        ("hf:me/birds:small", "me/birds", "small", None, {}),
        ("hf:me/birds@v1.0", "me/birds", None, "v1.0", {}),
        ("hf:me/birds:small@refs/convert/parquet", "me/birds", "small", "refs/convert/parquet", {}),
        ("hf:me/birds?label=kind,train=all", "me/birds", None, None, {"label": "kind", "train": "all"}),
        ("hf:me/birds:small@v1?image=left", "me/birds", "small", "v1", {"image": "left"}),
    ],
)
def test_names(data: str, name: str, config: str | None, revision: str | None, chosen: dict[str, str]) -> None:
    source = find_source(data)
    assert (source.kind, source.place) == ("hub", name)
    assert (source.config, source.revision, source.chosen) == (config, revision, chosen)


@pytest.mark.parametrize(
    ("names", "data", "found"),
    [
        ("a.parquet b.parquet", "", {"train": "a b"}),
        ("train.parquet valid.parquet test.parquet", "", {"train": "train", "valid": "valid", "test": "test"}),
        ("x/train-0.parquet x/train-1.parquet x/dev-0.parquet", "", {"train": "train-0 train-1", "valid": "dev-0"}),
        ("train/0.parquet validation/0.parquet .cache/0.parquet", "", {"train": "0", "valid": "0"}),
        ("b-1.parquet b-2.parquet a-1.parquet", "{b,a}-{1..1}.parquet", {"train": "b-1 a-1"}),
        ("t-008.parquet t-009.parquet t-010.parquet", "t-{008..010}.parquet", {"train": "t-008 t-009 t-010"}),
        ("Train_1.parquet VAL_1.parquet notes.parquet", "*_1.parquet", {"train": "Train_1", "valid": "VAL_1"}),
        ("a/1.parquet a/b/2.parquet c.tar", "a/**/*.parquet", {"train": "1 2"}),
        ("my [1] {x}/1.parquet", "my [1] {x}/1.parquet", {"train": "1"}),
        ("my [1]/1.parquet my [1]/2.parquet", "my [1]/*.parquet", {"train": "1 2"}),
    ],
)
def test_files_and_their_splits(names: str, data: str, found: dict[str, str], tmp_path: Path) -> None:
    for name in re.findall(r".*?\.(?:parquet|tar) ?", names):
        path = tmp_path / "data" / name.strip()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1")
    splits: dict[str, list[str]] = {}
    for split, path in find_source(str(tmp_path / "data" / data)).files:
        splits.setdefault(split, []).append(path.stem)
    assert {split: " ".join(stems) for split, stems in splits.items()} == found


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\*\*\.tar"):
        find_source(f"{tmp_path}/**.tar")


def table(*tables: list[dict[str, Any]], names: str = "1 2", features: Any = None) -> Make:
    """Parquet files of some names."""
    return lambda d: [parquet(d / f"{n}.parquet", t, features) for n, t in zip(names.split(), tables)]


def two_classes(*names: str) -> Any:
    kind = datasets.ClassLabel(names=["cat", "dog"])
    return datasets.Features({"image": datasets.Image(), **dict.fromkeys(names, kind)})


def damage(path: Path, length: int = 0) -> Path:
    """Cut a file, or overwrite its middle."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 1024 * 512
    content[middle : middle + 4096] = b"U" * 4096
    path.write_bytes(path.read_bytes()[:length] if length else content)
    return path


def not_parquet(folder: Path) -> Path:
    (folder / "1.parquet").write_bytes(b"PAR1" * 300)
    return folder / "1.parquet"


def without_rows(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows()).slice(0, 0), folder / "1.parquet")
    parquet(folder / "2.parquet", rows())


def unnamed_class(folder: Path) -> None:
    """A number for which there is no name."""
    parquet(folder / "1.parquet", rows(label=lambda i: i % 3))
    read = pq.read_table(folder / "1.parquet")
    pq.write_table(read.replace_schema_metadata(two_classes("label").arrow_schema.metadata), folder / "1.parquet")


def no_labels(i: int) -> None:
    return None


PARQUET_MISTAKES: list[tuple[str, Make, str]] = [
    ("mistyped name", lambda d: d / "brids.parquet", r"/brids.parquet;"),
    ("half copied", lambda d: damage(parquet(d / "1.parquet", rows()), 900), r"/1.parquet "),
    ("something else", not_parquet, r"/1.parquet .*parquet file"),
    ("a part without rows", without_rows, r"/birds .* rows;"),
    ("no images", table(rows(image=None, text=str)), r"\?image=COLUMN .* label \(string\), text \(string\)"),
    ("links to images", table(rows(image=lambda i: f"http://birds/{i}")), r"\?image=COLUMN .* image \(string\)"),
    ("no labels", table(rows(label=None)), r"\?label=COLUMN .* image \(members\)"),
    (
        "two labels",
        table(rows(label=None, a=int, b=int)[:2], features=two_classes("a", "b")),
        r"\?label=COLUMN .* a \(",
    ),
    ("lists of labels", table(rows(label=lambda i: ["cat", "dog"])), r"\?label=COLUMN .* label \(List\)"),
    ("some unlabelled", table(rows(label=lambda i: [None, "cat", "dog"][i % 3])), r" 2 of the 6 images in train "),
    ("some labelled -1", table(rows(label=lambda i: i % 3 - 1), features=two_classes("label")), r" 2 of the 6 images "),
    ("all unlabelled", table(rows(label=no_labels), features=two_classes("label")), r" 6 of the 6 images in train "),
    ("an unknown number", unnamed_class, r"\(label 2 where there are 2 classes\)"),
    ("an image missing", table(rows(image=lambda i: {"bytes": encoded(i)} if i < 4 else None)), r" image 4 of train "),
    ("pixels from 0 to 1", table(rows(image=lambda i: [[0.5, 1.0]])), r" image 0 of train .*float64 \(1, 2\)"),
    ("other columns", table(rows(), rows(label=None, kind=str)), r"/birds .*columns \("),
    ("one class", table(rows(label=lambda i: "cat")), r"/birds .* 1 class "),
    ("a class too many", table(rows(), rows(label=str), names="train valid"), r"valid of .* 6 classes .*: 0, 1, 2"),
    ("no train", table(rows(), rows(), names="valid test"), r" test, valid; .*hf:…\?train=SPLIT"),
    ("two splits in a name", table(rows(), rows(), names="train-test test"), r"/train-test.parquet .* test and train;"),
    ("a split in some names", table(rows(), rows(), names="train b"), r"/birds: train.parquet .* b.parquet "),
    (
        "a tar among them",
        lambda d: [parquet(d / "1.parquet", rows()), shard(d / "2.tar", samples())],
        r"/birds .* tars ",
    ),
]


def tar(*members: tuple[str, bytes]) -> Make:
    return lambda d: shard(d / "0.tar", list(members))


WEBDATASET_MISTAKES: list[tuple[str, Make, str]] = [
    ("a shard missing", lambda d: [tar(*samples())(d), d / "{0..1}.tar"][1], r"/1.tar, .*/\{0..1\}.tar "),
    ("no such pattern", lambda d: [tar(*samples())(d), d / "train-*.tar"][1], r"/train-\*.tar;"),
    ("half copied", lambda d: damage(tar(*samples())(d), 3000), r"/0.tar .*end mark"),
    ("damaged inside", lambda d: damage(tar(*samples(40))(d)), r"/0.tar "),
    ("names in .cls", tar(("1.jpg", encoded(1)), ("1.cls", b"cat")), r"/0.tar .*'cat'.* \.cls"),
    ("broken .json", tar(("1.jpg", encoded(1)), ("1.json", b"{")), r"/0.tar .* \.json member"),
    ("unlabelled .json", tar(("1.jpg", encoded(1)), ("1.json", b'{"w": 3}')), r"\?label=COLUMN .*json \(members\)"),
    ("no labels", tar(("1.jpg", encoded(1)), ("2.jpg", encoded(2))), r"\?label=COLUMN .*jpg \(Image\)"),
    ("no images", tar(("1.cls", b"1"), ("2.cls", b"0")), r"\?image=COLUMN .*cls \(int64\)"),
    (
        "jpg and png",
        tar(*samples(2), ("b.png", encoded(2, "png")), ("b.cls", b"1")),
        r"/0.tar .*members, such as 1.jpg",
    ),
    ("png at the end", tar(*samples(8), ("b.png", encoded(2, "png")), ("b.cls", b"1")), r" image 8 of train "),
    ("unlabelled at the end", tar(*samples(8), ("b.jpg", encoded(2))), r" 1 of the 9 images in train "),
    ("a name twice", tar(("1.jpg", encoded(1)), ("1.jpg", encoded(2))), r"/0.tar .*'jpg' "),
    ("nothing inside", tar(), r"/0.tar .*members, such as 1.jpg"),
]
FILE_MISTAKES = [("parquet", row) for row in PARQUET_MISTAKES] + [("webdataset", row) for row in WEBDATASET_MISTAKES]


@pytest.mark.parametrize(
    ("make", "message"), [pytest.param(*row[1:], id=f"{form}: {row[0]}") for form, row in FILE_MISTAKES]
)
def test_mistakes_with_files(make: Make, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    folder.mkdir()
    made = make(folder)
    check_refused(str(made if isinstance(made, Path) else folder), message)


def check_refused(data: str, message: str) -> None:
    """One line with a way out, streamed as well as stored."""
    with pytest.raises(DataError, match=message) as streamed:
        list(ImageStream(data).read("train"))
    with pytest.raises(DataError) as stored:
        store(data)
    assert str(streamed.value) == str(stored.value)
    assert "\n" not in str(streamed.value)


def test_no_network() -> None:
    with pytest.raises(HubUnreachableError, match="hf:beans"):
        store("hf:beans")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for data in ("hf:beans", str(not_parquet(tmp_path))):
        with pytest.raises(MissingExtraError, match=r'pip install "carnet\[datasets\]"'):
            store(data)
