"""The model file: valid ONNX, whole or refused, never handed to a runtime unchecked."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from carnet import Classifier
from carnet.edge.model_file import FORMAT, ModelFile, seal
from carnet.errors import ModelFileError

SPEC = {
    "model": "carnet_s",
    "classes": ["cat", "dögs 🐕"],
    "image_size": 8,
    "resize": "crop",
    "in_channels": 3,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
}


def tiny_model() -> onnx.ModelProto:
    """Answers nothing useful, but is ONNX."""
    weight = numpy_helper.from_array(np.ones((1,), np.float32), "w")
    node = helper.make_node("Identity", ["w"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "g", [], [output], [weight])
    return helper.make_model(graph, producer_name="carnet")


def tiny(**changes: Any) -> bytes:
    return seal(tiny_model().SerializeToString(), SPEC | changes)


def resealed(described: bytes) -> bytes:
    """A file with a right checksum of what a forger wrote."""
    digest = hashlib.sha256(described).hexdigest().encode()
    return described + b"\x72\x51\x0a\x0dcarnet.sha256\x12\x40" + digest


def test_a_sealed_file_is_read_back() -> None:
    file = ModelFile.from_bytes(tiny(threshold=0.5))
    assert file.spec.classes == ("cat", "dögs 🐕")
    assert file.document["threshold"] == 0.5
    assert file.document["format"] == FORMAT


def test_it_is_valid_onnx_and_the_document_is_utf8_and_last() -> None:
    content = tiny()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert list(entries) == ["carnet", "carnet.sha256"]
    assert json.loads(entries["carnet"])["classes"] == SPEC["classes"]
    assert "dögs 🐕".encode() in content
    end = len(content) - 83
    assert entries["carnet.sha256"] == hashlib.sha256(content[:end]).hexdigest()
    assert onnx.load_from_string(content[:end]).metadata_props[-1].key == "carnet"


def test_every_changed_byte_is_noticed() -> None:
    content = tiny()
    for place in range(len(content)):
        for bit in (1, 0x80):
            changed = bytearray(content)
            changed[place] ^= bit
            with pytest.raises(ModelFileError):
                ModelFile.from_bytes(bytes(changed))


def test_every_cut_is_noticed() -> None:
    content = tiny()
    for length in range(len(content)):
        with pytest.raises(ModelFileError):
            ModelFile.from_bytes(content[:length])
    with pytest.raises(ModelFileError):
        ModelFile.from_bytes(content + b"\0")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", ""),
        (b"hello, this is no model", "carnet export"),
        (tiny()[:-1], ""),
        (tiny()[:-200], ""),
        (tiny().replace(b'"image_size":8', b'"image_size":9'), ""),
        (tiny(format=FORMAT + 1), f"{FORMAT + 1}"),
        (tiny(classes=["one"]), "classes"),
        (tiny(image_size="large"), "image_size.*large"),
        (tiny(format="first"), "format.*first"),
        (tiny(threshold="0.5"), "threshold.*0.5"),
        (tiny(map_centres=[[1.0, 0.0], [0.0, 1.0]]), "map_centres"),
        # A field that ends too early, of an unknown kind, and a number without an end.
        (seal(b"\x3a\x02\x2a\x09", SPEC), ""),
        (seal(b"\x0f", SPEC), ""),
        (seal(b"\x12\x05ab", SPEC), ""),
        (seal(b"\x80" * 11, SPEC), ""),
        # A document without content.
        (resealed(b"\x72\x08\x0a\x06carnet"), ""),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"{re.escape(str(path))}.*{named}") as caught:
        ModelFile.read(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "model.onnx", tmp_path):
        with pytest.raises(ModelFileError, match=re.escape(str(path))):
            ModelFile.read(path)


def test_a_model_of_others_is_not_ours() -> None:
    model = tiny_model()
    model.producer_name = "someone else"
    with pytest.raises(ModelFileError, match="carnet export"):
        ModelFile.from_bytes(model.SerializeToString())


def test_weights_in_other_files_are_refused() -> None:
    model = tiny_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    with pytest.raises(ModelFileError):
        ModelFile.from_bytes(seal(model.SerializeToString(), SPEC))
    tensor.data_location = TensorProto.DEFAULT
    assert ModelFile.from_bytes(seal(model.SerializeToString(), SPEC)).spec.image_size == 8


def test_the_runtime_never_sees_an_unchecked_byte(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    open_session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda content, *a, **k: seen.append(content) or open_session(content, *a, **k)
    )
    content = bytearray(exported.read_bytes())
    content[len(content) // 2] ^= 1
    with pytest.raises(ModelFileError):
        Classifier(bytes(content))
    assert not seen
    Classifier(exported.read_bytes())
    assert seen == [exported.read_bytes()]


def test_what_the_runtime_refuses_is_one_line() -> None:
    # Sealed and described, but no network that could be run.
    with pytest.raises(ModelFileError, match="ONNX Runtime") as caught:
        Classifier(seal(b"", SPEC))
    assert "\n" not in str(caught.value)


def test_two_hundred_mutated_models_are_refused(exported: Path) -> None:
    content = exported.read_bytes()
    rng = np.random.default_rng(0)
    for number in range(200):
        with pytest.raises(ModelFileError):
            Classifier(mutated(content, rng, number))


def mutated(content: bytes, rng: np.random.Generator, number: int) -> bytes:
    """Other bits, a hole, a cut, or a piece twice."""
    changed = bytearray(content)
    start, end = sorted(rng.integers(0, len(content), 2).tolist())
    match number % 4:
        case 0:
            for place in rng.integers(0, len(content), rng.integers(1, 50)):
                changed[place] ^= int(rng.integers(1, 256))
        case 1:
            del changed[start : end + 1]
        case 2:
            del changed[start:]
        case _:
            changed[end:end] = changed[start : end + 1]
    return bytes(changed)


def test_fields_of_every_kind_are_walked() -> None:
    model = tiny_model()
    # Numbers of 64 and of 32 bits, text, lists and varints.
    for value in (1.5, 7, "text", [1.0, 2.0]):
        model.graph.node[0].attribute.append(helper.make_attribute("a", value))
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.DOUBLE, [2], [1.0, 2.0]))
    tensor = helper.make_tensor("u", TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = TensorProto.EXTERNAL
    assert ModelFile.from_bytes(seal(model.SerializeToString(), SPEC)).spec.image_size == 8
    model.graph.initializer.append(tensor)
    with pytest.raises(ModelFileError):
        ModelFile.from_bytes(seal(model.SerializeToString(), SPEC))
