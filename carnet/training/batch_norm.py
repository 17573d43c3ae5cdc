"""Batch norm whose compiled code is fast on processors: statistics as sums, and its own gradient.

The compiler computes mean and variance by an update for every value (Welford's), which keeps a processor's vector units
waiting. Sums of values and of squares vectorise. The squares are of differences to the mean of the first image, so that
no precision is lost where a channel is far from zero.

Only a compiled network in float32 uses this: elsewhere the module computes as an `nn.BatchNorm2d`, also in evaluation
and in everything exported.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

_LARGE_IMAGE = 2**18
"""Values of an image that no longer fits into a core's own cache: one megabyte in float32."""


class SummedBatchNorm2d(nn.BatchNorm2d):
    """An `nn.BatchNorm2d` that computes as described above where it is compiled for training in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), as `nn.BatchNorm2d`."""
        if not (self.training and torch.compiler.is_compiling() and input.dtype == torch.float32):
            return super().forward(input)
        # Channels last, so that sums run over whole vectors of channels.
        output, mean, variance = _SummedBatchNorm.apply(input.permute(0, 2, 3, 1), self.weight, self.bias, self.eps)
        momentum = cast(float, self.momentum)
        with torch.no_grad():
            cast(Tensor, self.num_batches_tracked).add_(1)
            cast(Tensor, self.running_mean).lerp_(mean, momentum)
            cast(Tensor, self.running_var).lerp_(variance, momentum)
        return cast(Tensor, output.permute(0, 3, 1, 2))


def sum_batch_norms(network: nn.Module, *, compiled: bool) -> int:
    """Turn the batch norms of a network into `SummedBatchNorm2d`, or back; parameters and their names stay.

    Returns:
        How many there are.
    """
    found = [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
        and type(module) in (nn.BatchNorm2d, SummedBatchNorm2d)
        and (module.affine and module.track_running_stats and module.momentum is not None)
    ]
    for module in found:
        module.__class__ = SummedBatchNorm2d if compiled else nn.BatchNorm2d
    return len(found)


class _SummedBatchNorm(torch.autograd.Function):
    """Batch norm of (N, H, W, C), which also returns the mean and the unbiased variance of each channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        number = x.numel() // x.shape[3]
        start = x[0].mean((0, 1))
        away = x - start
        mean = _sum(away) / number
        variance = (_sum(away * away) / number - mean * mean).clamp_min(0)
        mean = mean + start
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        factor = weight * inverse
        unbiased = variance * (number / max(1, number - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return (x - mean) * factor + bias, mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        number = x.numel() // x.shape[3]
        for_bias = _sum(grad)
        for_weight = _sum(grad * (x - mean)) * inverse
        factor = weight * inverse
        for_x = factor * grad - (factor * inverse * for_weight / number) * (x - mean) - factor * for_bias / number
        return for_x, for_weight, for_bias, None


def _sum(x: Tensor) -> Tensor:
    """(N, H, W, C) -> (C,)"""
    return channel_sums(x.permute(0, 3, 1, 2))


def channel_sums(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (C,), row by row where images are large, otherwise image by image.

    With channels last, either is a loop over vectors of channels that stays within the cache, on all threads, and of
    which the compiler makes fast code.
    """
    return x.sum(3).sum((0, 2)) if is_large(x) else x.sum((2, 3)).sum(0)


def is_large(x: Tensor) -> bool:
    """Return whether one image of (N, C, H, W) exceeds a core's own cache."""
    return x[0].numel() > _LARGE_IMAGE
