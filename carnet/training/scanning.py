"""Find, scan and decode the images of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from carnet.config import ResolvedConfig, TrainingConfig
from carnet.data.appearance import look_at
from carnet.data.decoded import CacheMode, DecodedImages, Target, inspect_and_cache
from carnet.data.description import describe
from carnet.data.find import find_images, form_of
from carnet.data.hub import Source
from carnet.data.samples import LabeledImages, Sample
from carnet.data.scan import Earlier, scan_images
from carnet.data.scanned import ScannedImages
from carnet.data.stream import ImageStream, check_stream
from carnet.data.unlabeled import UnlabeledImages, find_unlabeled
from carnet.errors import ConfigError
from carnet.models.registry import default_image_size
from carnet.models.weights import check_start
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.text import Progress, duration, first_few, parse_seconds
from carnet.training.answers import Answers
from carnet.training.augment import Augmentation
from carnet.training.distributed import num_launched
from carnet.training.initial import initial_preprocessing
from carnet.training.memory import free_bytes
from carnet.training.pipeline import ImageFiles, Pipeline, StreamedImages, pixel_loader
from carnet.training.resolve import choose_size


@dataclass(frozen=True)
class DataScan:
    """The scanned images, and how they are read.

    Attributes:
        images: the scanned images.
        image_size: side of the decoded images, in pixels.
        stream: the data set that training images are read from while training; None: they are files.
        decoded: the cache of decoded images; None: there is none.
        reason: how decoded images are cached, and why: a phrase.
    """

    images: ScannedImages
    image_size: int
    stream: Source | None = None
    decoded: DecodedImages | None = None
    reason: str = ""

    @property
    def num_train(self) -> int:
        """Number of training images, with and without labels."""
        return len(self.images.data.splits["train"]) + self.images.num_unlabeled

    @property
    def num_valid(self) -> int:
        """Number of validation images."""
        return len(self.images.data.splits["valid"])

    def pipeline(self, config: ResolvedConfig, spec: ModelSpec, answers: Answers | None = None) -> Pipeline:
        """Return the input pipeline of the training images; those without labels need a teacher's answers."""
        train, seed = self.images.data.splits["train"], config.seed
        if answers is not None and self.images.unlabeled is not None:
            named = zip(self.images.unlabeled.paths, answers.labels(len(train)).tolist(), strict=True)
            train = (*train, *(Sample(path, label) for path, label in named))
        return Pipeline(
            StreamedImages(self.stream, train, spec.classes, seed)
            if self.stream
            else ImageFiles(train, seed, is_balanced=config.balance == "sampler"),
            pixel_loader(self.decoded, spec),
            Augmentation.from_config(config),
            seed,
            config.batch_size,
            is_decoded=self.decoded is not None,
            answers=answers,
        )


def scan_data(
    data: Path | str,
    config: TrainingConfig,
    ignore: Sequence[str],
    progress: Progress,
    *,
    started: float | None = None,
    init: Path | str | None = None,
    earlier: Earlier | None = None,
) -> DataScan:
    """Find and scan the images, and report what was found.

    Args:
        data: the images, in a form that `carnet.data.find` describes.
        config: the requested config, or that of a resumed run.
        ignore: paths of images to leave out.
        progress: receives messages.
        started: when the budget began, by `time.monotonic`; None: of a resumed run, whose length is planned.
        init: the run that a new one starts from; its images have the side that is usual.
        earlier: how a run that is resumed divided its images; None: of a new run.

    Raises:
        CarnetError: if the images cannot be used for training, or scanning them takes the whole budget.
    """
    how = initial_preprocessing(config, init)
    if init is not None and config.image_size is None:
        config = replace(config, image_size=check_start(config.model, config.in_channels, init).image_size)
    show = partial(_show_progress, config=config, progress=progress, started=started)
    check: dict[str, Any] = {
        "skip_unreadable": config.skip_unreadable,
        "valid_fraction": config.valid_fraction,
        "seed": config.seed if config.valid_seed is None else config.valid_seed,
    }
    if config.stream:
        if (form := form_of(Path(data))) != "dataset":
            raise ConfigError(
                f"--stream reads data sets (hf:NAME, Parquet files, WebDataset shards); {data} is a {form}, so leave "
                "it out"
            )
        image_size = config.image_size or default_image_size(config.model)
        stream = ImageStream(str(data), progress=partial(progress.bar, "counting the images"))
        scanning = partial(show, "scanning")
        images = check_stream(stream, image_size=image_size, ignore=ignore, progress=scanning, **check)
        scan = DataScan(images, image_size, stream.source)
    else:
        found, unlabeled = _find(data, config, ignore, earlier, progress)
        without_label = () if unlabeled is None else unlabeled.paths
        image_size = choose_size(config, found, progress, started=started or 0.0, num_unlabeled=len(without_label))
        inspected = inspect_and_cache(
            [*(sample.path for sample in found.samples), *without_label],
            Target(image_size, config.resize, config.in_channels, how.interpolation),
            config.cache or "auto",
            free_memory=free_bytes(),
            shared=max(config.devices, num_launched()) > 1,
            reading=partial(show, "reading"),
            progress=partial(show, "scanning"),
        )
        # Where decoded images are not to be kept on the disk, thumbnails are not either.
        mode: CacheMode = "ram" if config.cache in ("ram", "off") else "auto"
        paths = [sample.path for sample in found.samples]

        def near_copies(of: Sequence[Path]) -> Mapping[str, frozenset[str]] | None:
            looked = look_at(of, mode, free_memory=free_bytes(), facts=inspected.facts, progress=progress)
            # Without room for thumbnails, near copies are not known.
            return looked.near_copies if looked.digests else None

        is_compared = unlabeled is not None and (earlier is None or earlier.left_out is None)
        images = scan_images(
            found,
            facts=inspected.facts,
            # Images without labels do not decide which others are held out.
            near=near_copies(paths),
            earlier=earlier,
            image_size=image_size,
            unlabeled=unlabeled,
            near_unlabeled=near_copies([*paths, *without_label]) if is_compared else None,
            **check,
        )
        scan = DataScan(images, image_size, None, inspected.decoded, inspected.reason)
    progress.say("\n".join(describe(images)))
    return scan


def _find(
    data: Path | str, config: TrainingConfig, ignore: Sequence[str], earlier: Earlier | None, progress: Progress
) -> tuple[LabeledImages, UnlabeledImages | None]:
    """Find the images with labels, and those without."""
    rules: dict[str, Any] = {"layout": config.layout or "auto", "progress": partial(progress.bar, "unpacking")}
    if config.unlabeled is None:
        return find_images(data, ignore=ignore, **rules), None
    lines = ignore
    if earlier is not None and earlier.ignored is not None:
        # Their folder may be elsewhere now.
        lines = [str(Path(config.unlabeled) / name) for name in earlier.ignored]
    unlabeled = find_unlabeled(config.unlabeled, lines)
    found = find_images(data, ignore=ignore, unlabeled=config.unlabeled, ignored_elsewhere=unlabeled.lines, **rules)
    return found, unlabeled.without(path for paths in found.left_out.values() for path in paths)


def changed_images(run: RunFolder, images: ScannedImages) -> str:
    """Return which images are new, gone or changed since the run began, as a phrase."""
    then, now = (
        {(row["filepath"], not row["label"]): (row["split"], row["label"], row["sha256"]) for row in rows}
        for rows in (run.images(), images.rows())
    )
    changes = {
        "new": sorted(now.keys() - then.keys()),
        "gone": sorted(then.keys() - now.keys()),
        "changed": sorted(name for name in now.keys() & then.keys() if now[name] != then[name]),
    }
    if not then:
        return "and its data.csv is missing"
    texts = [
        f"{len(names):,} {what} ({first_few([name for name, _ in names], 2)})"
        for what, names in changes.items()
        if names
    ]
    return ", ".join(texts) or "as its data.csv lists them"


def _show_progress(
    what: str, done: int, total: int, *, config: TrainingConfig, progress: Progress, started: float | None
) -> None:
    """Show a progress bar of the scan.

    Raises:
        ConfigError: if the scan has taken the whole budget.
    """
    progress.bar(f"{what} the images", done, total)
    if config.budget is None or started is None:
        return
    if (spent := time.monotonic() - started) > parse_seconds(config.budget):
        raise ConfigError(
            f"{what} {done:,} of {total:,} images took the whole --budget {config.budget}; all of them take about "
            f"{duration(spent * total / max(1, done))}, so give more than that"
        )
