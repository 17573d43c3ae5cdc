"""Reproduce the published figure at full size: CARNet-18 and ResNet-18, 244 px, 50 epochs, five seeds each.

Meant for a machine with a CUDA device, and for being stopped: the same command goes on where it was. Without one it
checks itself instead, on two batches for each network, and says so. Needs the extras train and export.

Example:
  python benchmarks/reproduce_published.py DATA/sports100 --output runs/reproduction
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from carnet import published
from carnet.comparison.compare import compare
from carnet.comparison.runs import train_runs
from carnet.data.sources import find_images
from carnet.errors import CarnetError, DataError
from carnet.progress import Progress
from carnet.report.console import Console

MODELS = ("carnet18", "resnet18")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the sports photos, with train and valid folders")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduction"), help="where runs and answers go")
    options = parser.parse_args()
    try:
        with Console(sys.stderr) as progress:
            if torch.cuda.is_available():
                reproduce(options.data, options.seeds, options.output, progress)
            else:
                check(options.data, progress)
    except CarnetError as error:
        print(f"reproduce_published.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def reproduce(data: Path, seeds: int, output: Path, progress: Progress) -> None:
    """All runs, or those that are missing, and what they come to."""
    config = replace(published(), device="cuda")
    runs, failed = train_runs(str(data), MODELS, seeds=seeds, config=config, folder=output, progress=progress)
    answer = compare(runs, output, progress, untrained=failed)
    progress.say("\n".join([*answer.sentences, f"The comparison is {answer.folder / 'comparison.html'}."]))


def check(data: Path, progress: Progress) -> None:
    """The same on two batches."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "few.csv"
        write_few(data, table, batch_size=published().batch_size)
        config = replace(published(), epochs=1)
        runs, _ = train_runs(
            str(table), MODELS, seeds=1, config=config, folder=Path(folder) / "runs", progress=progress
        )
        compare(runs, Path(folder) / "answer", progress)
    progress.say("It works, on two batches for each network. The reproduction itself needs a CUDA device.")


def write_few(data: Path, table: Path, batch_size: int) -> None:
    """A table of two batches to train on, and as many images to judge."""
    found = find_images(data)
    if "valid" not in found.splits:
        raise DataError(f"{data} has no valid folder; give the published data, as it is divided")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "label", "split"])
        for split in ("train", "valid"):
            of_two = [sample for sample in found.splits[split] if sample.label < 2]
            for number, sample in enumerate(sorted(of_two, key=lambda sample: (hash_of(sample.path), sample.label))):
                if number < 2 * batch_size:
                    writer.writerow([sample.path.resolve(), found.classes[sample.label], split])


def hash_of(path: Path) -> str:
    """Mixes the classes, always alike."""
    return path.stem[::-1]


if __name__ == "__main__":
    sys.exit(main())
