"""Our networks are to timm what its own are: written after the tests that timm has for its networks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureInfo
from timm.models._hub import save_for_hf
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import carnet
import carnet.timm

LARGE = ("carnet_resnet50", "carnet_resnet101", "carnet_resnet152")
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name
    for name in sorted(timm.list_models(module="timm", filter="carnet*"))
]
SIDE = 96
every = pytest.mark.parametrize("name", NAMES)


def images(number: int = 1, side: int = SIDE, channels: int = 3) -> torch.Tensor:
    return torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(0))


def made(name: str, **given: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **given).eval()


def test_all_networks_are_registered_and_timms_own_stay() -> None:
    ours = {"carnet_n", "carnet_s", "carnet_m", "carnet18", "carnet_resnet18", "carnet_resnet34", *LARGE}
    assert ours == {name if isinstance(name, str) else name.values[0] for name in NAMES}
    assert type(timm.create_model("resnet18")).__module__ == "timm.models.resnet"
    assert not any(timm.is_model_pretrained(name) for name in ours)


@every
def test_forward_and_backward(name: str) -> None:
    network = made(name, num_classes=42).train()
    logits = network(images(2))
    logits.mean().backward()
    assert logits.shape == (2, 42)
    assert not logits.isnan().any()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []


@every
def test_it_is_the_network_that_carnet_builds(name: str) -> None:
    own_name = name.removeprefix("carnet_") if "resnet" in name else name
    own = carnet.create_model(own_name, num_classes=7).eval()
    network = made(name, num_classes=7)
    network.load_state_dict(own.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(network(images(2)), own(images(2)), rtol=1e-4, atol=1e-5)


@every
def test_what_its_description_says(name: str) -> None:
    network = made(name)
    config, names = network.default_cfg, network.state_dict().keys()
    assert {f"{config['classifier']}.weight", f"{config['first_conv']}.weight"} <= names
    assert (network.num_classes, network.in_chans) == (1000, 3)
    with torch.inference_mode():
        given = images(side=config["input_size"][-1])
        features = network.forward_features(given)
        assert features.shape == (1, network.num_features, *config["pool_size"])
        before = network.forward_head(features, pre_logits=True)
        assert before.shape == (1, network.head_hidden_size)
        torch.testing.assert_close(network.get_classifier()(before), network(given))
        network.reset_classifier(0)
        torch.testing.assert_close(network(given), before)
        network.reset_classifier(0, "")
        assert network(given).shape == features.shape
        assert made(name, num_classes=0, global_pool="")(given).shape == features.shape
    network.reset_classifier(5, "max")
    assert network(images()).shape == (1, 5)


@every
def test_features_of_the_stages(name: str) -> None:
    network = made(name, features_only=True)
    channels, reductions = network.feature_info.channels(), network.feature_info.reduction()
    found = network(images())
    assert len(found) == len(channels) == 4
    for stage, number, reduction in zip(found, channels, reductions, strict=True):
        assert stage.shape[1] == number
        assert max(stage.shape[2:]) <= math.ceil(SIDE / reduction) + 1
        assert not stage.isnan().any()
    assert len(made(name, features_only=True, out_indices=(1, 3))(images())) == 2


@every
def test_intermediates(name: str) -> None:
    network = made(name)
    given = images()
    info = FeatureInfo(network.feature_info, tuple(range(4)))
    with torch.inference_mode():
        features, stages = network.forward_intermediates(given)
        torch.testing.assert_close(features, network.forward_features(given))
        assert [stage.shape[1] for stage in stages] == info.channels()
        first = network.forward_intermediates(given, indices=[0], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(first[0], stages[0])
        (last,) = network.forward_intermediates(given, indices=1, norm=True, intermediates_only=True)
        torch.testing.assert_close(last, features)
        assert network.prune_intermediate_layers([1]) == [1]
        torch.testing.assert_close(network.forward_intermediates(given, [1], intermediates_only=True)[0], stages[1])
        assert not any(key.startswith(("layer3", "stages.2", "linear")) for key in network.state_dict())


@every
# PyTorch calls it deprecated; timm tests it.
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_it_is_traced_and_scripted(name: str) -> None:
    network = made(name, num_classes=7)
    given = images()
    with torch.inference_mode():
        expected = network(given)
        torch.testing.assert_close(torch.jit.script(network)(given), expected)
        last = get_graph_node_names(network)[1][-1]
        traced = create_feature_extractor(network, [last])
        torch.testing.assert_close(traced(given)[last], expected)
        torch.testing.assert_close(torch.jit.script(traced)(given)[last], expected)


@every
def test_grey_images_and_groups_of_weights(name: str) -> None:
    network = made(name, in_chans=1)
    assert network(images(channels=1)).shape == (1, 1000)
    groups = timm.models.group_parameters(network, network.group_matcher())
    assert len(groups) > 4


def test_a_folder_in_timms_layout(tmp_path: Path) -> None:
    network = made("carnet_s", num_classes=3)
    save_for_hf(network, str(tmp_path), model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "carnet_s"
    loaded: nn.Module = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images()), network(images()))
