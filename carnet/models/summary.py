"""Count what a network costs: parameters, multiply-adds, bytes; strictly, and by the rules of the published tables.

The published totals come from torchinfo, whose rules differ from the field's use of the words: its "mult-adds" count
biases as multiplications and every parameter of other layers once, and its "forward/backward pass size" is twice the
outputs of convolution, batch-norm and linear layers in float32. Both are given here under names that say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from carnet.errors import ModelError, is_out_of_memory

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_COUNTED_ACTIVATIONS = (*_CONVOLUTIONS, nn.Linear, nn.modules.batchnorm._BatchNorm)


@dataclass
class LayerSummary:
    """One row of the layer tree, in the order in which the layers run."""

    name: str
    depth: int
    type: str
    output_shape: tuple[int, ...] = ()
    params: int = 0
    """Parameters of the layer and all layers inside it."""
    macs: int = 0
    """Multiply-accumulates of the layer's own convolution or matrix, biases left out."""


@dataclass
class ModelSummary:
    """What `carnet summary` prints; counts are for one image."""

    model: str
    num_classes: int
    input_shape: tuple[int, ...]
    params: int
    macs: int
    """Strict multiply-accumulates of all convolutions and linear layers."""
    published_mult_adds: int
    """Multiply-adds as the published tables count them."""
    weights_bytes: int
    """Parameters in float32."""
    activations_bytes: int
    """The published "forward/backward pass size"."""
    layers: list[LayerSummary] = field(default_factory=list)


def summarize(
    network: nn.Module, name: str, *, num_classes: int, image_size: int, in_channels: int = 3
) -> ModelSummary:
    """Run one zero image through the network and count.

    Raises:
        ModelError: if the network cannot take an image of that size.
    """
    summary = ModelSummary(name, num_classes, (1, in_channels, image_size, image_size), 0, 0, 0, 0, 0)
    with _recording(network, summary):
        check_image_size(network, name, image_size, in_channels)
    summary.params = sum(parameter.numel() for parameter in network.parameters())
    summary.weights_bytes = 4 * summary.params
    return summary


def check_image_size(network: nn.Module, name: str, image_size: int, in_channels: int = 3) -> None:
    """Try one image, so that a size the network cannot take is one sentence before any work starts.

    Raises:
        ModelError: naming the size.
    """
    smallest = getattr(network, "min_image_size", 1)
    if image_size < smallest:
        raise ModelError(f"{name} needs images of at least {smallest} px, got --image-size {image_size}")
    was_training = network.training
    parameter = next(network.parameters())
    try:
        with torch.inference_mode():
            images = torch.zeros(1, in_channels, image_size, image_size, dtype=parameter.dtype)
            network.eval()(images.to(parameter.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{name} cannot take images of {image_size} px: {error}") from error
    finally:
        network.train(was_training)


def check_single_image(network: nn.Module, image_size: int, in_channels: int, flag: str) -> None:
    """Try to train on one image, which batch norm cannot where it sees a single position.

    Raises:
        ModelError: naming the flag that asked for it.
    """
    was_training = network.training
    try:
        with torch.inference_mode():
            network.train()(torch.zeros(1, in_channels, image_size, image_size))
    except ValueError as error:
        raise ModelError(f"{flag} is too few for batch norm at --image-size {image_size}; take 2 or more") from error
    finally:
        network.train(was_training)


@contextmanager
def _recording(network: nn.Module, summary: ModelSummary) -> Iterator[None]:
    rows: dict[nn.Module, LayerSummary] = {}
    handles = []
    for path, module in network.named_modules():
        depth = path.count(".") + 1 if path else 0
        row = LayerSummary(path, depth, type(module).__name__)
        row.params = sum(parameter.numel() for parameter in module.parameters())
        rows[module] = row

    def enter(module: nn.Module, inputs: Any) -> None:
        summary.layers.append(rows[module])

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            rows[module].output_shape = tuple(output.shape)
            _count(module, output, rows[module], summary)

    for module in rows:
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _count(module: nn.Module, output: Tensor, row: LayerSummary, summary: ModelSummary) -> None:
    own_params = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    if isinstance(module, _CONVOLUTIONS):
        positions = output[0, 0].numel()
        row.macs = module.weight.numel() * positions
        summary.published_mult_adds += own_params * positions
    elif isinstance(module, nn.Linear):
        row.macs = module.weight.numel() * (output.numel() // module.out_features)
        summary.published_mult_adds += own_params
    else:
        summary.published_mult_adds += own_params
    summary.macs += row.macs
    if isinstance(module, _COUNTED_ACTIVATIONS):
        summary.activations_bytes += 2 * 4 * output.numel()
