"""Look at every image before the first step, and keep what that decodes it to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carnet.data.check import CheckedImages, check_images, describe
from carnet.data.decoded import DecodedImages, Target, inspect_and_keep
from carnet.data.forms import form_of
from carnet.data.hub import Source
from carnet.data.samples import LabeledImages
from carnet.data.sources import find_images
from carnet.errors import ConfigError
from carnet.progress import OnProgress, Progress, duration
from carnet.quantities import parse_seconds
from carnet.spec import ModelSpec
from carnet.training.config import TrainingConfig
from carnet.training.feed import Feed, make_feed
from carnet.training.memory import free_bytes
from carnet.training.plan import Plan
from carnet.training.processes import Processes


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
    from carnet.data.streamed import check_stream

    stream = ImageStream(data, progress=lambda done, total: progress.bar("counting the images", done, total))
    return check_stream(stream, ignore=ignore, **check), stream.source
