"""The first filters whiten patches of the images, and so follow from images and seed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from carnet import ModelSpec, TrainingConfig, create_model
from carnet.models.weights import load, normalize_on, on_threads
from carnet.training.optim import has_patches, whiten
from carnet.training.pipeline import Batch
from carnet.training.run import train


def some_batches(in_channels: int = 3, number: int = 4) -> list[Batch]:
    """Return blurred noise, whose neighbouring pixels are alike as in photos."""
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 256, (number, 16, 34, 34, in_channels)).astype(float)
    blurred = sum(fine[:, :, i : i + 32, j : j + 32] for i in range(3) for j in range(3)) / 9
    return [Batch(torch.from_numpy(images.astype(np.uint8)), torch.zeros(16)) for images in blurred]


@pytest.mark.parametrize(
    ("name", "in_channels", "components"), [("carnet_n", 3, 32), ("carnet_s", 3, 48), ("carnet_s", 1, 16)]
)
def test_outputs_of_different_filters_are_uncorrelated(name: str, in_channels: int, components: int) -> None:
    network = create_model(name, num_classes=3, in_channels=in_channels)
    spec = ModelSpec(
        model=name, classes=("a", "b", "c"), image_size=32, in_channels=in_channels,
        mean=(0.5,) * in_channels, std=(0.2,) * in_channels,
    )  # fmt: skip
    before = network.stem[0].weight.clone()
    whiten(network, some_batches(in_channels), spec)
    images = torch.cat([batch.images for batch in some_batches(in_channels)])
    with torch.no_grad():
        outputs = network.stem[0](normalize_on(torch.device("cpu"), images, spec)).permute(1, 0, 2, 3).flatten(1)
    together = torch.cov(outputs[:components])
    assert together.fill_diagonal_(0).abs().max() < 0.01
    # Strong and faint components have outputs of similar strength; noise is damped.
    spread = outputs[:components].var(dim=1)
    assert 0.9 < spread[0] <= 1.001
    assert (spread > 0.3).all()
    # Then come their negatives, as far as there are filters; the rest stays random.
    rest = network.stem[0].weight[components : 2 * components]
    torch.testing.assert_close(rest, -network.stem[0].weight[: len(rest)])
    torch.testing.assert_close(network.stem[0].weight[2 * components :], before[2 * components :])


def test_killed_before_the_first_checkpoint(photos: Path, tmp_path: Path) -> None:
    """The run begins again, with the same filters for any number of threads, and leaves no temporary file."""
    recipe = TrainingConfig(model="carnet_n", image_size=32, epochs=1, batch_size=8, compile=False)
    whole = train(photos, recipe, output=tmp_path / "whole").run
    killed = shutil.copytree(whole, tmp_path / "killed")
    for path in killed.iterdir():
        if path.name not in ("config.json", "data.csv"):
            path.unlink()
    (killed / ".1.0123abcd.tmp").write_bytes(b"half")
    with on_threads(3):
        train(resume=killed)
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_images_of_one_colour_give_finite_filters() -> None:
    network = create_model("carnet_n", num_classes=3)
    grey = Batch(torch.full((4, 32, 32, 3), 128, dtype=torch.uint8), torch.zeros(4))
    whiten(network, [grey], ModelSpec(model="carnet_n", classes=("a", "b"), image_size=32))
    assert network.stem[0].weight.isfinite().all()


def test_grey_images_leave_the_other_filters_random() -> None:
    """The three channels of a grey file are equal, so that only a third of the components varies."""
    network = create_model("carnet_s", num_classes=3)
    before = network.stem[0].weight.clone()
    grey = [Batch(batch.images[..., :1].expand(-1, -1, -1, 3), batch.labels) for batch in some_batches(1)]
    whiten(network, grey, ModelSpec(model="carnet_s", classes=("a", "b"), image_size=32))
    after = network.stem[0].weight
    torch.testing.assert_close(after[16:32], -after[:16])
    torch.testing.assert_close(after[32:], before[32:])


def test_only_random_weights_are_whitened(photos: Path, tmp_path: Path) -> None:
    assert [has_patches(create_model(name, num_classes=2)) for name in ("carnet_n", "carnet18", "resnet18")] == [
        *(True, False, False),
    ]
    # With this learning rate a run ends with its initial weights.
    still = TrainingConfig(
        model="carnet_n", image_size=32, epochs=1, batch_size=8, lr=1e-30, weight_decay=0.0, compile=False
    )
    first = train(photos, still, output=tmp_path / "first").run
    again = train(photos, replace(still, seed=1), output=tmp_path / "again", init=first).run
    stems = [load(run).network.stem[0].weight for run in (first, again)]  # type: ignore[union-attr]
    torch.testing.assert_close(*stems)
    other = load(train(photos, replace(still, seed=1), output=tmp_path / "other").run).network.stem[0].weight  # type: ignore[union-attr]
    assert not torch.equal(stems[0], other)
    assert json.loads((first / "config.json").read_text())["init"] is None
