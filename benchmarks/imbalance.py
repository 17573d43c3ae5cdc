"""Measure what balancing is worth where classes are of very unequal size: macro recall and accuracy, over seeds.

With --ratio 50, the largest class keeps --most images and the smallest a fiftieth of them, the others in a geometric
series between; a seed decides which class gets which size. Without it, the data are taken as they are. Accuracy is that
of images in which classes are as frequent as in training: the recalls, weighted by the classes' sizes.

Examples:
  python benchmarks/imbalance.py sports100 --ratio 50 --most 100 --seeds 0 1 2 -- --image-size 64 --epochs 60
  python benchmarks/imbalance.py trashnet150 --seeds 0 1 2 -- --image-size 64 --epochs 60
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from environment import parse_flags, write_as_they_come

import carnet
from carnet.data.find import find_images
from carnet.text import Silent, quoted

WAYS = {
    "none": ("none", 0.5),
    "sampler, square root": ("sampler", 0.5),
    "sampler, full": ("sampler", 1.0),
    "loss, square root": ("loss", 0.5),
    "loss, full": ("loss", 1.0),
}
"""Way -> --balance, and the power of its weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with train and valid")
    parser.add_argument("--ratio", type=float, help="sizes of the largest and the smallest class")
    parser.add_argument("--most", type=int, default=100, help="images of the largest class, with --ratio")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--name", default="imbalance", help="of the result's file")
    options = parse_flags(parser)
    command = " ".join(["python benchmarks/imbalance.py DATA", *map(quoted, sys.argv[2:])])
    write_as_they_come(options.name, command, options.data.name, measure(options), means)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the result of every run."""
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            data = options.data
            if options.ratio:
                data = Path(scratch) / str(seed)
                draw_long_tail(options.data, data, options.most, options.ratio, seed)
            for way in options.ways:
                balance, power = WAYS[way]
                run = Path(scratch) / f"{way}-{seed}"
                flags = ["--balance", balance, "--seed", str(seed), *options.flags, "--output", str(run)]
                # The power is no flag, because one of them is enough once it is known which.
                code = (
                    f"import carnet.training.balance as b; b.POWER = {power}; from carnet.cli.main import main; main()"
                )
                subprocess.run([sys.executable, "-c", code, "train", str(data), *flags], check=True)
                yield {"way": way, "seed": seed, **result_of(run, data)}


def draw_long_tail(data: Path, subset: Path, most: int, ratio: float, seed: int) -> None:
    """Link a geometric series of numbers of training images to classes in random order, and all validation images."""
    rng = np.random.default_rng(seed)
    folders = sorted((data / "train").iterdir())
    sizes = most * ratio ** -np.linspace(0, 1, len(folders))
    for folder, size in zip(folders, rng.permutation(sizes), strict=True):
        images = sorted(folder.iterdir())
        (subset / "train" / folder.name).mkdir(parents=True)
        for place in rng.permutation(len(images))[: max(1, round(size))].tolist():
            (subset / "train" / folder.name / images[place].name).symlink_to(images[place].resolve())
    (subset / "valid").symlink_to((data / "valid").resolve())


def result_of(run: Path, data: Path) -> dict[str, Any]:
    """Return macro recall, accuracy and the recall of the smallest fifth of the classes of a run."""
    report = carnet.load(run, device="cpu").evaluate(progress=Silent())
    counts = find_images(data).counts("train")
    recalls = {one.name: one.recall for one in report.per_class if one.num_images}
    total = sum(counts[name] for name in recalls)
    smallest = sorted(recalls, key=lambda name: counts[name])[: max(1, len(recalls) // 5)]
    return {
        "macro_recall": report.macro_recall,
        "accuracy": sum(recalls[name] * counts[name] for name in recalls) / total,
        "recall_of_the_smallest_fifth": statistics.fmean(recalls[name] for name in smallest),
        "loss": report.loss,
        "sizes": [max(counts.values()), min(counts.values())],
    }


def means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation of each number, by way; of macro recall also the gain over none, by seed."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["way"]].append(run)
    base = {run["seed"]: run for run in groups.get("none", [])}
    table: dict[str, dict[str, Any]] = {}
    for way, group in groups.items():
        table[way] = {"runs": len(group)}
        for name in ("macro_recall", "accuracy", "recall_of_the_smallest_fifth"):
            values = [run[name] for run in group]
            gains = [run[name] - base[run["seed"]][name] for run in group if run["seed"] in base]
            table[way][name] = {
                "mean": round(statistics.fmean(values), 4),
                "sd": round(statistics.stdev(values), 4) if len(values) > 1 else None,
                "gains": [round(gain, 4) for gain in gains],
            }
    return table


if __name__ == "__main__":
    main()
