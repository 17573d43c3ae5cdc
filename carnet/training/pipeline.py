"""Training images in an order, and with changes, that follow from (seed, epoch, place) alone.

Neither the number of threads nor how far they read ahead can alter a run, and it can be taken up at any step.

What training is fed with: images from files, from the cache of decoded ones, or from a stream.

Training images that are read while training, from data that may be larger than the disk.

CutMix: a piece of another image in an image, and of its label in the label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from carnet.config import TrainingConfig
from carnet.data.cache import DecodedImages
from carnet.data.hub import Source
from carnet.data.samples import Sample
from carnet.data.stream import ImageStream, StreamedImage
from carnet.errors import DataError
from carnet.prefetch import load_ahead
from carnet.preprocess import Images, load_image
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation, Change
from carnet.training.distributed import Processes
from carnet.training.schedule import View, first_view

Key = tuple[int, int]
"""(epoch, index): what a sample's randomness depends on, besides the seed."""
Item = TypeVar("Item")
Named_contra = TypeVar("Named_contra", contravariant=True)

_ORDER, _AUGMENT, _STEP = 1, 2, 3


@dataclass(frozen=True)
class Batch:
    """Images to train on.

    Attributes:
        images: uint8 (N, S, S, C).
        labels: (N,)
        changes: (N, 9), a `Change` for each image that is still to be made; None: they are made.
        size: side of the images once they are changed.
        other_labels: (N,), of the images that pieces come from; None: there are no pieces.
        label_share: how much of each image is its own.
    """

    images: Tensor
    labels: Tensor
    changes: Tensor | None = None
    size: int = 0
    other_labels: Tensor | None = None
    label_share: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """The same on a device; the copy goes on while the processor does something else."""
        if device.type != "cuda":
            return Batch(self.images.to(device), self.labels.to(device), self.changes, self.size)
        images, labels = (tensor.pin_memory().to(device, non_blocking=True) for tensor in (self.images, self.labels))
        return Batch(images, labels, self.changes, self.size)

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch in equal parts of `size` images, or one more where the last one would be alone."""
        number = max(1, -(-(len(self) - 1) // size))
        others = self.labels if self.other_labels is None else self.other_labels
        parts = (tensor.tensor_split(number) for tensor in (self.images, self.labels, others))
        for images, labels, other_labels in zip(*parts, strict=True):
            yield Batch(
                images,
                labels,
                other_labels=None if self.other_labels is None else other_labels,
                label_share=self.label_share,
            )


Prepared = tuple[Images, int, Change | None]
"""uint8 image (S, S, C), its label, and how it is still to be changed; None: it is."""


class Preparation:
    """What is done to every training image on the threads that prepare them.

    Attributes:
        load: reads the pixels of a file, or of an encoded image.
        augmentation: how images are changed.
        view: how images are shown.
        seed: of the changes.
        apply: whether changes are made here; or later, to the whole batch, on a GPU.
    """

    def __init__(
        self, load: Callable[[Any], Images], augmentation: Augmentation, view: View, seed: int, *, apply: bool = True
    ) -> None:
        self.load, self.augmentation, self.view, self.seed, self.apply = load, augmentation, view, seed, apply

    def __call__(self, source: Any, label: int, epoch: int, index: int) -> Prepared:
        """A source of pixels -> the image and its label

        Raises:
            ImageError: if the file cannot be decoded (any more); nothing stands in for it.
        """
        change = self.augmentation.draw(augmenting_rng(self.seed, epoch, index), self.view.min_crop)
        pixels = self.load(source)
        if not self.apply:
            return pixels, label, change
        return self.augmentation.apply(pixels, change, self.view.side), label, None


class TrainingImages:
    """Prepared images of files, by (epoch, index)."""

    def __init__(self, samples: Sequence[Sample], prepare: Preparation) -> None:
        self.samples = samples
        self.prepare = prepare

    def __getitem__(self, key: Key) -> Prepared:
        """(epoch, index) -> image, label and change

        Raises:
            ImageError: as `Preparation`.
        """
        epoch, index = key
        sample = self.samples[index]
        return self.prepare(sample.path, sample.label, epoch, index)


class EpochBatches(Generic[Item]):
    """Batches of one epoch, in its random order, from a given step on.

    The last batch holds what is left; too few leftover images join the batch before it, because batch norm cannot learn
    from one value per channel, and every one of several processes needs some.

    Attributes:
        epoch: which one comes next.
        first_step: batches of it to leave out.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, *, rank: int = 0, num_processes: int = 1) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.num_processes = rank, num_processes
        self.epoch = 0
        self.first_step = 0

    def __iter__(self) -> Iterator[list[Item]]:
        """This process's share of every batch."""
        raise NotImplementedError

    def bounds(self) -> list[tuple[int, int]]:
        """Where each batch that is left begins and ends in the epoch's order."""
        starts = [step * self.batch_size for step in range(self.steps_per_epoch)]
        return list(zip(starts, [*starts[1:], self.num_images], strict=True))[self.first_step :]

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of a whole epoch."""
        full, left = divmod(self.num_images, self.batch_size)
        return max(1, full + (left >= 2 * self.num_processes))


class ShuffledBatches(EpochBatches[Key]):
    """Batches of keys, in the epoch's random order."""

    def __iter__(self) -> Iterator[list[Key]]:
        """This process's share of every batch: the first image, and each `num_processes`-th after it."""
        order = np.random.default_rng([self.seed, _ORDER, self.epoch]).permutation(self.num_images).tolist()
        for start, end in self.bounds():
            yield [(self.epoch, index) for index in order[start + self.rank : end : self.num_processes]]


def augmenting_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """What one image's changes in one epoch are drawn from."""
    return np.random.default_rng([seed, _AUGMENT, epoch, index])


def order_seed(seed: int, epoch: int) -> int:
    """Names one order among those in which a stream can be mixed."""
    return int(np.random.SeedSequence([seed, _ORDER, epoch]).generate_state(1)[0])


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Seed of PyTorch's generators for one step in one process: what dropout drops does not depend on the past."""
    return int(np.random.SeedSequence([seed, _STEP, epoch, step, rank]).generate_state(1, np.uint64)[0])


class PreparedImages(Protocol[Named_contra]):
    """Images as they are trained on, by what names them."""

    prepare: Preparation

    def __getitem__(self, item: Named_contra, /) -> Prepared:
        """Prepare one."""


def load_batches(images: PreparedImages[Item], batches: EpochBatches[Item], threads: int) -> Iterator[Batch]:
    """Batches prepared ahead on `threads` threads.

    Args:
        images: where an item's image comes from.
        batches: the items.
        threads: 0 prepares each batch when it is due.

    Raises:
        ImageError: if a file cannot be decoded any more.
    """
    for items in load_ahead(images.__getitem__, batches, threads=threads):
        pixels, labels, changes = zip(*items, strict=True)
        wanted = None if None in changes else torch.tensor(changes, dtype=torch.float64)
        yield Batch(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), wanted, images.prepare.view.side)


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

    streamed = StreamedBatches(ImageStream(stream), train, config.batch_size, config.seed, **place)
    return Feed(streamed, StreamedTrainingImages(spec.classes, prepare))


def pixels_from(decoded: DecodedImages | None, spec: ModelSpec) -> Callable[[Path], Images]:
    """Reads a file's pixels (S, S, C), from the cache where they are there."""
    return decoded.load if decoded is not None else lambda path: load_image(path, spec)


StreamItem = tuple[int, StreamedImage]
"""Epoch and image."""


class StreamedBatches(EpochBatches[StreamItem]):
    """Batches of one epoch, in the order in which a stream is mixed.

    Several processes each read the whole stream and decode their own share. A run that is taken up inside an epoch
    reads past what it has had already.
    """

    def __init__(
        self,
        stream: ImageStream,
        samples: Sequence[Sample],
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        super().__init__(len(samples), batch_size, seed, rank=rank, num_processes=num_processes)
        self.stream = stream
        # What is held back, ignored or unreadable is in the stream as well.
        self.wanted = {int(sample.path.stem) for sample in samples}

    def __iter__(self) -> Iterator[list[StreamItem]]:
        """This process's share of every batch.

        Raises:
            DataError: if the stream cannot be read, or is not what it was when it was looked at.
        """
        images = self.stream.read("train", order=order_seed(self.seed, self.epoch))
        wanted = (image for image in images if image.position in self.wanted)
        bounds = self.bounds()
        rest = islice(wanted, bounds[0][0] if bounds else 0, None)
        for start, end in bounds:
            batch = list(islice(rest, end - start))
            if len(batch) < end - start:
                raise DataError(f"{self.stream.source.data} has fewer images than before; has it changed?")
            yield [(self.epoch, image) for image in batch[self.rank :: self.num_processes]]


class StreamedTrainingImages:
    """Prepared images of a stream."""

    def __init__(self, classes: Sequence[str], prepare: Preparation) -> None:
        self.number = {name: label for label, name in enumerate(classes)}
        self.prepare = prepare

    def __getitem__(self, item: StreamItem) -> Prepared:
        """(epoch, image) -> image, label and change

        Raises:
            ImageError: if it cannot be decoded.
        """
        epoch, image = item
        return self.prepare(image.content, self.number[image.label], epoch, image.position)


def cut_mix(batch: Batch, probability: float, rng: np.random.Generator) -> Batch:
    """Replace, in a share of the batches, a random box of every image by the one of the image before it.

    Source: Yun et al., "CutMix: Regularization strategy to train strong classifiers", 2019.

    Args:
        batch: images (N, S, S, C), as they are otherwise ready.
        probability: of doing so.
        rng: what it, and the box, are drawn from.
    """
    if not probability or len(batch) < 2 or rng.random() >= probability:
        return batch
    size = batch.images.shape[1]
    side = size * math.sqrt(1 - rng.random())
    y, x = rng.integers(0, size, 2)
    top, bottom = max(0, round(y - side / 2)), min(size, round(y + side / 2))
    left, right = max(0, round(x - side / 2)), min(size, round(x + side / 2))
    images = batch.images.clone()
    images[:, top:bottom, left:right] = batch.images.roll(1, 0)[:, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / size**2
    return replace(batch, images=images, other_labels=batch.labels.roll(1, 0), label_share=share)
