"""The names that DATA may have, and what becomes of mistakes; the hub is a server on this machine."""

from __future__ import annotations

import functools
import io
import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pytest
from pictures import save_picture
from stand_in import StandIn, listening

from carnet.data.hub import HubUnreachableError, find_source, is_dataset
from carnet.data.stream import ImageStream, store
from carnet.errors import DataError, MissingExtraError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SHA = "0123456789abcdef0123456789abcdef01234567"
OWNERS = {"gated": (403, "GatedRepo"), "locked": (401, "GatedRepo"), "down": (503, "Down")}
"""On our hub, names that stand for what can go wrong."""


@functools.cache
def encoded(seed: int, kind: str = "jpg") -> bytes:
    """The bytes of an image."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"1.{kind}"
        save_picture(path, ((200, 60, 50), (50, 80, 200))[seed % 2], seed, (24, 20))
        return path.read_bytes()


def rows(number: int = 6, **columns: Callable[[int], Any] | None) -> list[dict[str, Any]]:
    """Rows of an image and a label; other columns take their place or are added, None takes one away."""
    plain = {"image": lambda i: {"bytes": encoded(i), "path": None}, "label": lambda i: ("cat", "dog")[i % 2]}
    return [{name: make(i) for name, make in (plain | columns).items() if make} for i in range(number)]


def parquet(path: Path, table: list[dict[str, Any]], features: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if features is None:
        pq.write_table(pa.Table.from_pylist(table), path)
    else:
        datasets.Dataset.from_list(table, features=features).to_parquet(path)
    return path


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(number: int = 6, label: str = "cls") -> list[tuple[str, bytes]]:
    content = {
        "cls": lambda i: b"%d" % (i % 2),
        "txt": lambda i: (b"cat\n", b"dog\n")[i % 2],
        "json": lambda i: json.dumps({"label": ("cat", "dog")[i % 2], "width": 24}).encode(),
    }
    pairs = [((f"{i:04d}.jpg", encoded(i)), (f"{i:04d}.{label}", content[label](i))) for i in range(number)]
    return [member for pair in pairs for member in pair]


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept, and nothing uses the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    set_offline(monkeypatch, True)


def set_offline(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)


class Hub(StandIn):
    """Data sets are folders `root/OWNER/NAME`; `OWNERS` fail."""

    root: Path

    def do_GET(self) -> None:  # noqa: N802
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        pattern = r"/(?:api/)?datasets/(\w+(?:/\w+)??)(?:/(revision|tree|paths-info|resolve)/([^/]+)/?(.*))?"
        match = re.fullmatch(pattern, unquote(urlparse(self.path).path))
        if match is None:
            return self.answer({}, 404)
        repo, what, revision, below = self.root / match[1], match[2] or "revision", match[3] or "main", match[4] or ""
        status, code = OWNERS.get(match[1].split("/")[0], (0, ""))
        if not status and not repo.is_dir():
            status, code = 401, "RepoNotFound"
        elif not status and revision not in ("main", SHA):
            status, code = 404, "RevisionNotFound"
        elif not status and what != "paths-info" and not (repo / below).exists():
            status, code = 404, "EntryNotFound"
        if status:
            return self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)
        if what == "revision":
            return self.answer({"id": match[1], "sha": SHA, "tags": [], "downloads": 0, "likes": 0, "private": False})
        if what == "resolve":
            content = (repo / below).read_bytes()
            start, end = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
            part = content[int(start) : int(end or len(content)) + 1]
            return self.answer(part, 206 if self.headers.get("Range") else 200, ETag='"1"', X_Repo_Commit=SHA)
        paths = (repo / below).rglob("*") if "recursive=true" in self.path.lower() else (repo / below).glob("*")
        paths = [repo / path for path in parse_qs(asked)["paths"]] if what == "paths-info" else sorted(paths)
        return self.answer([self.entry(path) for path in paths if path.exists()])

    do_HEAD = do_POST = do_GET  # noqa: N815

    def entry(self, path: Path) -> dict[str, Any]:
        name = "/".join(path.relative_to(self.root).parts[2:])
        kind = "directory" if path.is_dir() else "file"
        return {"type": kind, "oid": "0" * 40, "size": path.stat().st_size, "path": name}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on this machine; gives the folder of its data sets."""
    Hub.root = tmp_path / "hub"
    with listening(Hub) as address:
        set_offline(monkeypatch, False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        __import__("huggingface_hub").HfFileSystem.clear_instance_cache()
        yield Hub.root


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


Make = Callable[[Path], Any]
"""Given a folder, makes what somebody could have there; returns DATA, or something else for the folder itself."""


def birds(folder: Path, table: list[dict[str, Any]], features: Any = None, name: str = "train.parquet") -> str:
    parquet(folder / "me" / "birds" / name, table, features)
    return "hf:me/birds"


def two_configurations(folder: Path, data: str) -> str:
    configs = []
    for name in ("large", "small"):
        birds(folder, rows(), name=f"{name}/train.parquet")
        configs.append(f"- config_name: {name}\n  data_files: {name}/*.parquet")
    (folder / "me/birds/README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    return data


def own_splits(folder: Path) -> str:
    birds(folder, rows(), name="data/one-00000-of-00001.parquet")
    return birds(folder, rows(), name="data/two-00000-of-00001.parquet")


def no_file(i: int) -> dict[str, Any]:
    return {"bytes": None, "path": "/etc/hostname"}


HUB_MISTAKES: list[tuple[str, Make, str]] = [
    ("mistyped name", lambda _: "hf:me/brids", r"hf:me/brids .*https://huggingface.co/datasets,"),
    ("gated, not asked for", lambda _: "hf:gated/birds", r"https://huggingface.co/datasets/gated/birds"),
    (
        "gated, not logged in",
        lambda _: "hf:locked/birds",
        r"https://huggingface.co/datasets/locked/birds, .*hf auth login",
    ),
    ("the hub is down", lambda _: "hf:down/birds", r"hf:down/birds .*503"),
    ("one part too many", lambda _: "hf:me/birds/train", r"hf:me/birds/train .*hf:OWNER/NAME"),
    ("a folder without ./", lambda _: "hf:photos", r"hf:photos .*hf:\./FOLDER"),
    ("no such folder", lambda _: "hf:./photos", r"hf:\./photos: .*/photos;"),
    ("mistyped option", lambda d: birds(d, rows()) + "?lable=kind", r"lable=kind: .*image=, label=, train=,"),
    ("unknown revision", lambda d: birds(d, rows()) + "@v9", r"'v9'; .*/me/birds/commits/main"),
    ("a script", lambda d: birds(d, rows(), name="birds.py"), r"birds@refs/convert/parquet"),
    ("no data", lambda d: birds(d, rows(), name="notes.xyz"), r"hf:me/birds .*data files"),
    ("no configuration", lambda d: two_configurations(d, "hf:me/birds"), r"'large', 'small', hf:NAME:CONFIGURATION"),
    ("unknown configuration", lambda d: two_configurations(d, "hf:me/birds:tiny"), r"birds:tiny .*'large', 'small'"),
    ("no such column", lambda d: birds(d, rows()) + "?label=kind", r" kind; .*\?label=COLUMN .* image \(members\)"),
    ("splits of its own", own_splits, r" one, two; .*hf:…\?train=SPLIT"),
    ("paths of no use here", lambda d: birds(d, rows(image=no_file)), r"image 0 of train .*\(/etc/hostname\)"),
]


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


@pytest.mark.parametrize(("make", "message"), [pytest.param(*row[1:], id=row[0]) for row in HUB_MISTAKES])
def test_mistakes_with_the_hub(make: Make, message: str, hub: Path) -> None:
    check_refused(make(hub), message)


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


@pytest.mark.parametrize("kind", ["parquet", "shards", "folder"])
def test_a_data_set_of_the_hub(kind: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "parquet":
        data = birds(hub, rows(12), name="data/train-00000-of-00001.parquet")
        birds(hub, rows(4), name="data/validation-00000-of-00001.parquet")
    for split, number in (("train", 12), ("validation", 4)) if kind != "parquet" else ():
        data = "hf:me/birds"
        for i in range(number) if kind == "folder" else ():
            save_picture(hub / f"me/birds/{split}/{('cat', 'dog')[i % 2]}/{i:02d}.jpg", (9, 90, 9), i)
        if kind == "shards":
            shard(hub / f"me/birds/{split}-0.tar", samples(number, "txt"))
    stream = ImageStream(data)
    assert (stream.classes, stream.num_images) == (("cat", "dog"), {"train": 12, "valid": 4})
    assert stream.source.revision == SHA
    streamed = {image.name: (image.label, image.content) for image in stream.read("train", order=3)}
    table = store(data)
    assert f"me--birds@{SHA}" in str(table)
    stored = [row.split(",") for row in table.read_text().splitlines()[1:]]
    read = {
        path.removeprefix("images/").partition(".")[0]: (label, (table.parent / path).read_bytes())
        for path, label, split in stored
        if split == "train"
    }
    assert streamed == read
    # Once stored, it serves where there is no network.
    set_offline(monkeypatch, True)
    warnings: list[str] = []
    assert store(data, warnings=warnings) == table
    assert len(warnings) == 1
    assert re.search(rf"{data} .*{SHA}", warnings[0])
