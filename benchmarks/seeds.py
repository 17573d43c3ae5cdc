"""Train from cold caches, once for each seed, and record what the last epoch gave.

Runs `carnet train` as a user would, each time with an empty cache of decoded images and of compiled code, one run after
the other; photos that the system has read before may still lie in its memory. Seconds are those of the whole command.

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
    parser.add_argument("name", help="of the result file")
    parser.add_argument("--seeds", type=int, default=3, help="runs, with seeds FIRST, FIRST + 1, …")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--keep", type=Path, help="folder for the runs, which else are removed")
    parser.add_argument("arguments", nargs="+", help="of carnet train, after --")
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
    """One run: its last epoch's accuracy in per cent, and the seconds from start to end of the process."""
    cold = {"CARNET_CACHE": str(caches / "decoded"), "TORCHINDUCTOR_CACHE_DIR": str(caches / "compiled")}
    command = [sys.executable, "-m", "carnet", "train", *arguments, "--seed", str(seed), "--output", str(run)]
    # As on a user's machine, where Python keeps what it has compiled.
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
