"""CARNet of the second generation: depthwise convolution, channel attention, 1x1 convolution, and a shortcut.

The image is cut into patches of 4x4 pixels, which four stages of blocks process, each at half the resolution of the
one before. A block is the published one (`carnet.models.blocks`) with padding, with batch norm instead of biases, and
with its input added to its output:

    x ── depthwise ── batch norm ── ReLU ── channel attention ── 1x1 ── batch norm ── + ── y
    └─────────── where the shape changes: 2x2 mean, channels repeated ───────────────┘

The shortcut has no parameters, and the scale of the last batch norm starts at zero, so every block starts as its
shortcut. The first two stages have no channel attention, which makes no difference there. The last two, where an image
has few positions, use 5x5 kernels. The mean over all positions and one linear layer give the logits; the same layer,
applied to every position, gives a map of where each class is seen.

`docs/carnet_s.md` explains why it is built this way, and what else was tried.
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
    """Filter each channel, scale the channels, mix them, and add the result to the input.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; a multiple of `in_channels`.
        stride: 1, or 2 to halve the resolution.
        kernel_size: side of the depthwise convolution; odd.
        reduction: reduction of the channel attention; 0 leaves it out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, kernel_size: int = 3, reduction: int = 16
    ) -> None:
        super().__init__()
        assert out_channels % in_channels == 0, "the shortcut repeats channels"
        assert kernel_size % 2, "the kernel needs a middle"
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
        out: Tensor = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(self.attn(out)))
        if self.stride > 1:
            # An odd side keeps its last row: the mean there is over fewer pixels.
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        if self.repeats > 1:
            x = torch.cat([x] * self.repeats, dim=1)
        out += x
        return out


class ResidualCARNet(nn.Module):
    """Patches, four stages of residual blocks, mean, linear.

    Args:
        widths: channels of each stage; each a multiple of the one before.
        depths: number of blocks in each stage.
        num_classes: number of outputs.
        in_channels: channels of the image.
        kernel_sizes: kernel size of the depthwise convolutions in each stage.
        reductions: reduction of the channel attention in each stage; 0 leaves it out.

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
        self.stages = nn.Sequential()
        channels, stride = widths[0], 1
        for width, depth, kernel_size, reduction in zip(widths, depths, kernel_sizes, reductions, strict=True):
            stage = nn.Sequential()
            for _ in range(depth):
                stage.append(ResidualBlock(channels, width, stride, kernel_size=kernel_size, reduction=reduction))
                channels, stride = width, 1
            self.stages.append(stage)
            stride = 2
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, C, H / 32, W / 32), each side rounded up after the patches."""
        return F.relu(self.stages(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)"""
        features = F.adaptive_avg_pool2d(self.forward_features(x), 1).flatten(1)
        return cast(Tensor, self.linear(features))


SIZES = {
    "carnet_n": ((32, 64, 128, 256), (2, 2, 2, 2)),
    "carnet_s": ((64, 128, 256, 512), (2, 2, 2, 2)),
    "carnet_m": ((112, 224, 448, 896), (2, 3, 3, 2)),
}
"""Channels and blocks of each stage."""


def carnet_n(num_classes: int = 100, in_channels: int = 3) -> ResidualCARNet:
    """For the smallest devices: 0.18 M parameters at 100 classes, 10 M MACs at 128 px."""
    return ResidualCARNet(*SIZES["carnet_n"], num_classes, in_channels)


def carnet_s(num_classes: int = 100, in_channels: int = 3) -> ResidualCARNet:
    """The default: 0.64 M parameters at 100 classes, 33 M MACs at 128 px."""
    return ResidualCARNet(*SIZES["carnet_s"], num_classes, in_channels)


def carnet_m(num_classes: int = 100, in_channels: int = 3) -> ResidualCARNet:
    """Where accuracy counts more than size: 2.1 M parameters at 100 classes, 121 M MACs at 128 px."""
    return ResidualCARNet(*SIZES["carnet_m"], num_classes, in_channels)
