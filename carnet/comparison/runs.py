"""The runs of a comparison: train what is missing, take up what has stopped, read what is finished."""

from __future__ import annotations

import csv
import io
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from carnet import files
from carnet.config import ResolvedConfig, TrainingConfig, change
from carnet.data.find import find_images
from carnet.data.samples import LabeledImages
from carnet.data.scan import UNREADABLE, hash_files
from carnet.documents import MAX_BYTES, Count, Range, Seconds, Share, conform
from carnet.errors import (
    CarnetError,
    ConfigError,
    DataError,
    LostProcessError,
    NonFiniteLossError,
    OutOfMemoryError,
    RunError,
    StoppedError,
)
from carnet.evaluation import EvaluationReport, select_of_run
from carnet.models.registry import default_image_size
from carnet.models.weights import TrainedModel, load
from carnet.run_folder import RunFolder
from carnet.text import Progress, quoted
from carnet.training.budget import budget_chooses_size
from carnet.training.distributed import how_it_ended, leave_stop_signals_to
from carnet.training.preparation import check_early

_OF_ONE_NETWORK = (ConfigError, LostProcessError, NonFiniteLossError, OutOfMemoryError)
"""What training may meet that another network need not."""
TrainOne = Callable[[str, TrainingConfig, Path], None]
"""Trains one run on some images into a folder, or goes on with it."""
_ASK_SECONDS = 0.5
"""Between two questions whether a run should stop."""


class _LastEpoch(TypedDict):
    valid_top1: Share
    valid_top5: Share


class _Result(TypedDict):
    """What is needed of `result.json`."""

    epochs: Annotated[Count, Range(1)]
    seconds: Seconds
    num_images: dict[str, Count]
    final: _LastEpoch
    kept: NotRequired[str]
    notes: NotRequired[list[str] | None]
    peak_memory_bytes: NotRequired[Count | None]
    peak_device_bytes: NotRequired[Count | None]


class _Row(TypedDict):
    """What is needed of a line of `metrics.csv`."""

    seconds: Seconds
    valid_top1: Share


@dataclass(frozen=True)
class ComparedRun:
    """A finished run, and its kept weights' answers for the validation images.

    Attributes:
        path: its folder.
        requested: how it was to be trained, with open what followed from the data, the machine or the time.
        resolved: the same, with nothing open, and how it was computed.
        versions: of what trained it.
        start: the run whose weights it started from, or nothing.
        content_hash: of all images.
        document: what its `result.json` says.
        history: a row for each epoch.
        model: the kept weights.
        report: on the validation images that are no training images.
    """

    path: Path
    requested: TrainingConfig
    resolved: ResolvedConfig
    versions: Mapping[str, str]
    start: str
    content_hash: str
    document: dict[str, Any]
    history: tuple[dict[str, float], ...]
    model: TrainedModel
    report: EvaluationReport


def train_runs(
    data: str,
    models: Sequence[str],
    *,
    seeds: int,
    config: TrainingConfig,
    folder: Path,
    progress: Progress,
    train: TrainOne | None = None,
) -> tuple[list[Path], list[str]]:
    """Train every network with every seed; finished runs stay as they are, stopped ones go on.

    Each run has a process to itself, so that its memory is its own. The first seed of all networks comes first, so that
    there is something to compare early. A network that this machine cannot train, for its memory or because its loss
    is no number any more, does not keep the others from it.

    Args:
        data: the images; without a valid split, all runs hold back the same ones.
        models: names of networks.
        seeds: runs of each, with seeds 0, 1, …
        config: the recipe of all; network and seed are filled in.
        folder: where the runs lie, each in a folder of its own.
        progress: told which run comes next.
        train: trains one run on some images into a folder, or goes on with it; None: `train_alone`.

    Returns:
        the folders of the finished runs, and a clause for each that could not be trained.

    Raises:
        ConfigError: for an unknown or doubled network, or with fewer than two runs.
        RunError: if the folder has a run of another recipe, or of other images.
        StoppedError: on Ctrl-C or SIGTERM; the run that was being trained has a checkpoint.
        CarnetError: what else training raises; what a network alone met, if fewer than two runs are finished.
    """
    _check(models, seeds, config)
    images = find_images(data, layout=config.layout or "auto")
    if "valid" not in images.splits and config.valid_seed is None:
        # All runs have to be evaluated on the same images.
        config = replace(config, valid_seed=0)
    recipes = [replace(config, model=name, seed=seed) for seed in range(seeds) for name in models]
    wanted = {folder / f"{one.model.replace('/', '-')}-seed-{one.seed}": one for one in recipes}
    # All of them first, since training may take days.
    finished = {path for path, recipe in wanted.items() if _is_finished(path, recipe, images)}
    if finished:
        _check_content(finished, images)
    failed = _train_missing(data, wanted, finished, progress, train or train_alone)
    trained = [path for path in wanted if path not in failed]
    if failed and len(trained) < 2:
        raise next(iter(failed.values()))
    return trained, [f"{path.name} could not be trained: {error}" for path, error in failed.items()]


def _train_missing(
    data: str, wanted: Mapping[Path, TrainingConfig], finished: Collection[Path], progress: Progress, train: TrainOne
) -> dict[Path, CarnetError]:
    """Train what is wanted and not finished; the answer says which runs met an error that is theirs alone."""
    failed: dict[Path, CarnetError] = {}
    for number, (path, recipe) in enumerate(wanted.items(), start=1):
        if path in finished:
            progress.say(f"{path} is there already.")
            continue
        progress.say(f"\n{recipe.model}, seed {recipe.seed} ({number} of {len(wanted)})")
        try:
            train(data, recipe, path)
        except _OF_ONE_NETWORK as error:
            progress.say(f"{recipe.model}, seed {recipe.seed}, could not be trained: {error}")
            failed[path] = error
    return failed


def check_finished(paths: Sequence[Path]) -> None:
    """Find out before the first run is evaluated, which takes long, what is wrong with the last.

    Raises:
        RunError: if a folder is no run, or one that is not finished, or is named twice.
        ModuleNotFoundError: without the packages that export needs.
    """
    import carnet.export.graph  # noqa: F401 - latencies are measured as exported

    for path in paths:
        if not RunFolder.open(path).result.exists():
            raise RunError(f"{path} is not finished; go on with carnet train --resume {quoted(path)}")
    places = [path.resolve() for path in paths]
    if twice := next((path for path in places if places.count(path) > 1), None):
        raise RunError(f"{twice} is named twice; a run counts once")


def read_run(path: Path, progress: Progress, *, data: str = "") -> ComparedRun:
    """Read a finished run, and evaluate its weights.

    Args:
        path: its folder.
        progress: shown how far that is.
        data: its images; empty: they are where they were.

    Raises:
        RunError: if it is damaged.
        DataError: if its images are gone.
    """
    run = RunFolder.open(path)
    config = run.read_config()
    document, history = _outcome(run)
    model = load(path)
    try:
        chosen = select_of_run(run, "valid", model.spec.classes, data or None, progress=progress)
    except DataError as error:
        if data:
            raise
        raise DataError(f"{error}; say where the images of {path} are with --data") from error
    for warning in chosen.warnings:
        progress.say(f"Note: {path}: {warning}.")
    bar = partial(progress.bar, f"judging {path.name}")
    report = chosen.evaluate(model.logits, model.spec, skip_unreadable=True, progress=bar)
    if report.leaked.any() and not report.leaked.all():
        report = report.without(report.leaked)
    return ComparedRun(
        path,
        TrainingConfig.from_json(config["requested"], run.config),
        ResolvedConfig.from_json(config["resolved"], run.config),
        config.get("versions", {}),
        config.get("init") or "",
        config["data"]["content_hash"],
        document,
        history,
        model,
        report,
    )


def _outcome(run: RunFolder) -> tuple[dict[str, Any], tuple[dict[str, float], ...]]:
    """What `result.json` and `metrics.csv` say.

    Raises:
        RunError: if they do not say what a comparison is about.
    """
    again = f"carnet train --resume {quoted(run.path)} writes it again"
    try:
        document = files.read_json(run.result, _Result)
        history = read_history(run)
    except RunError as error:
        raise RunError(f"{error}; {again}") from error
    if not history:
        raise RunError(f"{run.metrics} tells of no epochs; {again}")
    return document, history


def read_history(run: RunFolder) -> tuple[dict[str, float], ...]:
    """What `metrics.csv` says of each finished epoch of a run, which need not be finished itself.

    Raises:
        RunError: if it is missing or damaged.
    """
    table = files.read_whole(run.metrics, MAX_BYTES)
    try:
        rows = csv.DictReader(io.StringIO(table.decode("utf-8"), newline=""))
        history = tuple({key: float(value) for key, value in row.items()} for row in rows)
        conform(history, list[_Row], "its epochs")
    except (ValueError, TypeError, csv.Error) as error:
        raise RunError(f"cannot read {run.metrics}: {error}") from error
    return history


def recipe_differences(one: TrainingConfig, other: TrainingConfig) -> list[str]:
    """What sets a config apart besides its seed: `--budget 30m (was 5m)`. With a budget, time decides the epochs."""
    one, other = sized(one), sized(other)
    epochs = one.epochs if one.budget and other.budget else other.epochs
    found = one.differences(replace(other, seed=one.seed, epochs=epochs))
    if one.precision != other.precision:
        found.append(change("precision", one.precision, other.precision))
    return found


def sized(config: TrainingConfig) -> TrainingConfig:
    """The same with the side of the network's own where none was asked for, as the first versions recorded it."""
    own = None if budget_chooses_size(config) else default_image_size(config.model)
    return config if config.image_size or own is None else replace(config, image_size=own)


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
        check_early(replace(config, model=name))


def _is_finished(path: Path, wanted: TrainingConfig, images: LabeledImages) -> bool:
    if not (path / "config.json").exists():
        return False
    run = RunFolder.open(path)
    config = run.read_config()
    if differences := recipe_differences(TrainingConfig.from_json(config["requested"], run.config), wanted):
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
    digests = hash_files([sample.path for sample in images.samples])
    # Where runs divide the data themselves, their seed and the images say how.
    divided = "valid" in images.splits
    now = {
        (images.relative(sample), images.classes[sample.label], digests.get(sample.path, ""), split if divided else "")
        for split, samples in images.splits.items()
        for sample in samples
    }
    unsplit = {image[:3] for image in now}
    for path in finished:
        rows = RunFolder(path).images()
        seen = {(row["filepath"], row["label"], row["sha256"], row["split"] if divided else "") for row in rows}
        read = {image for image in seen if image[3] != UNREADABLE}
        if rows and (not read <= now or {image[:3] for image in seen} != unsplit):
            raise RunError(
                f"{path} was trained on other images in {images.location}, or on the same in other classes or splits; "
                "choose another --output"
            )


def train_alone(
    data: str, config: TrainingConfig, path: Path, *, stop_when: Callable[[], bool] = lambda: False
) -> None:
    """Train a run, or go on with it, in a process of its own, so that its memory is its own.

    Args:
        data: the images.
        config: the recipe.
        path: the run's folder.
        stop_when: asked twice a second; once it says so, the run stops as after SIGTERM, with a checkpoint.

    Raises:
        StoppedError: on Ctrl-C or SIGTERM, or once `stop_when` says so.
        CarnetError: what else training raises.
    """
    if stop_when():
        raise StoppedError(f"stopped before {path} was begun; the same command goes on", signal.SIGTERM)
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train_and_tell, args=(data, config, path, sender))
    process.start()
    sender.close()
    error = None
    with leave_stop_signals_to(process) as flag:
        # What it sends comes before its end, since it cannot end before a long error is read. It may also die before
        # it has its end of the pipe, which on Windows leaves the pipe open.
        while not wait([receiver, process.sentinel], _ASK_SECONDS):
            if flag.received is None and stop_when():
                flag.received = signal.SIGTERM
                process.terminate()
        # Windows says the latter where the other end has gone.
        with suppress(EOFError, BrokenPipeError):
            if receiver.poll():
                error = receiver.recv()
        process.join()
    if error is not None:
        raise error
    if flag.received is not None:
        raise StoppedError(f"stopped while {path} was prepared; the same command goes on", flag.received)
    if code := process.exitcode:
        raise LostProcessError(
            f"the process that trained {path} {how_it_ended(code)}; the same command goes on with it"
        )


def _train_and_tell(data: str, config: TrainingConfig, path: Path, sender: Connection) -> None:
    error: BaseException | None = None
    try:
        train_here(data, config, path)
    except (CarnetError, KeyboardInterrupt) as raised:
        error = raised
    # The one who listened may have been killed.
    with suppress(OSError):
        sender.send(error)


def train_here(data: str, config: TrainingConfig, path: Path) -> None:
    """Train a run, or go on with it, in this process."""
    from carnet.training.run import train

    if (path / "config.json").exists():
        train(data, config, resume=path)
    else:
        train(data, config, output=path)
