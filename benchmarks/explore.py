"""Compare recipes and network shapes by short training runs, on held-out images that are used for nothing else.

Some training images, by default 2,000, are held out; together with the validation images they evaluate the weights of
the last epoch. The test images are not used. Each setting is a name and its differences from the default recipe;
`widths`, `depths`, `kernel_sizes` and `reductions` (of each stage) define a new network. Nothing is compiled unless a
setting asks for it. Decoded images are cached from run to run, so the seconds are those of warm caches.

Example:
  python benchmarks/explore.py DATA/sports100 optimizers --epochs 8 --seeds 2 \\
      "muon 0.08: lr=0.08" "muon 0.15: lr=0.15" "adam: optimizer=adam lr=0.003 weight_decay=0"
  python benchmarks/explore.py DATA/sports100 shapes "deeper: widths=48,96,192,384 depths=1,2,4,3"
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from environment import mean_and_spread, write_result

from carnet import TrainingConfig
from carnet.data.find import find_images
from carnet.models import registry
from carnet.models.residual_carnet import ResidualCARNet
from carnet.training.run import train

_TRIED = "tried"
_SHAPE: dict[str, Any] = {
    "widths": (64, 128, 256, 512),
    "depths": (2, 2, 2, 2),
    "kernel_sizes": (3, 3, 5, 5),
    "reductions": (0, 0, 32, 32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="images with train and valid folders")
    parser.add_argument("name", help="name of the result file")
    parser.add_argument("settings", nargs="+", help='"NAME: FIELD=VALUE …", see TrainingConfig')
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each setting, with seeds 0, 1, …")
    parser.add_argument("--held-out", type=int, default=2000, help="number of training images that evaluate")
    parser.add_argument("--num-train", type=int, help="largest number of other images to train on")
    options = parser.parse_args()
    command = " ".join(["explore.py", options.data.name, options.name, *map(repr, options.settings)])
    command += f" --epochs {options.epochs} --seeds {options.seeds} --held-out {options.held_out}"
    command += f" --num-train {options.num_train}" if options.num_train else ""
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        num_evaluation = hold_out(options.data, table, options.held_out, options.num_train)
        for seed in range(options.seeds):
            for setting in options.settings:
                name, _, words = setting.partition(":")
                config = configure(words.split(), epochs=options.epochs, seed=seed)
                result = try_out(table, config, Path(folder) / f"{name}-{seed}")
                runs.setdefault(name, []).append(result)
                print(f"{name:30} seed {seed}: {json.dumps(result)}", file=sys.stderr, flush=True)
                numbers = {"epochs": options.epochs, "num_evaluation_images": num_evaluation}
                path = write_result(
                    f"explore-{options.name}", command, numbers | {"summary": sum_up(runs), "runs": runs}
                )
    for name, line in sum_up(runs).items():
        print(f"{name:30} {line['mean']:.1f}% {'' if line['spread'] is None else '+- ' + str(line['spread'])}")
    print(path)


def sum_up(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float | None]]:
    """Return the accuracy of each setting over its seeds, in percent."""
    return {name: mean_and_spread([result["top1"] for result in results]) for name, results in runs.items()}


def hold_out(data: Path, table: Path, number: int, num_train: int | None) -> int:
    """Write a table in which some training images join the validation images, and return the number of the latter."""
    data_set = find_images(data)
    order = np.random.default_rng(0).permutation(len(data_set.splits["train"])).tolist()
    train = [data_set.splits["train"][place] for place in order]
    evaluation = [*train[:number], *data_set.splits["valid"]]
    learning = train[number:][:num_train]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "label", "split"])
        for split, samples in (("train", learning), ("valid", evaluation)):
            for sample in sorted(samples, key=lambda sample: str(sample.path)):
                writer.writerow([sample.path.resolve(), data_set.classes[sample.label], split])
    return len(evaluation)


def configure(words: list[str], **others: Any) -> TrainingConfig:
    """Return a recipe from FIELD=VALUE words; a shape becomes a network of that name."""
    fields: dict[str, str] = dict(word.split("=", 1) for word in words)
    shape = {key: tuple(map(int, fields.pop(key).split(","))) for key in _SHAPE if key in fields}
    if shape:
        whole = _SHAPE | shape
        registry._BUILDERS[_TRIED] = lambda classes, channels: ResidualCARNet(
            num_classes=classes, in_channels=channels, **whole
        )
        fields = {"model": _TRIED, "image_size": "128"} | fields
    types = get_type_hints(TrainingConfig)
    values = {key: types[key](value) if types[key] in (int, float) else value for key, value in fields.items()}
    return TrainingConfig(**{"compile": "off", **others, **values})


def try_out(table: Path, config: TrainingConfig, run: Path) -> dict[str, Any]:
    """Train, and return the results of the last epoch."""
    torch.compiler.reset()
    started = time.monotonic()
    result = train(table, config, output=run)
    return {
        "top1": round(100 * result.top1, 2),
        "valid_loss": result.history[-1]["valid_loss"],
        "train_loss": result.history[-1]["train_loss"],
        "top1_per_epoch": [round(100 * epoch["valid_top1"], 1) for epoch in result.history],
        "seconds": round(time.monotonic() - started),
        "parameters": result.document["params"],
    }


if __name__ == "__main__":
    main()
