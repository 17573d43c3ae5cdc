"""What comes before the first step: look at the images, build the network, lay out the run.

Look at every image before the first step, and keep what that decodes it to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from carnet.errors import ConfigError, MissingExtraError, ModelError
from carnet.machine import versions
from carnet.models.registry import create_model, default_image_size, normalization
from carnet.models.summary import check_image_size, check_single_image
from carnet.models.weights import check_start, start_from
from carnet.report.plots import draw_batch
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.text import OnProgress, Progress, counted, duration, parse_seconds
from carnet.training.augment import Augmentation
from carnet.training.budget import choose_size
from carnet.training.checkpoint import Checkpoint
from carnet.training.distributed import num_launched
from carnet.training.measurements import processor_features
from carnet.training.memory import free_bytes
from carnet.training.optim import has_patches, whiten
from carnet.training.pipeline import ImageFiles, Loaded, Pipeline, PixelsFrom, StreamedImages
from carnet.training.rehearsal import Rehearsal
from carnet.training.resolve import device_and_number, first_guess, resolve
from carnet.training.schedule import View, final_view, initial_side, initial_side_of, initial_view, view_at
from carnet.training.step import explaining_out_of_memory

_SHOWN = 16
"""Images of a batch that are drawn."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a trainer needs, in a form that passes between processes.

    Attributes:
        config: what is done, with nothing left open.
        scan: the images.
        pipeline: prepares them for training.
        record: what `config.json` says.
        checkpoint: where to go on; None: at the beginning.
        notes: what the result shall say of how it was trained.
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

    @property
    def images(self) -> ScannedImages:
        """As they were checked."""
        return self.scan.images


def prepare(
    data: Path | str,
    asked: TrainingConfig,
    *,
    output: Path | str | None,
    init: Path | str | None,
    ignore: Sequence[str],
    started: float,
    progress: Progress,
) -> Job:
    """Check everything a new run needs, resolve what was left open, then make the run's folder.

    Raises:
        CarnetError: one of its kinds, before anything is written.
    """
    _check_output(data, output)
    check_early(asked, init)
    scan = scan_data(data, asked, ignore, progress, started=started)
    images = scan.images
    network, spec = new_network(asked, scan.image_size, images.data.classes)
    start = start_weights(network, spec, asked, init)
    guess = first_guess(asked, num_train=scan.num_train, image_size=scan.image_size)
    pipeline = scan.pipeline(guess, spec)
    progress.say("Measures this machine …")
    begun = time.perf_counter()
    first = pipeline.load_step(0, 0)
    loading = (time.perf_counter() - begun) / len(first)
    measure = rehearse(guess, network, spec, pipeline, first, loading_seconds=loading, started=started)
    try:
        with explaining_out_of_memory(guess.image_size, guess.micro_batch):
            config = resolve(asked, scan, measure)
    finally:
        measure.undo()
    config = config.because(scan.reason) if scan.reason else config
    resolved_at = time.monotonic()
    if init is None:
        whiten_first(network, spec, config, pipeline, first)
    picture, view = drawn_batch(config, spec, pipeline, first)
    if config.training_seconds is not None:
        # What was done since the budget was planned is spent as well.
        left = config.training_seconds - (time.monotonic() - resolved_at)
        config = replace(config, training_seconds=max(1e-9, left))
    record = _record(asked, config, images, init=init)
    default = Path("runs") / f"{images.data.name}-{config.model.replace('/', '-')}"
    run = RunFolder.numbered(default) if output is None else RunFolder.new(Path(output))
    record = run.create(images.rows(), record)
    files.write_bytes(run.batch, picture)
    progress.say(_intention(run, config, network, start=start, view=view))
    return Job(
        run=run,
        config=config,
        spec=spec,
        scan=scan,
        pipeline=pipeline,
        network=network,
        record=record,
    )


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
    if (initial := initial_side_of(image_size, asked.initial_size_ratio)) < image_size:
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
    guess: ResolvedConfig,
    network: nn.Module,
    spec: ModelSpec,
    pipeline: Pipeline,
    first: Sequence[Loaded],
    *,
    loading_seconds: float,
    started: float,
) -> Rehearsal:
    """Measure on the first process's share of the first batch, as the run ends and as it begins."""
    share, augment = first[:: guess.devices], guess.device != "cuda"
    begun = time.perf_counter()
    batch = pipeline.changed(share, 0, final_view(guess), augment=augment)
    changing_seconds = (time.perf_counter() - begun) / len(batch)
    grows = initial_side(guess) < guess.image_size
    initial = pipeline.changed(share, 0, initial_view(guess), augment=augment) if grows else batch
    return Rehearsal(
        network,
        spec,
        batch,
        initial,
        started=started,
        seconds_to_prepare=loading_seconds + changing_seconds,
        is_decoded=pipeline.is_decoded,
    )


def whiten_first(
    network: nn.Module, spec: ModelSpec, config: ResolvedConfig, pipeline: Pipeline, first: Sequence[Loaded]
) -> None:
    """Take the first filters from the images of the first batches, which are the same for any number of processes."""
    if has_patches(network) and not config.pretrained:
        view = initial_view(config)
        batch = pipeline.changed(first, 0, view)
        whiten(network, chain([batch], pipeline.batches(0, 1, lambda _: view)), spec)


def drawn_batch(
    config: ResolvedConfig, spec: ModelSpec, pipeline: Pipeline, first: Sequence[Loaded]
) -> tuple[bytes, View]:
    """Images of the first batch as they go in, as a PNG file, and how they are shown.

    For people to see before hours are spent: wrong labels, or changes that no photo of theirs would have.
    """
    view = view_at(0, config, config.num_steps)
    batch = pipeline.changed(first[:_SHOWN], 0, view)
    names = [spec.classes[label] for label in batch.labels.tolist()]
    return draw_batch(batch.images.numpy(), names), view


def new_network(config: TrainingConfig, image_size: int, classes: tuple[str, ...]) -> tuple[nn.Module, ModelSpec]:
    """The network of a recipe, with random or published weights, and what images have to be made into for it."""
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
    return network, spec


def start_weights(network: nn.Module, spec: ModelSpec, config: TrainingConfig, init: Path | str | None) -> str:
    """Take another run's weights, if there is one to start from; say in a clause what training starts from."""
    if init is not None:
        return start_from(network, spec, init)
    if config.pretrained:
        return "starts from timm's published weights"
    filters = ", first filters from the images" if has_patches(network) else ""
    return f"starts from random weights{filters}"


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


def _intention(run: RunFolder, config: ResolvedConfig, network: nn.Module, *, start: str, view: View) -> str:
    params = sum(parameter.numel() for parameter in network.parameters())
    initial = initial_side(config)
    growing = f" that grow from {initial}," if initial < config.image_size else ""
    return (
        f"Trains {config.model} ({params:,} parameters, {start}) for {counted(config.epochs, 'epoch')} on "
        f"{config.image_size} px images{growing} in batches of {config.batch_size}, seed {config.seed}.\n"
        f"On {config.device} ({config.device_name}):\n"
        + "".join(f"- {reason}\n" for reason in config.reasons)
        + f"Keeps everything in {run.path}; its {run.batch.name} shows images as they go in: {_shown(config, view)}."
    )


def _shown(config: ResolvedConfig, view: View) -> str:
    """What becomes of them first that a person may not want."""
    words = "whole" if view.min_crop == 1 else f"pieces of at least {100 * view.min_crop:.0f} % of each"
    if config.flip:
        words += f", {100 * config.flip:.0f} % of them mirrored (where left and right matter, add --flip 0)"
    return words + (f", {100 * config.cutmix:.0f} % of batches mixed" if config.cutmix else "")


@dataclass(frozen=True)
class DataScan:
    """The images, and how they are read.

    Attributes:
        images: as they were checked.
        stream: the data set that training images are read from while training; None: they are files.
        decoded: the images that are decoded already; None: none are.
        reason: of how decoded images are kept: a phrase.
        image_size: side of the images, in pixels.
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
            PixelsFrom(self.decoded, spec),
            Augmentation.from_config(config),
            seed,
            config.batch_size,
            is_decoded=self.decoded is not None,
        )


def scan_data(
    data: Path | str,
    config: TrainingConfig,
    ignore: Sequence[str],
    progress: Progress,
    *,
    started: float | None = None,
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
    bar = _scanning_bars(config, progress, started)
    check: dict[str, Any] = {
        "skip_unreadable": config.skip_unreadable,
        "valid_fraction": config.valid_fraction,
        "seed": config.seed if config.valid_seed is None else config.valid_seed,
    }

    if config.stream:
        image_size = config.image_size or default_image_size(config.model)
        check |= {"image_size": image_size, "progress": bar("looking at")}
        images, stream = _scan_stream(str(data), check, ignore, progress)
        progress.say("\n".join(describe(images)))
        return DataScan(images, image_size, stream)
    found = find_images(
        data,
        layout=config.layout or "auto",
        ignore=ignore,
        progress=lambda done, total: progress.bar("unpacking", done, total),
    )
    image_size = choose_size(config, found, progress, started=started or 0.0)
    inspected = inspect_and_cache(
        [sample.path for sample in found.samples],
        Target(image_size, config.resize, config.in_channels),
        config.cache or "auto",
        free_memory=free_bytes(),
        shared=max(config.devices, num_launched()) > 1,
        reading=bar("reading"),
        progress=bar("looking at"),
    )
    images = scan_images(found, facts=inspected.facts, image_size=image_size, **check)
    progress.say("\n".join(describe(images)))
    return DataScan(images, image_size, None, inspected.decoded, inspected.reason)


def _scanning_bars(config: TrainingConfig, progress: Progress, started: float | None) -> Callable[[str], OnProgress]:
    """Bars by what is done to the images; one that has taken all of the budget ends with an error."""
    budget = parse_seconds(config.budget) if config.budget and started is not None else math.inf

    def bar(what: str) -> OnProgress:
        def show(done: int, total: int) -> None:
            progress.bar(f"{what} the images", done, total)
            if (spent := time.monotonic() - (started or 0)) > budget:
                raise ConfigError(
                    f"{what} {done:,} of {total:,} images took all of --budget {config.budget}; all of them take about "
                    f"{duration(spent * total / max(1, done))}, so give more than that"
                )

        return show

    return bar


def _scan_stream(
    data: str, check: Mapping[str, Any], ignore: Sequence[str], progress: Progress
) -> tuple[ScannedImages, Source]:
    if (form := form_of(Path(data))) != "dataset":
        raise ConfigError(
            f"--stream reads data sets (hf:NAME, Parquet files, WebDataset shards); {data} is a {form}, so leave it out"
        )
    from carnet.data.stream import ImageStream, check_stream

    stream = ImageStream(data, progress=lambda done, total: progress.bar("counting the images", done, total))
    return check_stream(stream, ignore=ignore, **check), stream.source
