"""The runs of a comparison: train those that are missing, resume those that have stopped, read the finished ones."""

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
from carnet.data.scan import hash_files
from carnet.data.scanned import UNLABELED, UNREADABLE
from carnet.data.unlabeled import find_unlabeled
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
from carnet.training.distributed import how_it_ended, leave_stop_signals_to
from carnet.training.preparation import check_early
from carnet.training.resolve import INITIAL_SIZE_RATIO, LR, budget_chooses_size

_OF_ONE_NETWORK = (ConfigError, LostProcessError, NonFiniteLossError, OutOfMemoryError)
"""Errors of training that another network may not meet."""
TrainOne = Callable[[str, TrainingConfig, Path], None]
"""Trains one run on some images into a folder, or resumes it."""
_POLL_SECONDS = 0.5


class _LastEpoch(TypedDict):
    valid_top1: Share
    valid_top5: Share


class _Result(TypedDict):
    """The part of `result.json` that a comparison needs."""

    epochs: Annotated[Count, Range(1)]
    seconds: Seconds
    num_images: dict[str, Count]
    final: _LastEpoch
    kept: NotRequired[str]
    notes: NotRequired[list[str] | None]
    peak_memory_bytes: NotRequired[Count | None]
    peak_device_bytes: NotRequired[Count | None]


class _Row(TypedDict):
    """The part of a line of `metrics.csv` that a comparison needs."""

    seconds: Seconds
    valid_top1: Share


@dataclass(frozen=True)
class ComparedRun:
    """A finished run, and the evaluation of its kept weights.

    Attributes:
        path: the run folder.
        requested: the requested config.
        resolved: the resolved config.
        versions: versions of the packages that trained it.
        start: the run whose weights it started from; empty: none.
        content_hash: hash of all images.
        document: the content of `result.json`.
        history: a row for each epoch.
        model: the kept weights.
        report: evaluation on the validation images that are not training images.
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
    """Train every network with every seed; finished runs are kept, stopped ones are resumed.

    Each run has its own process, so that its memory is its own. The first seed of all networks comes first, so that
    there is something to compare early. If this machine cannot train a network, because its memory is too small or the
    loss becomes infinite, the others are trained all the same.

    Args:
        data: the images.
        models: names of networks.
        seeds: runs of each, with seeds 0, 1, …
        config: the recipe of all; network and seed are filled in.
        folder: folder of the run folders.
        progress: told which run comes next.
        train: trains one run; None: `train_alone`.

    Returns:
        The folders of the finished runs, and a clause for each run that could not be trained.

    Raises:
        ConfigError: for an unknown or repeated network, or with fewer than two runs.
        RunError: if the folder has a run of another recipe, or of other images.
        StoppedError: on Ctrl-C or SIGTERM; the run that was being trained has a checkpoint.
        CarnetError: other errors of training; the first of a single network, if fewer than two runs are finished.
    """
    _check(models, seeds, config)
    config = config.with_full_paths()
    images = find_images(data, layout=config.layout or "auto", unlabeled=config.unlabeled)
    if "valid" not in images.splits and config.valid_seed is None:
        # All runs have to be evaluated on the same images.
        config = replace(config, valid_seed=0)
    recipes = [replace(config, model=name, seed=seed) for seed in range(seeds) for name in models]
    wanted = {folder / f"{one.model.replace('/', '-')}-seed-{one.seed}": one for one in recipes}
    failed = _train_missing(data, wanted, _finished(wanted, images), progress, train or train_alone)
    trained = [path for path in wanted if path not in failed]
    if failed and len(trained) < 2:
        raise next(iter(failed.values()))
    return trained, [f"{path.name} could not be trained: {error}" for path, error in failed.items()]


def _train_missing(
    data: str, wanted: Mapping[Path, TrainingConfig], finished: Collection[Path], progress: Progress, train: TrainOne
) -> dict[Path, CarnetError]:
    """Train the runs that are not finished, and return the errors that concern single networks."""
    failed: dict[Path, CarnetError] = {}
    for number, (path, recipe) in enumerate(wanted.items(), start=1):
        if path in finished:
            progress.say(f"{path} is already finished.")
            continue
        progress.say(f"\n{recipe.model}, seed {recipe.seed} ({number} of {len(wanted)})")
        try:
            train(data, recipe, path)
        except _OF_ONE_NETWORK as error:
            progress.say(f"{recipe.model}, seed {recipe.seed}, could not be trained: {error}")
            failed[path] = error
    return failed


def check_finished(paths: Sequence[Path]) -> None:
    """Check all runs before the first is evaluated, which takes long.

    Raises:
        RunError: if a folder is no run, or the run is not finished, or is named twice.
        ModuleNotFoundError: without the packages that export needs.
    """
    import carnet.export.graph  # noqa: F401 - latencies are measured as exported

    for path in paths:
        if not RunFolder.open(path).result.exists():
            raise RunError(f"{path} is not finished; continue with carnet train --resume {quoted(path)}")
    places = [path.resolve() for path in paths]
    if twice := next((path for path in places if places.count(path) > 1), None):
        raise RunError(f"{twice} is named twice; a run counts once")


def read_run(path: Path, progress: Progress, *, data: Path | str | None = None) -> ComparedRun:
    """Read a finished run, and evaluate its weights on its images, or on `data` if these have moved.

    Raises:
        RunError: if it is damaged.
        DataError: if its images are gone.
    """
    run = RunFolder.open(path)
    config = run.read_config()
    try:
        document, history = files.read_json(run.result, _Result), read_history(run)
        if not history:
            raise RunError(f"{run.metrics} has no epochs")
    except RunError as error:
        raise RunError(f"{error}; carnet train --resume {quoted(path)} writes it again") from error
    model = load(path)
    try:
        chosen = select_of_run(run, "valid", model.spec.classes, data, progress=progress)
    except DataError as error:
        if data is not None:
            raise
        raise DataError(f"{error}; name the images of {path} with --data") from error
    for warning in chosen.warnings:
        progress.say(f"Note: {path}: {warning}.")
    bar = partial(progress.bar, f"evaluating {path.name}")
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


def read_history(run: RunFolder) -> tuple[dict[str, float], ...]:
    """Read `metrics.csv`: a row for each finished epoch of a run, which need not be finished itself.

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
    """Return how a config differs, apart from its seed: `--budget 30m (was 5m)`. A budget decides the epochs."""
    one, other = sized(one), sized(other)
    epochs = one.epochs if one.budget and other.budget else other.epochs
    found = one.differences(replace(other, seed=one.seed, epochs=epochs))
    if one.precision != other.precision:
        found.append(change("precision", one.precision, other.precision))
    return found


def sized(config: TrainingConfig) -> TrainingConfig:
    """Fill in what a network from random weights takes where nothing was requested, as older versions recorded it."""
    if not config.is_pretrained:
        ratio = config.initial_size_ratio or INITIAL_SIZE_RATIO
        config = replace(config, optimizer=config.optimizer or "muon", lr=config.lr or LR, initial_size_ratio=ratio)
    own = None if budget_chooses_size(config) else default_image_size(config.model)
    return config if config.image_size or own is None else replace(config, image_size=own)


def _check(models: Sequence[str], seeds: int, config: TrainingConfig) -> None:
    """Find mistakes before the first run that would be found after many."""
    import carnet.export.graph  # noqa: F401 - latencies are measured as exported

    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if flag := next((f"--{n.replace('_', '-')}" for n in ("max_latency", "max_size") if getattr(config, n)), None):
        raise ConfigError(f"{flag} chooses the network of carnet train, and --models names those that are compared")
    if twice := next((name for name in models if models.count(name) > 1), None):
        raise ConfigError(f"--models names {twice} twice; --seeds trains it several times")
    if len(models) * seeds < 2:
        raise ConfigError("a comparison needs at least two runs; name more --models, or raise --seeds")
    for name in models:
        check_early(replace(config, model=name))


def _finished(wanted: Mapping[Path, TrainingConfig], images: LabeledImages) -> set[Path]:
    """Return the runs that are finished; all of them are checked before the first is trained, which may take days.

    Runs that are resumed check their images themselves.
    """
    finished = set()
    for path, recipe in wanted.items():
        if (path / "config.json").exists():
            run = RunFolder.open(path)
            _check_begun(run, recipe, images)
            if run.result.exists():
                finished.add(path)
    if not finished:
        return finished
    digests = hash_files([sample.path for sample in images.samples])
    # Where runs split the data themselves, their seed and the images decide how.
    has_splits = "valid" in images.splits
    now = {
        (images.relative(one), images.classes[one.label], digests.get(one.path, ""), split if has_splits else "")
        for split, samples in images.splits.items()
        for one in samples
    }
    unsplit = {image[:3] for image in now}
    for path in finished:
        listed = RunFolder(path).images()
        _check_unlabeled(path, listed, wanted[path])
        rows = [row for row in listed if row["label"]]
        seen = {(row["filepath"], row["label"], row["sha256"], row["split"] if has_splits else "") for row in rows}
        read = {image for image in seen if image[3] != UNREADABLE}
        if rows and (not read <= now or {image[:3] for image in seen} != unsplit):
            raise RunError(
                f"{path} was trained on other images in {images.location}, or on the same in other classes or splits; "
                "choose another --output"
            )
    return finished


def _check_unlabeled(path: Path, listed: Sequence[Mapping[str, str]], wanted: TrainingConfig) -> None:
    """Raise a RunError for a finished run whose images without labels are others now."""
    then, known = ({row["sha256"] for row in listed if row["split"] == UNLABELED}, {row["sha256"] for row in listed})
    paths = () if wanted.unlabeled is None else find_unlabeled(wanted.unlabeled).paths
    now = set(hash_files(paths).values())
    if not then <= now <= known:
        raise RunError(f"{path} was trained with other images without labels; choose another --output")


def _check_begun(run: RunFolder, wanted: TrainingConfig, images: LabeledImages) -> None:
    """Raise a RunError for a run of another recipe, or of images in another place or of another number."""
    config = run.read_config()
    requested = TrainingConfig.from_json(config["requested"], run.config)
    if (requested.unlabeled is None) != (wanted.unlabeled is None):
        raise RunError(f"{run.path} was trained with another --unlabeled; choose another --output")
    if differences := recipe_differences(requested, wanted):
        raise RunError(f"{run.path} was trained with another recipe: {', '.join(differences)}; choose another --output")
    data = config["data"]
    numbers = {split: number for split, number in data["num_images"].items() if split != UNLABELED}
    number = sum(numbers.values()) + data["num_unreadable"]
    if (data["path"], number) != (images.location, len(images.samples)):
        raise RunError(
            f"{run.path} was trained on {number:,} images in {data['path']}, not on {len(images.samples):,} in "
            f"{images.location}; choose another --output"
        )


def train_alone(
    data: str, config: TrainingConfig, path: Path, *, stop_when: Callable[[], bool] = lambda: False
) -> None:
    """Train a run, or resume it, in a process of its own, so that its memory is its own.

    `stop_when` is called twice a second; when it returns True, the run stops as after SIGTERM, with a checkpoint.

    Raises:
        StoppedError: on Ctrl-C or SIGTERM, or when `stop_when` returns True.
        CarnetError: other errors of training.
    """
    if stop_when():
        raise StoppedError(f"stopped before {path} was started; the same command continues", signal.SIGTERM)
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train_and_send, args=(data, config, path, sender))
    process.start()
    sender.close()
    error = None
    with leave_stop_signals_to(process) as flag:
        # Its message comes before its end, because it cannot end before a long error is read. It may also die before
        # it has its end of the pipe, which on Windows leaves the pipe open.
        while not wait([receiver, process.sentinel], _POLL_SECONDS):
            if flag.received is None and stop_when():
                flag.received = signal.SIGTERM
                process.terminate()
        # Windows raises the latter where the other end has gone.
        with suppress(EOFError, BrokenPipeError):
            if receiver.poll():
                error = receiver.recv()
        process.join()
    if error is not None:
        raise error
    if flag.received is not None:
        raise StoppedError(f"stopped while {path} was prepared; the same command continues", flag.received)
    if code := process.exitcode:
        raise LostProcessError(f"the process that trained {path} {how_it_ended(code)}; the same command continues it")


def _train_and_send(data: str, config: TrainingConfig, path: Path, sender: Connection) -> None:
    error: BaseException | None = None
    try:
        train_here(data, config, path)
    except (CarnetError, KeyboardInterrupt) as raised:
        error = raised
    # The receiving process may have been killed.
    with suppress(OSError):
        sender.send(error)


def train_here(data: str, config: TrainingConfig, path: Path) -> None:
    """Train a run, or resume it, in this process."""
    from carnet.training.run import train

    if (path / "config.json").exists():
        train(data, config, resume=path)
    else:
        train(data, config, output=path)
