"""Measure how well a label check finds wrong labels: a share of the training images is put into other classes.

The images that the check finds in the data as they are count as right ones that it suspects, although some of them are
wrong: precision is a lower bound.

Example:
  python benchmarks/wrong_labels.py DATA --share 0.05 --seeds 0 1
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from environment import write_result

import carnet
from carnet.report.console import Console
from carnet.text import quoted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with train and valid")
    parser.add_argument("--share", type=float, default=0.05, help="of the training images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", type=Path, help="a run whose features are used, instead of pretrained ones")
    parser.add_argument("--name", default="wrong-labels", help="of the result's file")
    options = parser.parse_args()
    rows = [{"seed": seed, **measure(options.data, options.share, seed, options.model)} for seed in options.seeds]
    command = " ".join(["python benchmarks/wrong_labels.py DATA", *map(quoted, sys.argv[2:])])
    print(json.dumps(rows, indent=2))
    print(write_result(options.name, command, {"data": options.data.name, "share": options.share, "runs": rows}))


def measure(data: Path, share: float, seed: int, model: Path | None) -> dict[str, Any]:
    """Exchange labels, and return precision and recall of the suspects."""
    with tempfile.TemporaryDirectory() as scratch:
        wrong = exchange(data, Path(scratch) / "data", share, seed)
        with Console(sys.stderr) as progress:
            report = carnet.check(Path(scratch) / "data", only=("labels",), model=model, progress=progress)
    (finding,) = report.findings
    suspects = [example.images[0].name for example in finding.examples]
    found = [name in wrong for name in suspects]
    named_right = sum(
        f"{wrong[name]!r} is" in str(example)
        for name, example in zip(suspects, finding.examples, strict=True)
        if name in wrong
    )
    return {
        "wrong": len(wrong),
        "suspects": len(suspects),
        "precision": sum(found) / len(suspects),
        "recall": sum(found) / len(wrong),
        "precision_of_the_first_hundred": float(np.mean(found[:100])),
        "true_class_named": named_right / max(1, sum(found)),
        "seconds": round(report.seconds, 1),
    }


def exchange(data: Path, target: Path, share: float, seed: int) -> dict[str, str]:
    """Link all images, a share of the training images in other classes; return their names -> their true class."""
    rng = np.random.default_rng(seed)
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    images = sorted((data / "train").glob("*/*"))
    moved = set(rng.permutation(len(images))[: round(share * len(images))].tolist())
    wrong = {}
    for split in ("train", "valid"):
        for name in classes:
            (target / split / name).mkdir(parents=True)
    for number, path in enumerate(images):
        label = path.parent.name
        if number in moved:
            label = str(rng.choice([name for name in classes if name != label]))
            wrong[f"train/{label}/moved-{number}{path.suffix}"] = path.parent.name
            (target / "train" / label / f"moved-{number}{path.suffix}").symlink_to(path.resolve())
        else:
            (target / "train" / label / path.name).symlink_to(path.resolve())
    for path in (data / "valid").glob("*/*"):
        (target / "valid" / path.parent.name / path.name).symlink_to(path.resolve())
    return wrong


if __name__ == "__main__":
    main()
