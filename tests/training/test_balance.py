"""Classes of unequal size: which images are drawn, and what they weigh."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import save_picture
from runs import StopAt, metrics, same_weights, small

from carnet.data.samples import Sample
from carnet.errors import ConfigError, StoppedError
from carnet.training.balance import balanced_order, class_weights
from carnet.training.pipeline import Batch, ImageFiles
from carnet.training.run import train
from carnet.training.step import cross_entropy


@pytest.fixture
def unequal(tmp_path: Path) -> Path:
    """Two classes, of 24 and 3 training images."""
    root = tmp_path / "unequal"
    for split, counts in (("train", {"many": 24, "few": 3}), ("valid", {"many": 4, "few": 4})):
        for label, (name, number) in enumerate(counts.items()):
            for index in range(number):
                place = 100 * label + index + 1000 * (split == "valid")
                save_picture(root / split / name / f"{index}.png", ((200, 50, 40), (40, 60, 200))[label], place)
    return root


@given(st.lists(st.integers(1, 40), min_size=2, max_size=12), st.integers(0, 100))
def test_as_many_images_are_drawn_and_each_class_evenly(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = balanced_order(labels, np.random.default_rng(seed))
    assert len(order) == len(labels)
    drawn = Counter(order.tolist())
    shares = np.sqrt(counts) / np.sqrt(counts).sum()
    for label in range(len(counts)):
        times = [drawn[index] for index in np.flatnonzero(labels == label).tolist()]
        assert max(times) - min(times) <= 1
        assert abs(sum(times) - shares[label] * len(labels)) < 1 + 1e-6


def test_classes_of_equal_size_are_drawn_once() -> None:
    labels = np.arange(60) % 3
    assert sorted(balanced_order(labels, np.random.default_rng(0)).tolist()) == list(range(60))


def test_the_weights_have_mean_one_over_the_images() -> None:
    counts = [90, 10, 1]
    weights = class_weights(counts)
    assert np.dot(weights, counts) == pytest.approx(sum(counts))
    assert weights[1] / weights[0] == pytest.approx(3)
    assert class_weights([5, 5]) == (1, 1)


def test_an_image_that_comes_again_is_changed_in_another_way() -> None:
    labels = [0] * 30 + [1]
    images = ImageFiles(
        [Sample(Path(f"{place}.png"), label) for place, label in enumerate(labels)], 0, is_balanced=True
    )
    items = list(images.in_order(0, 0))
    assert len(items) == 31
    rare = [item for item in items if item.label == 1]
    assert [item.turn for item in rare] == list(range(len(rare)))
    assert len(rare) > 2
    # Resumed in the middle, the epoch goes on with the same images and turns.
    assert list(images.in_order(0, 13)) == items[13:]
    assert list(images.in_order(1, 0)) != items


def test_weighted_losses_of_parts_add_up_to_that_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(12, 3, generator=generator), torch.arange(12) % 3
    batch = Batch(torch.zeros(12, 1, 1, 3), labels, other_labels=labels.roll(1), label_share=0.7)
    weights = torch.tensor([0.5, 1.0, 2.5])
    whole = cross_entropy(logits, batch, 0.1, weights) * 12
    parts = zip(batch.parts(5), logits.tensor_split(len(list(batch.parts(5)))), strict=True)
    sums = [cross_entropy(part_logits, part, 0.1, weights) * len(part) for part, part_logits in parts]
    assert torch.stack(sums).sum() == pytest.approx(float(whole), rel=1e-6)
    ones = cross_entropy(logits, batch, 0.1, torch.ones(3))
    assert float(ones) == pytest.approx(float(cross_entropy(logits, batch, 0.1)), rel=1e-6)


@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_a_balanced_run_is_resumed_exactly(unequal: Path, tmp_path: Path, balance: str) -> None:
    config = small(balance=balance)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(unequal, config, output=whole)
    with pytest.raises(StoppedError):
        train(unequal, config, output=stopped, progress=StopAt("epoch 1/2", 2))
    train(resume=stopped)
    assert same_weights(whole, stopped)
    assert metrics(whole) == metrics(stopped)


def test_each_way_gives_other_weights(unequal: Path, tmp_path: Path) -> None:
    ways = ("none", "sampler", "loss")
    for balance in ways:
        train(unequal, small(epochs=1, balance=balance), output=tmp_path / balance)
    assert not any(same_weights(tmp_path / one, tmp_path / other) for one, other in itertools.combinations(ways, 2))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"balance": "loss", "freeze": True, "model": "efficientnet_lite0"}, "--freeze"),
        ({"balance": "sampler", "stream": True}, "--balance loss"),
        ({"balance": "loss", "teacher": "efficientnet_lite0"}, "--balance sampler"),
    ],
)
def test_what_cannot_be_balanced_is_refused(unequal: Path, changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        train(unequal, small(**changes))
