"""The ResNets the published code compares with: ResNet-18 with pre-activation blocks, the deeper ones without.

Order of operations: 3x3 convolution with stride 1, batch norm, ReLU; four stages; mean over height and width; linear.
Unlike the ImageNet ResNets they have no 7x7 stem and no max pooling, so at equal image size they compute about 16 times
more. Sources: the published CARNet code; He et al., "Deep Residual Learning for Image Recognition", 2016, and
"Identity Mappings in Deep Residual Networks", 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Batch norm, ReLU, 3x3 convolution, twice; then the shortcut is added.

    Where the shape changes, the shortcut is a plain 1x1 convolution of the activated input.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))"""
        out: Tensor = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class BasicBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU, 3x3 convolution, batch norm; the shortcut is added; ReLU."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))"""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions with batch norms; the shortcut is added; ReLU."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 * channels, ceil(H / stride), ceil(W / stride))"""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Build a 1x1 convolution and batch norm where the shape changes, nothing where it does not."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class ResNet(nn.Module):
    """Stem, four stages of `block`, mean, linear.

    Args:
        block: class of the blocks.
        depths: number of blocks in each of the four stages.
        num_classes: number of outputs.
        in_channels: channels of the input.
    """

    min_image_size: ClassVar[int] = 1

    def __init__(
        self,
        block: type[PreActBlock | BasicBlock | Bottleneck],
        depths: Sequence[int],
        num_classes: int = 100,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(512 * block.expansion, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 512 * expansion, ceil(H / 8), ceil(W / 8))"""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        return cast(Tensor, self.layer4(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)"""
        features = self.avgpool(self.forward_features(x)).flatten(1)
        return cast(Tensor, self.linear(features))


def _stage(
    block: type[PreActBlock | BasicBlock | Bottleneck], in_channels: int, channels: int, depth: int, stride: int
) -> nn.Sequential:
    blocks = [block(in_channels, channels, stride)]
    blocks += [block(channels * block.expansion, channels, 1) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


SIZES: dict[str, tuple[type[PreActBlock | BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (PreActBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""Blocks, and their number in each stage."""


def resnet18(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """The published baseline, pre-activation: 11,217,444 parameters at 100 classes, 32.6 G MACs at 244 px."""
    return ResNet(*SIZES["resnet18"], num_classes, in_channels)


resnet34 = partial(ResNet, *SIZES["resnet34"])
resnet50 = partial(ResNet, *SIZES["resnet50"])
resnet101 = partial(ResNet, *SIZES["resnet101"])
resnet152 = partial(ResNet, *SIZES["resnet152"])
"""Post-activation networks, defined beside the published baseline and unused there."""
