"""The moving average (EMA) of the weights."""

import copy

import pytest
import torch
from torch import nn

from carnet.training.optim import WeightAverage


def test_the_average_is_exponential_and_forgets_the_initial_weights() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(network, 0.9)
    expected = copy.deepcopy(network.state_dict())
    for step in range(30):
        with torch.no_grad():
            network[0].weight.normal_()
            network[1].running_mean.normal_()
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_early_averages_are_nearly_the_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, 0.999)
    with torch.no_grad():
        network.weight.fill_(5.0)
    average.update(0)
    (weight,) = average.network.parameters()
    assert weight.item() == pytest.approx(5, abs=0.6)
