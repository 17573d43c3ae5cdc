"""Count what a network costs: parameters, multiply-adds and bytes, strictly and by the rules of the published tables.

The published totals come from torchinfo, whose rules differ from the field's use of the words: its "mult-adds" count
biases as multiplications and every parameter of other layers once, and its "forward/backward pass size" is twice the
outputs of convolution, batch-norm and linear layers in float32. Both are given here under names that say so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from carnet.errors import ModelError, is_out_of_memory
from carnet.models.registry import create_model, default_image_size

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
    """Multiply-accumulates of the layer's own convolution or matrix, without biases."""


@dataclass
class ModelSummary:
    """The costs of a network, as `carnet summary` prints them; counts are for one image."""

    model: str
    num_classes: int
    input_shape: tuple[int, ...]
    params: int
    macs: int = 0
    """Strict multiply-adds (MACs) of all convolutions and linear layers."""
    published_mult_adds: int = 0
    """Multiply-adds as the published tables count them."""
    weights_bytes: int = 0
    """Parameters in float32."""
    activations_bytes: int = 0
    """The published "forward/backward pass size"."""
    layers: list[LayerSummary] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the document that `carnet summary --json` prints."""
        return asdict(self)


def summarize(
    network: nn.Module | str,
    name: str = "",
    *,
    num_classes: int = 100,
    image_size: int | None = None,
    in_channels: int = 3,
) -> ModelSummary:
    """Run one zero image through a network and count, as `carnet summary` does.

    Args:
        network: a network, or the name of one, as `create_model` takes it.
        name: what to call a network that is not given by its name; empty: its class.
        num_classes: number of outputs.
        image_size: side of the square input, in pixels; None: the size that the name stands for.
        in_channels: channels of the input.

    Raises:
        ModelError: if the name is unknown, or the network cannot take an image of that size.
        MissingExtraError: for a timm model without timm.
    """
    if isinstance(network, str):
        name, network = network, create_model(network, num_classes=num_classes, in_channels=in_channels)
    name = name or type(network).__name__
    image_size = image_size or default_image_size(name)
    params = sum(parameter.numel() for parameter in network.parameters())
    summary = ModelSummary(name, num_classes, (1, in_channels, image_size, image_size), params)
    summary.weights_bytes = 4 * params
    handles = []
    for path, module in network.named_modules():
        row = LayerSummary(path, path.count(".") + 1 if path else 0, type(module).__name__)
        row.params = sum(parameter.numel() for parameter in module.parameters())
        handles.append(module.register_forward_pre_hook(lambda *_, row=row: summary.layers.append(row)))
        handles.append(module.register_forward_hook(partial(_count, summary, row)))
    try:
        check_image_size(network, name, image_size, in_channels)
    finally:
        for handle in handles:
            handle.remove()
    return summary


def _count(summary: ModelSummary, row: LayerSummary, module: nn.Module, inputs: Any, output: Any) -> None:
    """Count a layer that has run, as a forward hook."""
    if not isinstance(output, Tensor):
        return
    row.output_shape = tuple(output.shape)
    repeats = 1
    if isinstance(module, _CONVOLUTIONS):
        repeats = output[0, 0].numel()
        row.macs = module.weight.numel() * repeats
    elif isinstance(module, nn.Linear):
        row.macs = module.weight.numel() * (output.numel() // module.out_features)
    summary.macs += row.macs
    summary.published_mult_adds += repeats * sum(parameter.numel() for parameter in module.parameters(recurse=False))
    if isinstance(module, _COUNTED_ACTIVATIONS):
        summary.activations_bytes += 2 * 4 * output.numel()


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
    """Try to train on one image, which batch norm cannot do where it sees a single position.

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
