"""A loss for students: whether a network finds the same images similar as its teacher does.

It compares the features of the two networks, the input of their last layers, by the products of all pairs of images in
a micro-batch. It needs no layer between features of different lengths, which would be trained and dropped.

Sources: Kornblith et al., "Similarity of neural network representations revisited", 2019 (centred kernel alignment);
Tung and Mori, "Similarity-preserving knowledge distillation", 2019; Saha et al., "Distilling representational
similarity using centered kernel alignment", 2022.
"""

from __future__ import annotations

from contextlib import suppress

import torch.nn.functional as F
from torch import Tensor, nn

from carnet.errors import ModelError
from carnet.training.features import linear_head

WEIGHT = 1.0
"""Of `similarity_loss`, beside the cross-entropy with the answers; `benchmarks/LOG.md` has the experiments."""


def similarity_loss(features: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 minus the centred kernel alignment (linear kernel) of two networks' features of the same images.

    (N, A), (N, B) -> (), from 0, if they differ by scale and rotation alone, to 1.
    """
    own, others = (rows - rows.mean(0) for rows in (features, wanted))
    return 1 - F.cosine_similarity((own @ own.T).flatten(), (others @ others.T).flatten(), dim=0)


class KeepingLinear(nn.Linear):
    """An `nn.Linear` that keeps what it is given in training until it is taken."""

    kept: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(N, in) -> (N, out), as `nn.Linear`."""
        if self.training:
            self.kept = input
        return super().forward(input)

    def take(self) -> Tensor | None:
        """Return what is kept, once, as (N, channels)."""
        # A kept tensor holds the whole computation in memory, and a network that holds one cannot be copied.
        kept, self.kept = self.kept, None
        return None if kept is None else kept.flatten(1).float()


def keep_features(network: nn.Module, name: str, *, wanted: bool) -> KeepingLinear | None:
    """Turn the last layer of a network into a `KeepingLinear`, or back; parameters and their names stay.

    Returns:
        The layer; None: it is not wanted, or the network does not end in one linear layer.
    """
    with suppress(ModelError):
        head = linear_head(network, name)
        if type(head) in (nn.Linear, KeepingLinear):
            head.__class__ = KeepingLinear if wanted else nn.Linear
        return head if isinstance(head, KeepingLinear) else None
    return None
