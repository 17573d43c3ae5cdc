"""Depthwise convolutions whose gradient does not take the slow way.

PyTorch's kernels for processors compute the bf16 gradient of a strided depthwise convolution some fifteen times slower
than that of a plain one. Spread over a stride of one, with zeros between, the same gradient takes the fast kernel; in
float32 the library is fast by itself. At a stride of one the gradient is a convolution with the weights turned round,
whose kernel is the faster one. The gradient of the weights is fast for 3x3, and in float32 for any stride but one;
otherwise larger kernels are computed in pieces of that size. A compiler makes one pass of the products and sums that
the gradient of the weights is; where images are small, it leaves that of 3x3 in float32 to the library.

Only training uses this: elsewhere the network is made of `nn.Conv2d`, and so are evaluation and everything exported.
"""

from __future__ import annotations

from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carnet.training.channel_sums import channel_sums, is_large

Pair = tuple[int, int]

_PIECE = 3
"""Side of the kernels whose gradient the library computes fast."""


class DepthwiseConv2d(nn.Conv2d):
    """An `nn.Conv2d` with one group per channel and no dilation; in training mode its gradient is computed as above."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W'), as `nn.Conv2d`."""
        if not self.training:
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return depthwise_conv2d(x, self.weight, self.bias, cast(Pair, self.stride), cast(Pair, self.padding))


def speed_up_depthwise(network: nn.Module, *, fast: bool = True) -> int:
    """Turn the depthwise convolutions of a network into `DepthwiseConv2d`, or back; parameters and their names stay.

    Returns:
        How many there are.
    """
    convolutions = _depthwise_in(network)
    for module in convolutions:
        module.__class__ = DepthwiseConv2d if fast else nn.Conv2d
    return len(convolutions)


def num_depthwise(network: nn.Module) -> int:
    """How many convolutions `speed_up_depthwise` would turn."""
    return len(_depthwise_in(network))


def _depthwise_in(network: nn.Module) -> list[nn.Conv2d]:
    found = (module for module in network.modules() if type(module) in (nn.Conv2d, DepthwiseConv2d))
    return [cast(nn.Conv2d, module) for module in found if _is_supported(cast(nn.Conv2d, module))]


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """Equal to `F.conv2d(x, weight, bias, stride, padding, groups=C)`, with a faster gradient.

    Args:
        x: (N, C, H, W); weight and bias are converted to its type, their gradients have their own.
        weight: (C, 1, K, L).
        bias: (C,), or None.
        stride: down and across.
        padding: pixels of zeros above and below, left and right.

    Returns:
        (N, C, H', W')
    """
    return cast(Tensor, _DepthwiseConv2d.apply(x, weight, bias, (stride, padding)))


class _DepthwiseConv2d(torch.autograd.Function):
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
        # What a stride of one would have given, had every position that was left out a gradient of zero.
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
    in_pieces = min(kernel) >= _PIECE and max(kernel) > _PIECE and not is_strided_float
    library_is_fast = grad.dtype == torch.float32 and kernel == (_PIECE, _PIECE) and not is_large(grad)
    is_generated = torch.compiler.is_compiling() and not library_is_fast
    if not (is_generated or in_pieces):
        return _gradients(grad, x, weight, (stride, padding), [False, True, False])[1].to(weight.dtype)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    if not is_generated:
        return _gradient_in_pieces(grad, padded, weight, stride)
    height, width = grad.shape[2:]
    sums = []
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            rows = slice(i, i + stride[0] * (height - 1) + 1, stride[0])
            columns = slice(j, j + stride[1] * (width - 1) + 1, stride[1])
            sums.append(channel_sums(_widened(padded[:, :, rows, columns]) * _widened(grad)))
    return torch.stack(sums, dim=1).view(weight.shape).to(weight.dtype)


def _gradient_in_pieces(grad: Tensor, padded: Tensor, weight: Tensor, stride: Pair) -> Tensor:
    """(N, C, H', W') -> (C, 1, K, L), from pieces of 3x3 that overlap where 3 does not divide K or L."""
    height, width = ((size - 1) * step + _PIECE for size, step in zip(grad.shape[2:], stride, strict=True))
    result = torch.empty_like(weight)
    for i, j in product(*([*range(0, length - _PIECE, _PIECE), length - _PIECE] for length in weight.shape[2:])):
        piece = weight[:, :, i : i + _PIECE, j : j + _PIECE]
        seen = padded[:, :, i : i + height, j : j + width].contiguous(memory_format=_layout_of(padded))
        gradient = _gradients(grad, seen, piece, (stride, (0, 0)), [False, True, False])[1]
        result[:, :, i : i + _PIECE, j : j + _PIECE] = gradient
    return result


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Pair, Pair], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of input, weight and bias that are wanted, from the library."""
    stride, padding = geometry
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), None, stride, padding, (1, 1), False, (0, 0), x.shape[1], wanted
    )
    return gradients


def _widened(x: Tensor) -> Tensor:
    """In the precision that sums need."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _is_supported(conv: nn.Conv2d) -> bool:
    is_depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    zeros_around = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return is_depthwise and zeros_around and conv.dilation == (1, 1)


def _layout_of(x: Tensor) -> torch.memory_format:
    # A tensor can be contiguous in both senses; a single channel is no depthwise case, and one pixel costs nothing.
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last
