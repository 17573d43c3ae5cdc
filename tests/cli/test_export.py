"""`carnet export` and `carnet verify`, and what `carnet predict` does with the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx

from carnet.edge.model_file import ModelFile, seal

Call = Callable[..., tuple[int, str, str]]


def test_export_verify_and_predict(trained_run: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    model = tmp_path / "model.onnx"
    code, out, err = call("export", trained_run, "--output", model)
    assert (code, err) == (0, "")
    assert str(model) in out
    code, out, _ = call("export", trained_run, "--output", model, "--json")
    assert json.loads(out)["top1_agreement"] == 1
    code, out, _ = call("verify", model)
    assert (code, str(model) in out, "NOT" in out) == (0, True, False)
    assert json.loads(call("verify", model, "--json")[1])["passed"] is True
    photo = photos / "valid" / "red" / "9.jpg"
    assert call("predict", model, photo)[1].startswith(f"{photo}: ")


def test_verify_fails_for_other_predictions(exported: Path, tmp_path: Path, call: Call) -> None:
    """Predictions that were recorded for other classes stand in for an installation that computes something else."""
    document = dict(ModelFile.read(exported).document)
    for test in document["tests"]:
        test["probabilities"] = test["probabilities"][::-1]
    graph = onnx.load(exported)
    del graph.metadata_props[:]
    model = tmp_path / "model.onnx"
    model.write_bytes(seal(graph.SerializeToString(), document))
    code, out, err = call("verify", model)
    assert (code, err, out.count("NOT as recorded")) == (1, "", 2)
    document = json.loads(call("verify", model, "--json")[1])
    assert document["passed"] is False
    assert all(check["difference"] > check["tolerance"] for check in document["checks"])
