"""Train one epoch on the same images as a folder, a zip archive and a table, and compare classes and metrics.

Example:
  python benchmarks/data_forms.py ../shared/data/sports100
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from environment import write_result

from carnet.config import TrainingConfig
from carnet.data.find import find_images
from carnet.files import csv_text, write_text
from carnet.models.weights import load
from carnet.training.run import train

CONFIG = TrainingConfig(image_size=48, epochs=1, batch_size=64)


def pack(data: Path, archive: Path) -> None:
    """Write a zip archive with one top folder, as a file manager does."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(data.rglob("*"), reverse=True):
            if path.is_file():
                file.write(path, Path(data.name) / path.relative_to(data))


def write_table(data: Path, table: Path) -> None:
    """Write a table with the columns of the sports data set, in another order and with absolute paths."""
    found = find_images(data)
    rows = [
        {
            "class id": sample.label,
            "filepaths": str(sample.path.resolve()),
            "labels": found.classes[sample.label],
            "data set": split,
        }
        for split, samples in found.splits.items()
        for sample in samples
    ]
    write_text(table, csv_text(rows[::-1]))


def run_on(data: Path, run: Path) -> dict[str, Any]:
    started = time.monotonic()
    train(data, CONFIG, output=run)
    seconds = time.monotonic() - started
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    numbers = {key: float(value) for key, value in row.items() if key not in ("seconds", "images_per_second")}
    return {
        "form": data.suffix or "folder",
        "metrics": numbers,
        "classes": list(load(run).spec.classes),
        "weights": (run / "model.safetensors").read_bytes(),
        "seconds_in_all": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CARNET_CACHE"] = str(folder / "cache")
        archive, table = folder / f"{data.name}.zip", folder / f"{data.name}.csv"
        pack(data, archive)
        write_table(data, table)
        results = [run_on(form, folder / f"run-{index}") for index, form in enumerate((data, archive, table))]
    equal = {
        key: all(result[key] == results[0][key] for result in results) for key in ("classes", "metrics", "weights")
    }
    for result in results:
        result["num_classes"] = len(result.pop("classes"))
        del result["weights"]
    numbers = {"recipe": CONFIG.to_json(), "equal": equal, "runs": results}
    print(write_result(f"data-forms-{data.name}", f"python benchmarks/data_forms.py {data.name}", numbers))


if __name__ == "__main__":
    main()
