"""The runs of a comparison: train what is missing, take up what has stopped, read what is finished."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from carnet import files
from carnet.data.check import hash_files
from carnet.data.sources import LabeledImages, find_images
from carnet.errors import CarnetError, ConfigError, LostProcessError, RunError
from carnet.evaluation import EvaluationReport, evaluate, select_samples
from carnet.models.trained import TrainedModel, load
from carnet.progress import Progress, quoted
from carnet.run_folder import RunFolder
from carnet.training.config import TrainingConfig
from carnet.training.preparation import check_early
from carnet.training.recipe import with_size
from carnet.training.stop import how_it_ended, leave_stop_signals_to


@dataclass(frozen=True)
class ComparedRun:
    """A finished run, and its kept weights' answers for the validation images.

    Attributes:
        path: its folder.
        recipe: how it was to be trained, with open what followed from the data, the machine or the time.
        start: the run whose weights it started from, or nothing.
        content_hash: of all images.
        document: what its `result.json` says.
        history: a row for each epoch.
        model: the kept weights.
        report: on the validation images that are no training images.
    """

    path: Path
    recipe: TrainingConfig
    start: str
    content_hash: str
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
        ConfigError: without a valid split, for an unknown or doubled network, or with fewer than two runs.
        RunError: if the folder has a run of another recipe, or of other images.
        StoppedError: on Ctrl-C or SIGTERM; the run that was being trained has a checkpoint.
        LostProcessError: if a process that trained has died.
        CarnetError: what else training raises.
    """
    _check(models, seeds, config)
    images = find_images(data)
    if "valid" not in images.splits:
        raise ConfigError(f"{data} has no valid folder; every seed would hold back other images, so divide it first")
    wanted = {
        folder / f"{name.replace('/', '-')}-seed-{seed}": replace(config, model=name, seed=seed)
        for seed in range(seeds)
        for name in models
    }
    # All of them first, since training may take days.
    finished = {path for path, recipe in wanted.items() if _is_finished(path, recipe, images)}
    if finished:
        _check_content(finished, images)
    for number, (path, recipe) in enumerate(wanted.items(), start=1):
        if path in finished:
            progress.say(f"{path} is there already.")
            continue
        progress.say(f"\n{recipe.model}, seed {recipe.seed} ({number} of {len(wanted)})")
        _train_alone(data, recipe, path)
    return list(wanted)


def read_run(path: Path, progress: Progress) -> ComparedRun:
    """Read a finished run, and judge its weights.

    Raises:
        RunError: if it is not finished, or its images are gone.
    """
    run = RunFolder.open(path)
    if not run.result.exists():
        raise RunError(f"{path} is not finished; go on with carnet train --resume {quoted(path)}")
    config = run.read_config()
    data = config["data"]
    model = load(path)
    chosen = select_samples(data["path"], "valid", model.spec.classes, run.digests(), ignore=data.get("ignore", ()))
    for warning in chosen.warnings:
        progress.say(f"Note: {path}: {warning}.")
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
    return ComparedRun(
        path,
        _asked(config),
        config.get("init") or "",
        data["content_hash"],
        files.read_json(run.result),
        history,
        model,
        report,
    )


def recipe_differences(one: TrainingConfig, other: TrainingConfig) -> list[str]:
    """What sets a recipe apart besides its seed: `--budget 30m (was 5m)`. With a budget, time decides the epochs."""
    epochs = one.epochs if one.budget and other.budget else other.epochs
    found = one.differences(replace(other, seed=one.seed, epochs=epochs))
    if one.precision != other.precision:
        found.append(f"--precision {other.precision} (was {one.precision})")
    return found


def _asked(config: Mapping[str, Any]) -> TrainingConfig:
    # Runs from before there was this part have what it came to.
    return TrainingConfig.from_json(config.get("asked", config["recipe"]))


def _check(models: Sequence[str], seeds: int, config: TrainingConfig) -> None:
    """Find out before the first run what would be missed after many."""
    import carnet.export.graph  # noqa: F401 - latencies are measured as exported

    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if twice := next((name for name in models if models.count(name) > 1), None):
        raise ConfigError(f"--models names {twice} twice; --seeds trains it several times")
    if len(models) * seeds < 2:
        raise ConfigError("one run has nothing to be compared with; name more --models, or more --seeds")
    for name in models:
        check_early(with_size(replace(config, model=name)))


def _is_finished(path: Path, wanted: TrainingConfig, images: LabeledImages) -> bool:
    if not (path / "config.json").exists():
        return False
    run = RunFolder.open(path)
    config = run.read_config()
    if differences := recipe_differences(_asked(config), with_size(wanted)):
        raise RunError(f"{path} was trained otherwise: {', '.join(differences)}; choose another --output")
    data = config["data"]
    number = sum(data["num_images"].values()) + data["num_unreadable"]
    if (data["path"], number) != (images.location, len(images.samples)):
        raise RunError(
            f"{path} was trained on {number:,} images in {data['path']}, not on {len(images.samples):,} in "
            f"{images.location}; choose another --output"
        )
    return run.result.exists()


def _check_content(finished: Collection[Path], images: LabeledImages) -> None:
    """Whether the images are still those that finished runs saw; those that go on look for themselves."""
    digests = set(hash_files([sample.path for sample in images.samples]).values())
    for path in finished:
        seen = RunFolder(path).digests()
        if seen is not None and set().union(*seen.values()) - {""} != digests:
            raise RunError(f"{path} was trained on other images in {images.location}; choose another --output")


def _train_alone(data: str, config: TrainingConfig, path: Path) -> None:
    """In a process of its own, which ends with the run; should this one be ended, it stops with a checkpoint."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train_and_tell, args=(data, config, path, sender))
    process.start()
    sender.close()
    error = None
    with leave_stop_signals_to(process):
        # Before it ends, since it cannot end before a long error is read.
        with suppress(EOFError):
            error = receiver.recv()
        process.join()
    if error is not None:
        raise error
    if code := process.exitcode:
        raise LostProcessError(
            f"the process that trained {path} {how_it_ended(code)}; the same command goes on with it"
        )


def _train_and_tell(data: str, config: TrainingConfig, path: Path, sender: Connection) -> None:
    error: BaseException | None = None
    try:
        _train(data, config, path)
    except (CarnetError, KeyboardInterrupt) as raised:
        error = raised
    # The one who listened may have been killed.
    with suppress(OSError):
        sender.send(error)


def _train(data: str, config: TrainingConfig, path: Path) -> None:
    from carnet.training.session import train

    if (path / "config.json").exists():
        train(data, config, resume=path)
    else:
        train(data, config, output=path)
