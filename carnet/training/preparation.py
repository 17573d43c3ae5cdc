"""What comes before the first step: look at the images, build the network, lay out the run.

Look at every image before the first step, and keep what that decodes it to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from carnet import files
from carnet.config import TrainingConfig
from carnet.data.cache import DecodedImages, Target, inspect_and_keep
from carnet.data.find import find_images, form_of
from carnet.data.hub import Source
from carnet.data.samples import LabeledImages
from carnet.data.scan import CheckedImages, check_images, describe
from carnet.errors import ConfigError, DataError, MissingExtraError, ModelError
from carnet.machine import versions
from carnet.models.registry import create_model, default_image_size, normalization
from carnet.models.summary import check_image_size, check_single_image
from carnet.models.weights import check_start, start_from
from carnet.report.plots import draw_batch
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.text import OnProgress, Progress, counted, duration, parse_seconds
from carnet.training.autotune import tune
from carnet.training.budget import size_in_budget
from carnet.training.checkpoint import Checkpoint
from carnet.training.distributed import Processes
from carnet.training.memory import free_bytes
from carnet.training.optim import has_patches, whiten
from carnet.training.pipeline import Feed, make_feed
from carnet.training.rehearsal import Rehearsal
from carnet.training.resolve import (
    Plan,
    processor_features,
    whole_micro_batch,
    with_augmentation,
    with_batch_size,
    with_epochs,
    with_size,
)
from carnet.training.schedule import View, first_side, first_view, last_view
from carnet.training.step import explaining_out_of_memory

_SHOWN = 16
"""Images of a batch that are drawn."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a trainer needs, in a form that passes between processes.

    Attributes:
        found: the images, and how they are read.
        record: what `config.json` says.
        checkpoint: where to go on; None: at the beginning.
        notes: what the result shall say of how it was trained.
    """

    run: RunFolder
    config: TrainingConfig
    plan: Plan
    spec: ModelSpec
    found: Found
    network: nn.Module
    record: Mapping[str, Any]
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> CheckedImages:
        """As they were checked."""
        return self.found.images

    def feed(self, processes: Processes) -> Feed:
        """One process's share of the training images."""
        return self.found.feed(self.config, self.spec, self.plan, processes)


def prepare(
    data: Path | str,
    config: TrainingConfig,
    plan: Plan,
    *,
    output: Path | str | None,
    init: Path | str | None,
    ignore: Sequence[str],
    started: float,
    progress: Progress,
) -> Job:
    """Check everything a new run needs, measure what the plan leaves open, then make the run's folder.

    Raises:
        CarnetError: one of its kinds, before anything is written.
    """
    if output is not None:
        RunFolder.new(Path(output))
    where = Path("runs") if output is None else Path(output)
    files.check_folder(where)
    if Path(data).is_dir() and where.resolve().is_relative_to(Path(data).resolve()):
        raise ConfigError(f"{where} would lie among the images in {data}, and be taken for a class; choose --output")
    config = asked = with_size(config)
    check_early(config, init)
    found = look_at(
        data,
        config,
        plan,
        ignore,
        progress,
        started=started,
        choose_size=lambda images: size_in_budget(asked, plan, images, started, progress),
    )
    images, config = found.images, replace(config, image_size=found.image_size)
    num_train = len(images.data.splits["train"])
    _check_shares(num_train, plan)
    config = with_epochs(with_batch_size(config, num_train, plan.devices), num_train)
    plan = replace(plan, micro_batch=whole_micro_batch(config, plan.devices))
    network, spec = new_network(config, images.data.classes)
    start = start_weights(network, spec, config, init)
    config, plan = _tune(config, plan, network, spec, found=found, started=started, progress=progress)
    if init is None:
        whiten_first(network, spec, config, plan, found)
    begun = time.perf_counter()
    picture, view = drawn_batch(found, config, spec, plan)
    if plan.training_seconds:
        # The budget was planned before.
        plan = replace(plan, training_seconds=max(1e-9, plan.training_seconds - (time.perf_counter() - begun)))
    record = _record(asked, config, plan, images, init=init)
    default = Path("runs") / f"{images.data.name}-{config.model.replace('/', '-')}"
    run = RunFolder.numbered(default) if output is None else RunFolder.new(Path(output))
    record = run.create(images.rows(), record)
    files.write_bytes(run.batch, picture)
    progress.say(_intention(run, config, plan, network, start=start, view=view))
    return Job(
        run=run,
        config=config,
        plan=plan,
        spec=spec,
        found=found,
        network=network,
        record=record,
    )


def check_early(config: TrainingConfig, init: Path | str | None = None) -> None:
    """Fail on a wrong name, size, start or logger before thousands of images are looked at.

    Raises:
        CarnetError: one of its kinds.
    """
    config = replace(config, image_size=config.image_size or default_image_size(config.model))
    network = create_model(config.model, num_classes=2, in_channels=config.in_channels)
    check_image_size(network, config.model, config.image_size, config.in_channels)
    if (first := first_side(config)) < config.image_size:
        try:
            check_image_size(network, config.model, first, config.in_channels)
        except ModelError as error:
            raise ConfigError(f"--start-share {config.start_share:g}: {error}; take --start-share 1") from error
    for name in ("batch_size", "micro_batch"):
        if getattr(config, name) == 1:
            check_single_image(network, config.image_size, config.in_channels, f"--{name.replace('_', '-')} 1")
    if init is not None:
        check_start(config.model, config.in_channels, init)
    if init is not None and config.pretrained:
        raise ConfigError("--init and --pretrained both give the weights to start from; choose one")
    if config.logger == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise MissingExtraError("--logger tensorboard", "TensorBoard", "tensorboard")


def _tune(
    config: TrainingConfig,
    plan: Plan,
    network: nn.Module,
    spec: ModelSpec,
    *,
    found: Found,
    started: float,
    progress: Progress,
) -> tuple[TrainingConfig, Plan]:
    splits = found.images.data.splits
    first = Processes(0, plan.devices)
    # A budget may still choose the epochs, on which it depends how much images are changed; that takes no time.
    tried = with_augmentation(config)
    feed = found.feed(tried, spec, plan, first)
    with explaining_out_of_memory(config, plan.micro_batch):
        config, plan = tune(
            config,
            plan,
            lambda: Rehearsal.begin(network, spec, tried, feed),
            steps_per_epoch=feed.batches.steps_per_epoch,
            num_valid=len(splits["valid"]) // plan.devices,
            started=started,
            progress=progress,
        )
    config = with_augmentation(config)
    return config, replace(plan, reasons=(*plan.reasons, found.reason) if found.reason else plan.reasons)


def whiten_first(network: nn.Module, spec: ModelSpec, config: TrainingConfig, plan: Plan, found: Found) -> None:
    """Take the first filters from the images of the first batches, which are the same for any number of processes."""
    if has_patches(network) and not config.pretrained:
        batches = _feed_as_shown(found, config, spec, plan).read(0, 0, workers=0, view=first_view(config))
        whiten(network, batches, spec)


def drawn_batch(found: Found, config: TrainingConfig, spec: ModelSpec, plan: Plan) -> tuple[bytes, View]:
    """Images of the first batch as they go in, as a PNG file, and how they are shown.

    For people to see before hours are spent: wrong labels, or changes that no photo of theirs would have.
    """
    feed = _feed_as_shown(found, config, spec, plan)
    steps_per_epoch = feed.batches.steps_per_epoch
    # An only epoch shows images as a run's last one does.
    is_last = (plan.training_steps or config.epochs * steps_per_epoch) <= steps_per_epoch
    view = last_view(config) if is_last else first_view(config)
    batch = next(feed.read(0, 0, workers=0, view=view))
    names = [spec.classes[label] for label in batch.labels[:_SHOWN].tolist()]
    return draw_batch(batch.images[:_SHOWN].numpy(), names), view


def _feed_as_shown(found: Found, config: TrainingConfig, spec: ModelSpec, plan: Plan) -> Feed:
    """Batches whose images are changed already; for a GPU they would be changed there, and later."""
    return found.feed(config, spec, replace(plan, device="cpu"), Processes())


def _check_shares(num_train: int, plan: Plan) -> None:
    if plan.devices > 1 and num_train < 2 * plan.devices:
        raise DataError(f"{counted(num_train, 'training image')} cannot be shared by {plan.devices} devices; use fewer")


def new_network(config: TrainingConfig, classes: tuple[str, ...]) -> tuple[nn.Module, ModelSpec]:
    """The network of a recipe, with random or published weights, and what images have to be made into for it."""
    torch.manual_seed(config.seed)
    network = create_model(
        config.model, num_classes=len(classes), in_channels=config.in_channels, pretrained=config.pretrained
    )
    mean, std = normalization(network, config.in_channels)
    spec = ModelSpec(
        model=config.model,
        classes=classes,
        image_size=config.image_size,
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
    asked: TrainingConfig,
    config: TrainingConfig,
    plan: Plan,
    images: CheckedImages,
    *,
    init: Path | str | None,
) -> dict[str, Any]:
    """What `config.json` says: enough to repeat the run, written before its first step."""
    return {
        "recipe": config.to_json(),
        # With what was left open still open: runs that were asked for alike belong together, whatever it came to.
        "asked": asked.to_json(),
        "plan": plan.to_json(),
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


def _intention(
    run: RunFolder, config: TrainingConfig, plan: Plan, network: nn.Module, *, start: str, view: View
) -> str:
    params = sum(parameter.numel() for parameter in network.parameters())
    growing = f" that grow from {first_side(config)}," if first_side(config) < config.image_size else ""
    return (
        f"Trains {config.model} ({params:,} parameters, {start}) for {counted(config.epochs, 'epoch')} on "
        f"{config.image_size} px images{growing} in batches of {config.batch_size}, seed {config.seed}.\n"
        f"On {plan.device} ({plan.device_name}):\n"
        + "".join(f"- {reason}\n" for reason in plan.reasons)
        + f"Keeps everything in {run.path}; its {run.batch.name} shows images as they go in: {_shown(config, view)}."
    )


def _shown(config: TrainingConfig, view: View) -> str:
    """What becomes of them first that a person may not want."""
    words = "whole" if view.min_crop == 1 else f"pieces of at least {100 * view.min_crop:.0f} % of each"
    if config.flip:
        words += f", {100 * config.flip:.0f} % of them mirrored (where left and right matter, add --flip 0)"
    return words + (f", {100 * config.cutmix:.0f} % of batches mixed" if config.cutmix else "")


@dataclass(frozen=True)
class Found:
    """The images, and how they are read.

    Attributes:
        images: as they were checked.
        stream: the data set that training images are read from while training; None: they are files.
        decoded: the images that are decoded already; None: none are.
        reason: of how decoded images are kept: a phrase.
        image_size: side of the images, in pixels.
    """

    images: CheckedImages
    image_size: int
    stream: Source | None = None
    decoded: DecodedImages | None = None
    reason: str = ""

    def feed(self, config: TrainingConfig, spec: ModelSpec, plan: Plan, processes: Processes) -> Feed:
        """Training images in batches, for one of several processes."""
        train = self.images.data.splits["train"]
        return make_feed(config, spec, train, self.decoded, self.stream, device=plan.device, processes=processes)


def look_at(
    data: Path | str,
    config: TrainingConfig,
    plan: Plan,
    ignore: Sequence[str],
    progress: Progress,
    *,
    started: float | None = None,
    choose_size: Callable[[LabeledImages], int] | None = None,
) -> Found:
    """Find the images, look inside each, and say what there is.

    Args:
        data: as `find_images` takes it.
        config: the recipe.
        plan: how it is done here.
        ignore: images to leave out.
        progress: shown what is found.
        started: when the run's budget began, by `time.monotonic`; None: it has been planned already.
        choose_size: gives the side of the images where the recipe leaves it open, before they are decoded.

    Raises:
        CarnetError: one of its kinds, if they cannot be trained on, or there is no time for that.
    """
    budget = parse_seconds(config.budget) if config.budget and started is not None else math.inf
    check: dict[str, Any] = {
        "image_size": config.image_size,
        "skip_unreadable": config.skip_unreadable,
        "valid_fraction": config.valid_fraction,
        "seed": config.seed if config.valid_seed < 0 else config.valid_seed,
    }

    def bar(what: str) -> OnProgress:
        def show(done: int, total: int) -> None:
            progress.bar(f"{what} the images", done, total)
            if (spent := time.monotonic() - (started or 0)) > budget:
                raise ConfigError(
                    f"{what} {done:,} of {total:,} images took all of --budget {config.budget}; all of them take about "
                    f"{duration(spent * total / max(1, done))}, so give more than that"
                )

        return show

    if config.stream:
        images, stream = _look_at_stream(str(data), {**check, "progress": bar("looking at")}, ignore, progress)
        progress.say("\n".join(describe(images)))
        return Found(images, config.image_size, stream)
    found = find_images(
        data,
        layout=config.layout,
        ignore=ignore,
        progress=lambda done, total: progress.bar("unpacking", done, total),
    )
    if not config.image_size and choose_size is not None:
        check["image_size"] = choose_size(found)
    inspected = inspect_and_keep(
        [sample.path for sample in found.samples],
        Target(check["image_size"], config.resize, config.in_channels),
        config.cache,
        free_memory=free_bytes(),
        shared=plan.devices > 1,
        reading=bar("reading"),
        progress=bar("looking at"),
    )
    images = check_images(found, facts=inspected.facts, **check)
    progress.say("\n".join(describe(images)))
    return Found(images, check["image_size"], None, inspected.decoded, inspected.reason)


def _look_at_stream(
    data: str, check: Mapping[str, Any], ignore: Sequence[str], progress: Progress
) -> tuple[CheckedImages, Source]:
    if (form := form_of(Path(data))) != "dataset":
        raise ConfigError(
            f"--stream reads data sets (hf:NAME, Parquet files, WebDataset shards); {data} is a {form}, so leave it out"
        )
    from carnet.data.stream import ImageStream
    from carnet.data.stream_scan import check_stream

    stream = ImageStream(data, progress=lambda done, total: progress.bar("counting the images", done, total))
    return check_stream(stream, ignore=ignore, **check), stream.source
