"""The building blocks of CARNet: channel attention and the grouped-convolution block.

Source: the published CARNet description and code (its section "Why to propose CARNet?"). Defaults follow the code;
what only the text describes (fewer groups than channels, a residual connection) is available as an argument.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carnet.errors import ModelError


class ChannelAttention(nn.Module):
    """Scale every channel by a weight computed from the whole image: a squeeze-and-excitation (SE) block.

    Mean over height and width, 1x1 convolution to `channels // reduction`, ReLU, 1x1 convolution back, sigmoid,
    multiply. Source: Hu et al., "Squeeze-and-Excitation Networks", 2018.

    Args:
        channels: number of input and output channels.
        reduction: how many times fewer channels the inner layer has; at least one is kept.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if reduction < 1:
            raise ModelError(f"reduction must be at least 1, got {reduction}")
        self.fc1 = nn.Conv2d(channels, max(1, channels // reduction), kernel_size=1)
        self.fc2 = nn.Conv2d(self.fc1.out_channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        weights = F.adaptive_avg_pool2d(x, 1)
        weights = F.relu(self.fc1(weights))
        weights = torch.sigmoid(self.fc2(weights))
        return x * weights


class GroupConvBlock(nn.Module):
    """3x3 grouped convolution, batch norm, ReLU, channel attention, 1x1 convolution.

    The published code uses as many groups as channels (a depthwise convolution), no padding and no shortcut, so every
    block trims the image by one pixel on each side. The published text also describes G groups, with 256 channels in
    64 groups as its example, and a 1x1 convolution that fits the channels to a residual connection.

    Args:
        in_channels: channels of the input; the 3x3 convolution keeps their number.
        out_channels: channels of the output.
        stride: stride of the 3x3 convolution.
        groups: groups of the 3x3 convolution; must divide `in_channels`. None: one group per channel.
        residual: pad the 3x3 convolution by one pixel and add the input to the output, through a 1x1 convolution
            where the shape changes.

    Raises:
        ModelError: if `groups` does not divide `in_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        groups: int | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        groups = in_channels if groups is None else groups
        if groups < 1 or in_channels % groups:
            raise ModelError(f"{groups} groups do not divide {in_channels} input channels")
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=int(residual), groups=groups)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.attn = ChannelAttention(in_channels)
        self.conv2 = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.shortcut: nn.Module | None = None
        if residual and (stride != 1 or in_channels != out_channels):
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride)
        elif residual:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'); H' = (H - 3) // stride + 1, or ceil(H / stride) with `residual`."""
        out: Tensor = F.relu(self.bn1(self.conv1(x)))
        out = self.conv2(self.attn(out))
        return out if self.shortcut is None else out + self.shortcut(x)
