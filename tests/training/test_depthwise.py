"""Our gradient of depthwise convolutions equals PyTorch's own, compiled and not."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from carnet import create_model
from carnet.training.depthwise import DepthwiseConv2d, speed_up_depthwise
from carnet.training.step import compiler_problem

Gradients = tuple[torch.Tensor, ...]


def tensors(shape: tuple[int, ...], kernel: tuple[int, int], seed: int, dtype: torch.dtype) -> Gradients:
    torch.manual_seed(seed)
    x = torch.randn(shape).to(memory_format=torch.channels_last).to(dtype)
    return (
        x.requires_grad_(),
        torch.randn(shape[1], 1, *kernel).requires_grad_(),
        torch.randn(shape[1]).requires_grad_(),
    )


def differentiated(function: Any, inputs: Gradients, *geometry: Any) -> Gradients:
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    output = function(*inputs, *geometry)
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape).to(output.dtype))
    return output.detach(), *(tensor.grad for tensor in inputs)


def fast(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, stride: Any, padding: Any) -> torch.Tensor:
    module = DepthwiseConv2d(x.shape[1], x.shape[1], tuple(w.shape[2:]), stride, padding, groups=x.shape[1])
    return torch.func.functional_call(module, {"weight": w, "bias": b}, (x,))


def reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, stride: Any, padding: Any) -> torch.Tensor:
    return F.conv2d(x, w.to(x.dtype), b.to(x.dtype), stride, padding, groups=x.shape[1])


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(7, 19), st.integers(7, 19)),
    kernel=st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([3, 4, 7])),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    channels=st.sampled_from([2, 8, 17]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_equal_to_pytorchs(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    channels: int,
    dtype: torch.dtype,
) -> None:
    inputs = tensors((3, channels, *size), kernel, 0, dtype)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    for ours, theirs in zip(
        differentiated(fast, inputs, stride, padding),
        differentiated(reference, inputs, stride, padding),
        strict=True,
    ):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        scale = max(1.0, float(theirs.abs().max()))
        assert torch.allclose(ours.double(), theirs.double(), atol=tolerance * scale, rtol=0)


@pytest.mark.skipif(bool(compiler_problem("cpu")), reason=compiler_problem("cpu"))
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    # The last image is larger than a core's own cache.
    [(9, 3, 1, 0), (10, 3, 2, 0), (11, 3, 2, 1), (8, 3, 1, 1), (8, 5, 1, 2), (9, 5, 2, 2), (150, 3, 1, 1)],
)
def test_compiled_equal_to_pytorchs(size: int, kernel: int, stride: int, padding: int) -> None:
    theirs = nn.Conv2d(16, 16, kernel, stride, padding, groups=16)
    ours = copy.deepcopy(theirs)
    assert speed_up_depthwise(ours) == 1
    (x, *_) = tensors((2, 16, size, size), (kernel, kernel), 0, torch.float32)
    results = []
    for module, parameters in ((torch.compile(ours, dynamic=False), ours.parameters()), (theirs, theirs.parameters())):
        given = x.detach().clone().requires_grad_()
        output = module(given)
        torch.manual_seed(1)
        output.backward(torch.randn(output.shape))
        results.append([output.detach(), given.grad, *(parameter.grad for parameter in parameters)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * max(1.0, float(other.abs().max())), rtol=1e-4)


def test_a_network_has_equal_gradients_and_keeps_its_names() -> None:
    torch.manual_seed(0)
    network = create_model("carnet18", num_classes=3)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    fast = copy.deepcopy(network)
    assert speed_up_depthwise(fast) == 8
    assert list(fast.state_dict()) == list(network.state_dict())
    for one in (network, fast):
        F.cross_entropy(one(images), labels).backward()
    for (name, ours), (_, theirs) in zip(fast.named_parameters(), network.named_parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4 * float(theirs.grad.abs().max()) + 1e-6), name
    load = create_model("carnet18", num_classes=3)
    load.load_state_dict(fast.state_dict())
    assert not any(isinstance(module, DepthwiseConv2d) for module in load.modules())


def test_only_supported_convolutions_are_changed() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        nn.Conv2d(4, 4, 3, groups=4, padding="same"),
        nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 1, 3),
    )
    assert speed_up_depthwise(network) == 1


def test_convolutions_can_be_turned_back() -> None:
    network = create_model("carnet_n", num_classes=3)
    kinds = [type(module) for module in network.modules()]
    number = speed_up_depthwise(network)
    assert DepthwiseConv2d in map(type, network.modules())
    assert speed_up_depthwise(network, fast=False) == number > 0
    assert [type(module) for module in network.modules()] == kinds


def test_evaluation_and_exports_see_a_plain_convolution() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, groups=4)).eval()
    speed_up_depthwise(network)
    graph = torch.export.export(network, (torch.randn(1, 4, 9, 9),)).graph
    operations = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert operations == ["aten.conv2d.default"]
