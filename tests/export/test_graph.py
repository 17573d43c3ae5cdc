"""The graph: the same network, with normalisation inside and nothing of this machine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import carnet
from carnet.edge.model_file import ModelFile, seal
from carnet.edge.runtimes import open_runtime
from carnet.export.graph import IR_VERSION, OPSET, Graph, map_centres, mean_and_linear_head, serialized, to_graph
from carnet.models.weights import TrainedModel
from carnet.spec import ModelSpec


def model_of(name: str, size: int, in_channels: int = 3) -> TrainedModel:
    torch.manual_seed(0)
    network = carnet.create_model(name, num_classes=4, in_channels=in_channels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # As after training: neither zero nor one.
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    classes = ("a", "b", "c", "d")
    values = {1: (0.4,), 3: (0.4, 0.5, 0.6), 4: (0.4, 0.5, 0.6, 0.5)}[in_channels]
    spec = ModelSpec(
        model=name, classes=classes, image_size=size, in_channels=in_channels, mean=values, std=(0.2,) * in_channels
    )
    return TrainedModel(network, spec)


@cache
def exported(name: str, size: int, in_channels: int = 3) -> tuple[TrainedModel, Graph]:
    """Exporting takes seconds, and tests only read what comes out."""
    model = model_of(name, size, in_channels)
    return model, to_graph(model)


CASES = [
    ("carnet_s", 64, 3),
    ("carnet_n", 50, 1),
    ("carnet18", 64, 3),
    pytest.param("resnet18", 64, 4, marks=pytest.mark.slow),
    ("timm/resnet18", 64, 3),
    ("timm/mobilenetv3_small_050", 64, 3),
]


@pytest.mark.parametrize(("name", "size", "in_channels"), CASES)
def test_it_answers_as_pytorch_does(name: str, size: int, in_channels: int) -> None:
    model, graph = exported(name, size, in_channels)
    file = ModelFile.from_bytes(seal(serialized(graph.model), model.spec.to_json()))
    run = open_runtime(file, "onnxruntime", 1)
    rng = np.random.default_rng(0)
    for number in (1, 3):
        images = rng.integers(0, 256, (number, size, size, in_channels), np.uint8)
        expected = model.logits(images)
        outputs = run(images)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4 * scale)
        assert outputs["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert ("class_maps" in outputs) == (graph.map_centres is not None)
    has_maps = name != "timm/mobilenetv3_small_050"
    assert (graph.map_centres is not None) == has_maps
    kinds = [node.op_type for node in graph.model.graph.node]
    # ResNet-18 as published begins its blocks with batch norm, which no convolution precedes.
    if not name.startswith("resnet"):
        assert "BatchNormalization" not in kinds
    assert "ReduceMean" not in kinds or name.startswith("timm/mobilenet")


def test_what_the_file_says_of_itself_and_what_not() -> None:
    model = exported("carnet_s", 64, 3)[1].model
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    content = serialized(model)
    assert b"carnet" in content[:16]
    for trace in (b".py", b"site-packages", b"torch", str(Path.home()).encode(), b"stack_trace"):
        assert trace not in content, trace
    pixels, *_ = model.graph.input
    batch, *rest = pixels.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [dim.dim_value for dim in rest] == [64, 64, 3]
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_patches_take_the_normalisation_in_and_padding_does_not() -> None:
    def has_arithmetic_before_the_stem(name: str) -> bool:
        nodes = exported(name, 64, 3)[1].model.graph.node
        kinds = [node.op_type for node in nodes]
        return bool({"Mul", "Add", "Sub", "Div"} & set(kinds[: kinds.index("Conv")]))

    assert not has_arithmetic_before_the_stem("carnet_s")
    assert has_arithmetic_before_the_stem("carnet18")


def test_temperature_is_a_number_in_the_graph() -> None:
    model, plain = exported("carnet_s", 64, 3)
    graph = plain.with_temperature(2.5)
    file = ModelFile.from_bytes(seal(serialized(graph.model), model.spec.to_json()))
    outputs = open_runtime(file, "onnxruntime", 1)(np.full((1, 64, 64, 3), 90, np.uint8))
    cooled = np.exp(outputs["logits"] / 2.5)
    np.testing.assert_allclose(outputs["probabilities"], cooled / cooled.sum(), atol=1e-6)


def test_centres_of_unpadded_networks_lie_in_the_middle() -> None:
    model = model_of("carnet18", 64)
    rows, columns = map_centres(model.network, model.spec)
    assert rows == columns
    steps = np.diff(rows)
    # Three strides of two, none of them padded: by the arithmetic of receptive fields.
    first = 2 + 1 + 1 * 2 + 1 * 2 + 1 * 4 + 1 * 4 + 1 * 8
    assert rows[0] == pytest.approx(first, abs=0.51)
    assert steps == pytest.approx([8] * len(steps), abs=0.01)


def test_centres_of_padded_networks_cover_the_image() -> None:
    model = model_of("carnet_s", 128)
    rows, _ = map_centres(model.network, model.spec)
    assert len(rows) == 4
    assert rows[0] < 32 < rows[1] < 64 < rows[2] < 96 < rows[3]


def test_a_head_that_is_more_than_mean_and_linear_has_no_maps() -> None:
    model = model_of("carnet_s", 64)
    assert mean_and_linear_head(model.network, model.spec) is not None
    right = model.network.forward
    model.network.forward = lambda x: 2 * right(x)  # type: ignore[method-assign]
    assert mean_and_linear_head(model.network, model.spec) is None


@pytest.mark.parametrize(
    ("name", "first"),
    # At a stride of two, padding alike on both sides centres on the first pixel. SAME puts the odd zero of an even side
    # at its end: 1 + 2 + 4 + 8 + 16 pixels later.
    [("timm/efficientnet_b0", 0), ("efficientnet_lite0", 31)],
)
def test_centres_follow_padding_whatever_cuts_activations_off(name: str, first: int) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    model = model_of(name, 256)
    rows, columns = map_centres(model.network, model.spec)
    assert rows == columns
    assert rows == pytest.approx([first + 32 * k for k in range(8)], abs=0.2)


def test_centres_of_networks_that_take_no_means_divide_the_image() -> None:
    pytest.importorskip("timm")
    model = model_of("timm/botnet26t_256", 256)
    rows, columns = map_centres(model.network, model.spec)
    assert rows == columns == tuple(15.5 + 32 * k for k in range(8))


def test_normalisation_stays_before_a_convolution_that_pads_in_its_own_way() -> None:
    pytest.importorskip("timm")
    model = model_of("timm/tf_efficientnet_b0", 64)
    graph = to_graph(model)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    file = ModelFile.from_bytes(seal(serialized(graph.model), model.spec.to_json()))
    expected = model.logits(image)
    np.testing.assert_allclose(
        open_runtime(file, "onnxruntime", 1)(image)["logits"], expected, atol=1e-4 * np.abs(expected).max()
    )
