"""CutMix: a piece of another image in an image, and of its label in the label."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from carnet.training.dataset import Batch


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
