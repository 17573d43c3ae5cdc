"""Depthwise convolutions with a fast gradient, for training on processors.

PyTorch's kernels for processors compute the bf16 gradient of a strided depthwise convolution some fifteen times slower
than that of one with a stride of one. The same gradient, spread over a stride of one with zeros between, takes the fast
kernel; in float32 PyTorch's own is fast. At a stride of one the gradient of the input is a convolution with the weights
flipped, whose kernel is the faster one. The gradient of the weights is fast for 3x3, and in float32 for any stride
above one; otherwise that of larger kernels is computed in tiles of 3x3. A compiler makes one pass of the products and
sums that the gradient of the weights is; for 3x3 in float32, PyTorch's kernel is faster where images are small.

Only training uses this: elsewhere the network is made of `nn.Conv2d`, and so are evaluation and everything exported.
"""

from __future__ import annotations

from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carnet.training.batch_norm import channel_sums, is_large

Pair = tuple[int, int]

_TILE = 3
"""Side of the kernels whose gradient PyTorch computes fast."""


class DepthwiseConv2d(nn.Conv2d):
    """An `nn.Conv2d` with one group per channel and no dilation; in training mode its gradient is computed as above."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W'), as `nn.Conv2d`."""
        if not self.training:
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        geometry = self.stride, self.padding
        return cast(Tensor, _DepthwiseConvolution.apply(x, self.weight, self.bias, geometry))


def speed_up_depthwise(network: nn.Module, *, fast: bool = True) -> int:
    """Turn the depthwise convolutions of a network into `DepthwiseConv2d`, or back; parameters and their names stay.

    Returns:
        How many there are.
    """
    convolutions = depthwise_convolutions(network)
    for module in convolutions:
        module.__class__ = DepthwiseConv2d if fast else nn.Conv2d
    return len(convolutions)


def depthwise_convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions of a network whose gradient can be computed in two ways."""
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
        and type(module) in (nn.Conv2d, DepthwiseConv2d)
        and module.groups == module.in_channels == module.out_channels > 1
        and (module.dilation == (1, 1) and module.padding_mode == "zeros" and not isinstance(module.padding, str))
    ]


class _DepthwiseConvolution(torch.autograd.Function):
    """`F.conv2d(x, weight, bias, stride, padding, groups=C)` with a faster gradient.

    (N, C, H, W), weight (C, 1, K, L), bias (C,) or None -> (N, C, H', W'). Weight and bias are converted to the type of
    `x`; their gradients have their own type.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Pair, Pair]) -> Tensor:
        stride, padding = geometry
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        bias = None if bias is None else bias.to(x.dtype)
        return F.conv2d(x, weight.to(x.dtype), bias, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x = _gradient_of_input(grad, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        for_weight = _gradient_of_weight(grad, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        for_bias = _widened(grad).sum((0, 2, 3)) if ctx.has_bias else None
        return for_x, for_weight, for_bias, None


def _gradient_of_input(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W)"""
    kernel = cast(Pair, tuple(weight.shape[2:]))
    around = cast(Pair, tuple(size - 1 - pad for size, pad in zip(kernel, padding, strict=True)))
    if min(around) < 0 or (stride != (1, 1) and grad.dtype == torch.float32):
        return _gradients(grad, x, weight, (stride, padding), [True, False, False])[0]
    if stride != (1, 1):
        # The gradient at a stride of one, if every position that the stride leaves out had a gradient of zero.
        height, width = (x.shape[d + 2] + 2 * padding[d] - kernel[d] + 1 for d in (0, 1))
        shape = (*grad.shape[:2], height, width)
        spread = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=_layout_of(x)).zero_()
        spread[:, :, :: stride[0], :: stride[1]] = grad
        grad = spread
    return F.conv2d(grad, weight.to(x.dtype).flip(2, 3), None, 1, around, groups=x.shape[1])


def _gradient_of_weight(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """(N, C, H', W') -> (C, 1, K, L)"""
    kernel = tuple(weight.shape[2:])
    is_strided_float = stride != (1, 1) and grad.dtype == torch.float32
    in_tiles = min(kernel) >= _TILE and max(kernel) > _TILE and not is_strided_float
    is_fast_already = grad.dtype == torch.float32 and kernel == (_TILE, _TILE) and not is_large(grad)
    is_generated = torch.compiler.is_compiling() and not is_fast_already
    if not (is_generated or in_tiles):
        return _gradients(grad, x, weight, (stride, padding), [False, True, False])[1].to(weight.dtype)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    if not is_generated:
        return _gradient_in_tiles(grad, padded, weight, stride)
    height, width = grad.shape[2:]
    sums = []
    for i, j in product(range(kernel[0]), range(kernel[1])):
        rows = slice(i, i + stride[0] * (height - 1) + 1, stride[0])
        columns = slice(j, j + stride[1] * (width - 1) + 1, stride[1])
        sums.append(channel_sums(_widened(padded[:, :, rows, columns]) * _widened(grad)))
    return torch.stack(sums, dim=1).view(weight.shape).to(weight.dtype)


def _gradient_in_tiles(grad: Tensor, padded: Tensor, weight: Tensor, stride: Pair) -> Tensor:
    """(N, C, H', W') -> (C, 1, K, L), in tiles of 3x3 that overlap where 3 does not divide K or L."""
    height, width = ((size - 1) * step + _TILE for size, step in zip(grad.shape[2:], stride, strict=True))
    result = torch.empty_like(weight)
    for i, j in product(*([*range(0, length - _TILE, _TILE), length - _TILE] for length in weight.shape[2:])):
        tile = weight[:, :, i : i + _TILE, j : j + _TILE]
        seen = padded[:, :, i : i + height, j : j + width].contiguous(memory_format=_layout_of(padded))
        gradient = _gradients(grad, seen, tile, (stride, (0, 0)), [False, True, False])[1]
        result[:, :, i : i + _TILE, j : j + _TILE] = gradient
    return result


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Pair, Pair], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return PyTorch's own gradients of input, weight and bias, those that are wanted."""
    stride, padding = geometry
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), None, stride, padding, (1, 1), False, (0, 0), x.shape[1], wanted
    )
    return gradients


def _widened(x: Tensor) -> Tensor:
    """Return a tensor in the precision that sums need."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _layout_of(x: Tensor) -> torch.memory_format:
    # A tensor of one channel or one pixel is contiguous in both senses; neither matters here.
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last
