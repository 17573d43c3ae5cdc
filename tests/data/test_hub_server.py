"""Data sets of the Hugging Face Hub: a stand-in on this machine, asked by processes that start with its address."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pytest
from children import finished
from data_sets import Make, parquet, rows, samples, shard
from pictures import save_picture
from stand_in import StandIn, listening

pytest.importorskip("datasets")

SHA = "0123456789abcdef0123456789abcdef01234567"
OWNERS = {"gated": (403, "GatedRepo"), "locked": (401, "GatedRepo"), "down": (503, "Down")}
"""On our hub, names that stand for what can go wrong."""


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


def birds(folder: Path, table: list[dict[str, Any]], name: str = "train.parquet") -> str:
    """A data set of the owner that the folder is for."""
    parquet(folder / "birds" / name, table)
    return f"hf:{folder.name}/birds"


def two_configurations(folder: Path) -> str:
    configs = []
    for name in ("large", "small"):
        birds(folder, rows(), name=f"{name}/train.parquet")
        configs.append(f"- config_name: {name}\n  data_files: {name}/*.parquet")
    (folder / "birds/README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    return f"hf:{folder.name}/birds"


def own_splits(folder: Path) -> str:
    birds(folder, rows(), name="data/one-00000-of-00001.parquet")
    return birds(folder, rows(), name="data/two-00000-of-00001.parquet")


def no_file(i: int) -> dict[str, Any]:
    return {"bytes": None, "path": "/etc/hostname"}


MISTAKES: list[tuple[str, Make, str]] = [
    ("mistyped name", lambda d: f"hf:{d.name}/brids", r"hf:\w+/brids .*https://huggingface.co/datasets,"),
    ("gated, not asked for", lambda _: "hf:gated/birds", r"https://huggingface.co/datasets/gated/birds"),
    (
        "gated, not logged in",
        lambda _: "hf:locked/birds",
        r"https://huggingface.co/datasets/locked/birds, .*hf auth login",
    ),
    ("the hub is down", lambda _: "hf:down/birds", r"hf:down/birds .*503"),
    ("one part too many", lambda d: f"hf:{d.name}/birds/train", r"hf:\w+/birds/train .*hf:OWNER/NAME"),
    ("a folder without ./", lambda _: "hf:photos", r"hf:photos .*hf:\./FOLDER"),
    ("no such folder", lambda _: "hf:./photos", r"hf:\./photos: .*/photos;"),
    ("mistyped option", lambda d: birds(d, rows()) + "?lable=kind", r"lable=kind: .*image=, label=, train=,"),
    ("unknown revision", lambda d: birds(d, rows()) + "@v9", r"'v9'; .*/birds/commits/main"),
    ("a script", lambda d: birds(d, rows(), name="birds.py"), r"birds@refs/convert/parquet"),
    ("no data", lambda d: birds(d, rows(), name="notes.xyz"), r"hf:\w+/birds .*data files"),
    ("no configuration", two_configurations, r"'large', 'small', hf:NAME:CONFIGURATION"),
    ("unknown configuration", lambda d: two_configurations(d) + ":tiny", r"birds:tiny .*'large', 'small'"),
    ("no such column", lambda d: birds(d, rows()) + "?label=kind", r" kind; .*\?label=COLUMN .* image \(members\)"),
    ("splits of its own", own_splits, r" one, two; .*hf:…\?train=SPLIT"),
    ("paths of no use here", lambda d: birds(d, rows(image=no_file)), r"image 0 of train .*\(/etc/hostname\)"),
]


def whole(folder: Path, kind: str) -> str:
    """A data set without a mistake, 12 images to train on and 4 to validate."""
    for split, number in ("train", 12), ("validation", 4):
        if kind == "parquet":
            birds(folder, rows(number), name=f"data/{split}-00000-of-00001.parquet")
        elif kind == "shards":
            shard(folder / f"birds/{split}-0.tar", samples(number, "txt"))
        else:
            for i in range(number):
                save_picture(folder / f"birds/{split}/{('cat', 'dog')[i % 2]}/{i:02d}.jpg", (9, 90, 9), i)
    return f"hf:{folder.name}/birds"


# The libraries read their settings when they are imported, so a process starts with them.
SCRIPT = """
import hashlib, json, sys
from carnet.data.stream import ImageStream, store
from carnet.errors import DataError

def streamed(data):
    stream = ImageStream(data)
    images = {one.name: [one.label, hashlib.sha256(one.content).hexdigest()] for one in stream.read("train", order=3)}
    return {"classes": stream.classes, "num_images": stream.num_images, "revision": stream.source.revision,
            "images": images}

def stored(data):
    warnings = []
    return {"table": str(store(data, warnings=warnings)), "warnings": warnings}

def told(read, data):
    try:
        return read(data)
    except DataError as error:
        return str(error)

print(json.dumps([[told(streamed, data), told(stored, data)] for data in json.loads(sys.argv[1])]))
"""
Told = tuple[Any, Any]
"""What a stream of a data set says, and what its copy in files says; the text of an error where there is one."""


def told(names: list[str], cache: Path, **settings: str) -> list[Told]:
    """Read data sets in a process of its own."""
    environment = os.environ | {"CARNET_CACHE": str(cache), "HF_HOME": str(cache / "hf")} | settings
    process = finished([sys.executable, "-c", SCRIPT, json.dumps(names)], check=True, env=environment)
    return [(streamed, stored) for streamed, stored in json.loads(process.stdout.splitlines()[-1])]


KINDS = ["parquet", "shards", "folder"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Told]]:
    """What was said of each data set while the Hub answered; of those without a mistake, also without it."""
    folder = tmp_path_factory.mktemp("hub")
    Hub.root, cache = folder / "hub", folder / "cache"
    made = {row[0]: row[1](Hub.root / f"owner{number}") for number, row in enumerate(MISTAKES)}
    made |= {kind: whole(Hub.root / kind, kind) for kind in KINDS}
    with listening(Hub) as address:
        online = told(list(made.values()), cache, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    offline = told([made[kind] for kind in KINDS], cache, HF_HUB_OFFLINE="1")
    found = {name: [one] for name, one in zip(made, online, strict=True)}
    for kind, one in zip(KINDS, offline, strict=True):
        found[kind].append(one)
    return found


@pytest.mark.parametrize(("name", "message"), [pytest.param(row[0], row[2], id=row[0]) for row in MISTAKES])
def test_mistakes_with_the_hub(name: str, message: str, answers: dict[str, list[Told]]) -> None:
    ((streamed, stored),) = answers[name]
    assert isinstance(streamed, str)
    assert re.search(message, streamed)
    assert (streamed, "\n" in streamed) == (stored, False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_of_the_hub(kind: str, answers: dict[str, list[Told]]) -> None:
    (streamed, stored), (_, stored_before) = answers[kind]
    assert (streamed["classes"], streamed["num_images"]) == (["cat", "dog"], {"train": 12, "valid": 4})
    assert streamed["revision"] == SHA
    table = Path(stored["table"])
    assert f"{kind}--birds@{SHA}" in str(table)
    written = [row.split(",") for row in table.read_text().splitlines()[1:]]
    read = {
        path.removeprefix("images/").partition(".")[0]: [
            label,
            hashlib.sha256((table.parent / path).read_bytes()).hexdigest(),
        ]
        for path, label, split in written
        if split == "train"
    }
    assert streamed["images"] == read
    # Once stored, it serves where there is no network.
    assert Path(stored_before["table"]) == table
    (warning,) = stored_before["warnings"]
    assert re.search(rf"hf:{kind}/birds .*{SHA}", warning)
