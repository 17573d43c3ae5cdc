"""Measure what a teacher is worth: accuracy of small networks with and without one, on subsets of the labels.

Subsets with so many labelled photos per class are drawn from the training images with the seeds named; with
--unlabeled the other training images are given without their labels. Accuracy is that on `valid` without the images
that are byte for byte in the training images. Each run is a process of its own, as from a shell; its result is written
as soon as it ends, and words after -- are further flags of `carnet train`.

Examples:
  python benchmarks/distillation.py DATA --photos 10 --unlabeled --teacher efficientnet_lite0 -- --budget 30m
  python benchmarks/distillation.py DATA --photos all --teacher efficientnet_lite0 --model carnet_n -- --budget 1h
  python benchmarks/distillation.py DATA --photos all --model carnet18 --teacher none efficientnet_lite0 \\
      -- --preset published --image-size 128 --epochs 20
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environment import parse_flags, write_as_they_come
from head_start import draw_subset, means, train

from carnet.text import quoted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with train and valid")
    parser.add_argument("--model", default="carnet_s")
    parser.add_argument(
        "--teacher", nargs="+", default=["efficientnet_lite0"], help="of a run each; none: labels alone"
    )
    parser.add_argument("--photos", default="all", help="labelled training photos per class")
    parser.add_argument("--unlabeled", action="store_true", help="give the other training photos without labels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the subsets, and of training")
    parser.add_argument("--name", default="distillation", help="of the result's file")
    parser.add_argument("--keep", type=Path, help="folder that the runs stay in")
    options = parse_flags(parser)
    command = " ".join(["python benchmarks/distillation.py DATA", *map(quoted, sys.argv[2:])])
    write_as_they_come(options.name, command, options.data.name, measure(options), means)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the result of every run."""
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            subset = Path(scratch) / str(seed)
            # Outside, where it is no class.
            rest = Path(scratch) / f"{seed}-rest"
            draw_subset(options.data, subset, None if options.photos == "all" else int(options.photos), seed, rest=rest)
            for teacher in options.teacher:
                flags = ["--model", options.model, "--seed", str(seed), *options.flags]
                # Without a teacher nobody names the other images.
                is_unlabeled = options.unlabeled and teacher != "none"
                flags += [] if teacher == "none" else ["--teacher", teacher]
                flags += ["--unlabeled", str(rest)] if is_unlabeled else []
                name = f"{options.model}-{Path(teacher).stem}-{options.photos}-{seed}"
                run = (options.keep or Path(scratch)) / name
                way = options.model if teacher == "none" else f"{options.model}, taught by {Path(teacher).stem}"
                about = {"way": way, "photos": options.photos, "seed": seed, "unlabeled": is_unlabeled}
                yield about | train(subset, flags, run)


if __name__ == "__main__":
    main()
