"""Tests that need a GPU; CONTRIBUTING.md has the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import StopAt, same_weights
from safetensors.torch import load_file

from carnet import TrainingConfig, evaluate
from carnet.errors import StoppedError
from carnet.text import Silent
from carnet.training.run import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and CARNET_TEST_GPU=1")

SMALL = TrainingConfig(
    model="carnet_n", image_size=64, epochs=2, batch_size=8, device="cuda", precision="fp32", compile=False
)


def test_a_run_records_the_gpu_and_its_peak_memory(photos: Path, tmp_path: Path) -> None:
    result = train(photos, SMALL, output=tmp_path / "run", progress=Silent())
    plan = json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]
    assert (plan["device"], plan["device_name"]) == ("cuda", torch.cuda.get_device_name())
    assert result.document["peak_device_bytes"] > 2**20
    assert (tmp_path / "run" / "batch.png").stat().st_size > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["carnet_n", "carnet18"])
def test_a_stopped_run_ends_with_the_same_weights(model: str, precision: str, photos: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, model=model, precision=precision, fast_depthwise=True)
    train(photos, recipe, output=tmp_path / "whole", progress=Silent())
    with pytest.raises(StoppedError):
        train(photos, recipe, output=tmp_path / "run", progress=StopAt("epoch 2/2", 1))
    train(resume=tmp_path / "run", progress=Silent())
    assert same_weights(tmp_path / "whole", tmp_path / "run")


def test_initial_weights_are_the_same_as_on_a_cpu(photos: Path, tmp_path: Path) -> None:
    """The first layer is whitened with augmented images, wherever they are augmented."""
    still = replace(SMALL, epochs=1, lr=1e-30, weight_decay=0.0)
    weights = []
    for device in ("cuda", "cpu"):
        run = train(photos, replace(still, device=device), output=tmp_path / device, progress=Silent()).run
        weights.append(load_file(run / "model.safetensors")["stem.0.weight"])
    torch.testing.assert_close(*weights)


def test_evaluation_gives_the_same_as_on_a_cpu(photos: Path, tmp_path: Path) -> None:
    run = train(photos, SMALL, output=tmp_path / "run", progress=Silent()).run
    on_gpu, on_cpu = (evaluate(run, photos, device=device) for device in ("cuda", "cpu"))
    assert np.allclose(on_gpu.probabilities, on_cpu.probabilities, atol=1e-3)


def test_a_compiled_network_trains_on_a_gpu(photos: Path, tmp_path: Path) -> None:
    run = train(photos, replace(SMALL, compile=True), output=tmp_path / "run", progress=Silent()).run
    assert json.loads((run / "config.json").read_text())["resolved"]["compile"] is True
