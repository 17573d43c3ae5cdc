"""CARNet-18, the published network.

Order of operations: 3x3 convolution, batch norm, ReLU; four stages of two `GroupConvBlock`s; mean over height and
width; linear. Source: the published CARNet code; attributes keep its names, so that a reader finds them in its tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from carnet.errors import ModelError
from carnet.models.blocks import GroupConvBlock


class CARNet(nn.Module):
    """A ResNet whose blocks are `GroupConvBlock`s.

    Args:
        depths: number of blocks in each of the four stages.
        num_classes: number of outputs.
        in_channels: channels of the input.

    Attributes:
        min_image_size: the smallest side, in pixels, that leaves at least one position for the mean.
    """

    def __init__(self, depths: Sequence[int], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, depths[0], stride=1)
        self.layer2 = _stage(64, 128, depths[1], stride=2)
        self.layer3 = _stage(128, 256, depths[2], stride=2)
        self.layer4 = _stage(256, 512, depths[3], stride=2)
        self.linear = nn.Linear(512, num_classes)
        # Backwards from one position: no block pads its 3x3 convolution.
        self.min_image_size = 1
        for block in reversed([*self.layer1, *self.layer2, *self.layer3, *self.layer4]):
            self.min_image_size = (self.min_image_size - 1) * cast(GroupConvBlock, block).conv1.stride[0] + 3

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 512, H', W'); 25 x 25 positions at 244 px."""
        height, width = x.shape[-2:]
        if min(height, width) < self.min_image_size:
            raise ModelError(
                f"the image is {width} x {height} pixels, but this network's blocks do not pad: "
                f"it needs at least {self.min_image_size} x {self.min_image_size}"
            )
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        return cast(Tensor, self.layer4(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)"""
        features = self.forward_features(x).mean(dim=(2, 3))
        return cast(Tensor, self.linear(features))


def _stage(in_channels: int, out_channels: int, depth: int, stride: int) -> nn.Sequential:
    blocks = [GroupConvBlock(in_channels, out_channels, stride)]
    blocks += [GroupConvBlock(out_channels, out_channels) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def carnet18(num_classes: int = 100, in_channels: int = 3) -> CARNet:
    """The published CARNet: 653,376 parameters at 100 classes, 1.60 G MACs at 244 px."""
    return CARNet((2, 2, 2, 2), num_classes, in_channels)
