"""The input pipeline: training images in an order, and with changes, that follow from (seed, epoch, place) alone.

Images come from files, from the cache of decoded ones, or from a stream that may be larger than the disk. Neither the
number of threads nor how far they read ahead can alter a run, and it can be taken up at any step: what a thread needs
to prepare an image, the view at its step included, is fixed when the step's images are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carnet.config import steps_per_epoch
from carnet.data.cache import DecodedImages
from carnet.data.hub import Source
from carnet.data.samples import Sample
from carnet.data.stream import ImageStream
from carnet.errors import DataError
from carnet.prefetch import load_ahead
from carnet.preprocess import Images, load_image
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation, Change
from carnet.training.schedule import View

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


class Item(NamedTuple):
    """One training image before it is loaded."""

    source: Any
    """A file, or the bytes of one."""
    label: int
    place: int
    """In the data: what its changes depend on, besides seed and epoch."""


class Loaded(NamedTuple):
    """One training image before it is changed."""

    pixels: Images
    label: int
    place: int


@dataclass(frozen=True)
class ImageFiles:
    """Training images that are files, in an order of their own in every epoch."""

    samples: Sequence[Sample]
    seed: int

    def __len__(self) -> int:
        return len(self.samples)

    def in_order(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's images, from a place in its order on."""
        order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self)).tolist()
        for index in order[start:]:
            yield Item(self.samples[index].path, self.samples[index].label, index)


@dataclass(frozen=True)
class StreamedImages:
    """Training images that are read while training, in the order in which a stream is mixed.

    A run that is taken up inside an epoch reads past what it has had already.
    """

    stream: Source
    samples: Sequence[Sample]
    classes: Sequence[str]
    seed: int

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def _opened(self) -> ImageStream:
        # Once in each process, because opening may ask a hub.
        return ImageStream(self.stream)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def in_order(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's images, from a place in its order on.

        Raises:
            DataError: if the stream cannot be read, or is not what it was when it was looked at.
        """
        # What is held back, ignored or unreadable is in the stream as well.
        wanted = {int(sample.path.stem) for sample in self.samples}
        number = {name: label for label, name in enumerate(self.classes)}
        found = 0
        for image in self._opened.read("train", order=order_seed(self.seed, epoch)):
            if image.position in wanted:
                found += 1
                if found > start:
                    yield Item(image.content, number[image.label], image.position)
                if found == len(wanted):
                    return
        if found < len(wanted):
            raise DataError(f"{self.stream.data} has fewer images than before; has it changed?")


@dataclass(frozen=True)
class Pipeline:
    """Prepared training images, in batches.

    The last batch of an epoch holds what is left; too few leftover images join the batch before it, because batch norm
    cannot learn from one value per channel, and every one of several processes needs some.

    Attributes:
        images: in the order of an epoch.
        load: reads the pixels of an image's source.
        augmentation: how images are changed.
        seed: of the changes.
        batch_size: images of a step, over all processes.
        is_decoded: whether images only have to be changed.
    """

    images: ImageFiles | StreamedImages
    load: Callable[[Any], Images]
    augmentation: Augmentation
    seed: int
    batch_size: int
    is_decoded: bool = False

    def steps_per_epoch(self, num_processes: int = 1) -> int:
        """Number of batches of a whole epoch."""
        return steps_per_epoch(len(self.images), self.batch_size, num_processes)

    def items(self, epoch: int, first_step: int, rank: int = 0, num_processes: int = 1) -> Iterator[list[Item]]:
        """One process's share of every batch: the image at place `rank`, and each `num_processes`-th after it.

        Raises:
            DataError: as `StreamedImages.in_order`.
        """
        num_steps = self.steps_per_epoch(num_processes)
        rest = self.images.in_order(epoch, min(first_step * self.batch_size, len(self.images)))
        for step in range(first_step, num_steps):
            items = list(rest if step == num_steps - 1 else islice(rest, self.batch_size))
            yield items[rank::num_processes]

    def batches(
        self,
        epoch: int,
        first_step: int,
        view: Callable[[int], View],
        *,
        rank: int = 0,
        num_processes: int = 1,
        threads: int = 0,
        augment: bool = True,
    ) -> Iterator[Batch]:
        """One process's share of an epoch's batches, from a step on, prepared ahead.

        Args:
            epoch: which one.
            first_step: of it.
            view: how the images of each of its steps are shown.
            rank: this process's number.
            num_processes: among how many each batch is shared.
            threads: that prepare images ahead; 0 prepares each batch when it is due.
            augment: False leaves the changes to `Augmentation.apply_to_batch`, on a GPU.

        Raises:
            DataError: if an image cannot be read any more; nothing stands in for it.
        """
        shares = self.items(epoch, first_step, rank, num_processes)
        work = ([(item, view(step)) for item in items] for step, items in enumerate(shares, start=first_step))

        def prepare(task: tuple[Item, View]) -> tuple[Images, int, Change | None, View]:
            item, shown = task
            loaded = Loaded(self.load(item.source), item.label, item.place)
            return (*self._changed(loaded, epoch, shown, augment=augment), shown)

        for images in load_ahead(prepare, work, threads=threads):
            yield _batch([image[:3] for image in images], images[0][3].side)

    def load_step(self, epoch: int, step: int) -> list[Loaded]:
        """The images of one step before they are changed, so that they can be shown in several ways."""
        items = next(self.items(epoch, step))
        return [Loaded(self.load(item.source), item.label, item.place) for item in items]

    def changed(self, images: Sequence[Loaded], epoch: int, view: View, *, augment: bool = True) -> Batch:
        """Images of one step as `batches` would give them."""
        return _batch([self._changed(image, epoch, view, augment=augment) for image in images], view.side)

    def _changed(self, image: Loaded, epoch: int, view: View, *, augment: bool) -> tuple[Images, int, Change | None]:
        change = self.augmentation.draw(augmenting_rng(self.seed, epoch, image.place), view.min_crop)
        if not augment:
            return image.pixels, image.label, change
        return self.augmentation.apply(image.pixels, change, view.side), image.label, None


def _batch(images: Sequence[tuple[Images, int, Change | None]], side: int) -> Batch:
    pixels, labels, changes = zip(*images, strict=True)
    wanted = None if None in changes else torch.tensor(changes, dtype=torch.float64)
    return Batch(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), wanted, side)


def augmenting_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """What one image's changes in one epoch are drawn from."""
    return np.random.default_rng([seed, _AUGMENT, epoch, index])


def order_seed(seed: int, epoch: int) -> int:
    """Names one order among those in which a stream can be mixed."""
    return int(np.random.SeedSequence([seed, _ORDER, epoch]).generate_state(1)[0])


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Seed of PyTorch's generators for one step in one process: what dropout drops does not depend on the past."""
    return int(np.random.SeedSequence([seed, _STEP, epoch, step, rank]).generate_state(1, np.uint64)[0])


class PixelsFrom:
    """Reads a file's or an encoded image's pixels (S, S, C), from the cache where they are there."""

    def __init__(self, decoded: DecodedImages | None, spec: ModelSpec) -> None:
        self.decoded, self.spec = decoded, spec

    def __call__(self, source: Path) -> Images:
        """File or bytes -> pixels"""
        return load_image(source, self.spec) if self.decoded is None else self.decoded.load(source)


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
