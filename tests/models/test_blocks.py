import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carnet.errors import ModelError
from carnet.models.blocks import ChannelAttention, GroupConvBlock


def test_channel_attention_is_squeeze_and_excitation() -> None:
    """Against the definition, written in numpy."""
    torch.manual_seed(0)
    layer = ChannelAttention(32, reduction=8).double()
    x = torch.randn(2, 32, 5, 7, dtype=torch.float64)
    w1, b1, w2, b2 = (p.detach().numpy().reshape(p.shape[0], -1) for p in layer.parameters())
    squeezed = x.numpy().mean(axis=(2, 3))
    hidden = np.maximum(squeezed @ w1.T + b1[:, 0], 0)
    weights = 1 / (1 + np.exp(-(hidden @ w2.T + b2[:, 0])))
    np.testing.assert_allclose(layer(x).detach().numpy(), x.numpy() * weights[:, :, None, None], rtol=1e-12)


def test_few_channels_keep_one_inside() -> None:
    assert ChannelAttention(8).fc1.out_channels == 1


def test_published_text_example_has_a_64th_of_the_weights() -> None:
    full = GroupConvBlock(256, 256, groups=1).conv1.weight.numel()
    assert GroupConvBlock(256, 256, groups=64).conv1.weight.numel() * 64 == full


def test_defaults_are_the_published_code() -> None:
    block = GroupConvBlock(64, 128, 2)
    assert (block.conv1.groups, block.conv1.padding, block.shortcut) == (64, (0, 0), None)


@settings(max_examples=30)
@given(
    in_channels=st.sampled_from([16, 24]),
    out_channels=st.sampled_from([16, 48]),
    stride=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([None, 1, 4, 8]),
    height=st.integers(3, 12),
    width=st.integers(3, 12),
)
def test_residual_keeps_the_size(
    in_channels: int, out_channels: int, stride: int, groups: int | None, height: int, width: int
) -> None:
    block = GroupConvBlock(in_channels, out_channels, stride, groups=groups, residual=True).eval()
    shape = block(torch.zeros(1, in_channels, height, width)).shape
    assert shape == (1, out_channels, -(-height // stride), -(-width // stride))
    plain = GroupConvBlock(in_channels, out_channels, stride, groups=groups).eval()
    shape = plain(torch.zeros(1, in_channels, height, width)).shape
    assert shape == (1, out_channels, (height - 3) // stride + 1, (width - 3) // stride + 1)


def test_residual_adds_the_input() -> None:
    block = GroupConvBlock(16, 16, residual=True).eval()
    x = torch.randn(1, 16, 6, 6)
    inner = block.conv2(block.attn(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), inner + x)


@pytest.mark.parametrize("groups", [0, 3, 17, 32])
def test_groups_that_do_not_divide(groups: int) -> None:
    with pytest.raises(ModelError, match=rf"\b{groups}\b.*\b16\b"):
        GroupConvBlock(16, 16, groups=groups)
