"""Train two commits from the same settings and compare everything that they write bit for bit.

A change that only moves code must leave every weight as it was. The script checks another commit out into a temporary
work tree, trains it and the present files in five configurations on drawn photos, and compares model files, checkpoints
(weights, optimizer, moving average, counters) and metrics. Each difference is one line, and the exit code is 1.
No choice is left to measurements, so that both sides compute in the same way; each starts with an empty cache, except
for the measurements of the other. Add flags and entries that were renamed between the commits to the tables of names.

Example:
  python benchmarks/equal_weights.py
  python benchmarks/equal_weights.py --commit HEAD~3 --only plain accumulated
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from worktree import ROOT, commit_name, environment_of, worktree

Settings = dict[str, str]
"""Flags of `carnet train` with their values."""

COMMON: Settings = {
    "--model": "carnet_n",
    "--image-size": "48",
    "--epochs": "2",
    "--batch-size": "8",
    "--ema": "0",
    "--cutmix": "0",
    "--min-crop": "1",
    "--device": "cpu",
    "--precision": "fp32",
    "--muon-precision": "fp32",
    "--memory-format": "channels_last",
    "--fast-depthwise": "on",
    "--keep-memory": "off",
    "--compile": "off",
    "--cache": "off",
    "--threads": "1",
    "--workers": "0",
}
CONFIGURATIONS: dict[str, Settings] = {
    "plain": {},
    # Micro-batches of four, four and two images.
    "accumulated": {"--batch-size": "10", "--micro-batch": "4"},
    # Progressive resizing, RandomResizedCrop, images prepared ahead from a cache of decoded ones.
    "ema-cutmix": {
        "--ema": "0.9",
        "--cutmix": "0.5",
        "--min-crop": "0.35",
        "--image-size": "96",
        "--start-share": "0.5",
        "--epochs": "4",
        "--color": "0.2",
        "--rotation": "10",
        "--cache": "disk",
        "--workers": "2",
        "--checkpoint-steps": "3",
    },
    "compiled": {"--compile": "on"},
    # Five and four images in each process.
    "two-processes": {"--devices": "2", "--batch-size": "9"},
}
FLAG_NAMES: Sequence[tuple[str, ...]] = (
    ("--start-share", "--initial-size-ratio"),
    ("--micro-batch", "--micro-batch-size"),
)
"""All names of a flag over time; each side gets the first one that its `--help` shows."""
ENTRY_NAMES: Sequence[tuple[str, ...]] = (
    ("average", "ema", "averaged"),
    ("network", "model"),
)
"""All names of columns of `metrics.csv`, of counters, and of prefixes of tensors over time."""
COUNTERS_NEEDED = ("epoch", "step", "num_steps", "planned_progress")
OF_THE_CLOCK = {"seconds", "step_seconds", "images_per_second", "peak_memory_bytes", "peak_device_bytes", "notes"}
TENSOR_FILES = ("*.safetensors", "*.ckpt")
NUM_TRAIN, NUM_VALID = 20, 6
"""Number of photos of each of the four classes."""


@dataclass(frozen=True)
class Side:
    """One of the two versions of the code."""

    name: str
    tree: Path
    cache: Path
    flags: frozenset[str]
    """The flags that `carnet train --help` shows."""
    extra: tuple[str, ...] = ()
    """Arguments that this side alone gets."""


def main(arguments: Sequence[str] | None = None, repository: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD~1", help="commit to compare the present files with")
    parser.add_argument("--only", nargs="+", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    # Shows that the comparison can fail, such as --present-flags="--seed 1".
    parser.add_argument("--present-flags", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    hash_ = commit_name(options.commit, repository)
    num_different = 0
    with tempfile.TemporaryDirectory(prefix="carnet-equal-weights-") as folder, worktree(hash_, repository) as tree:
        root = Path(folder).resolve()
        data = draw_photos(root / "photos")
        extra = tuple(shlex.split(options.present_flags))
        other = see(hash_, tree, root / hash_)
        present = see("present", repository, root / "present", extra)
        for name in options.only:
            started = time.monotonic()
            runs = [train(side, name, data, root) for side in (other, present)]
            differences = list(compare_runs(*runs))
            for line in differences:
                print(f"{name}: {line}")
            verdict = f"{len(differences)} differences" if differences else "equal"
            print(f"{name}: {verdict} ({hash_} and present, {time.monotonic() - started:.0f} s)", flush=True)
            num_different += bool(differences)
    print(f"{len(options.only) - num_different} of {len(options.only)} configurations are equal bit for bit")
    return 1 if num_different else 0


def draw_photos(folder: Path) -> Path:
    """Draw four classes of noisy images, the last of each grey, without the code of either side."""
    rng = np.random.default_rng(0)
    for label in range(4):
        colour = np.array([60 * label, 200 - 50 * label, 100])
        for split, number in (("train", NUM_TRAIN), ("valid", NUM_VALID)):
            place = folder / split / f"class-{label}"
            place.mkdir(parents=True)
            for index in range(number):
                height, width = rng.integers(56, 120, 2)
                pixels = np.clip(rng.integers(-50, 50, (height, width, 3)) + colour, 0, 255).astype(np.uint8)
                image = Image.fromarray(pixels)
                is_last = index == number - 1
                (image.convert("L") if is_last else image).save(place / f"{index}.{'png' if is_last else 'jpg'}")
    return folder


def see(name: str, tree: Path, folder: Path, extra: tuple[str, ...] = ()) -> Side:
    """Check that Python imports the `carnet` of a tree, and read its flags.

    Raises:
        SystemExit: if another `carnet` is imported.
    """
    folder.mkdir()
    cache = folder / "cache"
    where = _python(tree, cache, folder, ["-c", "import carnet; print(carnet.__file__)"])
    if not Path(where.strip()).resolve().is_relative_to(tree.resolve()):
        sys.exit(f"Python imports {where.strip()} instead of the code in {tree}")
    return Side(name, tree, cache, flags_in(_python(tree, cache, folder, ["-m", "carnet", "train", "--help"])), extra)


def flags_in(help_: str) -> frozenset[str]:
    """Return the flags at the beginning of a line of a help text, which leaves out those in examples."""
    return frozenset(re.findall(r"(?:^|[│|])\s*(?:-\w, )?(--[a-z][\w-]*)", help_, re.MULTILINE))


def train(side: Side, configuration: str, data: Path, root: Path) -> Path:
    """Train one side in one configuration, and return the folder of the run.

    Raises:
        SystemExit: if it fails.
    """
    run = root / side.name / configuration
    flags = flags_for(COMMON | CONFIGURATIONS[configuration], side)
    # The second side gets the measurements of the first, in case one matters in spite of the flags.
    _copy_measurements(root, side)
    _python(
        side.tree,
        side.cache,
        root / side.name,
        ["-m", "carnet", "train", str(data), *flags, *side.extra, "--output", str(run)],
    )
    return run


def _copy_measurements(root: Path, side: Side) -> None:
    for found in sorted(root.glob("*/cache/measurements.json")):
        if found.parent != side.cache:
            side.cache.mkdir(exist_ok=True)
            shutil.copy(found, side.cache)


def flags_for(settings: Settings, side: Side) -> list[str]:
    """Return the settings as arguments, with the names that a side knows.

    Raises:
        SystemExit: if it knows none of a flag's names.
    """
    names = {name: group for group in FLAG_NAMES for name in group}
    arguments = []
    for flag, value in settings.items():
        known = [name for name in names.get(flag, (flag,)) if name in side.flags]
        if not known:
            sys.exit(f"{side.name} has no flag {flag}; if it has been renamed, add its new name to FLAG_NAMES")
        arguments += [known[0], value]
    return arguments


def _python(tree: Path, cache: Path, folder: Path, arguments: Sequence[str]) -> str:
    # Start elsewhere, since Python would import `carnet` from the current folder.
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment_of(tree, cache),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"python {shlex.join(arguments)} failed in {tree}:\n{done.stderr}")
    return done.stdout


def compare_runs(one: Path, other: Path) -> Iterator[str]:
    """Yield each difference between the model files, checkpoints and metrics of two runs."""
    names = [sorted(path.name for pattern in TENSOR_FILES for path in run.glob(pattern)) for run in (one, other)]
    yield from _only_in_one("file", *names)
    if not set(names[0]) & set(names[1]):
        yield "no model file is in both"
    for name in sorted(set(names[0]) & set(names[1])):
        for line in compare_tensor_files(one / name, other / name):
            yield f"{name}: {line}"
    for line in compare_rows(*(read_metrics(run) for run in (one, other))):
        yield f"metrics.csv: {line}"


def compare_tensor_files(one: Path, other: Path) -> Iterator[str]:
    """Yield the tensors in which two safetensors files differ, and the counters of the run if there are any."""
    (tensors, metadata), (other_tensors, other_metadata) = read_tensor_file(one), read_tensor_file(other)
    yield from _only_in_one("tensor", tensors, other_tensors)
    for name in sorted(tensors.keys() & other_tensors.keys()):
        if problem := _difference(tensors[name], other_tensors[name]):
            yield f"{name}: {problem}"
    for what in ("state", "optimizer"):
        if what in metadata or what in other_metadata:
            entries = [_flat(json.loads(about.get(what, "{}"))) for about in (metadata, other_metadata)]
            yield from _compare_entries(what, *entries, needed=COUNTERS_NEEDED if what == "state" else ())


def read_tensor_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors by the names that this script gives them, and metadata."""
    with safe_open(path, framework="pt") as file:
        return {_canonical(name): file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _difference(one: Tensor, other: Tensor) -> str:
    """Describe the difference of two tensors, bit by bit; NaN is equal to the same NaN, and 0 is not -0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return f"{one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}"
    bits = [tensor.contiguous().reshape(-1, 1).view(torch.uint8) for tensor in (one, other)]
    differing = int((bits[0] != bits[1]).any(dim=1).sum()) if one.numel() else 0
    if not differing:
        return ""
    largest = (one.double() - other.double()).abs().max().item()
    return f"{differing:,} of {one.numel():,} values differ, by at most {largest:.3g}"


def read_metrics(run: Path) -> list[dict[str, str]]:
    """Return the rows of `metrics.csv` without times."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [{_canonical(name): cell for name, cell in row.items()} for row in csv.DictReader(file)]
    return [{name: cell for name, cell in row.items() if name not in OF_THE_CLOCK} for row in rows]


def compare_rows(rows: Sequence[Mapping[str, str]], others: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield the cells in which two tables differ."""
    if len(rows) != len(others):
        yield f"{len(rows)} and {len(others)} rows"
    if rows and others:
        yield from _only_in_one("column", rows[0], others[0])
    for number, (row, other) in enumerate(zip(rows, others, strict=False), 1):
        for name in row:
            if name in other and row[name] != other[name]:
                yield f"row {number}, {name}: {row[name]} and {other[name]}"


def _compare_entries(
    what: str, one: Mapping[str, Any], other: Mapping[str, Any], *, needed: Sequence[str]
) -> Iterator[str]:
    """Yield the common entries in which two documents differ; entries of only one belong to the format.

    Required entries must be in both, so that a renaming does not hide them.
    """
    for name in needed:
        if name not in one or name not in other:
            yield f"{what} has no {name} on both sides; if it has been renamed, add its new name to ENTRY_NAMES"
    for name in sorted(one.keys() & other.keys()):
        if one[name] != other[name]:
            yield f"{what} {name}: {one[name]} and {other[name]}"


def _flat(document: Any, where: str = "") -> dict[str, Any]:
    """Return the plain values of a document by their path, without times."""
    if isinstance(document, dict):
        items = [(_canonical(key), value) for key, value in document.items() if key not in OF_THE_CLOCK]
    elif isinstance(document, list):
        items = [(str(index), value) for index, value in enumerate(document)]
    else:
        return {where: document}
    found: dict[str, Any] = {}
    for key, inside in items:
        found |= _flat(inside, f"{where}.{key}" if where else key)
    return found


def _canonical(name: str) -> str:
    """Return a name with the first prefix that `ENTRY_NAMES` lists for it."""
    beginning, dot, rest = name.partition(".")
    for names in ENTRY_NAMES:
        if beginning in names:
            return names[0] + dot + rest
    return name


def _only_in_one(what: str, one: Any, other: Any) -> Iterator[str]:
    """Yield each name that only one of two collections has."""
    for name in sorted(set(one) ^ set(other)):
        yield f"{what} {name} is in {'the first' if name in set(one) else 'the second'} alone"


if __name__ == "__main__":
    sys.exit(main())
