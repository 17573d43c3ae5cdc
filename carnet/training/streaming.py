"""Training images that are read while training, from data that may be larger than the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from carnet.data.samples import Sample
from carnet.data.stream import ImageStream, StreamedImage
from carnet.errors import DataError
from carnet.training.dataset import EpochBatches, Preparation, Prepared, order_seed

Item = tuple[int, StreamedImage]
"""Epoch and image."""


class StreamedBatches(EpochBatches[Item]):
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

    def __iter__(self) -> Iterator[list[Item]]:
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

    def __getitem__(self, item: Item) -> Prepared:
        """(epoch, image) -> image, label and change

        Raises:
            ImageError: if it cannot be decoded.
        """
        epoch, image = item
        return self.prepare(image.content, self.number[image.label], epoch, image.position)
