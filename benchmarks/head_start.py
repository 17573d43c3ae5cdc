"""Measure what a pretrained start is worth: accuracy over photos per class, frozen, fine-tuned and from scratch.

Subsets with so many photos per class are drawn from the training images with the seeds named; accuracy is that on
`valid` without the images that are byte for byte in the subset's training images. Each run is a process of its own, as
from a shell, and its seconds are those of the whole process. The first run computes all features; later ones find those
of photos that were drawn before in the cache.

Examples:
  python benchmarks/head_start.py DATA --ways frozen --photos 10 50 all --seeds 5
  python benchmarks/head_start.py DATA --ways fine-tuned --photos 50 --seeds 2 --budget 10m
  python benchmarks/head_start.py DATA --ways frozen --sides 160 128
  python benchmarks/head_start.py --draw benchmarks/results/2026-11-30-head-start*.json --figure docs/head-start.png
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environment import write_result

from carnet import files
from carnet.text import quoted

FLAGS = {
    "frozen": ["--model", "efficientnet_lite0", "--freeze"],
    "fine-tuned": ["--model", "efficientnet_lite0"],
    "scratch": ["--model", "carnet_s"],
    "scratch carnet_n": ["--model", "carnet_n"],
}
"""Way to train -> the flags of `carnet train`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a folder with train and valid")
    parser.add_argument("--ways", nargs="+", choices=FLAGS, default=["frozen"])
    parser.add_argument("--photos", nargs="+", default=["10", "50", "all"], help="training photos per class")
    parser.add_argument("--sides", nargs="+", type=int, default=[0], help="sides of the images; 0: as carnet chooses")
    parser.add_argument("--seeds", type=int, default=1, help="subsets drawn, with the seeds 0, 1, …")
    parser.add_argument("--budget", help="of each run, such as 10m")
    parser.add_argument("--name", default="head-start", help="of the result's file")
    parser.add_argument("--draw", nargs="+", type=Path, help="results to draw, instead of measuring")
    parser.add_argument("--figure", type=Path, default=Path("head-start.png"))
    options = parser.parse_args()
    if options.draw:
        files.write_bytes(options.figure, draw([json.loads(path.read_text(encoding="utf-8")) for path in options.draw]))
        return
    runs = list(measure(options))
    command = " ".join(["python benchmarks/head_start.py DATA", *map(quoted, sys.argv[2:])])
    print(write_result(options.name, command, {"data": options.data.name, "runs": runs, "means": means(runs)}))


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the result of every run."""
    with tempfile.TemporaryDirectory() as scratch:
        for photos in options.photos:
            # There is one set of all photos; its runs would be equal.
            for seed in range(1 if photos == "all" else options.seeds):
                subset = Path(scratch) / f"{photos}-{seed}"
                draw_subset(options.data, subset, None if photos == "all" else int(photos), seed)
                for way in options.ways:
                    for side in options.sides:
                        run = {"way": way, "photos": photos, "seed": seed, "side": side, "budget": options.budget}
                        flags = [*FLAGS[way], *(["--image-size", str(side)] if side else [])]
                        flags += ["--budget", options.budget] if options.budget else []
                        shutil.rmtree(Path(scratch) / "run", ignore_errors=True)
                        run |= train(subset, flags, Path(scratch) / "run")
                        print(json.dumps(run), file=sys.stderr, flush=True)
                        yield run


def draw_subset(data: Path, subset: Path, photos: int | None, seed: int, *, rest: Path | None = None) -> None:
    """Link a random part of each class's training images, all validation images, and in `rest` the other images."""
    rng = np.random.default_rng(seed)
    for folder in sorted((data / "train").iterdir()):
        images = sorted(folder.iterdir())
        (subset / "train" / folder.name).mkdir(parents=True)
        order = rng.permutation(len(images)).tolist()
        for place in order[:photos]:
            (subset / "train" / folder.name / images[place].name).symlink_to(images[place].resolve())
        if rest is not None and photos is not None:
            rest.mkdir(exist_ok=True)
            for place in order[photos:]:
                # Neither the name nor the folder tells the class.
                digest = hashlib.sha256(images[place].read_bytes()).hexdigest()
                link = rest / f"{digest[:16]}{images[place].suffix}"
                if not link.is_symlink():
                    link.symlink_to(images[place].resolve())
    (subset / "valid").symlink_to((data / "valid").resolve())


def train(data: Path, flags: Sequence[str], run: Path) -> dict[str, Any]:
    """Train in a process of its own, whose progress is shown.

    Returns its seconds, the accuracy on images that it has not seen, and how it was trained.
    """
    command = [sys.executable, "-m", "carnet", "train", str(data), *flags, "--output", str(run), "--json"]
    started = time.perf_counter()
    ended = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if ended.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with code {ended.returncode}")
    result, record = json.loads(ended.stdout), json.loads((run / "config.json").read_text(encoding="utf-8"))
    valid, resolved, teacher = result["valid"], record["resolved"], record.get("teacher")
    unseen = valid.get("top1_without_leaked")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "top1": unseen if unseen is not None else valid["top1"],
        "top1_of_all": valid["top1"],
        "loss": valid["loss"],
        "image_size": resolved["image_size"],
        "epochs": result["epochs"],
        "num_steps": resolved["num_steps"],
        "head": record["head"],
        "teacher": teacher and {key: teacher[key] for key in ("name", "num_crops", "seconds")},
    }


def means(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and range of the accuracy, and the median seconds, of each way, number of photos and side."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[f"{run['way']}, {run['photos']} photos, {run['image_size']} px"].append(run)
    return {
        name: {
            "top1": round(statistics.fmean(run["top1"] for run in group), 4),
            "lowest": round(min(run["top1"] for run in group), 4),
            "highest": round(max(run["top1"] for run in group), 4),
            "median_seconds": statistics.median(run["seconds"] for run in group),
            "runs": len(group),
        }
        for name, group in groups.items()
    }


def draw(results: Sequence[dict[str, Any]]) -> bytes:
    """Draw accuracy over photos per class, a line for each way, at the largest side of each; return a PNG."""
    import io

    from matplotlib.figure import Figure

    # A run that was repeated, because other work had disturbed it, counts once, as in the later result.
    last: dict[tuple[str, float, int], float] = {}
    for result in results:
        for run in result["runs"]:
            if run["side"] == 0 and "carnet_n" not in run["way"]:
                photos = 136.0 if run["photos"] == "all" else float(run["photos"])
                last[run["way"], photos, run["seed"]] = 100 * run["top1"]
    points: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (way, photos, _), top1 in last.items():
        points[way][photos].append(top1)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    names = {
        "fine-tuned": "pretrained, fine-tuned",
        "frozen": "pretrained, frozen (--freeze)",
        "scratch": "carnet_s from scratch",
    }
    for way, name in names.items():
        if way in points:
            numbers = sorted(points[way])
            axes.plot(numbers, [statistics.fmean(points[way][one]) for one in numbers], "o-", label=name)
    axes.set_xscale("log")
    ticks = sorted({one for line in points.values() for one in line})
    axes.set_xticks(ticks, [f"{one:.0f}" for one in ticks])
    axes.minorticks_off()
    axes.set(xlabel="labelled photos per class", ylabel="top-1 accuracy, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()


if __name__ == "__main__":
    main()
