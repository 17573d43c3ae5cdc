"""Find out what each place of an image adds to each class, for networks whose head is a mean and a linear layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from carnet.models.blocks import ChannelAttention
from carnet.models.registry import head_names
from carnet.spec import ModelSpec

_LARGE = (512, 1536)
"""Sides of an image in whose middle no position depends on what lies outside, in pixels: of nearly all networks, and of
those that see far."""
_FAINT = 1e-3
"""Values of that image, so small that no activation is cut off above (ReLU6)."""

Features = Callable[[Tensor], Tensor]
Centres = tuple[tuple[float, ...], tuple[float, ...]]
"""Where each row, and each column, of a class map looks, in pixels of the input."""


def mean_and_linear_head(network: nn.Module, spec: ModelSpec) -> nn.Linear | None:
    """Return the last layer if the logits are that layer of the mean of `forward_features`; None otherwise.

    Found out by trying, since timm's networks do not say.
    """
    features = getattr(network, "forward_features", None)
    try:
        head = network.get_submodule(head_names(network)[0])
    except (AttributeError, KeyError, IndexError):
        return None
    if features is None or not isinstance(head, nn.Linear):
        return None
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, spec.in_channels, spec.image_size, spec.image_size, generator=generator)
    with torch.inference_mode():
        maps = features(images)
        if maps.dim() != 4 or maps.shape[1] != head.in_features:
            return None
        close = torch.allclose(head(maps.mean(dim=(2, 3))), network(images), rtol=1e-3, atol=1e-3)
    return head if close else None


def map_centres(network: nn.Module, spec: ModelSpec) -> Centres:
    """Return the centre of the receptive field of each row, and of each column, of the features, in pixels.

    Computed on a copy of the network that only takes means: for a large image whose values are its own coordinates, a
    position in the middle returns the centre of what it depends on. A network that takes no means even so (other gates,
    attention, SiLU) is assumed to divide the image evenly.
    """
    side = spec.image_size
    features = cast(Features, _averaging(network).forward_features)
    with torch.inference_mode():
        number = features(torch.zeros(1, spec.in_channels, side, side)).shape[-1]
        seen = _coordinates_seen(features, spec.in_channels, _LARGE[0])
        if not _is_even(seen):
            seen = _coordinates_seen(features, spec.in_channels, _LARGE[1])
    if seen is None:
        first, step = (side / number - 1) / 2, side / number
    else:
        place = len(seen) // 2
        step = float(seen[place + 1] - seen[place])
        first = float(seen[place]) - place * step
    centres = tuple(round(first + k * step, 2) for k in range(number))
    return centres, centres


def _is_even(seen: Tensor | None) -> bool:
    """Return whether rows in the middle see coordinates at a distance of whole pixels; True without any."""
    if seen is None:
        return True
    place = len(seen) // 2
    steps = seen[place : place + 2].diff()
    return bool((steps - steps.round()).abs().max() < 0.01) if len(steps) else True


def _coordinates_seen(features: Features, channels: int, size: int) -> Tensor | None:
    """Return the mean coordinate, in a large image, that each row of features sees; None if it takes no mean."""
    rows = _FAINT * torch.arange(size, dtype=torch.float32)[:, None].expand(size, size) / size
    try:
        once, twice, total = (
            features(image.expand(1, channels, -1, -1))[0].sum(0)
            for image in (rows, 2 * rows, torch.full_like(rows, _FAINT))
        )
    except (RuntimeError, AssertionError):
        # Attention that is made for images of one size.
        return None
    if not torch.allclose(twice, 2 * once, rtol=1e-3):
        return None
    return size * (once / total)[:, once.shape[1] // 2]


def _averaging(network: nn.Module) -> nn.Module:
    """Return a copy in which every convolution takes a mean, without batch norm and channel attention."""
    averaging = copy.deepcopy(network)
    for module in list(averaging.modules()):
        for name, child in module.named_children():
            if isinstance(child, ChannelAttention | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.Conv2d):
                nn.init.constant_(child.weight, 1 / child.weight[0].numel())
                if child.bias is not None:
                    nn.init.zeros_(child.bias)
    return averaging
