"""The published networks, to the last parameter: tests/golden holds the published tables and reference outputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carnet.models.registry import create_model
from carnet.models.summary import summarize

GOLDEN = Path(__file__).parents[1] / "golden"
TABLES = json.loads((GOLDEN / "layer_tables.json").read_text())
OUTPUTS = json.loads((GOLDEN / "golden_outputs.json").read_text())
NAMES = ("carnet18", "resnet18")


@pytest.mark.parametrize("name", NAMES)
def test_layer_table(name: str) -> None:
    network = create_model(name, num_classes=100)
    summary = summarize(network, name, num_classes=100, image_size=244)
    rows = [row for row in summary.layers if row.depth <= 3]
    published = TABLES[name]["rows"]
    assert len(rows) == len(published)
    for row, (depth, type_, shape, params) in zip(
        rows[1:], [(r["depth"], r["type"], r["output_shape"], r["params"]) for r in published[1:]], strict=True
    ):
        assert (row.depth, row.type, list(row.output_shape)) == (depth, type_, shape)
        if params is not None:
            assert row.params == params
    assert list(rows[0].output_shape) == published[0]["output_shape"]


@pytest.mark.parametrize(
    ("name", "params", "macs", "mult_adds"),
    [
        ("carnet18", 653_376, 1_600_720_576, 1_625_914_880),
        ("resnet18", 11_217_444, 32_550_327_296, 32_550_334_308),
    ],
)
def test_totals(name: str, params: int, macs: int, mult_adds: int) -> None:
    summary = summarize(create_model(name, num_classes=100), name, num_classes=100, image_size=244)
    assert (summary.params, summary.macs, summary.published_mult_adds) == (params, macs, mult_adds)
    totals = TABLES[name]["totals"]
    assert summary.weights_bytes == 4 * params
    assert round(summary.weights_bytes / 1e6, 2) == totals["Params size [MB]"]
    assert round(summary.activations_bytes / 1e6, 2) == totals["Forward/backward pass size [MB]"]
    assert round(summary.published_mult_adds / 1e9, 2) == totals["Total mult-adds [Units.GIGABYTES]"]


def fill(network: nn.Module) -> None:
    """Weights by the reference's formula."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(network.named_parameters()):
            k = np.arange(parameter.numel(), dtype=np.float64)
            if parameter.dim() > 1:
                fan = parameter.numel() / parameter.shape[0]
                values = np.sin(0.37 * k + 0.11 * i) * 1.6 / np.sqrt(fan)
            else:
                values = 0.1 * np.cos(0.53 * k + 0.07 * i) + (1.0 if name.endswith("weight") else 0.0)
            rounded = torch.from_numpy(values.astype(np.float32)).double()
            parameter.copy_(rounded.reshape(parameter.shape))


def golden_input() -> Tensor:
    k = np.arange(2 * 3 * 64 * 64, dtype=np.float64)
    values = np.cos(0.013 * k + 0.5 * np.sin(0.0007 * k)).astype(np.float32)
    return torch.from_numpy(values).double().reshape(2, 3, 64, 64)


@pytest.mark.parametrize("name", NAMES)
def test_golden_outputs(name: str) -> None:
    golden: dict[str, Any] = OUTPUTS[name]
    network = create_model(name, num_classes=100).double()
    named = [[n, list(p.shape)] for n, p in network.named_parameters()]
    assert named == golden["parameters"]
    fill(network)
    images = golden_input()
    with torch.no_grad():
        torch.testing.assert_close(
            network.eval()(images), torch.tensor(golden["eval_logits"]).double(), rtol=1e-6, atol=1e-6
        )
    logits = network.train()(images)
    torch.testing.assert_close(logits, torch.tensor(golden["train_logits"]).double(), rtol=1e-6, atol=1e-6)
    loss = F.cross_entropy(logits, torch.tensor([3, 97]))
    assert loss.item() == pytest.approx(golden["train_loss"], rel=1e-6)
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in network.parameters() if p.grad is not None))
    assert norm.item() == pytest.approx(golden["grad_norm"], rel=1e-6)
