"""CutMix."""

import numpy as np
import pytest
import torch

from carnet.training.pipeline import Batch, cut_mix


def batch(number: int = 4, size: int = 10) -> Batch:
    images = torch.arange(number, dtype=torch.uint8)[:, None, None, None].expand(number, size, size, 3).clone()
    return Batch(images, torch.arange(number))


def test_the_label_share_is_the_share_of_the_pixels() -> None:
    for seed in range(50):
        mixed = cut_mix(batch(), 1.0, np.random.default_rng(seed))
        assert mixed.other_labels is not None
        for image, own, other in zip(mixed.images, mixed.labels, mixed.other_labels, strict=True):
            assert (image == own).float().mean().item() == pytest.approx(mixed.label_share)
            assert ((image == own) | (image == other)).all()


def test_a_share_of_the_batches_is_mixed() -> None:
    mixed = [cut_mix(batch(), 0.3, np.random.default_rng(seed)).other_labels is not None for seed in range(400)]
    assert 0.22 < np.mean(mixed) < 0.38
    whole = batch()
    assert cut_mix(whole, 0.0, np.random.default_rng(0)) is whole
    assert cut_mix(batch(1), 1.0, np.random.default_rng(0)).other_labels is None


def test_micro_batches_keep_their_labels() -> None:
    mixed = cut_mix(batch(8), 1.0, np.random.default_rng(0))
    parts = list(mixed.parts(4))
    assert [len(part) for part in parts] == [4, 4]
    for part in parts:
        assert part.other_labels is not None
        assert part.label_share == mixed.label_share
    assert torch.equal(torch.cat([p.other_labels for p in parts if p.other_labels is not None]), mixed.labels.roll(1))
