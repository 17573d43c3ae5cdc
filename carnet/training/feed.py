"""What training is fed with: images from files, from the cache of decoded ones, or from a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carnet.data.decoded import DecodedImages
from carnet.data.hub import Source
from carnet.data.samples import Sample
from carnet.preprocess import Images, load_image
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation
from carnet.training.config import TrainingConfig
from carnet.training.dataset import (
    Batch,
    EpochBatches,
    Preparation,
    PreparedImages,
    ShuffledBatches,
    TrainingImages,
    load_batches,
)
from carnet.training.processes import Processes
from carnet.training.schedule import View, first_view


@dataclass(frozen=True)
class Feed:
    """Prepared training images, in batches.

    Attributes:
        batches: which images each batch of an epoch has.
        is_decoded: whether images only have to be changed.
    """

    batches: EpochBatches[Any]
    _images: PreparedImages[Any]
    is_decoded: bool = False

    def read(self, epoch: int, first_step: int, workers: int, view: View) -> Iterator[Batch]:
        """This process's share of an epoch's batches, from a step on, prepared ahead and shown as `view` says.

        Raises:
            DataError: if an image cannot be read any more.
        """
        self.batches.epoch, self.batches.first_step = epoch, first_step
        self._images.prepare.view = view
        return load_batches(self._images, self.batches, workers)


def make_feed(
    config: TrainingConfig,
    spec: ModelSpec,
    train: Sequence[Sample],
    decoded: DecodedImages | None,
    stream: Source | None,
    *,
    device: str,
    processes: Processes,
) -> Feed:
    """Join images, their changes and their order.

    Args:
        config: the recipe.
        spec: what images are made into.
        train: the training images.
        decoded: what is decoded already; None: nothing.
        stream: where training images are read from while training; None: they are files.
        device: where training happens; on a GPU, so do the changes.
        processes: whose share this is.
    """
    load = pixels_from(decoded, spec) if stream is None else lambda content: load_image(content, spec)
    augmentation = Augmentation.from_config(config)
    prepare = Preparation(load, augmentation, first_view(config), config.seed, apply=device != "cuda")
    place = {"rank": processes.rank, "num_processes": processes.size}
    if stream is None:
        batches = ShuffledBatches(len(train), config.batch_size, config.seed, **place)
        return Feed(batches, TrainingImages(train, prepare), decoded is not None)
    from carnet.data.stream import ImageStream
    from carnet.training.streaming import StreamedBatches, StreamedTrainingImages

    streamed = StreamedBatches(ImageStream(stream), train, config.batch_size, config.seed, **place)
    return Feed(streamed, StreamedTrainingImages(spec.classes, prepare))


def pixels_from(decoded: DecodedImages | None, spec: ModelSpec) -> Callable[[Path], Images]:
    """Reads a file's pixels (S, S, C), from the cache where they are there."""
    return decoded.load if decoded is not None else lambda path: load_image(path, spec)
