"""Train from cold caches, once for each seed, and record the results of the last epoch.

`carnet train` runs as a user would run it, each time with empty caches of decoded images and of compiled code, one run
after the other; the system may still have photos in its memory. The seconds are those of the whole command.

Example:
  python benchmarks/seeds.py budget-10m --seeds 3 -- DATA/sports100 --budget 10m
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import mean_and_spread, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the result file")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs, with seeds FIRST, FIRST + 1, …")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--keep", type=Path, help="folder for the runs, which are removed otherwise")
    parser.add_argument("arguments", nargs="+", help="arguments of carnet train, after --")
    options = parser.parse_args()
    shown = " ".join(Path(word).name if Path(word).exists() else word for word in options.arguments)
    runs = []
    for seed in range(options.first, options.first + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = (options.keep or Path(folder)) / f"{options.name}-{seed}"
            runs.append({"seed": seed, **train(options.arguments, seed, run, caches=Path(folder))})
        print(json.dumps(runs[-1]), flush=True)
        summary = {
            key: mean_and_spread([run[key] for run in runs]) for key in ("top1", "top1_without_leaked", "seconds")
        }
        path = write_result(options.name, f"carnet train {shown} --seed SEED", {"summary": summary, "runs": runs})
    print(json.dumps(summary, indent=2))
    print(path)


def train(arguments: list[str], seed: int, run: Path, *, caches: Path) -> dict[str, Any]:
    """Train once; return the accuracy after the last epoch in percent, and the seconds of the whole process."""
    cold = {"CARNET_CACHE": str(caches / "decoded"), "TORCHINDUCTOR_CACHE_DIR": str(caches / "compiled")}
    command = [sys.executable, "-m", "carnet", "train", *arguments, "--seed", str(seed), "--output", str(run)]
    # Python keeps its bytecode, as on a user's machine.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    started = time.monotonic()
    subprocess.run(command, check=True, env=environment | cold)
    seconds = time.monotonic() - started
    config, result = (json.loads((run / name).read_text(encoding="utf-8")) for name in ("config.json", "result.json"))
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    return {
        "seconds": round(seconds, 1),
        "top1": round(100 * result["valid"]["top1"], 2),
        "top1_without_leaked": round(100 * result["valid"]["top1_without_leaked"], 2),
        "result": result,
        "requested": config["requested"],
        "resolved": config["resolved"],
        "epochs": epochs,
    }


if __name__ == "__main__":
    main()
