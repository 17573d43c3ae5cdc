"""Sums over everything but channels, in an order of which the compiler makes fast code on processors."""

from __future__ import annotations

from torch import Tensor

_LARGE_IMAGE = 2**18
"""Values of an image that a core's own cache no longer holds: one megabyte in float32."""


def is_large(x: Tensor) -> bool:
    """Whether one image of (N, C, H, W) exceeds a core's own cache."""
    return x[0].numel() > _LARGE_IMAGE


def channel_sums(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (C,), row by row where images are large, otherwise image by image.

    With channels last, either is a loop over vectors of channels that stays within the cache, on all threads.
    """
    return x.sum(3).sum((0, 2)) if is_large(x) else x.sum((2, 3)).sum(0)
