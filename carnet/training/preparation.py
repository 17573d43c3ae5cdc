"""What comes before the first step: scan the images, build the network, lay out a new run or take up an old one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from carnet import files
from carnet.config import FORMAT, ResolvedConfig, TrainingConfig
from carnet.data.cache import DecodedImages, Target, inspect_and_cache
from carnet.data.find import find_images, form_of
from carnet.data.hub import Source
from carnet.data.scan import ScannedImages, describe, scan_images
from carnet.data.stream import ImageStream, check_stream
from carnet.errors import ConfigError, DataError, MissingExtraError, ModelError, RunError
from carnet.machine import versions
from carnet.models.registry import create_model, default_image_size, normalization
from carnet.models.summary import check_image_size, check_single_image
from carnet.models.weights import check_start, device_name, start_from
from carnet.report.plots import draw_batch
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.text import Progress, counted, duration, parse_seconds, quoted
from carnet.training.augment import Augmentation
from carnet.training.checkpoint import Checkpoint, changed_images, continuation, last_good_checkpoint, resumed_config
from carnet.training.distributed import num_launched
from carnet.training.measure import Measure, processor_features
from carnet.training.memory import free_bytes
from carnet.training.optim import has_patches, whiten
from carnet.training.pipeline import ImageFiles, Loaded, Pipeline, StreamedImages, pixel_loader
from carnet.training.resolve import choose_size, device_and_number, first_guess, resolve
from carnet.training.schedule import initial_side, view_at
from carnet.training.step import explaining_out_of_memory

_SHOWN = 16
"""Images of a batch that are drawn."""


@dataclass(frozen=True)
class Job:
    """Everything a trainer needs, in a form that passes between processes.

    Attributes:
        config: what is done, with nothing left open.
        scan: the images.
        pipeline: prepares them for training.
        record: what `config.json` says.
        checkpoint: where to go on; None: at the beginning.
        notes: what the result shall say of how it was trained.
        spent_seconds: of the budget, since it was planned.
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
    def images(self) -> ScannedImages:
        """As they were checked."""
        return self.scan.images

    @property
    def resume_command(self) -> str:
        """What takes the run up again."""
        return f"carnet train --resume {quoted(self.run.path)}"


def prepare(
    data: Path | str,
    asked: TrainingConfig,
    *,
    output: Path | str | None,
    init: Path | str | None,
    ignore: Sequence[str],
    started: float,
    progress: Progress,
    held: ExitStack,
) -> Job:
    """Check everything a new run needs, resolve what was left open, then make the run's folder, and hold it.

    Raises:
        CarnetError: one of its kinds, before anything is written.
    """
    _check_output(data, output)
    check_early(asked, init)
    scan = scan_data(data, asked, ignore, progress, started=started)
    images = scan.images
    network, spec, start = new_network(asked, scan.image_size, images.data.classes, init)
    guess = first_guess(asked, num_train=scan.num_train, image_size=scan.image_size)
    pipeline = scan.pipeline(guess, spec)
    progress.say("Measures this machine …")
    measure, first = rehearse(guess, network, spec, pipeline, started=started)
    try:
        with explaining_out_of_memory(guess.image_size, guess.micro_batch):
            config = resolve(asked, scan, measure)
    finally:
        measure.undo()
    resolved_at = time.monotonic()
    config = config.because(scan.reason) if scan.reason else config
    picture = begin_with(first, pipeline, config, network, spec, init=init)
    default = Path("runs") / f"{images.data.name}-{config.model.replace('/', '-')}"
    run = RunFolder.numbered(default) if output is None else RunFolder.new(Path(output))
    record = run.create(images.rows(), _record(asked, config, images, init=init))
    held.enter_context(run.held())
    files.write_bytes(run.batch, picture)
    progress.say(_intention(run, config, network, start))
    spent_seconds = time.monotonic() - resolved_at
    return Job(run, config, spec, scan, pipeline, network, record, spent_seconds=spent_seconds)


def prepare_resumed(
    resume: Path | str,
    data: Path | str | None,
    asked: TrainingConfig,
    *,
    output: Path | str | None,
    ignore: Sequence[str],
    progress: Progress,
    held: ExitStack,
) -> Job:
    """Hold a run, or a copy of it, and take it up where its last good checkpoint left it, and nothing else than that.

    Raises:
        RunError: if config or images are not the run's, this machine cannot go on with it, or no checkpoint is whole.
        DataError: if the images are gone.
    """
    run = RunFolder.open(resume)
    if output is not None:
        run = run.copy_to(Path(output))
    held.enter_context(run.held())
    checkpoint = last_good_checkpoint(run, progress)
    record, source = (run.read_config(), run.config) if checkpoint is None else (checkpoint.record, run.checkpoint)
    config = resumed_config(run, asked, record, source)
    place, ignore = data or record["data"]["path"], ignore or record["data"].get("ignore", ())
    try:
        scan = scan_data(place, config, ignore, progress)
    except DataError as error:
        if data or not Path(place).is_absolute() or Path(place).exists():
            raise
        way_out = f"carnet train DATA --resume {quoted(run.path)}"
        raise DataError(f"{error}; say where the images are: {way_out}") from error
    images = scan.images
    if images.content_hash != record["data"]["content_hash"]:
        raise RunError(
            f"the images are not those of {run.path}, {changed_images(run, images)}; --init starts from its weights"
        )
    init = record["init"] if checkpoint is None else None
    # A checkpoint brings all weights; published ones need not be fetched again.
    begun = replace(config, pretrained=config.pretrained and checkpoint is None)
    network, spec, _ = new_network(begun, config.image_size, images.data.classes, init)
    pipeline = scan.pipeline(config, spec)
    notes: tuple[str, ...] = ()
    if checkpoint is None:
        # A kill may have come before it was written.
        first = pipeline.load_step(0, 0)
        files.write_bytes(run.batch, begin_with(first, pipeline, config, network, spec, init=init))
    elif not run.result.exists() and (here := device_name(config.device)) != config.device_name:
        # Of a run that is finished the report alone may be missing.
        notes = (f"begun on {config.device_name}, continued on {here}",)
    progress.say("\n".join([continuation(run, config, checkpoint, record), *(f"Note: {note}." for note in notes)]))
    return Job(run, config, spec, scan, pipeline, network, record, checkpoint, notes)


def _check_output(data: Path | str, output: Path | str | None) -> None:
    """Whether a run can lie where it is to lie.

    Raises:
        ConfigError: if it would lie among the images.
        OutputError: if the folder is taken, or nothing can be written there.
    """
    if output is not None:
        RunFolder.new(Path(output))
    where = Path("runs") if output is None else Path(output)
    files.check_folder(where)
    if Path(data).is_dir() and where.resolve().is_relative_to(Path(data).resolve()):
        raise ConfigError(f"{where} would lie among the images in {data}, and be taken for a class; choose --output")


def check_early(asked: TrainingConfig, init: Path | str | None = None) -> None:
    """Fail on a wrong name, size, start or logger before thousands of images are looked at.

    Raises:
        CarnetError: one of its kinds.
    """
    device_and_number(asked)
    image_size = asked.image_size or default_image_size(asked.model)
    network = create_model(asked.model, num_classes=2, in_channels=asked.in_channels)
    check_image_size(network, asked.model, image_size, asked.in_channels)
    if (initial := initial_side(replace(asked, image_size=image_size))) < image_size:
        try:
            check_image_size(network, asked.model, initial, asked.in_channels)
        except ModelError as error:
            ratio = f"--initial-size-ratio {asked.initial_size_ratio:g}"
            raise ConfigError(f"{ratio}: {error}; take --initial-size-ratio 1") from error
    for name in ("batch_size", "micro_batch"):
        if getattr(asked, name) == 1:
            check_single_image(network, image_size, asked.in_channels, f"--{name.replace('_', '-')} 1")
    if init is not None:
        check_start(asked.model, asked.in_channels, init)
    if init is not None and asked.pretrained:
        raise ConfigError("--init and --pretrained both give the weights to start from; choose one")
    if asked.logger == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise MissingExtraError("--logger tensorboard", "TensorBoard", "tensorboard")


def rehearse(
    guess: ResolvedConfig, network: nn.Module, spec: ModelSpec, pipeline: Pipeline, *, started: float
) -> tuple[Measure, list[Loaded]]:
    """Load the first batch; measure on the first process's share of it, as the run ends and as it begins."""
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


def new_network(
    config: TrainingConfig, image_size: int, classes: tuple[str, ...], init: Path | str | None
) -> tuple[nn.Module, ModelSpec, str]:
    """The network of a recipe; what images have to be made into for it; and a clause that says what it starts from.

    That is another run's weights, published ones or random ones.
    """
    torch.manual_seed(config.seed)
    network = create_model(
        config.model, num_classes=len(classes), in_channels=config.in_channels, pretrained=config.pretrained
    )
    mean, std = normalization(network, config.in_channels)
    spec = ModelSpec(
        model=config.model,
        classes=classes,
        image_size=image_size,
        resize=config.resize,
        in_channels=config.in_channels,
        mean=mean,
        std=std,
    )
    if init is not None:
        return network, spec, start_from(network, spec, init)
    if config.pretrained:
        return network, spec, "starts from timm's published weights"
    filters = ", first filters from the images" if has_patches(network) else ""
    return network, spec, f"starts from random weights{filters}"


def begin_with(
    first: Sequence[Loaded],
    pipeline: Pipeline,
    config: ResolvedConfig,
    network: nn.Module,
    spec: ModelSpec,
    *,
    init: Path | str | None,
) -> bytes:
    """Take a new network's first filters from the first images, and draw some of them, as a PNG file.

    The images are the same for any number of processes. They are drawn for people to see before hours are spent: wrong
    labels, or changes that no photo of theirs would have.
    """
    view = view_at(0, config, config.num_steps)
    batch = pipeline.changed(first, 0, view)
    if has_patches(network) and init is None and not config.pretrained:
        whiten(network, chain([batch], pipeline.batches(0, 1, lambda _: view)), spec)
    names = [spec.classes[label] for label in batch.labels[:_SHOWN].tolist()]
    return draw_batch(batch.images[:_SHOWN].numpy(), names)


def _record(
    asked: TrainingConfig, config: ResolvedConfig, images: ScannedImages, *, init: Path | str | None
) -> dict[str, Any]:
    """What `config.json` says: enough to repeat the run, written before its first step."""
    return {
        "format": FORMAT,
        # With what was left open still open: runs that were asked for alike belong together, whatever it came to.
        "requested": asked.to_json(),
        "resolved": config.to_json(),
        "init": None if init is None else str(Path(init).resolve()),
        "versions": versions(),
        "processor_features": processor_features(),
        "data": {
            "path": images.data.location,
            "content_hash": images.content_hash,
            "classes": list(images.data.classes),
            "num_images": {split: len(samples) for split, samples in images.data.splits.items()},
            "num_unreadable": len(images.unreadable),
            "held_out": images.held_out,
            # As they count from the data, since a list may count from where it was given.
            "ignore": list(images.data.ignored),
        },
    }


def _intention(run: RunFolder, config: ResolvedConfig, network: nn.Module, start: str) -> str:
    params = sum(parameter.numel() for parameter in network.parameters())
    view = view_at(0, config, config.num_steps)
    growing = f" that grow from {view.side}," if view.side < config.image_size else ""
    # What becomes of them first that a person may not want.
    shown = "whole" if view.min_crop == 1 else f"pieces of at least {100 * view.min_crop:.0f} % of each"
    if config.flip:
        shown += f", {100 * config.flip:.0f} % of them mirrored (where left and right matter, add --flip 0)"
    if config.cutmix:
        shown += f", {100 * config.cutmix:.0f} % of batches mixed"
    return (
        f"Trains {config.model} ({params:,} parameters, {start}) for {counted(config.epochs, 'epoch')} on "
        f"{config.image_size} px images{growing} in batches of {config.batch_size}, seed {config.seed}.\n"
        f"On {config.device} ({config.device_name}):\n"
        + "".join(f"- {reason}\n" for reason in config.reasons)
        + f"Keeps everything in {run.path}; its {run.batch.name} shows images as they go in: {shown}."
    )


@dataclass(frozen=True)
class DataScan:
    """The images, and how they are read.

    Attributes:
        images: as they were checked.
        image_size: side of the images, in pixels.
        stream: the data set that training images are read from while training; None: they are files.
        decoded: the images that are decoded already; None: none are.
        reason: of how decoded images are kept: a phrase.
    """

    images: ScannedImages
    image_size: int
    stream: Source | None = None
    decoded: DecodedImages | None = None
    reason: str = ""

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.images.data.splits["train"])

    @property
    def num_valid(self) -> int:
        """Validation images."""
        return len(self.images.data.splits["valid"])

    def pipeline(self, config: ResolvedConfig, spec: ModelSpec) -> Pipeline:
        """Prepares the training images."""
        train, seed = self.images.data.splits["train"], config.seed
        return Pipeline(
            StreamedImages(self.stream, train, spec.classes, seed) if self.stream else ImageFiles(train, seed),
            pixel_loader(self.decoded, spec),
            Augmentation.from_config(config),
            seed,
            config.batch_size,
            is_decoded=self.decoded is not None,
        )


def scan_data(
    data: Path | str, config: TrainingConfig, ignore: Sequence[str], progress: Progress, *, started: float | None = None
) -> DataScan:
    """Find the images, look inside each, and say what there is.

    Args:
        data: as `find_images` takes it.
        config: as asked, or of a run that goes on.
        ignore: images to leave out.
        progress: shown what is found.
        started: when the run's budget began, by `time.monotonic`; None: it has been planned already.

    Raises:
        CarnetError: one of its kinds, if they cannot be trained on, or there is no time for that.
    """
    show = partial(_show_scan, config=config, progress=progress, started=started)
    check: dict[str, Any] = {
        "skip_unreadable": config.skip_unreadable,
        "valid_fraction": config.valid_fraction,
        "seed": config.seed if config.valid_seed is None else config.valid_seed,
    }
    if config.stream:
        image_size = config.image_size or default_image_size(config.model)
        stream = _open_stream(str(data), progress)
        looking = partial(show, "looking at")
        images = check_stream(stream, image_size=image_size, ignore=ignore, progress=looking, **check)
        scan = DataScan(images, image_size, stream.source)
    else:
        unpacking = partial(progress.bar, "unpacking")
        found = find_images(data, layout=config.layout or "auto", ignore=ignore, progress=unpacking)
        image_size = choose_size(config, found, progress, started=started or 0.0)
        inspected = inspect_and_cache(
            [sample.path for sample in found.samples],
            Target(image_size, config.resize, config.in_channels),
            config.cache or "auto",
            free_memory=free_bytes(),
            shared=max(config.devices, num_launched()) > 1,
            reading=partial(show, "reading"),
            progress=partial(show, "looking at"),
        )
        images = scan_images(found, facts=inspected.facts, image_size=image_size, **check)
        scan = DataScan(images, image_size, None, inspected.decoded, inspected.reason)
    progress.say("\n".join(describe(images)))
    return scan


def _show_scan(
    what: str, done: int, total: int, *, config: TrainingConfig, progress: Progress, started: float | None
) -> None:
    """A bar for what is done to the images; one that has taken all of the budget ends with an error."""
    progress.bar(f"{what} the images", done, total)
    if config.budget is None or started is None:
        return
    if (spent := time.monotonic() - started) > parse_seconds(config.budget):
        raise ConfigError(
            f"{what} {done:,} of {total:,} images took all of --budget {config.budget}; all of them take about "
            f"{duration(spent * total / max(1, done))}, so give more than that"
        )


def _open_stream(data: str, progress: Progress) -> ImageStream:
    if (form := form_of(Path(data))) != "dataset":
        raise ConfigError(
            f"--stream reads data sets (hf:NAME, Parquet files, WebDataset shards); {data} is a {form}, so leave it out"
        )
    return ImageStream(data, progress=partial(progress.bar, "counting the images"))
