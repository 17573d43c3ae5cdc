"""First filters that tell apart what a patch of an image consists of, taken from the training images themselves.

Neighbouring pixels are much alike, so random filters nearly all answer with a patch's brightness. These answer with the
patch's principal components, each as strongly as the others, and training need not find them first.
Sources: Coates and Ng, "Learning feature representations with k-means", 2012 (whitening of patches); Jordan, "94% on
CIFAR-10 in 3.29 seconds on a single GPU", 2024 (as the first layer of a network that is trained).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carnet.models.device import on_threads
from carnet.models.residual_carnet import ResidualCARNet
from carnet.models.trained import normalize_on
from carnet.spec import ModelSpec
from carnet.training.dataset import Batch

NUM_IMAGES = 512
_AT_A_TIME = 8
"""Images, since patches take several times the memory of a batch."""
_FAINTEST = 1e-3
"""Variance that is added to every component, so that noise is not made as strong as the rest."""
_NOTHING = 1e-6
"""Less variance than the rounding of pixels gives: differences between the channels of grey images have none."""


def has_patches(network: nn.Module) -> bool:
    """Whether a network begins with patches of the image."""
    return isinstance(network, ResidualCARNet)


@torch.no_grad()
def whiten(network: nn.Module, batches: Iterable[Batch], spec: ModelSpec) -> None:
    """Set the filters of a network that `has_patches`: each component twice, as it is and negated, strongest first.

    Where there are more filters than components that vary, the others stay as they are.

    Args:
        network: on the processor.
        batches: training images, as they are shown; the first `NUM_IMAGES` count.
        spec: of the network.
    """
    assert isinstance(network, ResidualCARNet)
    stem = network.stem[0]
    assert isinstance(stem, nn.Conv2d)
    size = stem.weight[0].numel()
    sums, moments = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    number, seen = 0, 0
    # A resumed run may begin with another number of threads, which would change the last digits.
    with on_threads(1):
        for batch in batches:
            for images in torch.split(batch.images, _AT_A_TIME):
                patches = _patches(normalize_on(torch.device("cpu"), images, spec), stem).double()
                sums += patches.sum(0)
                moments += patches.T @ patches
                number += len(patches)
            seen += len(batch)
            if seen >= NUM_IMAGES:
                break
        mean = sums / number
        variances, components = torch.linalg.eigh(moments / number - torch.outer(mean, mean))
    filters = (components / (variances + _FAINTEST).sqrt())[:, variances > _NOTHING].T.flip(0)
    filters = torch.cat([filters, -filters])[: stem.out_channels]
    stem.weight[: len(filters)] = filters.view(-1, *stem.weight.shape[1:])


def _patches(images: Tensor, stem: nn.Conv2d) -> Tensor:
    """(N, C, S, S) -> (patches, C x K x K)"""
    columns = F.unfold(images, stem.kernel_size, stride=stem.stride)
    return columns.transpose(1, 2).flatten(0, 1)
