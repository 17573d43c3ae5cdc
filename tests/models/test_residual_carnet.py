"""The second generation: sizes as promised, blocks that begin as their shortcut, images of every size and depth."""

import numpy as np
import pytest
import torch
from torch import nn

from carnet import create_model
from carnet.models.blocks import ChannelAttention
from carnet.models.registry import default_image_size
from carnet.models.residual_carnet import ResidualBlock
from carnet.models.summary import summarize

FAMILY = {"carnet_n": (200_000, 12e6), "carnet_s": (660_000, 35e6), "carnet_m": (2_500_000, 130e6)}


@pytest.mark.parametrize("name", FAMILY)
def test_costs_no_more_than_promised(name: str) -> None:
    network = create_model(name, num_classes=100)
    size = default_image_size(name)
    summary = summarize(network, name, num_classes=100, image_size=size)
    params, macs = FAMILY[name]
    assert 0.8 * params < summary.params <= params
    assert 0.7 * macs < summary.macs <= macs


def test_a_block_begins_as_its_shortcut() -> None:
    x = torch.randn(2, 4, 6, 6)
    same = ResidualBlock(4, 4)
    assert torch.equal(same(x), x)
    halving = ResidualBlock(4, 8, stride=2)(x)
    means = x.view(2, 4, 3, 2, 3, 2).mean(dim=(3, 5))
    torch.testing.assert_close(halving, torch.cat([means, means], dim=1))


def test_channels_are_weighed_in_the_last_two_stages() -> None:
    network = create_model("carnet_s", num_classes=3)
    weighing = [name for name, module in network.named_modules() if isinstance(module, ChannelAttention)]
    assert weighing == ["stages.2.0.attn", "stages.2.1.attn", "stages.3.0.attn", "stages.3.1.attn"]


def test_a_block_adds_what_numpy_computes() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(16, 16).eval().double()
    nn.init.normal_(block.bn2.weight)
    x = torch.randn(1, 16, 5, 5, dtype=torch.float64)
    pixels = np.pad(x[0].numpy(), ((0, 0), (1, 1), (1, 1)))
    kernel = block.conv1.weight.detach().numpy()[:, 0]
    around = sum(kernel[:, i, j, None, None] * pixels[:, i : i + 5, j : j + 5] for i in range(3) for j in range(3))
    seen = np.maximum(around / np.sqrt(1 + 1e-5), 0)
    fc1, fc2 = (layer.weight.detach().numpy()[:, :, 0, 0] for layer in (block.attn.fc1, block.attn.fc2))
    bias1, bias2 = (layer.bias.detach().numpy() for layer in (block.attn.fc1, block.attn.fc2) if layer.bias is not None)
    weights = 1 / (1 + np.exp(-(fc2 @ np.maximum(fc1 @ seen.mean((1, 2)) + bias1, 0) + bias2)))
    mixed = np.einsum("oc,chw->ohw", block.conv2.weight.detach().numpy()[:, :, 0, 0], weights[:, None, None] * seen)
    expected = x[0].numpy() + block.bn2.weight.detach().numpy()[:, None, None] * mixed / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(block(x)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [4, 5, 33, 100, 129])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_size_and_depth_of_image(size: int, channels: int) -> None:
    network = create_model("carnet_n", num_classes=7, in_channels=channels).eval()
    assert network(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_a_map_of_classes_whose_mean_is_the_logits() -> None:
    network = create_model("carnet_n", num_classes=5).eval()
    x = torch.randn(2, 3, 96, 96)
    maps = torch.einsum("kc,nchw->nkhw", network.linear.weight, network.forward_features(x))
    torch.testing.assert_close(maps.mean((2, 3)) + network.linear.bias, network(x), rtol=1e-4, atol=1e-5)
