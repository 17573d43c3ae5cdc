"""Folders for other runtimes pass the same gate, and hold what those runtimes and an app need."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from carnet import Classifier, export_model
from carnet.cli.main import run
from carnet.data.find import find_images
from carnet.edge.selftest import draw_tests
from carnet.errors import ConfigError, GateError, ModelError, OutputError
from carnet.export.formats import format_named, with_names
from carnet.export.graph import Graph, to_graph
from carnet.models.registry import create_model
from carnet.models.weights import TrainedModel
from carnet.preprocess import load_image
from carnet.spec import ModelSpec

PACKAGES = {"openvino": ("openvino",), "ncnn": ("ncnn", "pnnx")}


@pytest.fixture(scope="module", params=PACKAGES)
def format_name(request: pytest.FixtureRequest) -> str:
    for package in PACKAGES[request.param]:
        pytest.importorskip(package, reason=f"{package} is not installed; make test-formats tries every format")
    return str(request.param)


@pytest.fixture(scope="module")
def folder(format_name: str, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model, which nobody had to name."""
    output = tmp_path_factory.mktemp("formats") / f"model-{format_name}"
    assert export_model(trained_run, output, format=format_name).path == output  # type: ignore[arg-type]
    return output


def answers(folder: Path, images: np.ndarray) -> np.ndarray:
    """Probabilities of uint8 images, computed as the runtime's own documents say, without our code."""
    if "openvino" in folder.name:
        import openvino

        compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.array(compiled([images])["probabilities"])
    import ncnn

    net = ncnn.Net()
    assert net.load_param(str(folder / "model.ncnn.param")) == 0
    assert net.load_model(str(folder / "model.ncnn.bin")) == 0
    found = []
    for image in images:
        extractor = net.create_extractor()
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
        extractor.input("pixels", ncnn.Mat(pixels))
        found.append(np.array(extractor.extract("probabilities")[1]))
    return np.stack(found)


def test_the_folder_answers_as_the_exported_file_does(folder: Path, exported: Path, photos: Path) -> None:
    classifier = Classifier(exported)
    paths = [sample.path for sample in find_images(photos).splits["valid"]]
    images = np.stack([load_image(path, classifier.spec) for path in paths])
    np.testing.assert_allclose(answers(folder, images), classifier.probabilities(images), atol=1e-3)


def test_what_it_leaves(folder: Path, format_name: str, exported: Path) -> None:
    files = {"openvino": {"model.xml", "model.bin"}, "ncnn": {"model.ncnn.param", "model.ncnn.bin"}}[format_name]
    assert {file.name for file in folder.iterdir()} == {*files, "model.json"}
    beside = {file.name for file in folder.parent.iterdir()} - {folder.name}
    assert beside == {f"{folder.name}.export.html", f"{folder.name}.export.json"}
    document = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    ours = Classifier(exported).document
    for name in ("classes", "image_size", "resize", "interpolation", "mean", "std"):
        assert document[name] == ours[name]
    assert document["temperature"] == pytest.approx(ours["temperature"], rel=1e-3)
    assert document["evaluated_with"] == format_name
    assert document["metrics"]["top1_agreement"] == 1
    assert document["metrics"]["size_bytes"] == sum((folder / name).stat().st_size for name in files)
    assert set(PACKAGES[format_name]) <= document["versions"].keys()
    for file in folder.iterdir():
        content = file.read_bytes().decode("utf-8", "replace")
        assert str(folder.parent) not in content
        assert tempfile.gettempdir() not in content


def test_the_test_images_give_the_recorded_answers(folder: Path, exported: Path) -> None:
    document = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    spec = Classifier(exported).spec
    for test in document["tests"]:
        image = load_image(draw_tests(spec)[test["picture"]], spec)
        np.testing.assert_allclose(answers(folder, image[None])[0], test["probabilities"], atol=test["tolerance"])


def test_an_earlier_folder_is_replaced_and_any_other_is_not(
    folder: Path, format_name: str, trained_run: Path, tmp_path: Path
) -> None:
    export_model(trained_run, tmp_path / "a", format=format_name)  # type: ignore[arg-type]
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    next(path for path in (tmp_path / "a").iterdir() if path.name != "model.json").write_bytes(b"spoiled")
    export_model(trained_run, tmp_path / "a", format=format_name)  # type: ignore[arg-type]
    assert {path.name for path in (tmp_path / "a").iterdir()} == before.keys()
    assert b"spoiled" not in [path.read_bytes() for path in (tmp_path / "a").iterdir()]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"precious\.txt.*--output"):
        export_model(trained_run, tmp_path / "other", format=format_name)  # type: ignore[arg-type]
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_spoiled_network_is_refused(format_name: str, trained_run: Path, tmp_path: Path) -> None:
    def spoiled(model: TrainedModel) -> Graph:
        graph = to_graph(model)
        (bias,) = (tensor for tensor in graph.model.graph.initializer if tensor.name == "head.bias")
        values = numpy_helper.to_array(bias).copy()
        values[0] += 0.05
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        return graph

    with pytest.raises(GateError, match=r"0\.001"):
        export_model(trained_run, tmp_path / "m", format=format_name, to_graph=spoiled)  # type: ignore[arg-type]
    assert {file.name for file in tmp_path.iterdir()} == {"m.export.html", "m.export.json"}


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(format_name: str, channels: int) -> None:
    model = untrained("carnet_n", in_channels=channels)
    converted = format_named(format_name, "onnxruntime").open(model)  # type: ignore[arg-type]
    assert converted.spec.in_channels == channels


@pytest.mark.parametrize(
    ("name", "refused_by"), [("timm/mobilenetv3_small_050", ""), ("timm/vit_tiny_patch16_224", "ncnn")]
)
def test_other_networks(format_name: str, name: str, refused_by: str) -> None:
    pytest.importorskip("timm")
    converter, content = format_named(format_name, "onnxruntime"), untrained(name, image_size=224)  # type: ignore[arg-type]
    if format_name == refused_by:
        with pytest.raises(ModelError, match=name):
            converter.open(content)
    else:
        assert converter.open(content).spec.model == name


def untrained(name: str, *, in_channels: int = 3, image_size: int = 48) -> bytes:
    """A model file of a network with random weights."""
    statistics = {"mean": (0.5,) * in_channels, "std": (0.25,) * in_channels}
    spec = ModelSpec(model=name, classes=("a", "b"), image_size=image_size, in_channels=in_channels, **statistics)
    network = create_model(name, num_classes=2, in_channels=in_channels)
    return to_graph(TrainedModel(network, spec)).sealed(spec.to_json())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--format", "ncnn", "--int8"], "--int8"),
        (["--format", "openvino", "--int8"], "--int8"),
        (["--format", "openvino", "--output", "m.onnx"], "--output"),
        (["--format", "openvino", "--output", "."], "--output"),
        (["--format", "ncnn", "--runtime", "openvino"], "--runtime"),
        (["--format", "openvino", "--web", "app"], "--web"),
    ],
)
def test_flags_that_contradict_each_other(
    trained_run: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    assert run(["export", str(trained_run), *words]) == 2
    assert named in capsys.readouterr().err


def test_an_unknown_format(trained_run: Path) -> None:
    with pytest.raises(ConfigError, match="--format must be one of onnx, openvino, ncnn"):
        export_model(trained_run, format="tflite")  # type: ignore[arg-type]


def test_without_its_packages_the_way_out_is_named(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import ncnn  # noqa: F401
    except ModuleNotFoundError:
        assert run(["export", str(trained_run), "--format", "ncnn"]) == 2
        assert "pip install pnnx ncnn" in capsys.readouterr().err
    else:
        pytest.skip("ncnn is installed")


def test_names_of_inputs_and_outputs_of_ncnn() -> None:
    param = b"7767517\n2 2\nInput                    in0                      0 1 in0\nSoftmax x 1 1 in0 out1 0=0 1=1\n"
    assert with_names(param).decode().splitlines() == [
        "7767517",
        "2 2",
        "Input pixels 0 1 pixels",
        "Softmax x 1 1 pixels probabilities 0=0 1=1",
    ]
