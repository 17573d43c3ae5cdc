"""The input pipeline: training images whose order and augmentation follow from (seed, epoch, place) alone.

Images come from files, from the cache of decoded ones, or from a stream that may be larger than the disk. Neither the
number of threads nor how far they read ahead can change a run, and it can be resumed at any step: everything that a
thread needs to prepare an image, the view at its step included, is fixed when the step's images are chosen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carnet.config import steps_per_epoch
from carnet.data.decoded import DecodedImages
from carnet.data.hub import Source
from carnet.data.samples import Sample
from carnet.data.stream import ImageStream
from carnet.errors import DataError
from carnet.machine import load_ahead
from carnet.preprocess import Images, load_image
from carnet.spec import ModelSpec
from carnet.training.answers import Answer, Answers
from carnet.training.augment import Augmentation, Change
from carnet.training.balance import balanced_order
from carnet.training.schedule import View

_ORDER, _AUGMENT, _STEP = 1, 2, 3


@dataclass(frozen=True)
class Batch:
    """Images to train on.

    Attributes:
        images: uint8 (N, S, S, C).
        labels: (N,)
        changes: (N, 9), a `Change` for each image that is still to be augmented; None: all are.
        size: side of the images once they are augmented.
        other_labels: (N,), of the images that CutMix took boxes from; None: nothing was mixed.
        label_share: share of each image that is its own.
        answers: (N, classes), probabilities by a teacher, mixed as the images are; None: labels are learned.
        features: (N, channels), of the teacher, mixed in the same way.
    """

    images: Tensor
    labels: Tensor
    changes: Tensor | None = None
    size: int = 0
    other_labels: Tensor | None = None
    label_share: float = 1.0
    answers: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; a copy to a GPU goes on while the processor does something else."""
        on_gpu = device.type == "cuda"
        moved = {
            name: (tensor.pin_memory() if on_gpu else tensor).to(device, non_blocking=on_gpu)
            for name in ("images", "labels", "answers", "features")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def parts(self, size: int) -> Iterator[Batch]:
        """Yield micro-batches of `size` images, as equal as possible, with one more where the last would be alone."""
        number = max(1, -(-(len(self) - 1) // size))
        split = {
            name: [None] * number if (tensor := getattr(self, name)) is None else tensor.tensor_split(number)
            for name in ("images", "labels", "other_labels", "answers", "features")
        }
        for values in zip(*split.values(), strict=True):
            yield Batch(**dict(zip(split, values, strict=True)), label_share=self.label_share)


class Item(NamedTuple):
    """One training image before it is loaded."""

    source: Any
    """A file, or the bytes of one."""
    label: int
    place: int
    """In the data; with seed, epoch and turn it decides the augmentation."""
    turn: int = 0
    """How often the epoch has had this image before."""


class Loaded(NamedTuple):
    """One training image before it is augmented."""

    pixels: Images
    label: int
    place: int
    turn: int = 0


@dataclass(frozen=True)
class ImageFiles:
    """Training images that are files, in an order of their own in every epoch."""

    samples: Sequence[Sample]
    seed: int
    is_balanced: bool = False
    """Whether images of small classes are drawn more often, and the others not in every epoch."""

    def in_order(self, epoch: int, start: int) -> Iterator[Item]:
        """Yield an epoch's images, from a place in its order on."""
        rng = np.random.default_rng([self.seed, _ORDER, epoch])
        labels = np.array([sample.label for sample in self.samples]) if self.is_balanced else None
        order = rng.permutation(len(self.samples)) if labels is None else balanced_order(labels, rng)
        turns: Counter[int] = Counter()
        for number, index in enumerate(order.tolist()):
            if number >= start:
                yield Item(self.samples[index].path, self.samples[index].label, index, turns[index])
            turns[index] += 1


@dataclass(frozen=True)
class StreamedImages:
    """Training images that are read while training, in the order in which a stream is mixed.

    A run that is resumed inside an epoch reads past the images that it has had already.
    """

    stream: Source
    samples: Sequence[Sample]
    classes: Sequence[str]
    seed: int

    @cached_property
    def _opened(self) -> ImageStream:
        # Once in each process, because opening may ask a hub.
        return ImageStream(self.stream)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def in_order(self, epoch: int, start: int) -> Iterator[Item]:
        """Yield an epoch's images, from a place in its order on.

        Raises:
            DataError: if the stream cannot be read, or has lost images since it was scanned.
        """
        # The stream also has the images that are held out, ignored or unreadable.
        wanted = {int(sample.path.stem) for sample in self.samples}
        number = {name: label for label, name in enumerate(self.classes)}
        order = int(np.random.SeedSequence([self.seed, _ORDER, epoch]).generate_state(1)[0])
        found = 0
        for image in self._opened.read("train", order=order):
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

    The last batch of an epoch holds the images that are left. If they are too few they join the batch before it,
    because batch norm cannot learn from one value per channel, and every one of several processes needs some.

    Attributes:
        images: in the order of an epoch.
        load: reads the pixels of an image's source.
        augmentation: how images are changed.
        seed: of the augmentation.
        batch_size: images of a step, over all processes.
        is_decoded: whether images are decoded already, and only have to be augmented.
        answers: of a teacher, for crops of the images; None: labels are learned.
    """

    images: ImageFiles | StreamedImages
    load: Callable[[Any], Images]
    augmentation: Augmentation
    seed: int
    batch_size: int
    is_decoded: bool = False
    answers: Answers | None = None

    def steps_per_epoch(self, num_processes: int = 1) -> int:
        """Return the number of batches of a whole epoch."""
        return steps_per_epoch(len(self.images.samples), self.batch_size, num_processes)

    def items(self, epoch: int, first_step: int, rank: int = 0, num_processes: int = 1) -> Iterator[list[Item]]:
        """Yield one process's share of every batch: the image at place `rank`, and each `num_processes`-th after it.

        Raises:
            DataError: as `StreamedImages.in_order`.
        """
        num_steps = self.steps_per_epoch(num_processes)
        rest = self.images.in_order(epoch, min(first_step * self.batch_size, len(self.images.samples)))
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
        """Yield one process's share of an epoch's batches, from a step on, prepared ahead.

        Args:
            epoch: which one.
            first_step: of it.
            view: returns the side and the crops of each of its steps.
            rank: this process's number.
            num_processes: among how many each batch is shared.
            threads: that prepare images ahead; 0 prepares each batch when it is due.
            augment: False leaves the augmentation to `Augmentation.apply_to_batch`, on a GPU.

        Raises:
            DataError: if an image can no longer be read; no other image replaces it.
        """
        shares = self.items(epoch, first_step, rank, num_processes)
        work = ([(item, view(step)) for item in items] for step, items in enumerate(shares, start=first_step))

        def prepare(task: tuple[Item, View]) -> _Prepared:
            item, at_step = task
            return self._changed(self._loaded(item), epoch, at_step, augment)

        for images in load_ahead(prepare, work, threads=threads):
            yield _batch(images)

    def load_step(self, epoch: int, step: int) -> list[Loaded]:
        """Load the images of one step without augmentation, so that they can be augmented for several views."""
        items = next(self.items(epoch, step))
        return [self._loaded(item) for item in items]

    def changed(self, images: Sequence[Loaded], epoch: int, view: View, *, augment: bool = True) -> Batch:
        """Return loaded images of one step as `batches` yields them."""
        return _batch([self._changed(image, epoch, view, augment) for image in images])

    def _loaded(self, item: Item) -> Loaded:
        return Loaded(self.load(item.source), item.label, item.place, item.turn)

    def _changed(self, image: Loaded, epoch: int, view: View, augment: bool) -> _Prepared:
        # An image that comes again in an epoch is changed in another way.
        again = [image.turn] if image.turn else []
        rng = np.random.default_rng([self.seed, _AUGMENT, epoch, image.place, *again])
        change, answer = self.augmentation.draw(rng, view.min_crop), None
        if self.answers is not None:
            answer = self.answers.for_image(image.place, epoch + image.turn, view.min_crop)
            # The student sees the crop that the teacher has answered for.
            change = change if answer.box is None else change._replace(**answer.box._asdict())
        if not augment:
            return _Prepared(image.pixels, image.label, change, view.side, answer)
        return _Prepared(self.augmentation.apply(image.pixels, change, view.side), image.label, None, view.side, answer)


class _Prepared(NamedTuple):
    """One image of a batch."""

    pixels: Images
    label: int
    change: Change | None
    side: int
    answer: Answer | None


def _batch(images: Sequence[_Prepared]) -> Batch:
    pixels, labels, changes, (side, *_), answers = zip(*images, strict=True)
    wanted = None if None in changes else torch.tensor(changes, dtype=torch.float64)
    batch = Batch(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), wanted, side)
    if answers[0] is None:
        return batch
    shares, features = (torch.from_numpy(np.stack(rows)) for rows in list(zip(*answers, strict=True))[1:])
    return replace(batch, answers=shares, features=features)


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Return the seed of PyTorch's generators for one step in one process, so that dropout needs no history."""
    return int(np.random.SeedSequence([seed, _STEP, epoch, step, rank]).generate_state(1, np.uint64)[0])


def pixel_loader(decoded: DecodedImages | None, spec: ModelSpec) -> Callable[[Any], Images]:
    """Return what reads the pixels (S, S, C) of a file or an encoded image, from the cache where they are cached."""
    return partial(load_image, spec=spec) if decoded is None else decoded.load


def cut_mix(batch: Batch, probability: float, rng: np.random.Generator) -> Batch:
    """Replace, in a share of the batches, a random box of every image by the same box of the image before it.

    Source: Yun et al., "CutMix: Regularization strategy to train strong classifiers", 2019.

    Args:
        batch: images (N, S, S, C), otherwise augmented.
        probability: of doing so.
        rng: from which that, and the box, are drawn.
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
    mixed = {
        name: share * values + (1 - share) * values.roll(1, 0)
        for name in ("answers", "features")
        if (values := getattr(batch, name)) is not None
    }
    return replace(batch, images=images, other_labels=batch.labels.roll(1, 0), label_share=share, **mixed)
