"""CARNet of the second generation: depthwise convolution, channel attention, 1x1 convolution, and now a shortcut.

An image is cut into patches of 4x4 pixels, which four stages of blocks work on, each at half the resolution of the one
before. A block is the published one (`carnet.models.blocks`) with padding, with batch norm instead of biases, and with
its input added to its output:

    x ── depthwise ── batch norm ── ReLU ── channel attention ── 1x1 ── batch norm ── + ── y
    └─────────── where the shape changes: 2x2 mean, channels repeated ───────────────┘

The shortcut has no parameters, and the last batch norm begins at zero: every block begins as its shortcut, and learns
what to add. In the first two stages channel attention makes no difference, and is left out. The last two, where an
image has few positions, look further around, with kernels of 5x5. The mean over all positions and one linear layer give
the logits, so that the same layer, applied to every position, gives a map of where each class is seen.

Why it is built this way, and what else was tried: `docs/carnet_s.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carnet.models.blocks import ChannelAttention

PATCH = 4


class ResidualBlock(nn.Module):
    """Look around in each channel, weigh the channels, mix them, and add that to what was there.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; a multiple of them, or as many.
        stride: 1, or 2 to halve the resolution.
        kernel_size: side of the depthwise convolution; odd.
        reduction: of channel attention; 0 leaves it out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, kernel_size: int = 3, reduction: int = 16
    ) -> None:
        super().__init__()
        assert out_channels % in_channels == 0, "the shortcut repeats channels"
        assert kernel_size % 2, "it has a middle"
        padding = kernel_size // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, kernel_size, stride, padding, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.attn = ChannelAttention(in_channels, reduction) if reduction else nn.Identity()
        self.conv2 = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.bn2.weight)
        self.stride = stride
        self.repeats = out_channels // in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'); H' = ceil(H / stride)"""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(self.attn(out)))
        out += self.shortcut(x)
        return cast(Tensor, out)

    def shortcut(self, x: Tensor) -> Tensor:
        """The input in the shape of the output."""
        if self.stride > 1:
            # An odd side keeps its last row: the mean there is over fewer pixels.
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        return torch.cat([x] * self.repeats, dim=1) if self.repeats > 1 else x


class ResidualCARNet(nn.Module):
    """Patches, four stages of residual blocks, mean, linear.

    Args:
        widths: channels of each stage; each a multiple of the one before.
        depths: blocks of each stage.
        num_classes: number of outputs.
        in_channels: channels of the image.
        kernel_sizes: of the depthwise convolutions of each stage.
        reductions: of channel attention in each stage; 0 leaves it out.

    Attributes:
        min_image_size: the smallest side, in pixels: one patch.
    """

    min_image_size = PATCH

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        num_classes: int = 100,
        in_channels: int = 3,
        *,
        kernel_sizes: Sequence[int] = (3, 3, 5, 5),
        reductions: Sequence[int] = (0, 0, 32, 32),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], PATCH, PATCH, bias=False), nn.BatchNorm2d(widths[0])
        )
        inputs = (widths[0], *widths[:-1])
        strides = (1, *(2 for _ in widths[1:]))
        shapes = zip(inputs, widths, depths, strides, strict=True)
        looks = zip(kernel_sizes, reductions, strict=True)
        self.stages = nn.Sequential(
            *(
                _stage(*shape, kernel_size=kernel_size, reduction=reduction)
                for shape, (kernel_size, reduction) in zip(shapes, looks, strict=True)
            )
        )
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, C, H / 32, W / 32), each side rounded up after the patches."""
        return F.relu(self.stages(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)"""
        features = F.adaptive_avg_pool2d(self.forward_features(x), 1).flatten(1)
        return cast(Tensor, self.linear(features))


def _stage(
    in_channels: int, out_channels: int, depth: int, stride: int, *, kernel_size: int, reduction: int
) -> nn.Sequential:
    inputs, strides = [in_channels] + [out_channels] * (depth - 1), [stride] + [1] * (depth - 1)
    return nn.Sequential(
        *(
            ResidualBlock(channels, out_channels, step, kernel_size=kernel_size, reduction=reduction)
            for channels, step in zip(inputs, strides, strict=True)
        )
    )


def carnet_n(num_classes: int = 100, in_channels: int = 3) -> ResidualCARNet:
    """For the smallest devices: 0.18 M parameters at 100 classes, 10 M MACs at 128 px."""
    return ResidualCARNet((32, 64, 128, 256), (2, 2, 2, 2), num_classes, in_channels)


def carnet_s(num_classes: int = 100, in_channels: int = 3) -> ResidualCARNet:
    """The default: 0.64 M parameters at 100 classes, 33 M MACs at 128 px."""
    return ResidualCARNet((64, 128, 256, 512), (2, 2, 2, 2), num_classes, in_channels)


def carnet_m(num_classes: int = 100, in_channels: int = 3) -> ResidualCARNet:
    """Where accuracy counts more than size: 2.1 M parameters at 100 classes, 121 M MACs at 128 px."""
    return ResidualCARNet((112, 224, 448, 896), (2, 3, 3, 2), num_classes, in_channels)
