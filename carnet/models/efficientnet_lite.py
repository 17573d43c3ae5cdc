"""EfficientNet-Lite0, whose pretrained weights come with the extra `pretrained`.

Order of operations: 3x3 convolution at half the resolution; sixteen inverted residual blocks; 1x1 convolution to 1,280
channels; mean over height and width; linear. Each convolution is followed by batch norm, and by ReLU6 except at the end
of a block. It is EfficientNet-B0 without channel attention, with ReLU6 instead of SiLU, so that eight-bit arithmetic
suits it.

Sources: Tan and Le, "EfficientNet: Rethinking model scaling for convolutional neural networks", 2019; Liu, "Higher
accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020. `carnet.models.pretrained` names the weights.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn


class Stage(NamedTuple):
    """Blocks of one width."""

    depth: int
    channels: int
    stride: int
    kernel_size: int
    expansion: int = 6


LITE0 = (
    Stage(1, 16, 1, 3, expansion=1),
    Stage(2, 24, 2, 3),
    Stage(2, 40, 2, 5),
    Stage(3, 80, 2, 3),
    Stage(3, 112, 1, 5),
    Stage(4, 192, 2, 5),
    Stage(1, 320, 1, 3),
)
_STEM, _FEATURES = 32, 1280


class SamePad(nn.Module):
    """Zeros around an image, as TensorFlow's padding SAME: of an odd number, the larger half is at right and bottom.

    The pretrained weights were trained with it. At a stride of one it is the usual padding.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W'), from which the convolution makes ceil(H / stride), ceil(W / stride)."""
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            total = max(0, (-(-side // self.stride) - 1) * self.stride + self.kernel_size - side)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)


def _convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Return a convolution with batch norm."""
    padding = 0 if stride > 1 else kernel_size // 2
    layers = nn.Sequential()
    if stride > 1:
        layers.add_module("pad", SamePad(kernel_size, stride))
    layers.add_module(
        "conv", nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    )
    layers.add_module("bn", nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01))
    return layers


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, narrow again; the input is added where the shape is equal."""

    def __init__(self, in_channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = in_channels * stage.expansion
        self.expand = _convolution(in_channels, wide, 1) if stage.expansion > 1 else None
        self.depthwise = _convolution(wide, wide, stage.kernel_size, stride, groups=wide)
        self.project = _convolution(wide, stage.channels, 1)
        self.has_shortcut = stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'); H' = ceil(H / stride)"""
        out = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(out)))
        return cast(Tensor, out + x if self.has_shortcut else out)


class EfficientNetLite(nn.Module):
    """Stem, stages of inverted residual blocks, features, mean, linear.

    Args:
        stages: the widths and depths.
        num_classes: number of outputs.
        in_channels: channels of the image.
    """

    def __init__(self, stages: tuple[Stage, ...], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = _convolution(in_channels, _STEM, 3, 2)
        self.stages = nn.Sequential()
        channels = _STEM
        for stage in stages:
            blocks = nn.Sequential()
            for number in range(stage.depth):
                blocks.append(InvertedResidual(channels, stage, 1 if number else stage.stride))
                channels = stage.channels
            self.stages.append(blocks)
        self.features = _convolution(channels, _FEATURES, 1)
        self.linear = nn.Linear(_FEATURES, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 1280, H / 32, W / 32), each side rounded up."""
        return F.relu6(self.features(self.stages(F.relu6(self.stem(x)))))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)"""
        features = F.adaptive_avg_pool2d(self.forward_features(x), 1).flatten(1)
        return cast(Tensor, self.linear(features))


def efficientnet_lite0(num_classes: int = 100, in_channels: int = 3) -> EfficientNetLite:
    """The one with pretrained weights: 3.5 M parameters at 100 classes, 385 M MACs at 224 px."""
    return EfficientNetLite(LITE0, num_classes, in_channels)
