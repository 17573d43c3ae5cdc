"""EfficientNet-Lite0 and its pretrained weights."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import calls_of
from safetensors.torch import save_file
from torch import Tensor

from carnet.cli.main import run
from carnet.data.cache import cache_root
from carnet.errors import MissingExtraError, ModelError
from carnet.export.graph import to_graph
from carnet.models import pretrained
from carnet.models.class_maps import mean_and_linear_head
from carnet.models.efficientnet_lite import LITE0, EfficientNetLite, efficientnet_lite0
from carnet.models.pretrained import lite0_weights, read_weights
from carnet.models.registry import Preprocessing, create_model, preprocessing_of
from carnet.models.summary import summarize
from carnet.models.weights import TrainedModel
from carnet.spec import ModelSpec


@pytest.fixture(scope="module")
def network() -> EfficientNetLite:
    """With the pretrained head for ImageNet's 1,000 classes."""
    network = efficientnet_lite0(1000)
    network.load_state_dict(lite0_weights())
    return network.eval()


@pytest.mark.parametrize("side", [224, 160, 97])
def test_it_answers_as_an_independent_implementation(network: EfficientNetLite, side: int) -> None:
    timm = pytest.importorskip("timm")
    other = timm.create_model("tf_efficientnet_lite0").eval()
    # Both files list the layers in the order in which they run.
    names, tensors = other.state_dict().keys(), network.state_dict().values()
    other.load_state_dict(dict(zip(names, tensors, strict=True)))
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    with torch.inference_mode():
        ours, theirs = network(images), other(images)
    assert float(theirs.abs().max()) > 1
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_its_size_is_the_documented_one() -> None:
    summary = summarize("efficientnet_lite0")
    assert (summary.input_shape, summary.params) == ((1, 3, 224, 224), 3_499_108)
    assert round(summary.macs / 1e6) == 384
    assert sum(stage.depth for stage in LITE0) == 16


def test_its_head_gives_class_maps(network: EfficientNetLite) -> None:
    spec = ModelSpec(model="efficientnet_lite0", classes=tuple(map(str, range(1000))), image_size=96)
    assert mean_and_linear_head(network, spec) is network.linear


def test_the_exported_graph_normalises_before_it_pads(network: EfficientNetLite) -> None:
    """Padding is zero after the normalisation; in pixels that would be the mean colour."""
    how = preprocessing_of("efficientnet_lite0")
    classes = tuple(map(str, range(1000)))
    spec = ModelSpec(model="efficientnet_lite0", classes=classes, image_size=64, mean=how.mean, std=how.std)
    model = TrainedModel(network, spec)
    import onnxruntime

    session = onnxruntime.InferenceSession(to_graph(model).model.SerializeToString())
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8).numpy()
    logits = session.run(["logits"], {"pixels": pixels})[0]
    assert abs(logits - model.logits(pixels)).max() < 1e-3


def test_its_images_are_resized_as_its_weights_expect() -> None:
    how = preprocessing_of("efficientnet_lite0")
    assert how == Preprocessing((127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    assert preprocessing_of("efficientnet_lite0", 1).mean == pytest.approx((127 / 255,))
    assert preprocessing_of("efficientnet_lite0", 4).std[3] == 0.5
    assert preprocessing_of("carnet_s").interpolation == "bilinear"


def test_timm_says_how_images_are_resized_for_its_weights() -> None:
    pytest.importorskip("timm")
    assert preprocessing_of("timm/efficientnet_b0", pretrained=True).interpolation == "bicubic"
    assert preprocessing_of("timm/efficientnet_b0").interpolation == "bilinear"


def nowhere(package: str) -> None:
    """Finds no package."""


def test_weights_are_kept_as_safetensors_and_found_without_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path))
    first = lite0_weights()
    (kept,) = (cache_root() / "weights").iterdir()
    assert_equal(lite0_weights(nowhere), first)
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(MissingExtraError, match=r"carnet\[pretrained\]"):
        lite0_weights(nowhere)
    assert_equal(lite0_weights(), first)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    file = tmp_path / pretrained._FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(b"other weights")
    package = importlib.util.spec_from_file_location("other", tmp_path / "__init__.py")
    with pytest.raises(ModelError, match=r"is not the file of version 0\.1\.0"):
        lite0_weights(lambda name: package)
    file.unlink()
    with pytest.raises(ModelError, match="missing"):
        lite0_weights(lambda name: package)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_take_the_filters_of_three(network: EfficientNetLite, channels: int) -> None:
    other = create_model("efficientnet_lite0", num_classes=1000, in_channels=channels, pretrained=True).eval()
    grey = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    colour = grey.expand(1, 3, 64, 64)
    images = grey if channels == 1 else torch.cat([colour, torch.randn(1, 1, 64, 64)], dim=1)
    with torch.inference_mode():
        assert torch.allclose(other.forward_features(images), network.forward_features(colour), atol=1e-4)  # type: ignore[operator]


class Executed:
    """A pickle of this runs a command when it is read."""

    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize(
    "content", [b"", b"text", pickle.dumps({"a": 1}), pickle.dumps(Executed())], ids=["empty", "text", "pickle", "code"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_without_weights_are_one_line(
    content: bytes, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"--weights .*weights"):
        read_weights(path)
    assert "executed" not in capsys.readouterr().out


def test_files_of_torch_save(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(2)}
    for number, content in enumerate((tensors, {"state_dict": tensors}, {"model": tensors})):
        torch.save(content, tmp_path / f"{number}.pth")
        assert_equal(read_weights(tmp_path / f"{number}.pth"), tensors)
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    torch.save({"state_dict": Executed()}, tmp_path / "code.pth")
    for name in ("list.pth", "code.pth", "missing.pth"):
        with pytest.raises(ModelError, match=name):
            read_weights(tmp_path / name)


def test_weights_of_another_network_are_refused(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a.weight": torch.ones(2)}, path)
    for model in ("efficientnet_lite0", "timm/resnet18", "carnet_n"):
        assert (
            run(["train", str(photos), "--model", model, "--weights", str(path), "--output", str(tmp_path / "run")])
            == 2
        )
        (line,) = capsys.readouterr().err.splitlines()
        assert model in line
    assert not (tmp_path / "run").exists()


def test_weights_from_a_file_need_no_package(tmp_path: Path) -> None:
    path = tmp_path / "lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in lite0_weights().items()}, path)
    with calls_of(lite0_weights) as called:
        one = create_model("efficientnet_lite0", num_classes=3, weights=path)
    assert not called
    assert torch.equal(one.get_parameter("features.conv.weight"), read_weights(path)["features.conv.weight"])


def test_timm_takes_weights_from_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    source = timm.create_model("mobilenetv3_small_050", num_classes=7)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    network = create_model("timm/mobilenetv3_small_050", num_classes=3, weights=path)
    assert torch.equal(network.get_parameter("conv_stem.weight"), source.conv_stem.weight)
    assert network.get_submodule("classifier").out_features == 3
