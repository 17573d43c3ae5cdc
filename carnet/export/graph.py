"""Write a trained network as an ONNX graph that takes the pixels of an image as they are."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import onnx
import torch
import torch.nn.functional as F
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from carnet.edge.model_file import PRODUCER, seal
from carnet.edge.runtimes import CLASS_MAPS, LOGITS, PIXELS, PROBABILITIES
from carnet.errors import ModelError, is_out_of_memory
from carnet.models.class_maps import Features, map_centres, mean_and_linear_head
from carnet.models.weights import TrainedModel
from carnet.spec import ModelSpec

OPSET, IR_VERSION = 18, 8
"""Versions of ONNX 1.13; every ONNX Runtime from 1.14 on (early 2023) reads them."""
_TEMPERATURE = "temperature"


@dataclass(frozen=True)
class Graph:
    """A network in ONNX.

    Attributes:
        model: input `pixels`, uint8 (N, S, S, C); outputs `logits` and `probabilities` (N, classes), and `class_maps`
            (N, classes, h, w) where the network's head allows them.
        map_centres: where each row, and each column, of the class maps looks, in pixels of the input; None without
            class maps.
    """

    model: ModelProto
    map_centres: tuple[tuple[float, ...], tuple[float, ...]] | None

    def with_temperature(self, temperature: float) -> Graph:
        """Return a copy whose logits are divided by this temperature before softmax."""
        model = ModelProto()
        model.CopyFrom(self.model)
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == _TEMPERATURE)
        value = numpy_helper.to_array(tensor).copy()
        value[...] = temperature
        tensor.CopyFrom(numpy_helper.from_array(value, _TEMPERATURE))
        return Graph(model, self.map_centres)

    def sealed(self, document: Mapping[str, Any]) -> bytes:
        """Return the content of a model file with this document."""
        return seal(serialized(self.model), document)


def to_graph(trained: TrainedModel) -> Graph:
    """Write a network as ONNX: normalisation inside, batch norm folded, batches of any size.

    Raises:
        ModelError: if PyTorch cannot express it in ONNX.
    """
    spec = trained.spec
    network = copy.deepcopy(trained.network).cpu().eval().to(memory_format=torch.contiguous_format)
    head = mean_and_linear_head(network, spec)
    centres = None if head is None else map_centres(network, spec)
    pixels = torch.zeros(2, spec.image_size, spec.image_size, spec.in_channels, dtype=torch.uint8)
    try:
        with quiet():
            program = torch.onnx.export(
                _FromPixels(network, spec, head).eval(),
                (pixels,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[PIXELS],
                output_names=[LOGITS, PROBABILITIES] + ([] if head is None else [CLASS_MAPS]),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"PyTorch cannot write {spec.model} as ONNX: {str(error).strip().splitlines()[0]}") from error
    assert program is not None
    model = program.model_proto
    _pool_globally(model)
    _clean(model, spec)
    onnx.checker.check_model(model, full_check=True)
    return Graph(model, centres).with_temperature(1.0)


class _FromPixels(nn.Module):
    """uint8 pixels in; logits, probabilities and class maps out."""

    scale: Tensor
    shift: Tensor
    temperature: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec, head: nn.Linear | None) -> None:
        super().__init__()
        self.network = network
        self.head = head
        scale = torch.tensor([1 / (255 * std) for std in spec.std])
        shift = torch.tensor([-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)])
        before = copy.deepcopy(network)
        self.is_folded = _fold_into_stem(network, scale, shift)
        if self.is_folded and not _is_same(network, before, scale, shift, spec):
            # Pixels enter more than one layer, or are padded before the first one.
            self.network, self.is_folded = before, False
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])
        # Any number but one, for which the exporter would leave the division out.
        self.register_buffer(_TEMPERATURE, torch.tensor(2.0))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(N, S, S, C) -> (N, classes), (N, classes), (N, classes, h, w)"""
        # Contiguous; otherwise the exporter spells out how means of channels-last tensors are laid out, and, for one
        # channel, how the pixels are.
        images = pixels.permute(0, 3, 1, 2).float().clone(memory_format=torch.contiguous_format)
        if not self.is_folded:
            images = images * self.scale + self.shift
        if self.head is None:
            logits = self.network(images)
            return logits, (logits / self.temperature).softmax(dim=1)
        features = cast(Features, self.network.forward_features)(images)
        class_maps = F.conv2d(features, self.head.weight[:, :, None, None])
        logits = F.adaptive_avg_pool2d(class_maps, 1).flatten(1)
        if self.head.bias is not None:
            logits = logits + self.head.bias
        return logits, (logits / self.temperature).softmax(dim=1), class_maps


def _is_same(folded: nn.Module, network: nn.Module, scale: Tensor, shift: Tensor, spec: ModelSpec) -> bool:
    """Return whether a folded network answers to pixels as the other one to normalised images."""
    shape = (1, spec.in_channels, spec.image_size, spec.image_size)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()
    with torch.inference_mode():
        answer, expected = folded(pixels), network(pixels * scale[:, None, None] + shift[:, None, None])
    return torch.allclose(answer, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def _fold_into_stem(network: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """Fold the normalisation into the first convolution, and return whether that is possible.

    It is exact where nothing is padded before it: padding is 0 after the normalisation, the mean colour before it.
    """
    # The first layer of any kind, because a layer of its own may pad.
    first = next(module for module in network.modules() if not list(module.children()))
    # A subclass may pad in its own way (timm's Conv2dSame), or change its weights before it uses them.
    if type(first) is not nn.Conv2d or first.padding != (0, 0) or first.groups != 1 or first.in_channels != len(scale):
        return False
    with torch.no_grad():
        bias = torch.zeros(first.out_channels) if first.bias is None else first.bias
        first.bias = nn.Parameter(bias + (first.weight.sum(dim=(2, 3)) * shift).sum(dim=1))
        first.weight *= scale[:, None, None]
    return True


def _pool_globally(model: ModelProto) -> None:
    """Replace means over all positions by global average pooling, for which runtimes have a faster operator."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = sorted(int(axis) % 4 for axis in constants[node.input[1]].reshape(-1))
        keeps_dims = all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims")
        if axes == [2, 3] and keeps_dims:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _clean(model: ModelProto, spec: ModelSpec) -> None:
    """Remove what the exporter says about this machine and its own work, paths among it."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    del graph.value_info[:]
    names: set[str] = set()
    for number, node in enumerate(graph.node):
        # Name a layer as in the network, and everything else by a number: also what a layer's weight enters again.
        weight = next((name for name in node.input if name.endswith(".weight")), "")
        layer = weight.removeprefix("network.").removesuffix(".weight")
        name = layer or (CLASS_MAPS if CLASS_MAPS in node.output else "")
        node.name = name if name and name not in names else f"{node.op_type}_{number}"
        names.add(node.name)
    graph.name = spec.model
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = PRODUCER, ""
    model.domain = ""


def serialized(model: ModelProto) -> bytes:
    """Return the bytes of a model, in the order of its fields."""
    return bytes(model.SerializeToString(deterministic=True))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters and quantisers say about their own work; errors are still logged."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
