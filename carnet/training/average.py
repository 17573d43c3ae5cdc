"""The average of the weights over the last part of training, which judges better than the weights themselves."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of a network's weights and batch-norm statistics.

    Args:
        network: the one that learns, already on its device.
        decay: see below.

    Attributes:
        network: with averaged weights, ready to judge.
        decay: weight of the average against the newest weights; early in the run it is smaller, so that random weights
            are forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        # Looked up once, since there are many; optimizers and checkpoints change tensors in place.
        self._averages, self._news = _floats(self.network), _floats(network)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step.

        Args:
            step: how many steps there were before, in the whole run.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._news, 1 - decay)


def _floats(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
