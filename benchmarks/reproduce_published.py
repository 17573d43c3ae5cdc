"""Reproduce the published figure and table: CARNet-18 and ResNet-18, 244 px, 50 epochs, five seeds each.

This is meant for a machine with one CUDA device that is available for minutes at a time. --prepare decodes every photo
once, into one file of uint8 pixels that all runs read. --minutes stops in time, with a checkpoint, and the same command
continues. Seed 0 of both networks comes first, then seed 1 of both, so that finished runs can be compared. Figure and
table are updated after every run. The script needs the extras train and export.

Examples:
  python benchmarks/reproduce_published.py DATA/sports100 --prepare
  python benchmarks/reproduce_published.py DATA/sports100 --minutes 9
  python benchmarks/reproduce_published.py --report

Trial runs on a processor, with two batches for each network, at 244 px and at 64 px:
  python benchmarks/reproduce_published.py DATA/sports100 --batches 2 --epochs 1 --seeds 1 --device cpu \\
      --output runs/two-batches
  python benchmarks/reproduce_published.py DATA/sports100 --batches 2 --epochs 3 --seeds 2 --device cpu \\
      --image-size 64 --output runs/tiny
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from environment import write_result

from carnet import TrainingConfig, files, published
from carnet.comparison.runs import read_history, train_alone, train_runs
from carnet.comparison.verdict import seconds_to
from carnet.config import Device
from carnet.data.find import find_images
from carnet.errors import CarnetError, ConfigError, DataError, RunError, StoppedError
from carnet.models.registry import create_model
from carnet.models.summary import summarize
from carnet.models.weights import choose_device
from carnet.report.comparison import draw_comparison
from carnet.report.console import Console
from carnet.run_folder import RunFolder
from carnet.text import Progress, show_bytes
from carnet.training.scanning import scan_data

MODELS = ("carnet18", "resnet18")
REACH = (0.6, 0.7, 0.8)
"""Accuracies whose times the published figure shows."""
MEASURES = (
    *("seeds", "epochs", "trained on", "parameters", "multiply-adds, by the published rule"),
    *("input, activations and weights of an image", "top-1 of the last epoch, mean", "top-1 of each run"),
    *(f"seconds to {100 * target:g}%" for target in REACH),
    "seconds in all",
)
PUBLISHED = {
    "carnet18": (
        *("five", "50", "RTX 2080 Ti", "0.65 M", "1.63 G", "360 MB", "81.8%", "over 81%"),
        *("near 1,000", "near 2,000", "4,500 to 5,300", "under 6,120 in the text, near 6,700 in the figure"),
    ),
    "resnet18": (
        *("five", "50", "RTX 2080 Ti", "11.2 M", "32.6 G", "618 MB", "79.14%", "over 77.73%"),
        *("near 6,000", "near 8,500", "not told", "near 12,500"),
    ),
}
"""Published value of each measure."""


def main(
    arguments: Sequence[str] | None = None,
    models: Sequence[str] = MODELS,
    *,
    recipe: TrainingConfig | None = None,
    train: Callable[..., tuple[list[Path], list[str]]] = train_runs,
    write: Callable[[str, str, dict[str, Any]], Path] = write_result,
) -> int:
    """Run the script.

    Args:
        arguments: command line; None: that of the process.
        models: names of the networks.
        recipe: recipe of all runs; None: the published one.
        train: as `carnet.comparison.runs.train_runs`.
        write: as `environment.write_result`.

    Returns:
        The exit code: 0 also if --minutes are over; 1 if a network could not be trained.
    """
    started = time.monotonic()
    recipe = recipe or published()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments, recipe)
    # The folders of this machine mean nothing elsewhere.
    shown = " ".join(Path(word).name if Path(word).is_absolute() else word for word in arguments)
    is_trial = options.batches or (options.image_size, options.epochs) != (recipe.image_size, recipe.epochs)
    # Only the folder tells by which flags the runs of a report were made.
    is_trial = is_trial or (options.report and options.output != Path("runs/reproduction"))
    name = f"rehearsal-{options.output.name}" if is_trial else "reproduction"

    def is_time_up() -> bool:
        return bool(time.monotonic() - started > 60 * options.minutes)

    def show(failed: Sequence[str] = ()) -> None:
        state, rows, runs = report(options.output, models, options.seeds, failed)
        numbers = {"state": state, "networks": rows, "runs": runs}
        where = write(name, f"python benchmarks/reproduce_published.py {shown}", numbers)
        drawn = f"Figure and table are in {options.output}. " if rows else ""
        progress.say(f"{state}\n{drawn}The numbers are in {where}.")

    try:
        check(options)
        with Console(sys.stderr) as progress:
            if options.report:
                if not options.output.is_dir():
                    raise RunError(f"there is no folder {options.output}; name the folder of the runs with --output")
                show()
                return 0
            sizes = {"image_size": options.image_size, "epochs": options.epochs}
            config = replace(recipe, **sizes, device=options.device, cache="disk")
            if not options.prepare:
                choose_device(config.device)
            data = find(options.data, options.batches, config.batch_size or 1, options.output)
            if options.prepare:
                prepare(data, config, progress)
                return 0
            try:
                _, failed = train(
                    str(data),
                    models,
                    seeds=options.seeds,
                    config=config,
                    folder=options.output,
                    progress=progress,
                    train=partial(train_alone, stop_when=is_time_up),
                )
            except StoppedError as error:
                progress.say(f"{error}.")
                show()
                return 0 if is_time_up() else error.exit_code
            show(failed)
            return 1 if failed else 0
    except CarnetError as error:
        print(f"reproduce_published.py: {error}", file=sys.stderr)
        return error.exit_code


def parse(arguments: Sequence[str], recipe: TrainingConfig) -> argparse.Namespace:
    """Read the options, whose defaults are those of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="the sports photos, with train and valid folders")
    parser.add_argument("--prepare", action="store_true", help="only decode the photos into the file for the runs")
    parser.add_argument("--report", action="store_true", help="only make figure and table, which needs no photos")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="minutes after which to stop; the same command continues"
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of runs of each network, with seeds 0, 1, …")
    parser.add_argument("--device", choices=get_args(Device), default="cuda", help="device to train on")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/reproduction"), help="folder for runs, figure and table"
    )
    parser.add_argument(
        "--image-size", type=int, default=recipe.image_size, help="for trial runs: another side, in pixels"
    )
    parser.add_argument("--epochs", type=int, default=recipe.epochs, help="for trial runs: fewer epochs")
    parser.add_argument("--batches", type=int, help="for trial runs: number of batches of photos, of two classes")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Check the options before long work.

    Raises:
        ConfigError: naming the flag.
    """
    if options.data is None and not options.report:
        raise ConfigError("name the folder of the sports photos, or use --report for existing runs")
    for flag in ("minutes", "seeds", "epochs", "batches"):
        value = getattr(options, flag)
        if value is not None and not value > 0:
            raise ConfigError(f"--{flag} must be above 0, got {value:g}")


def find(data: Path, num_batches: int | None, batch_size: int, output: Path) -> Path:
    """Return the data to train on: the photos, or a table of a few of two classes, written to the output folder.

    Raises:
        DataError: if the photos do not have the published split.
        OutputError: if the table cannot be written.
    """
    found = find_images(data)
    if "valid" not in found.splits:
        raise DataError(f"{data} has no valid folder; use the published data with its split")
    if num_batches is None:
        return data
    lines = [files.csv_line(("filepath", "label", "split"))]
    for split in ("train", "valid"):
        of_two = [sample for sample in found.splits[split] if sample.label < 2]
        # Sort by reversed numbers, which mixes the classes in a fixed way.
        of_two.sort(key=lambda sample: (sample.path.stem[::-1], sample.label))
        lines += [
            files.csv_line((sample.path.resolve(), found.classes[sample.label], split))
            for sample in of_two[: num_batches * batch_size]
        ]
    files.make_folder(output)
    files.write_text(output / "few.csv", "".join(lines))
    return output / "few.csv"


def prepare(data: Path, config: TrainingConfig, progress: Progress) -> None:
    """Decode every photo into one file of uint8 pixels (N, S, S, 3) in the cache, where all runs find it.

    Raises:
        CarnetError: if photos cannot be read, or the cache cannot be written.
    """
    # The machine that prepares need not have a GPU.
    decoded = scan_data(data, replace(config, device="cpu"), (), progress).decoded
    assert decoded is not None
    pixels = decoded.pixels
    assert isinstance(pixels, np.memmap), "a cache on the disk is mapped"
    progress.say(
        f"The prepared pixels are {pixels.filename}: {len(pixels):,} photos of {config.image_size} px, "
        f"{show_bytes(pixels.nbytes)}. Every run reads them there."
    )


def report(
    output: Path, models: Sequence[str], num_seeds: int, failed: Sequence[str] = ()
) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
    """Make figure and table from the recorded results of the runs, which needs neither photos nor weights.

    Returns:
        The progress of the runs in sentences, the rows of the networks, and the documents of the runs.

    Raises:
        RunError: if a run is damaged.
        OutputError: if a file cannot be written.
    """
    runs = [so_far(path.parent) for path in output.glob("*/config.json")]
    runs = [run for run in runs if run["model"] in models]
    runs.sort(key=lambda run: (models.index(run["model"]), run["seed"]))
    unfinished = [f"{run['run']} ({epochs_of(run)})" for run in runs if run["result"] is None]
    state = f"{len(runs) - len(unfinished)} of {len(models) * num_seeds} runs are finished"
    state += f"; unfinished: {', '.join(unfinished)}." if unfinished else "."
    state = "\n".join([state, *(f"{note}." for note in failed)])
    labelled: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["epochs"]:
            # An unfinished run gets its own line and column, because a mean with finished ones would mean nothing.
            label = run["model"] if run["result"] else f"{run['model']} seed {run['seed']}, {epochs_of(run)}"
            labelled.setdefault(label, []).append(run)
    if not labelled:
        return f"{state}\nNo run has ended an epoch yet, so there is neither figure nor table.", [], runs
    rows = [row_of(label, members) for label, members in labelled.items()]
    curves = [
        {"label": label} | {key: [epoch[key] for epoch in run["epochs"]] for key in ("seconds", "valid_top1")}
        for label, members in labelled.items()
        for run in members
    ]
    png, svg = draw_comparison(rows, curves)
    files.write_bytes(output / "figure.png", png)
    files.write_bytes(output / "figure.svg", svg)
    files.write_text(output / "table.md", f"{state}\n\n{table_of(rows)}")
    return state, rows, runs


def so_far(folder: Path) -> dict[str, Any]:
    """Return the epochs of a run, and the contents of `result.json` if it is finished.

    Raises:
        RunError: if it is damaged.
    """
    run = RunFolder.open(folder)
    config = run.read_config()
    recipe = config["resolved"]
    return {
        "run": folder.name,
        "model": recipe["model"],
        "seed": recipe["seed"],
        "image_size": recipe["image_size"],
        "num_classes": len(config["data"]["classes"]),
        "resolved": config["resolved"],
        "epochs_planned": recipe["epochs"],
        "epochs": list(read_history(run)) if run.metrics.exists() else [],
        "result": files.read_json(run.result) if run.result.exists() else None,
    }


def epochs_of(run: Mapping[str, Any]) -> str:
    """Return a phrase about the number of finished epochs of a run."""
    return f"{len(run['epochs'])} of {run['epochs_planned']} epochs"


def row_of(label: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of a network's finished runs, or of one unfinished run, for figure and table."""
    model, num_classes, side = (runs[0][key] for key in ("model", "num_classes", "image_size"))
    summary = summarize(create_model(model, num_classes=num_classes), model, num_classes=num_classes, image_size=side)
    top1s = [run["epochs"][-1]["valid_top1"] for run in runs]
    return {
        "label": label,
        "model": model,
        "seeds": [run["seed"] for run in runs],
        "epochs": [len(run["epochs"]) for run in runs],
        "devices": sorted({str(run["resolved"].get("device_name")) for run in runs}),
        "params": summary.params,
        "published_mult_adds": summary.published_mult_adds,
        # The published tables also count the input in float32.
        "total_bytes": 4 * 3 * side**2 + summary.activations_bytes + summary.weights_bytes,
        "top1": statistics.fmean(top1s),
        "top1_spread": statistics.stdev(top1s) if len(top1s) > 1 else None,
        "top1_of_each": top1s,
        "seconds_to": [seconds_to([run["epochs"] for run in runs], target) for target in REACH],
        "seconds": statistics.fmean(run["epochs"][-1]["seconds"] for run in runs),
        # Only `carnet compare` measures it.
        "latency_ms": {},
    }


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the published table in Markdown: for each network a published column, and one of the results here."""
    columns: dict[str, Sequence[str]] = {}
    for row in rows:
        if row["model"] in PUBLISHED:
            columns[f"{row['model']}, published"] = PUBLISHED[row["model"]]
        columns[row["label"]] = cells_of(row)
    lines = [("", *columns), ("---", *("--:" for _ in columns)), *zip(MEASURES, *columns.values(), strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """Return a column of results in the order of `MEASURES`."""
    spread = "" if row["top1_spread"] is None else f" (spread {100 * row['top1_spread']:.1f} points)"
    return [
        ", ".join(map(str, row["seeds"])),
        ", ".join(map(str, sorted(set(row["epochs"])))),
        ", ".join(row["devices"]),
        f"{row['params']:,}",
        f"{row['published_mult_adds'] / 1e9:.2f} G",
        f"{row['total_bytes'] / 1e6:.1f} MB",
        f"{100 * row['top1']:.1f}%{spread}",
        ", ".join(f"{100 * top1:.1f}%" for top1 in row["top1_of_each"]),
        *(seconds_cell(reached, len(row["seeds"])) for reached in row["seconds_to"]),
        f"{row['seconds']:,.0f}",
    ]


def seconds_cell(reached: Mapping[str, Any], num_runs: int) -> str:
    """Return the seconds to an accuracy, and the number of runs that reach it if not all do."""
    if not reached["runs"]:
        return "not reached"
    of_all = "" if reached["runs"] == num_runs else f" (in {reached['runs']} of {num_runs} runs)"
    return f"{reached['seconds']:,.0f}{of_all}"


if __name__ == "__main__":
    sys.exit(main())
