"""Everything before the first step: scan the images, build the network, resolve the config, make the run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from carnet import files
from carnet.config import FORMAT, ResolvedConfig, TrainingConfig
from carnet.data.scan import Earlier
from carnet.data.scanned import LEFT_OUT, ScannedImages
from carnet.errors import ConfigError, DataError, MissingExtraError, ModelError, RunError
from carnet.hub_models import is_hub_model
from carnet.machine import versions
from carnet.models.registry import create_model, default_image_size
from carnet.models.summary import check_image_size, check_single_image
from carnet.models.weights import check_start, device_name
from carnet.report.plots import draw_batch
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.text import Progress, counted, quoted
from carnet.training.balance import check_balance, class_weights
from carnet.training.checkpoint import Checkpoint, continuation, last_good_checkpoint, resumed_config
from carnet.training.distillation import about_budget, about_teacher, ask_teacher, restored_answers
from carnet.training.initial import (
    about_head,
    check_freeze,
    check_weights,
    fit_first_head,
    needs_head,
    new_network,
    pretrained_network,
)
from carnet.training.measure import Measure, processor_features
from carnet.training.optim import has_patches, whiten
from carnet.training.pipeline import Loaded, Pipeline
from carnet.training.resolve import INITIAL_SIZE_RATIO, Start, device_and_number, first_guess, resolve
from carnet.training.scanning import DataScan, changed_images, scan_data
from carnet.training.schedule import initial_side, view_at
from carnet.training.step import explaining_out_of_memory
from carnet.training.teacher import check_teacher

FEW_PHOTOS = 20
"""Photos of each class below which a pretrained start is recommended: see `docs/head-start.md`."""
_ABOUT_FEW_PHOTOS = (
    "Note: with so few images per class, pretrained weights are often much more accurate: --model efficientnet_lite0."
)
_SHOWN = 16
"""Number of images of the first batch that are drawn."""


@dataclass(frozen=True)
class Job:
    """Everything that the training loop needs; picklable.

    Attributes:
        network: the network with its initial weights.
        record: the content of `config.json`.
        checkpoint: the checkpoint to continue from; None: a new run.
        notes: notes for the result.
        spent_seconds: part of the budget that was spent since the config was resolved.
    """

    run: RunFolder
    config: ResolvedConfig
    spec: ModelSpec
    scan: DataScan
    pipeline: Pipeline
    network: nn.Module
    record: Mapping[str, Any]
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()
    spent_seconds: float = 0.0

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        return f"carnet train --resume {quoted(self.run.path)}"


def prepare(
    data: Path | str,
    requested: TrainingConfig,
    *,
    output: Path | str | None,
    init: Path | str | None,
    ignore: Sequence[str],
    started: float,
    progress: Progress,
    held: ExitStack,
) -> Job:
    """Scan the data of a new run, resolve its config, and make its folder, which `held` keeps locked.

    The budget began at `started`, by `time.monotonic`. For the other arguments see `carnet.train`.

    Raises:
        CarnetError: before anything is written.
    """
    requested = requested.with_full_paths()
    _check_output(data, output, requested.unlabeled)
    check_early(requested, init)
    scan = scan_data(data, requested, ignore, progress, started=started, init=init)
    images = scan.images
    network, spec, start = new_network(requested, scan.image_size, images.data.classes, init)
    begun = Start.of(spec, is_trained=requested.is_pretrained or init is not None)
    guess = first_guess(requested, num_train=scan.num_train, image_size=scan.image_size, start=begun)
    pipeline = scan.pipeline(guess, spec)
    head = None
    if begun.is_trained and (requested.freeze or needs_head(network, spec, requested, init)):
        head = fit_first_head(network, spec, images, pipeline, guess, progress=progress, started=started)
        start += f", its head fitted to the features of {counted(len(images.data.splits['train']), 'image')}"
    taught = teacher = None
    if requested.teacher is not None:
        taught = ask_teacher(images, guess, progress=progress, started=started)
        teacher = taught.record
        pipeline = scan.pipeline(guess, spec, taught.answers)
    if requested.freeze:
        first, config = pipeline.load_step(0, 0), guess
    else:
        progress.say("Measures this machine …")
        measure, first = prepare_trial_steps(guess, network, spec, pipeline, started=started)
        config = _resolved(requested, scan, measure, begun)
    if config.balance == "loss":
        config = replace(config, class_weights=class_weights(list(images.data.counts("train").values())))
    resolved_at = time.monotonic()
    divided = about_budget(teacher, config, resolved_at - started)
    for reason in (about_head(head), about_teacher(teacher), divided, scan.reason):
        config = config.because(reason) if reason else config
    figure = whiten_and_draw(first, pipeline, config, network, spec, init=init)
    default = Path("runs") / f"{images.data.name}-{config.model.replace('/', '-')}"
    run = RunFolder.numbered(default) if output is None else RunFolder.new(Path(output))
    record = run.create(images.rows(), _record(requested, config, images, init=init, head=head, teacher=teacher))
    held.enter_context(run.held())
    if taught is not None:
        files.write_bytes(run.answers, taught.content)
    files.write_bytes(run.batch, figure)
    progress.say(_summary(run, config, network, start))
    if not begun.is_trained and taught is None and scan.num_train < FEW_PHOTOS * spec.num_classes:
        progress.say(_ABOUT_FEW_PHOTOS)
    spent_seconds = time.monotonic() - resolved_at
    notes = () if taught is None else taught.notes
    for note in notes:
        progress.say(f"Note: {note}.")
    return Job(run, config, spec, scan, pipeline, network, record, notes=notes, spent_seconds=spent_seconds)


def _resolved(requested: TrainingConfig, scan: DataScan, measure: Measure, start: Start) -> ResolvedConfig:
    """Resolve a config by trial steps, and undo what they changed."""
    try:
        with explaining_out_of_memory(scan.image_size, len(measure.batch)):
            return resolve(requested, scan, measure, start=start)
    finally:
        measure.undo()


def prepare_resumed(
    resume: Path | str,
    data: Path | str | None,
    requested: TrainingConfig,
    *,
    output: Path | str | None,
    ignore: Sequence[str],
    progress: Progress,
    held: ExitStack,
) -> Job:
    """Continue a run, or a copy of it in `output`, from its last good checkpoint.

    Raises:
        RunError: if config or images are not the run's, this machine cannot continue it, or no checkpoint is whole.
        DataError: if the images are missing.
    """
    run = RunFolder.open(resume)
    if output is not None:
        run = run.copy_to(Path(output))
    held.enter_context(run.held())
    checkpoint = last_good_checkpoint(run, progress)
    record, source = (run.read_config(), run.config) if checkpoint is None else (checkpoint.record, run.checkpoint)
    config = resumed_config(run, requested.with_full_paths(), record, source)
    place = data or record["data"]["path"]
    if data is not None and config.unlabeled is not None and not Path(config.unlabeled).is_dir():
        # It may have moved with DATA.
        config = replace(config, unlabeled=run.recorded_data().moved_to(Path(data).absolute()).unlabeled)
    try:
        earlier = _earlier(run, record["data"], config, is_ignored=not ignore)
        scan = scan_data(place, config, ignore or record["data"].get("ignore", ()), progress, earlier=earlier)
    except DataError as error:
        if data or not Path(place).is_absolute() or Path(place).exists():
            raise
        raise DataError(f"{error}; say where the images are: carnet train DATA --resume {quoted(run.path)}") from error
    images = scan.images
    if images.content_hash != record["data"]["content_hash"]:
        raise RunError(
            f"the images are not those of {run.path}, {changed_images(run, images)}; --init starts from its weights"
        )
    init = record["init"] if checkpoint is None else None
    # The checkpoint replaces all weights, so pretrained ones need not be downloaded.
    network, spec, _ = new_network(
        config, config.image_size, images.data.classes, init, is_resumed=checkpoint is not None
    )
    answers = None
    if (teacher := record.get("teacher")) is not None:
        answers = restored_answers(run, images, config, teacher, progress=progress)
    pipeline = scan.pipeline(config, spec, answers)
    notes: tuple[str, ...] = ()
    if checkpoint is None:
        check_weights(config, record)
        if (head := record.get("head")) is not None:
            fit_first_head(network, spec, images, pipeline, config, progress=progress, recorded=head)
        # A kill may have come before the first batch was drawn.
        first = pipeline.load_step(0, 0)
        files.write_bytes(run.batch, whiten_and_draw(first, pipeline, config, network, spec, init=init))
    elif not run.result.exists() and (here := device_name(config.device)) != config.device_name:
        # If a finished run lacks only its report, nothing is trained here.
        notes = (f"started on {config.device_name}, continued on {here}",)
    progress.say("\n".join([continuation(run, config, checkpoint, record), *(f"Note: {note}." for note in notes)]))
    return Job(run, config, spec, scan, pipeline, network, record, checkpoint, notes)


def _check_output(data: Path | str, output: Path | str | None, unlabeled: str | None = None) -> None:
    """Check that the run folder can be made.

    Raises:
        ConfigError: if it would be inside the data.
        OutputError: if it exists already, or cannot be written.
    """
    if output is not None:
        RunFolder.new(Path(output))
    where = Path("runs") if output is None else Path(output)
    files.check_folder(where)
    if Path(data).is_dir() and where.resolve().is_relative_to(Path(data).resolve()):
        raise ConfigError(f"{where} would be inside {data}, and look like a class of images; choose another --output")
    if unlabeled is not None and where.resolve().is_relative_to(os.path.realpath(unlabeled)):
        raise ConfigError(
            f"{where} would be inside --unlabeled {unlabeled}, and its figures look like images; choose another "
            "--output"
        )


def check_early(requested: TrainingConfig, init: Path | str | None = None) -> None:
    """Check model, sizes, initial weights and logger before thousands of images are scanned.

    Raises:
        CarnetError: if one is wrong.
    """
    device_and_number(requested)
    source = None if init is None else check_start(requested.model, requested.in_channels, init)
    image_size = requested.image_size or (default_image_size(requested.model) if source is None else source.image_size)
    network = create_model(requested.model, num_classes=2, in_channels=requested.in_channels)
    check_image_size(network, requested.model, image_size, requested.in_channels)
    is_trained = init is not None or requested.is_pretrained
    ratio_of_sides = requested.initial_size_ratio or (1.0 if is_trained else INITIAL_SIZE_RATIO)
    if (
        initial := initial_side(replace(requested, image_size=image_size, initial_size_ratio=ratio_of_sides))
    ) < image_size:
        try:
            check_image_size(network, requested.model, initial, requested.in_channels)
        except ModelError as error:
            ratio = f"--initial-size-ratio {ratio_of_sides:g}"
            raise ConfigError(f"{ratio}: {error}; add --initial-size-ratio 1") from error
    for name in ("batch_size", "micro_batch"):
        if getattr(requested, name) == 1:
            check_single_image(network, image_size, requested.in_channels, f"--{name.replace('_', '-')} 1")
    if init is not None and (requested.pretrained or requested.weights):
        flag = "--pretrained" if requested.pretrained else "--weights"
        raise ConfigError(f"--init and {flag} both choose the initial weights; leave one out")
    check_teacher(requested)
    check_balance(requested)
    if requested.freeze:
        check_freeze(requested, network, is_trained=is_trained)
    if requested.is_pretrained and init is None:
        # Weights that are missing are reported before the images are scanned.
        pretrained_network(requested, 2)
    if requested.logger == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise MissingExtraError("--logger tensorboard", "TensorBoard", "tensorboard")


def prepare_trial_steps(
    guess: ResolvedConfig, network: nn.Module, spec: ModelSpec, pipeline: Pipeline, *, started: float
) -> tuple[Measure, list[Loaded]]:
    """Return trial steps on the first process's share of the first batch, and that batch before augmentation."""
    begun = time.perf_counter()
    first = pipeline.load_step(0, 0)
    loading_seconds = (time.perf_counter() - begun) / len(first)
    share, augment = first[:: guess.devices], guess.device != "cuda"
    begun = time.perf_counter()
    batch = pipeline.changed(share, 0, view_at(1, guess, guess.num_steps), augment=augment)
    changing_seconds = (time.perf_counter() - begun) / len(batch)
    grows = initial_side(guess) < guess.image_size
    initial = pipeline.changed(share, 0, view_at(0, guess, guess.num_steps), augment=augment) if grows else batch
    measure = Measure(
        network,
        spec,
        batch,
        initial,
        started=started,
        seconds_to_prepare=loading_seconds + changing_seconds,
        is_decoded=pipeline.is_decoded,
    )
    return measure, first


def whiten_and_draw(
    first: Sequence[Loaded],
    pipeline: Pipeline,
    config: ResolvedConfig,
    network: nn.Module,
    spec: ModelSpec,
    *,
    init: Path | str | None,
) -> bytes:
    """Whiten the first layer of a new network with the first batches; return a figure of the first one, as PNG.

    The images are the same for any number of processes. The figure reveals wrong labels, and augmentations that do not
    suit the images, before hours are spent.
    """
    view = view_at(0, config, config.num_steps)
    batch = pipeline.changed(first, 0, view)
    if has_patches(network) and init is None:
        whiten(network, chain([batch], pipeline.batches(0, 1, lambda _: view)), spec)
    names = [spec.classes[label] for label in batch.labels[:_SHOWN].tolist()]
    return draw_batch(batch.images[:_SHOWN].numpy(), names)


def _record(
    requested: TrainingConfig,
    config: ResolvedConfig,
    images: ScannedImages,
    *,
    init: Path | str | None,
    head: Mapping[str, Any] | None,
    teacher: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of `config.json`: enough to repeat the run."""
    return {
        "format": FORMAT,
        # `compare` groups runs by what was requested, whatever it was resolved to.
        "requested": requested.to_json(),
        "resolved": config.to_json(),
        "init": None if init is None else str(init if is_hub_model(init) else Path(init).resolve()),
        "head": head,
        "teacher": teacher,
        "weights_sha256": None if requested.weights is None else files.digest_of(Path(requested.weights)),
        "versions": versions(),
        "processor_features": processor_features(),
        "data": {
            "path": images.data.location,
            "content_hash": images.content_hash,
            "classes": list(images.data.classes),
            "num_images": images.num_images,
            "num_unreadable": len(images.unreadable),
            "held_out": images.held_out,
            # Relative to the data, because the paths in a list may be relative to the current folder.
            "ignore": list(images.data.ignored),
            "ignore_unlabeled": [] if images.unlabeled is None else list(images.unlabeled.ignored),
        },
    }


def _earlier(run: RunFolder, recorded: Mapping[str, Any], config: TrainingConfig, *, is_ignored: bool) -> Earlier:
    """Return how a run that is resumed divided its images; if `is_ignored`, it ignores the same again."""
    digests = run.digests() if recorded.get("held_out") or config.unlabeled is not None else None
    ignored = recorded.get("ignore_unlabeled") if is_ignored else None
    if digests is None:
        return Earlier(ignored=ignored)
    held_out = digests.get("valid") if recorded.get("held_out") else None
    return Earlier(held_out, digests.get(LEFT_OUT, set()), ignored)


def _summary(run: RunFolder, config: ResolvedConfig, network: nn.Module, start: str) -> str:
    """Return a message: what is trained, how and why, and what happens to the images."""
    params = sum(parameter.numel() for parameter in network.parameters())
    view = view_at(0, config, config.num_steps)
    resizing = f", from {view.side} px at first," if view.side < config.image_size else ""
    changes = "uncropped" if view.min_crop == 1 else f"crops of at least {100 * view.min_crop:.0f}% of the area"
    if config.flip:
        changes += f", {100 * config.flip:.0f}% mirrored (add --flip 0 if left and right matter)"
    if config.cutmix:
        changes += f", CutMix in {100 * config.cutmix:.0f}% of the batches"
    what = (
        f"Takes the features of {config.model} ({params:,} parameters, {start}) as they are, on {config.image_size} px "
        f"images, seed {config.seed}.\n"
        if config.freeze
        else f"Trains {config.model} ({params:,} parameters, {start}) for {counted(config.epochs, 'epoch')} on "
        f"{config.image_size} px images{resizing} in batches of {config.batch_size}, seed {config.seed}.\n"
    )
    return (
        what
        + f"On {config.device} ({config.device_name}):\n"
        + "".join(f"- {reason}\n" for reason in config.reasons)
        + f"Writes to {run.path}; its {run.batch.name} shows augmented images: {changes}."
    )
