"""The runs of a comparison: train what is missing, take up what has stopped, read what is finished."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from carnet import files
from carnet.data.sources import find_images
from carnet.errors import CarnetError, ConfigError, LostProcessError, RunError
from carnet.evaluation import EvaluationReport, evaluate, select_samples
from carnet.models.trained import TrainedModel, load
from carnet.progress import Progress
from carnet.run_folder import RunFolder
from carnet.training.config import TrainingConfig
from carnet.training.recipe import filled_from
from carnet.training.stop import how_it_ended, leave_stop_signals_to


@dataclass(frozen=True)
class ComparedRun:
    """A finished run, and its kept weights' answers for the validation images.

    Attributes:
        path: its folder.
        recipe: how it was trained.
        document: what its `result.json` says.
        history: a row for each epoch.
        model: the kept weights.
        report: on the validation images that are no training images.
    """

    path: Path
    recipe: TrainingConfig
    document: dict[str, Any]
    history: tuple[dict[str, float], ...]
    model: TrainedModel
    report: EvaluationReport


def train_runs(
    data: str, models: Sequence[str], *, seeds: int, config: TrainingConfig, folder: Path, progress: Progress
) -> list[Path]:
    """Train every network with every seed; finished runs stay as they are, stopped ones go on.

    Each run has a process to itself, so that its memory is its own. The first seed of all networks comes first, so that
    there is something to compare early.

    Args:
        data: the images, with a valid split, since all runs have to be judged by the same ones.
        models: names of networks.
        seeds: runs of each, with seeds 0, 1, …
        config: the recipe of all; network and seed are filled in.
        folder: where the runs lie, each in a folder of its own.
        progress: told which run comes next.

    Raises:
        ConfigError: without a valid split, or fewer than one seed.
        RunError: if the folder has a run of another recipe.
        StoppedError: on Ctrl-C or SIGTERM; the run that was being trained has a checkpoint.
        LostProcessError: if a process that trained has died.
        CarnetError: what else training raises.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if "valid" not in find_images(data).splits:
        raise ConfigError(f"{data} has no valid folder; every seed would hold back other images, so divide it first")
    paths = []
    for seed in range(seeds):
        for name in models:
            path = folder / f"{name.replace('/', '-')}-seed-{seed}"
            wanted = replace(config, model=name, seed=seed)
            paths.append(path)
            if _is_finished(path, wanted):
                progress.say(f"{path} is there already.")
                continue
            progress.say(f"\n{name}, seed {seed} ({len(paths)} of {seeds * len(models)})")
            _train_alone(data, wanted, path)
    return paths


def read_run(path: Path, progress: Progress) -> ComparedRun:
    """Read a finished run, and judge its weights.

    Raises:
        RunError: if it is not finished, or its images are gone.
    """
    run = RunFolder.open(path)
    if not run.result.exists():
        raise RunError(f"{path} is not finished; go on with carnet train --resume {path}")
    config = run.read_config()
    data = config["data"]
    model = load(path)
    chosen = select_samples(data["path"], "valid", model.spec.classes, run.digests(), ignore=data.get("ignore", ()))
    report = evaluate(
        model.logits,
        chosen.samples,
        model.spec,
        skip_unreadable=True,
        progress=lambda done, total: progress.bar(f"judging {path.name}", done, total),
    ).with_leaks(chosen.leaked)
    if report.leaked.any() and not report.leaked.all():
        report = report.without(report.leaked)
    with run.metrics.open(encoding="utf-8", newline="") as file:
        history = tuple({key: float(value) for key, value in row.items()} for row in csv.DictReader(file))
    recipe = TrainingConfig.from_json(config["recipe"])
    return ComparedRun(path, recipe, files.read_json(run.result), history, model, report)


def _is_finished(path: Path, wanted: TrainingConfig) -> bool:
    if not (path / "config.json").exists():
        return False
    run = RunFolder.open(path)
    recorded = TrainingConfig.from_json(run.read_config()["recipe"])
    if differences := recorded.differences(filled_from(wanted, recorded)):
        raise RunError(f"{path} was trained otherwise: {', '.join(differences)}; choose another --output")
    return run.result.exists()


def _train_alone(data: str, config: TrainingConfig, path: Path) -> None:
    """In a process of its own, which ends with the run; should this one be ended, it stops with a checkpoint."""
    context = get_context("spawn")
    errors = context.SimpleQueue()
    process = context.Process(target=_train_and_tell, args=(data, config, path, errors))
    process.start()
    with leave_stop_signals_to(process):
        process.join()
    if not errors.empty():
        raise errors.get()
    if code := process.exitcode:
        raise LostProcessError(
            f"the process that trained {path} {how_it_ended(code)}; the same command goes on with it"
        )


def _train_and_tell(data: str, config: TrainingConfig, path: Path, errors: SimpleQueue[BaseException]) -> None:
    try:
        _train(data, config, path)
    except (CarnetError, KeyboardInterrupt) as error:
        errors.put(error)


def _train(data: str, config: TrainingConfig, path: Path) -> None:
    from carnet.training.session import train

    if (path / "config.json").exists():
        train(data, config, resume=path)
    else:
        train(data, config, output=path)
