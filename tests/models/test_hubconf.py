"""PyTorch Hub finds our networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import carnet
import hubconf

ROOT = Path(__file__).parents[2]
NAMES = sorted(set(carnet.list_models()) - {"efficientnet_lite0"})


def test_every_network_is_there() -> None:
    assert sorted(name for name in vars(hubconf) if "net" in name) == NAMES


@pytest.mark.parametrize("name", ["carnet_n", "carnet18"])
def test_a_network_takes_its_arguments(name: str) -> None:
    network = torch.hub.load(str(ROOT), name, source="local", num_classes=5, in_channels=1).eval()
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 5)
