"""Batch norm computed as sums equals PyTorch's own when it is compiled."""

import copy

import pytest
import torch
from torch import nn

from carnet import create_model
from carnet.training.batch_norm import SummedBatchNorm2d, channel_sums, is_large, sum_batch_norms
from carnet.training.step import compiler_problem

needs_compiler = pytest.mark.skipif(bool(compiler_problem("cpu")), reason=compiler_problem("cpu"))


def both() -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(16)
    nn.init.uniform_(theirs.weight, 0.5, 2)
    nn.init.normal_(theirs.bias)
    ours = copy.deepcopy(theirs)
    assert sum_batch_norms(ours, compiled=True) == 1
    return ours, theirs


@needs_compiler
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_compiled_equal_to_pytorchs(offset: float) -> None:
    ours, theirs = both()
    torch.manual_seed(1)
    x = (torch.randn(6, 16, 7, 5) + offset).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(x.shape)
    compiled = torch.compile(ours, dynamic=False)
    results = []
    # The reference is in float64, because PyTorch's float32 is rounded as well.
    for module, pixels in ((compiled, x), (theirs.double(), x.double())):
        given = pixels.clone().requires_grad_()
        # As in the networks: in place, on the output of batch norm.
        output = torch.relu_(module(given))
        output.backward(grad.to(output.dtype))
        results.append([output.detach(), given.grad])
    results[0] += [ours.weight.grad, ours.bias.grad, *ours.buffers()]
    results[1] += [theirs.weight.grad, theirs.bias.grad, *theirs.buffers()]
    tolerance = 1e-4 if offset else 1e-5
    for one, other in zip(*results, strict=True):
        scale = max(1.0, float(other.abs().max()))
        assert torch.allclose(one.double(), other.double(), atol=tolerance * scale, rtol=0)


def test_it_is_pytorchs_unless_compiled() -> None:
    ours, theirs = both()
    x = torch.randn(4, 16, 5, 5)
    for train in (True, False):
        assert torch.equal(ours.train(train)(x), theirs.train(train)(x))


def test_modules_can_be_turned_back() -> None:
    network = create_model("carnet_n", num_classes=3)
    kinds = [type(module) for module in network.modules()]
    names = list(network.state_dict())
    number = sum_batch_norms(network, compiled=True)
    assert SummedBatchNorm2d in map(type, network.modules())
    assert list(network.state_dict()) == names
    assert sum_batch_norms(network, compiled=False) == number > 0
    assert [type(module) for module in network.modules()] == kinds


def test_batch_norms_without_running_averages_stay() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, momentum=None), nn.BatchNorm2d(4, track_running_stats=False)
    )
    assert sum_batch_norms(network, compiled=True) == 0


@pytest.mark.parametrize(("shape", "large"), [((3, 4, 5, 6), False), ((2, 8, 200, 180), True)])
def test_the_order_does_not_change_the_sums(shape: tuple[int, ...], large: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert is_large(x) == large
    torch.testing.assert_close(channel_sums(x), x.sum((0, 2, 3)))
