"""The gate: a file that passes predicts as the trained network, and one that does not pass is not written."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import carnet
from carnet import Classifier, ExportResult, TrainedModel, TrainingConfig, export_model
from carnet.calibration import Calibration, calibrate
from carnet.data.find import find_images
from carnet.errors import ConfigError, DataError, GateError, OutputError, RunError
from carnet.export.exporter import sentences
from carnet.export.graph import Graph, to_graph
from carnet.export.quantize import MAX_ERROR, Quantized
from carnet.models.weights import load
from carnet.preprocess import load_image
from carnet.text import Silent
from carnet.training.run import train


@pytest.fixture(scope="session")
def graph(trained_run: Path) -> Graph:
    """The graph of `trained_run`; writing it takes seconds."""
    return to_graph(load(trained_run))


@pytest.fixture(scope="session")
def in_eight_bits(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export_model(trained_run, tmp_path_factory.mktemp("int8") / "m.onnx", int8=True, max_drop=30)


def test_what_it_leaves(trained_run: Path, tmp_path: Path) -> None:
    result = export_model(trained_run, tmp_path / "m.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.export.html", "m.export.json", "m.onnx"]
    numbers = json.loads((tmp_path / "m.export.json").read_text())
    metrics = numbers["metrics"]
    # A web page sees no more of the file than its inputs and outputs.
    assert (numbers["classes"], numbers["image_size"]) == (["blue", "green", "red"], 48)
    assert 0 <= numbers["threshold"] <= 2
    assert metrics["top1_agreement"] == 1
    assert metrics["num_images"] == 12
    assert metrics["size_bytes"] == pytest.approx(result.path.stat().st_size, abs=3000)
    document = Classifier(result.path).document
    assert document["metrics"]["top1"] == metrics["top1"]
    assert (
        document["training"]["data_hash"]
        == json.loads((trained_run / "config.json").read_text())["data"]["content_hash"]
    )
    for private in (str(trained_run), str(tmp_path), trained_run.parent.name):
        assert private not in result.path.read_bytes().decode("utf-8", "replace")
    page = result.report.read_text(encoding="utf-8")
    assert "Passed" in page
    assert "data:image/png" in page


def test_the_same_run_gives_the_same_network(trained_run: Path, tmp_path: Path) -> None:
    files = [export_model(trained_run, tmp_path / name).path for name in ("a.onnx", "b.onnx")]
    one, other = (Classifier(file).document for file in files)
    assert one["tests"] == other["tests"]
    assert one["temperature"] == other["temperature"]


def spoiled(graph: Graph, share: float) -> Graph:
    """The same, with a last bias that pushes towards the first class."""
    graph = graph.with_temperature(1.0)
    (bias,) = (tensor for tensor in graph.model.graph.initializer if tensor.name == "head.bias")
    values = numpy_helper.to_array(bias).copy()
    values[0] += share
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    return graph


@pytest.mark.parametrize(("share", "named"), [(100.0, "--max-drop"), (0.05, "0.001")])
def test_a_spoiled_model_is_refused(trained_run: Path, graph: Graph, tmp_path: Path, share: float, named: str) -> None:
    with pytest.raises(GateError, match=named) as caught:
        export_model(trained_run, tmp_path / "m.onnx", to_graph=lambda model: spoiled(graph, share))
    assert caught.value.exit_code == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.export.html", "m.export.json"]
    assert "Refused" in (tmp_path / "m.export.html").read_text()


def test_a_refused_model_leaves_the_one_before_alone(trained_run: Path, graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"the one before")
    with pytest.raises(GateError):
        export_model(trained_run, tmp_path / "m.onnx", to_graph=lambda model: spoiled(graph, 100.0))
    assert (tmp_path / "m.onnx").read_bytes() == b"the one before"


def test_a_failure_in_between_leaves_nothing(trained_run: Path, graph: Graph, tmp_path: Path) -> None:
    written = []

    def write(model: TrainedModel) -> Graph:
        written.append(model)
        return graph

    class FullDisk(Silent):
        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            if written:
                raise OutputError("the disk is full")

    with pytest.raises(OutputError):
        export_model(trained_run, tmp_path / "m.onnx", progress=FullDisk(), to_graph=write)
    assert list(tmp_path.iterdir()) == []


def test_the_gate_evaluates_with_the_edge_on_held_out_images(
    trained_run: Path, photos: Path, graph: Graph, tmp_path: Path
) -> None:
    result = export_model(trained_run, tmp_path / "m.onnx", to_graph=lambda model: graph)
    edge = result.gate_report.edge
    assert {sample.path for sample in edge.samples} == {sample.path for sample in find_images(photos).splits["valid"]}
    classifier = Classifier(result.path, threads=1)
    images = np.stack([load_image(sample.path, classifier.spec) for sample in edge.samples])
    np.testing.assert_array_equal(edge.logits, classifier.logits(images))
    assert not np.array_equal(edge.logits, result.gate_report.bench.logits)


def test_eight_bits(in_eight_bits: ExportResult, exported: Path) -> None:
    result = in_eight_bits
    assert result.quantized is not None
    assert len({str(one.variant) for one in result.quantized.tried}) == len(result.quantized.tried) >= 5
    assert result.path.stat().st_size < 0.6 * exported.stat().st_size
    assert result.gate_report.agreement > 0.6
    good = [one for one in result.quantized.tried if one.error <= MAX_ERROR]
    if good:
        assert result.quantized.chosen.latency_ms == min(one.latency_ms for one in good)
    else:
        assert result.quantized.chosen.error == min(one.error for one in result.quantized.tried)
    assert Classifier(result.path).document["arithmetic"].startswith("int8, per ")
    weights = [tensor for tensor in _initializers(result.path) if tensor.dtype == np.int8 and tensor.ndim == 4]
    assert weights
    # Seven bits, since eight overflow where VNNI is missing.
    assert all(np.abs(tensor.astype(int)).max() <= 64 for tensor in weights)
    page = result.report.read_text(encoding="utf-8")
    assert all(str(one.variant) in page for one in result.quantized.tried)


def _initializers(path: Path) -> list[np.ndarray]:
    return [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]


def test_a_refused_quantised_model_names_its_most_sensitive_layers(
    trained_run: Path, graph: Graph, in_eight_bits: ExportResult, tmp_path: Path
) -> None:
    found = in_eight_bits.quantized
    assert found is not None
    useless = replace(found, chosen=replace(found.chosen, graph=spoiled(found.chosen.graph, 100.0)))
    seen: list[int] = []

    def quantize(graph: Graph, images: np.ndarray, **_: object) -> Quantized:
        seen.append(len(images))
        return useless

    layers = "|".join(re.escape(f"{name} (") for name, _ in found.sensitivity[:3])
    with pytest.raises(GateError, match=layers):
        export_model(trained_run, tmp_path / "m.onnx", int8=True, to_graph=lambda model: graph, quantize=quantize)
    # The ranges come from the training images, not from the held-out ones.
    assert seen == [24]


def test_bad_arguments(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-drop"):
        export_model(trained_run, max_drop=-1)
    with pytest.raises(OutputError, match=r"model\.bin"):
        export_model(trained_run, tmp_path / "model.bin")
    with pytest.raises(OutputError, match="nowhere"):
        export_model(trained_run, tmp_path / "nowhere" / "m.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match=r"folder\.onnx"):
        export_model(trained_run, tmp_path / "folder.onnx")
    with pytest.raises(RunError, match="nothing"):
        export_model(tmp_path / "nothing")


def test_images_that_have_moved(photos: Path, tmp_path: Path) -> None:
    here = shutil.copytree(photos, tmp_path / "here")
    run = tmp_path / "run"
    train(here, TrainingConfig(model="carnet_n", image_size=32, epochs=1, batch_size=8), output=run)
    there = here.rename(tmp_path / "there")
    with pytest.raises(RunError, match=f"{re.escape(str(here))}.*--data"):
        export_model(run)
    assert export_model(run, data=there, max_drop=100).path == run / "model.onnx"


def test_training_images_among_the_held_out_ones_are_left_out(
    photos: Path, trained_run: Path, graph: Graph, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    shutil.copy(data / "train" / "red" / "0.jpg", data / "valid" / "red" / "9.jpg")
    result = export_model(trained_run, tmp_path / "m.onnx", data=data, max_drop=100, to_graph=lambda model: graph)
    gate = result.gate_report
    assert (gate.leaked, gate.edge.num_images, gate.bench.num_images) == (1, 11, 11)
    assert result.calibration == calibrate(gate.edge.logits, gate.edge.labels)
    assert Classifier(result.path).threshold == result.calibration.threshold


def test_a_class_that_came_later(flat: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(flat, TrainingConfig(model="carnet_n", image_size=32, epochs=1, batch_size=8), output=run)
    before = carnet.evaluate(run, flat)
    shutil.copytree(flat / "red", flat / "pink")
    after = carnet.evaluate(run, flat)
    assert after.samples == before.samples
    assert any("pink" in warning for warning in after.warnings)
    assert export_model(run, max_drop=100).gate_report.edge.num_images == before.num_images
    with pytest.raises(DataError, match="'pink'"):
        carnet.evaluate(run, flat, split="all")


def test_it_needs_images_to_evaluate_with(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(photos, TrainingConfig(model="carnet_n", image_size=32, epochs=1, batch_size=8), output=run)
    config = json.loads((run / "config.json").read_text())
    config["data"]["ignore"] = [str(sample.path) for sample in find_images(photos).splits["valid"][1:]]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"\b1 of 1\b"):
        export_model(run)


def test_a_run_is_not_evaluated_on_training_images(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "copied"
    shutil.copytree(photos / "train", data / "train")
    shutil.copytree(photos / "train", data / "valid")
    run = tmp_path / "run"
    train(data, TrainingConfig(model="carnet_n", image_size=32, epochs=1, batch_size=8), output=run)
    with pytest.raises(DataError, match=r"\b0 of 24\b"):
        export_model(run)
    assert not list(run.glob("*.onnx"))


def test_a_class_whose_name_is_no_utf_8(flat: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"d\xf6gs")
    try:
        (flat / "red").rename(flat / name)
    except OSError:
        pytest.skip("file names of this system are always UTF-8")
    run = tmp_path / "run"
    train(flat, TrainingConfig(model="carnet_n", image_size=32, epochs=1, batch_size=8), output=run)
    # The images held back of a folder without splits are found again.
    exported = export_model(run, max_drop=100)
    assert exported.gate_report.edge.num_images == 6
    assert name in Classifier(exported.path).classes


def test_a_model_without_errors_is_always_confident(in_eight_bits: ExportResult) -> None:
    always, at_half = (
        sentences(replace(in_eight_bits, calibration=Calibration(1.0, threshold))) for threshold in (0.0, 0.5)
    )
    assert len(always) == len(at_half)
    (sentence,), _ = (set(one) - set(other) for one, other in ((always, at_half), (at_half, always)))
    assert "%" not in sentence
