"""Train on real photos for a limited time, with the published recipe or another, and record the results.

`carnet train` runs as a user would run it, and finishes or is stopped by the signal of Ctrl-C after --minutes. The
result has the contents of the run folder and its TensorBoard log: loss over steps, seconds per image, accuracy over
epochs.

Example:
  python benchmarks/published_recipe.py trashnet150-carnet18-128px --minutes 60 -- DATA/trashnet150 --model carnet18 \
      --preset published --image-size 128 --epochs 15
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the result file")
    parser.add_argument("--minutes", type=float, default=60, help="stop after this long, with a checkpoint")
    parser.add_argument("--keep", type=Path, help="folder for the run (default: a temporary one)")
    parser.add_argument("arguments", nargs="+", help="arguments of carnet train, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.keep or Path(folder) / "run"
        command = ["carnet", "train", *options.arguments, "--logger", "tensorboard", "--output", str(run)]
        printout = Path(folder) / "printout.txt"
        exit_code, seconds = train(command, 60 * options.minutes, printout)
        lines = printout.read_text(encoding="utf-8").splitlines()
        print("\n".join(lines))
        numbers = {
            "exit_code": exit_code,
            "seconds_from_process_start": round(seconds, 1),
            "found": list(itertools.takewhile(lambda line: not line.startswith("Trains "), lines)),
            **collect(run),
        }
    # Leave out the folders of this machine, which mean nothing elsewhere.
    shown = " ".join(Path(word).name if Path(word).exists() else word for word in command[:-2])
    print(write_result(options.name, shown, numbers))


def train(command: list[str], limit_seconds: float, printout: Path) -> tuple[int, float]:
    """Run `carnet train`, interrupt it at the limit, save its output, and return exit code and seconds."""
    started = time.monotonic()
    with printout.open("w", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=file)
        try:
            process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
    return process.returncode, time.monotonic() - started


def collect(run: Path) -> dict[str, Any]:
    """Read recipe, plan, loss per step and metrics per epoch from a run folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    steps = log.Scalars("loss/step")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    batch_size = config["resolved"]["batch_size"]
    step_seconds = float(np.median(np.diff([step.wall_time for step in steps])))
    losses = [step.value for step in steps]
    tenth = max(1, len(losses) // 10)
    numbers: dict[str, Any] = {
        "requested": config["requested"],
        "resolved": config["resolved"],
        "num_images": config["data"]["num_images"],
        "steps": len(losses),
        "median_seconds_per_step": round(step_seconds, 4),
        "median_seconds_per_image": round(step_seconds / batch_size, 5),
        "mean_loss_first_tenth_of_steps": round(float(np.mean(losses[:tenth])), 4),
        "mean_loss_last_tenth_of_steps": round(float(np.mean(losses[-tenth:])), 4),
        "loss_per_step": [round(loss, 4) for loss in losses],
    }
    if (run / "result.json").exists():
        numbers["result"] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    if (run / "metrics.csv").exists():
        numbers["metrics_csv"] = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    return numbers


if __name__ == "__main__":
    main()
