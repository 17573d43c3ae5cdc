"""Training images in an order, and with changes, that follow from (seed, epoch, place) alone.

Neither the number of workers nor how far they read ahead can alter a run, and it can be taken up at any step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from carnet.data.sources import Sample
from carnet.preprocess import load_image
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation

Key = tuple[int, int]
"""(epoch, index): what a sample's randomness depends on, besides the seed."""

_ORDER, _AUGMENT = 1, 2


class TrainingImages(Dataset[tuple[Tensor, Tensor]]):
    """Decoded, resized and augmented images.

    Raises:
        ImageError: from `dataset[key]`, if the file cannot be decoded (any more); nothing stands in for it.
    """

    def __init__(self, samples: Sequence[Sample], spec: ModelSpec, augmentation: Augmentation, seed: int) -> None:
        self.samples = samples
        self.spec = spec
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """(epoch, index) -> uint8 image (S, S, 3) and its label ()"""
        epoch, index = key
        sample = self.samples[index]
        rng = np.random.default_rng([self.seed, _AUGMENT, epoch, index])
        image = self.augmentation(load_image(sample.path, self.spec), rng)
        return torch.from_numpy(image), torch.tensor(sample.label)


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys of one epoch, in its random order, from a given step on.

    The last batch holds what is left; a single leftover image joins the batch before it, because batch norm cannot
    learn from one value per channel.

    Attributes:
        epoch: which one comes next.
        first_step: batches of it to leave out.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.first_step = 0

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng([self.seed, _ORDER, self.epoch]).permutation(self.num_images).tolist()
        starts = [step * self.batch_size for step in range(self.steps_per_epoch)]
        ends = [*starts[1:], self.num_images]
        for start, end in list(zip(starts, ends, strict=True))[self.first_step :]:
            yield [(self.epoch, index) for index in order[start:end]]

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of a whole epoch."""
        full, left = divmod(self.num_images, self.batch_size)
        return max(1, full + (left > 1))


def make_loader(
    images: TrainingImages, batches: EpochBatches, *, workers: int, pin_memory: bool
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of uint8 images (N, S, S, 3) and labels (N,), prepared by `workers` processes (0: by this one)."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # Forking a process that already computes on several threads can lock up; spawn works on every system.
        multiprocessing_context="spawn" if workers > 0 else None,
    )
