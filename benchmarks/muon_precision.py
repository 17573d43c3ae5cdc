"""Accuracy with Muon in fp32 and in bf16: the same recipe and seeds, everything else alike.

Both learn drawn pictures (`carnet/data/synthetic.py`), in turns, for a fixed number of epochs: time decides nothing.

Example:
  python benchmarks/muon_precision.py --model carnet_n --seeds 5
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import get_args

from environment import mean_and_spread, write_result

from carnet import TrainingConfig, train
from carnet.data.synthetic import write_dataset
from carnet.progress import Silent
from carnet.training.config import MuonPrecision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="carnet_n")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        write_dataset(pictures)
        for seed in range(options.seeds):
            for precision in get_args(MuonPrecision):
                config = TrainingConfig(
                    model=options.model,
                    image_size=options.image_size,
                    epochs=options.epochs,
                    precision="fp32",
                    muon_precision=precision,
                    compile="off",
                    seed=seed,
                )
                result = train(pictures, config, output=Path(folder) / f"{precision}-{seed}", progress=Silent())
                runs.append(
                    {
                        "muon_precision": precision,
                        "seed": seed,
                        "top1": result.top1,
                        "valid_loss": result.history[-1]["valid_loss"],
                        "seconds": result.document["seconds"],
                    }
                )
                print(f"seed {seed}, {precision}: {100 * result.top1:.1f}% in {runs[-1]['seconds']} s", file=sys.stderr)
    of = {name: [run for run in runs if run["muon_precision"] == name] for name in get_args(MuonPrecision)}
    numbers = {
        "top1_percent": {name: mean_and_spread([100 * run["top1"] for run in some]) for name, some in of.items()},
        "valid_loss": {name: mean_and_spread([run["valid_loss"] for run in some]) for name, some in of.items()},
        "runs": runs,
    }
    command = f"python benchmarks/muon_precision.py --model {options.model} --image-size {options.image_size}"
    command += f" --epochs {options.epochs} --seeds {options.seeds}"
    print(write_result(f"muon-precision-{options.model}", command, numbers))


if __name__ == "__main__":
    main()
