"""What a teacher answers for the training images: scores of the classes for several crops of each image.

The student sees the crops that the teacher has answered for, so that an answer is about what is seen. Source: Shen and
Xing, "A fast knowledge distillation framework for visual recognition", 2022; Beyer et al., "Knowledge distillation: a
good teacher is patient and consistent", 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from carnet import metrics
from carnet.documents import DocumentError, Share, conform, parse
from carnet.models import tensors as tensors_of

TEMPERATURE = 2.0
"""Scores of teacher and student are divided by it; `benchmarks/LOG.md` has the experiments."""
_TENSORS = ("scores", "boxes", "features")


class Box(NamedTuple):
    """A part of an image, in shares of its side."""

    left: float
    top: float
    width: float
    height: float


class Answer(NamedTuple):
    """What a student learns about an image in one step.

    Attributes:
        box: the part that is shown; None: any part that is allowed.
        probabilities: (classes,)
        features: (channels,), the teacher's of the whole image.
    """

    box: Box | None
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """A teacher's answers for the training images, the whole image first and then crops.

    Attributes:
        scores: float16 (views, N, classes), logits.
        boxes: float32 (views, N, 4), what each view shows.
        features: float16 (N, channels), the teacher's of the whole images, centred and of length 1.
        min_crop: smallest share of the area that a crop shows.
    """

    scores: NDArray[np.float16]
    boxes: NDArray[np.float32]
    features: NDArray[np.float16]
    min_crop: float

    @property
    def num_crops(self) -> int:
        """Crops of each image."""
        return len(self.scores) - 1

    def pack(self) -> bytes:
        """Return the content of a file, the inverse of `unpack`."""
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in _TENSORS}
        return tensors_of.pack(tensors, {"min_crop": repr(self.min_crop)})

    @classmethod
    def unpack(cls, content: bytes, *, num_images: int, num_classes: int) -> Answers:
        """Return the answers in the content of a file.

        Raises:
            DocumentError: if it is no such file, or about other images or classes.
        """
        values, metadata = tensors_of.unpack(content), tensors_of.read_metadata(content)
        scores, boxes, features = (values.get(name, torch.empty(0)) for name in _TENSORS)
        views, channels = len(scores), features.shape[-1]
        shapes = (views, num_images, num_classes), (views, num_images, 4), (num_images, channels)
        if (tuple(scores.shape), tuple(boxes.shape), tuple(features.shape)) != shapes or not views:
            raise DocumentError("it is about other images or classes")
        if (scores.dtype, boxes.dtype, features.dtype) != (torch.float16, torch.float32, torch.float16):
            raise DocumentError("its numbers have another precision")
        is_inside = (boxes >= 0).all() and (boxes[..., :2] + boxes[..., 2:] <= 1 + 1e-5).all()
        is_finite = scores.isfinite().all() and features.isfinite().all()
        if not (is_finite and is_inside and (boxes[..., 2:] > 0).all()):
            raise DocumentError("its numbers are out of range")
        min_crop = conform(parse(metadata.get("min_crop", "")), Share, "min_crop")
        return cls(scores.numpy(), boxes.numpy(), features.numpy(), min_crop)

    def labels(self, start: int) -> NDArray[np.int64]:
        """Return the classes that the teacher sees in the images from a place on."""
        return np.asarray(self.scores[0, start:].argmax(axis=1))

    def for_image(self, place: int, epoch: int, min_crop: float) -> Answer:
        """Return what is learned about an image.

        Args:
            place: of the image.
            epoch: the crops are shown in turn.
            min_crop: smallest share of the area that may be shown. Where the crops may be smaller, the answer for the
                whole image holds, because nearly all of it is seen.
        """
        view = 0 if not self.num_crops or min_crop > self.min_crop else 1 + (place + epoch) % self.num_crops
        shares = metrics.softmax(self.scores[view, place].astype(np.float32)[None] / TEMPERATURE)[0]
        box = Box(*self.boxes[view, place].tolist()) if view else None
        return Answer(box, shares.astype(np.float32), self.features[place].astype(np.float32))
