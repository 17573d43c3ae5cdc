"""Reproduce the published figure at full size: CARNet-18 and ResNet-18, 244 px, 50 epochs, five seeds each.

Meant for a machine with a CUDA device, and for being stopped: the same command goes on where it was. Without one, or
with --check, it checks itself instead, on two batches for each network, and says so. Needs the extras train and export.

Example:
  python benchmarks/reproduce_published.py DATA/sports100 --check
  python benchmarks/reproduce_published.py DATA/sports100 --output runs/reproduction
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from environment import write_result

from carnet import files, published
from carnet.comparison.compare import compare
from carnet.comparison.runs import train_runs
from carnet.data.sources import find_images
from carnet.errors import CarnetError, DataError, StoppedError
from carnet.progress import Progress
from carnet.report.console import Console
from carnet.run_folder import RunFolder

MODELS = ("carnet18", "resnet18")
REACH = (0.6, 0.7, 0.8)
"""Accuracies whose times the published figure shows."""


def main(models: Sequence[str] = MODELS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the sports photos, with train and valid folders")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduction"), help="where runs and answers go")
    parser.add_argument("--check", action="store_true", help="two batches for each network")
    options = parser.parse_args()
    try:
        with Console(sys.stderr) as progress:
            if torch.cuda.is_available() and not options.check:
                return 0 if reproduce(options.data, options.seeds, options.output, progress, models) else 1
            check(options.data, progress, models)
    except CarnetError as error:
        print(f"reproduce_published.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def reproduce(data: Path, seeds: int, output: Path, progress: Progress, models: Sequence[str] = MODELS) -> bool:
    """All runs, or those that are missing, and what they come to; False if one could not be trained."""
    config = replace(published(), device="cuda")
    command = f"python benchmarks/reproduce_published.py {data.name} --seeds {seeds}"
    try:
        runs, failed = train_runs(str(data), models, seeds=seeds, config=config, folder=output, progress=progress)
    except StoppedError:
        path = write_result("reproduction-so-far", command, {"runs": [so_far(run) for run in sorted(output.iterdir())]})
        progress.say(f"How far it came is in {path}.")
        raise
    answer = compare(runs, output, progress, reach=REACH, untrained=failed)
    progress.say("\n".join([*answer.sentences, f"The comparison is {answer.folder / 'comparison.html'}."]))
    progress.say(f"Its numbers are in {write_result('reproduction', command, {'comparison': answer.document})}.")
    return not failed


def so_far(folder: Path) -> dict[str, Any]:
    """How far a run has come: its epochs, and what `result.json` says where it is finished."""
    run = RunFolder.open(folder)
    config = run.read_config()
    with run.metrics.open(encoding="utf-8", newline="") as file:
        epochs = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return {
        "run": folder.name,
        "plan": config["plan"],
        "epochs_planned": config["recipe"]["epochs"],
        "epochs": epochs,
        "result": files.read_json(run.result) if run.result.exists() else None,
    }


def check(data: Path, progress: Progress, models: Sequence[str] = MODELS) -> None:
    """The same on two batches."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "few.csv"
        write_few(data, table, batch_size=published().batch_size)
        config = replace(published(), epochs=1)
        runs, _ = train_runs(
            str(table), models, seeds=1, config=config, folder=Path(folder) / "runs", progress=progress
        )
        compare(runs, Path(folder) / "answer", progress)
    where = "the CUDA device" if torch.cuda.is_available() else "a processor; the reproduction needs a CUDA device"
    progress.say(f"It works, on two batches for each network, on {where}.")


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
