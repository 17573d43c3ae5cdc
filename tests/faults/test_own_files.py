"""Damaged or forged files of ours are refused with one line, or work like untouched ones."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from children import finished
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from runs import write_table
from safetensors.torch import load_file, save_file

import carnet
from carnet.cli.main import run as run_command
from carnet.documents import sealed
from carnet.errors import CarnetError, ModelFileError
from carnet.models.tensors import pack, read_metadata

HUGE = "7" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
RAW = "raw text"


def refused(capsys: pytest.CaptureFixture[str], named: str, *arguments: object) -> str:
    """Run a command that must fail with one line that names the file, and print nothing on standard output."""
    code = run_command([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    line = captured.err.splitlines()[-1]
    assert line.startswith("carnet: ")
    assert named in line
    assert "Traceback" not in captured.err
    return line


# Model files


@functools.cache
def document_of(content: bytes) -> dict[str, Any]:
    entries = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    document: dict[str, Any] = json.loads(entries["carnet"])
    return document


@functools.cache
def without_document(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    return model.SerializeToString()


def resealed(graph: bytes, text: str) -> bytes:
    """Make a model file with this document and a correct checksum."""

    def entry(key: str, value: str) -> bytes:
        return onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key=key, value=value)]).SerializeToString()

    described = graph + entry("carnet", text)
    return described + entry("carnet.sha256", hashlib.sha256(described).hexdigest())


def changed(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> str:
    """Return the text of a document with one value replaced; a tuple holds raw JSON."""
    document = copy.deepcopy(document)
    holder: Any = document
    for key in path[:-1]:
        holder = holder[key]
    raw = isinstance(value, tuple)
    holder[path[-1]] = RAW if raw else value
    text = json.dumps(document)
    return text.replace(json.dumps(RAW), value[0]) if raw else text


FORGED_DOCUMENTS: list[tuple[tuple[Any, ...], Any]] = [
    (("extra",), (DEEP,)),
    (("extra",), (HUGE,)),
    (("extra",), ("1e999",)),
    (("extra",), ("NaN",)),
    (("format",), -5),
    (("format",), 0),
    (("format",), True),
    (("format",), 1.5),
    (("format",), 99),
    (("model",), 7),
    (("classes",), "abc"),
    (("classes",), ["red", "green"]),
    (("classes",), ["a", "b", "c", "d"]),
    (("classes",), ["a", "a", "b"]),
    (("classes",), ["a", "b", 3]),
    (("classes",), {"a": 1, "b": 2, "c": 3}),
    (("classes",), None),
    (("image_size",), 100_000),
    (("image_size",), 10**18),
    (("image_size",), 40),
    (("image_size",), 48.0),
    (("image_size",), "48"),
    (("image_size",), 0),
    (("in_channels",), 1),
    (("in_channels",), 4),
    (("resize",), ["crop"]),
    (("resize",), "squash"),
    (("mean",), "abc"),
    (("mean",), [0.5, 0.5]),
    (("mean",), [0.5, 0.5, 1e300]),
    (("std",), [0.2, 0.2, 0]),
    (("temperature",), 0),
    (("temperature",), -1.0),
    (("temperature",), 1e-300),
    (("temperature",), None),
    (("temperature",), "1"),
    (("temperature",), [1.0]),
    (("temperature",), ("1e999",)),
    (("threshold",), ("NaN",)),
    (("threshold",), ("-Infinity",)),
    (("threshold",), -0.5),
    (("threshold",), 2),
    (("threshold",), True),
    (("map_centres",), "x"),
    (("map_centres",), []),
    (("map_centres",), {"a": 1}),
    (("map_centres",), [[1.0], [1.0]]),
    (("map_centres", 0), [["x"]]),
    (("map_centres", 1), None),
    (("map_centres", 0, 0), 1e300),
    (("map_centres", 0, 0), True),
    (("tests",), "x"),
    (("tests",), []),
    (("tests", 0), {}),
    (("tests", 0, "tolerance"), ("1e999",)),
    (("tests", 0, "tolerance"), 5),
    (("tests", 0, "tolerance"), "x"),
    (("tests", 0, "file"), 5),
    (("tests", 0, "probabilities"), []),
    (("tests", 0, "probabilities", 0), "x"),
    (("tests", 0, "probabilities", 0), 7),
]


@pytest.mark.parametrize(
    ("path", "value"), FORGED_DOCUMENTS, ids=[f"{path}-{str(value)[:12]}" for path, value in FORGED_DOCUMENTS]
)
def test_a_forged_document_is_refused_at_opening(
    path: tuple[Any, ...], value: Any, exported: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = exported.read_bytes()
    forged = tmp_path / "forged.onnx"
    forged.write_bytes(resealed(without_document(content), changed(document_of(content), path, value)))
    refused(capsys, "forged.onnx", "predict", forged, next(photos.glob("valid/*/*")), "--json")


@pytest.mark.parametrize("text", ["", "x", "[]", "null", '"x"', "7", "{}", DEEP])
def test_a_document_that_is_not_one_is_refused(
    text: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "forged.onnx").write_bytes(resealed(without_document(exported.read_bytes()), text))
    refused(capsys, "forged.onnx", "verify", tmp_path / "forged.onnx", "--json")


def test_a_resealed_document_opens_and_predicts_the_same(exported: Path, photos: Path) -> None:
    content = exported.read_bytes()
    again = carnet.Classifier(resealed(without_document(content), json.dumps(document_of(content))))
    image = next(photos.glob("valid/*/*"))
    assert again.predict(image) == carnet.Classifier(exported).predict(image)
    assert again.explain(image).label == again.predict(image).label


def test_openvino_checks_the_graph_against_the_document_too(exported: Path) -> None:
    pytest.importorskip("openvino")
    content = exported.read_bytes()
    graph, document = without_document(content), document_of(content)
    carnet.Classifier(resealed(graph, json.dumps(document)), runtime="openvino")
    for path, value in ((("image_size",), 40), (("classes",), ["a", "b"]), (("map_centres",), [[1.0], [1.0]])):
        with pytest.raises(CarnetError):
            carnet.Classifier(resealed(graph, changed(document | {"tests": []}, path, value)), runtime="openvino")


def test_an_invalid_graph_does_not_crash_the_process(exported: Path, tmp_path: Path) -> None:
    """OpenVINO alone would end it with a segmentation fault."""
    pytest.importorskip("openvino")
    content = exported.read_bytes()
    model = onnx.load_from_string(without_document(content))
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Conv"
    path = tmp_path / "forged.onnx"
    path.write_bytes(resealed(model.SerializeToString(), json.dumps(document_of(content))))
    code = "import sys, carnet; carnet.Classifier(sys.argv[1], runtime='openvino')"
    done = finished([sys.executable, "-c", code, str(path)])
    assert done.returncode == 1
    assert "ModelFileError" in done.stderr.splitlines()[-1]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**19), 10**19) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=30,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_document_is_used_or_refused(data: st.DataObject, exported: Path, photos: Path) -> None:
    content = exported.read_bytes()
    document = document_of(content)
    key = data.draw(st.sampled_from(sorted(document)))
    text = json.dumps(document | {key: data.draw(JSON_VALUES)})
    try:
        classifier = carnet.Classifier(resealed(without_document(content), text), threads=1)
    except CarnetError:
        return
    answer = classifier.predict(next(photos.glob("valid/*/*")))
    assert np.isfinite(answer.probabilities).all()
    assert 0 <= answer.probability <= 1.001


def test_endless_numbers_take_little_time(exported: Path) -> None:
    content = exported.read_bytes()
    graph, text = without_document(content), json.dumps(document_of(content))
    started = time.perf_counter()
    for length in (10, 256_000, 4_000_000):
        with pytest.raises(CarnetError):
            carnet.Classifier(resealed(graph + b"\xff" * length, text))
    assert time.perf_counter() - started < 4


def bad_graphs() -> dict[str, bytes]:
    """Models with a valid document whose graphs no runtime accepts."""
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 8, 8, 3])

    def model(*nodes: onnx.NodeProto, opset: int = 18) -> bytes:
        graph = helper.make_graph(list(nodes), "g", [pixels], [output])
        made = helper.make_model(graph, producer_name="carnet", opset_imports=[helper.make_opsetid("", opset)])
        return bytes(made.SerializeToString())

    return {
        "nothing": b"",
        "no such operator": model(helper.make_node("Nothing", ["pixels"], ["y"])),
        "no text": model(helper.make_node("Nothing", ["pixels"], ["y"])).replace(b"Nothing", b"N\xffthing"),
        "no such input": model(helper.make_node("Identity", ["x"], ["y"])),
        "wrong kind": model(helper.make_node("Conv", ["pixels", "pixels"], ["y"])),
        "newer": model(helper.make_node("Identity", ["pixels"], ["y"]), opset=999),
        "other outputs": model(
            helper.make_node("Cast", ["pixels"], ["y"], to=TensorProto.FLOAT),
        ),
        "wrong attribute": model(helper.make_node("Transpose", ["pixels"], ["y"], perm=[9, 9])),
        "wrong shapes": model(
            helper.make_node("Cast", ["pixels"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["f", "f"], ["y"]),
        ),
    }


def test_names_of_lengths_that_are_not_text_are_refused(exported: Path) -> None:
    content = exported.read_bytes()
    graph = without_document(content)
    assert b"batch" in graph
    with pytest.raises(ModelFileError):
        carnet.Classifier(resealed(graph.replace(b"batch", b"ba\xb7ch"), json.dumps(document_of(content))))


def test_nan_predictions_have_no_explanation(exported: Path, photos: Path) -> None:
    content = exported.read_bytes()
    model = onnx.load_from_string(without_document(content))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))
    classifier = carnet.Classifier(resealed(model.SerializeToString(), json.dumps(document_of(content))))
    with pytest.raises(ModelFileError):
        classifier.explain(next(photos.glob("valid/*/*")))


@settings(
    max_examples=100,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_any_graph_is_used_or_refused(place: float, byte: int, exported: Path, photos: Path) -> None:
    content = exported.read_bytes()
    graph = bytearray(without_document(content))
    # The structure lies at both ends; in between are weights.
    ends = [*range(4000), *range(len(graph) - 4000, len(graph))]
    graph[ends[int(place * len(ends))]] = byte
    try:
        classifier = carnet.Classifier(resealed(bytes(graph), json.dumps(document_of(content))), threads=1)
        classifier.predict(next(photos.glob("valid/*/*")))
    except ModelFileError:
        pass


SPEC = {
    "model": "carnet_n",
    "classes": ["a", "b"],
    "image_size": 8,
    "resize": "crop",
    "in_channels": 3,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "format": 1,
}


def test_a_bad_graph_prints_nothing_on_standard_output(tmp_path: Path) -> None:
    script = (
        "import sys; from carnet.cli.main import run\n"
        "print(*(run(['verify', name, '--json']) for name in sys.argv[1:]))"
    )
    paths = []
    for name, graph in bad_graphs().items():
        paths.append(tmp_path / f"{name}.onnx")
        paths[-1].write_bytes(resealed(graph, json.dumps(SPEC)))
    done = finished([sys.executable, "-c", script, *paths])
    assert done.stdout.split() == ["2"] * len(paths), done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == len(paths), done.stderr
    for path, line in zip(paths, lines):
        assert line.startswith("carnet: ")
        assert path.name in line


# Runs


@pytest.fixture
def copied(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "copied"))


FORGED_RECORDS: list[tuple[tuple[Any, ...], Any]] = [
    (("extra",), (DEEP,)),
    (("extra",), (HUGE,)),
    (("format",), 1),
    (("format",), 3),
    (("format",), "2"),
    (("format",), None),
    *((("requested", name), 0) for name in ("image_size", "epochs", "batch_size", "threads", "micro_batch")),
    (("requested", "lr"), ("1e999",)),
    (("requested", "lr"), ("NaN",)),
    (("requested", "epochs"), "3"),
    (("requested", "epochs"), True),
    (("requested", "precision"), "auto"),
    (("requested", "compile"), "on"),
    (("requested", "max_memory"), "much"),
    (("requested", "budget"), 7),
    (("requested", "model"), []),
    (("requested", "image_size"), 10**12),
    (("requested", "workers"), 10**9),
    (("requested", "seed"), None),
    (("requested", "momentum"), 0.9),
    (("requested",), []),
    (("requested",), None),
    (("resolved", "lr"), ("1e999",)),
    *((("resolved", name), 0) for name in ("image_size", "epochs", "batch_size", "num_steps", "micro_batch")),
    *(
        (("resolved", name), None)
        for name in ("image_size", "epochs", "cutmix", "valid_seed", "compile", "device_name")
    ),
    (("resolved", "threads"), "2"),
    (("resolved", "threads"), 0),
    (("resolved", "threads"), -1),
    (("resolved", "workers"), -1),
    (("resolved", "micro_batch"), 1.5),
    (("resolved", "initial_step_cost"), 0),
    (("resolved", "max_steps"), 0),
    (("resolved", "training_seconds"), -1),
    (("resolved", "step_seconds"), "long"),
    (("resolved", "recompute"), 2),
    (("resolved", "reasons"), "abc"),
    (("resolved", "reasons"), None),
    (("resolved", "matrix_gflops"), [1]),
    (("resolved", "compile"), "yes"),
    (("resolved", "device"), "tpu"),
    (("resolved", "muon_precision"), "fp8"),
    (("resolved", "luck"), 1),
    (("resolved",), "abc"),
    (("data", "path"), 7),
    (("data", "content_hash"), None),
    (("data", "ignore"), 7),
    (("data", "ignore"), [7]),
    (("versions",), [1]),
    (("versions", "torch"), 2),
    (("init",), 7),
    (("data",), None),
]
FORGED_RECORDS_OF_FORMAT_1: list[tuple[tuple[Any, ...], Any]] = [
    (("extra",), (DEEP,)),
    (("extra",), (HUGE,)),
    (("recipe", "lr"), ("1e999",)),
    (("recipe", "lr"), ("NaN",)),
    (("recipe", "epochs"), "3"),
    (("recipe", "epochs"), True),
    *((("recipe", name), 0) for name in ("image_size", "epochs", "batch_size")),
    (("recipe", "batch_size"), "many"),
    (("recipe", "model"), []),
    (("recipe", "image_size"), 10**12),
    (("recipe", "seed"), None),
    (("recipe", "compile"), []),
    (("recipe", "cache"), {}),
    (("recipe", "start_share"), "half"),
    (("recipe", "momentum"), 0.9),
    (("recipe",), []),
    (("recipe",), None),
    (("asked", "epochs"), "3"),
    (("asked", "seed"), None),
    (("asked", "precision"), []),
    (("asked",), []),
    (("asked",), None),
    (("plan", "threads"), "2"),
    (("plan", "threads"), 0),
    (("plan", "threads"), -1),
    (("plan", "workers"), -1),
    (("plan", "devices"), 0),
    (("plan", "devices"), "two"),
    (("plan", "micro_batch"), 0),
    (("plan", "micro_batch"), 1.5),
    (("plan", "first_cost"), 0),
    (("plan", "training_steps"), "many"),
    (("plan", "training_steps"), []),
    (("plan", "most_steps"), -1),
    (("plan", "training_seconds"), -1),
    (("plan", "reasons"), "abc"),
    (("plan", "reasons"), None),
    (("plan", "matrix_gflops"), [1]),
    (("plan", "compile"), "yes"),
    (("plan", "muon_precision"), "fp8"),
    (("plan", "luck"), 1),
    (("plan",), "abc"),
    (("plan",), [[1, 2, 3]]),
    (("plan",), None),
    (("data", "num_images", "train"), "many"),
    (("data", "num_images"), []),
    (("data", "path"), 7),
    (("versions",), [1]),
    (("init",), 7),
    (("data",), None),
]
CASES = [
    *((2, path, value) for path, value in FORGED_RECORDS),
    *((1, path, value) for path, value in FORGED_RECORDS_OF_FORMAT_1),
]


@functools.cache
def record_of_format_1() -> dict[str, Any]:
    """Return the `config.json` of a run of version 0.1.0."""
    with zipfile.ZipFile(Path(__file__).parents[1] / "fixtures" / "carnet-0.1.0.zip") as archive:
        record: dict[str, Any] = json.loads(archive.read("finished/config.json"))
    return record


@pytest.mark.parametrize(
    ("number", "path", "value"), CASES, ids=[f"{number}-{path}-{str(value)[:12]}" for number, path, value in CASES]
)
def test_a_forged_config_is_refused(
    number: int, path: tuple[Any, ...], value: Any, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in copied.glob("*.ckpt"):
        checkpoint.unlink()
    config = copied / "config.json"
    record = json.loads(config.read_text()) if number == 2 else record_of_format_1()
    config.write_text(changed(record, path, value))
    refused(capsys, "config.json", "train", "--resume", copied, "--json")


@pytest.mark.parametrize("name", ["requested", "resolved", "recipe", "asked", "plan", "data", "versions", "init"])
def test_a_config_that_lacks_a_part_is_refused(name: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in copied.glob("*.ckpt"):
        checkpoint.unlink()
    config = copied / "config.json"
    of_format_1 = name in ("recipe", "asked", "plan")
    record = record_of_format_1() if of_format_1 else json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in record.items() if key != name}))
    # The first versions did not record the requested settings. The data of this run is elsewhere.
    line = refused(capsys, "" if name == "asked" else "config.json", "train", "--resume", copied, "--json")
    assert name != "asked" or record["data"]["path"] in line


FORGED_RESULTS: list[tuple[tuple[Any, ...], Any]] = [
    (("extra",), (DEEP,)),
    (("seconds",), (HUGE,)),
    (("seconds",), ("1e999",)),
    (("seconds",), "7"),
    (("seconds",), -1),
    (("epochs",), 0),
    (("epochs",), [2]),
    (("num_images",), 7),
    (("num_images", "train"), "many"),
    (("final",), []),
    (("final", "valid_top1"), "high"),
    (("final", "valid_top1"), 70),
    (("notes",), 7),
    (("notes",), [7]),
    (("peak_memory_bytes",), "much"),
]


@pytest.mark.parametrize(
    ("path", "value"), FORGED_RESULTS, ids=[f"{path}-{str(value)[:12]}" for path, value in FORGED_RESULTS]
)
def test_a_forged_result_is_refused(
    path: tuple[Any, ...],
    value: Any,
    copied: Path,
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = changed(json.loads((copied / "result.json").read_text()), path, value)
    (copied / "result.json").write_text(text)
    refused(capsys, "result.json", "compare", copied, trained_run, "--output", tmp_path / "answer", "--json")


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "-1", "x", "", '"'])
def test_forged_metrics_are_refused(
    value: str, copied: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, first, *rest = (copied / "metrics.csv").read_text().splitlines()
    cells = first.split(",")
    cells[head.split(",").index("valid_top1")] = value
    (copied / "metrics.csv").write_text("\n".join([head, ",".join(cells), *rest]))
    refused(capsys, "metrics.csv", "compare", copied, trained_run, "--output", tmp_path / "answer", "--json")


FORGED_CHECKPOINTS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("state", ("extra",), (DEEP,)),
    ("state", ("epoch",), "1"),
    ("state", ("epoch",), -1),
    ("state", ("epoch",), 10**18),
    ("state", ("epoch",), (HUGE,)),
    ("state", ("step",), 1.5),
    ("state", ("step",), 3),
    ("state", ("num_steps",), 10**18),
    ("state", ("loss_sum",), ("1e999",)),
    ("state", ("loss_sum",), ("NaN",)),
    ("state", ("history",), {}),
    ("state", ("history",), [1, 2]),
    ("state", ("history", 0), {}),
    ("state", ("history", 0, "valid_top1"), "high"),
    ("state", ("history", 1, "seconds"), None),
    ("state", ("best",), []),
    ("state", ("best", "valid_loss"), "x"),
    ("state", ("planned_progress",), 7),
    ("state", ("planned_at",), 10**9),
    ("state", ("notes",), "abc"),
    ("state", ("precision",), []),
    ("record", ("format",), 7),
    ("record", ("resolved", "threads"), 0),
    ("record", ("resolved", "reasons"), 7),
    ("record", ("resolved", "epochs"), None),
    ("record", ("requested", "epochs"), "2"),
    ("record", ("requested", "lr"), ("1e999",)),
    ("record", ("data",), []),
    ("optimizer", (0,), []),
    ("optimizer", (0, "lr"), "x"),
    ("optimizer", (0, "params"), [7]),
    ("optimizer", (0, "betas"), 7),
]


@pytest.mark.parametrize(
    ("part", "path", "value"),
    FORGED_CHECKPOINTS,
    ids=[f"{part}-{path}-{str(value)[:12]}" for part, path, value in FORGED_CHECKPOINTS],
)
def test_a_forged_checkpoint_is_refused(
    part: str, path: tuple[Any, ...], value: Any, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = copied / "last.ckpt"
    (copied / "previous.ckpt").unlink()
    metadata = read_metadata(checkpoint.read_bytes())
    forged = metadata | {part: changed(json.loads(metadata[part]), path, value)}
    checkpoint.write_bytes(pack(load_file(checkpoint), forged))
    refused(capsys, "", "train", "--resume", copied, "--json")


@pytest.mark.parametrize(
    ("path", "value"),
    FORGED_RECORDS_OF_FORMAT_1,
    ids=[f"{path}-{str(value)[:12]}" for path, value in FORGED_RECORDS_OF_FORMAT_1],
)
def test_a_forged_checkpoint_of_format_1_is_refused(
    path: tuple[Any, ...], value: Any, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = copied / "last.ckpt"
    (copied / "previous.ckpt").unlink()
    forged = read_metadata(checkpoint.read_bytes()) | {"record": changed(record_of_format_1(), path, value)}
    checkpoint.write_bytes(pack(load_file(checkpoint), forged))
    refused(capsys, "last.ckpt", "train", "--resume", copied, "--json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(".step")},
        lambda tensors: {name: tensor.flatten()[:1] for name, tensor in tensors.items()},
        lambda tensors: tensors | {"optimizer.x.y": torch.zeros(1)},
        lambda tensors: tensors | {"optimizer.9999.exp_avg": torch.zeros(1)},
        lambda tensors: {},
    ],
)
def test_a_checkpoint_with_other_tensors_is_refused(
    damage: Callable[[dict[str, Any]], dict[str, Any]], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = copied / "last.ckpt"
    (copied / "previous.ckpt").unlink()
    metadata = read_metadata(checkpoint.read_bytes())
    checkpoint.write_bytes(pack(damage(load_file(checkpoint)), metadata))
    refused(capsys, "", "train", "--resume", copied, "--json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize(
    ("kind", "names"), [("pipe", ["last", "previous"]), ("device", ["last"]), ("sparse", ["last"])]
)
def test_a_pipe_or_device_in_place_of_a_checkpoint_counts_as_damaged(
    kind: str, names: list[str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The previous checkpoint is used instead; without one, both are named. Nothing waits for a pipe."""
    for checkpoint in (copied / f"{name}.ckpt" for name in names):
        checkpoint.unlink()
        if kind == "pipe":
            os.mkfifo(checkpoint)
        elif kind == "device":
            checkpoint.symlink_to("/dev/zero")
        else:
            checkpoint.touch()
            os.truncate(checkpoint, 40 * 10**9)
    resume = ["train", "--resume", str(copied), "--json"]
    if kind == "pipe":
        done = finished([sys.executable, "-m", "carnet", *resume])
        code, said = done.returncode, done.stderr
    else:
        code, said = run_command(resume), capsys.readouterr().err
    assert code == (2 if "previous" in names else 0)
    assert all(f"{name}.ckpt: " in said for name in names)
    assert "Traceback" not in said


def test_tensors_that_do_not_parse_are_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("last.ckpt", "model.safetensors"):
        path = copied / name
        header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    (copied / "previous.ckpt").unlink()
    refused(capsys, "last.ckpt", "train", "--resume", copied, "--json")
    refused(capsys, "model.safetensors", "evaluate", copied, "--json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "abc"),
        ("classes", ["a", "b"]),
        ("classes", [1, 2, 3]),
        ("image_size", 10**18),
        ("image_size", "48"),
        ("image_size", None),
        ("model", 7),
        ("model", "carnet_x"),
        ("model", "carnet_s"),
        ("mean", [0.5, 0.5, 1e300]),
        ("in_channels", 1),
    ],
)
def test_a_forged_description_is_refused(
    key: str, value: Any, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((copied / "model.json").read_text())
    del document["sha256"]
    (copied / "model.json").write_text(json.dumps(sealed(document | {key: value})))
    refused(capsys, "", "evaluate", copied, "--json")


# Checksums


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "data.csv"])
def test_every_change_of_a_runs_files_is_detected(name: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / name
    whole = path.read_bytes()
    places = (
        {*range(0, 40, 4), *range(0, len(whole), len(whole) // 20 + 1)} if name != "data.csv" else {*range(0, 999, 50)}
    )
    if name != "data.csv":
        # The name of the checksum entry itself.
        places.add(whole.index(b"sha256") + 2)
    for place in sorted(places):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CarnetError) as caught:
            carnet.evaluate(copied, "nowhere") if name == "data.csv" else carnet.load(copied)
        assert name in str(caught.value)
    path.write_bytes(whole)
    assert run_command(["evaluate", str(copied), "--json"]) == 0


def test_runs_without_checksums_are_read(
    trained_run: Path, copied: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(load_file(copied / "model.safetensors"), copied / "model.safetensors", {"format": "pt"})
    for name, key in (("model.json", "sha256"), ("config.json", "checksums")):
        document = json.loads((copied / name).read_text())
        del document[key]
        (copied / name).write_text(json.dumps(document))
    image = next(photos.glob("valid/*/*"))
    assert carnet.load(copied).predict(image) == carnet.load(trained_run).predict(image)
    assert run_command(["evaluate", str(copied), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_leaked"] == 0


def test_weights_and_description_of_different_epochs_are_read(copied: Path, photos: Path) -> None:
    """A kill between the two writes leaves such files."""
    weights = copied / "model.safetensors"
    before = carnet.load(copied)
    tensors = load_file(weights)
    tensors["linear.bias"] += torch.tensor([9.0, 0.0, 0.0])
    weights.write_bytes(pack(tensors, {"format": "pt"}))
    after = carnet.load(copied)
    image = next(photos.glob("valid/*/*"))
    assert after.spec == before.spec
    assert after.predict(image).label == after.spec.classes[0]
    assert after.predict(image) != before.predict(image)


def test_a_table_with_missing_cells_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, first, *rest = (copied / "data.csv").read_text().splitlines()
    write_table(copied, "\n".join([head, first.rpartition(",")[0], *rest]) + "\n")
    refused(capsys, "data.csv", "evaluate", copied, "--json")
