"""Training images in an order, and with changes, that follow from (seed, epoch, place) alone.

Neither the number of threads nor how far they read ahead can alter a run, and it can be taken up at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from carnet.data.sources import Sample
from carnet.prefetch import load_ahead
from carnet.preprocess import Images, load_image
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation

Key = tuple[int, int]
"""(epoch, index): what a sample's randomness depends on, besides the seed."""
Item = TypeVar("Item")

_ORDER, _AUGMENT, _STEP = 1, 2, 3


class TrainingImages:
    """Decoded, resized and augmented images."""

    def __init__(self, samples: Sequence[Sample], spec: ModelSpec, augmentation: Augmentation, seed: int) -> None:
        self.samples = samples
        self.spec = spec
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[Images, int]:
        """(epoch, index) -> uint8 image (S, S, C) and its label

        Raises:
            ImageError: if the file cannot be decoded (any more); nothing stands in for it.
        """
        epoch, index = key
        sample = self.samples[index]
        rng = augmenting_rng(self.seed, epoch, index)
        return self.augmentation(load_image(sample.path, self.spec), rng), sample.label


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


def load_batches(
    decode: Callable[[Item], tuple[Images, int]], batches: EpochBatches[Item], threads: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of uint8 images (N, S, S, C) and labels (N,), prepared ahead on `threads` threads.

    Raises:
        ImageError: if a file cannot be decoded any more.
    """
    for items in load_ahead(decode, batches, threads=threads):
        yield torch.from_numpy(np.stack([image for image, _ in items])), torch.tensor([label for _, label in items])
