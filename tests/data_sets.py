"""Data sets of Hugging Face `datasets`, Parquet files and WebDataset shards, that tests make for themselves."""

from __future__ import annotations

import functools
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pictures import save_picture

Make = Callable[[Path], Any]
"""Given a folder, makes what somebody could have there; returns DATA, or something else for the folder itself."""


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


def parquet(path: Path, table: list[dict[str, Any]], features: Any = None, group: int | None = None) -> Path:
    """Write rows; with features as `datasets` does, and else as anybody would, so many in a group."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    if features is None:
        pq.write_table(pa.Table.from_pylist(table), path, row_group_size=group)
    else:
        datasets.Dataset.from_list(table, features=features).to_parquet(path, batch_size=group)
    return path


def shard(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar, compressed if its name ends with .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(number: int = 6, label: str = "cls") -> list[tuple[str, bytes]]:
    """Members of a shard: images, and their labels as .cls, .txt or .json."""
    content = {
        "cls": lambda i: b"%d" % (i % 2),
        "txt": lambda i: (b"cat\n", b"dog\n")[i % 2],
        "json": lambda i: json.dumps({"label": ("cat", "dog")[i % 2], "width": 24}).encode(),
    }
    pairs = [((f"{i:04d}.jpg", encoded(i)), (f"{i:04d}.{label}", content[label](i))) for i in range(number)]
    return [member for pair in pairs for member in pair]
