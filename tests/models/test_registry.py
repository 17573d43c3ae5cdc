import json

import pytest
import torch

from carnet.cli.main import run
from carnet.errors import ModelError
from carnet.models.registry import create_model, head_names, list_models, preprocessing_of
from carnet.models.summary import check_image_size, summarize


@pytest.mark.parametrize(
    ("name", "params"),
    # Worked out by hand from the block definitions: 512 (34) or 2048 (others) features, ten classes.
    [("resnet34", 21_282_122), ("resnet50", 23_520_842), ("resnet101", 42_512_970), ("resnet152", 58_156_618)],
)
def test_deeper_resnets(name: str, params: int) -> None:
    network = create_model(name, num_classes=10)
    assert sum(p.numel() for p in network.parameters()) == params
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"'carnet81'.*carnet18"):
        create_model("carnet81", num_classes=2)
    with pytest.raises(ModelError, match=r"'zzz'.*carnet18, carnet_m"):
        create_model("zzz", num_classes=2)


def test_pretrained_needs_published_weights() -> None:
    with pytest.raises(ModelError, match=r"carnet18.*--pretrained"):
        create_model("carnet18", num_classes=2, pretrained=True)


def test_smallest_input_is_47_px() -> None:
    network = create_model("carnet18", num_classes=2)
    assert network.eval()(torch.zeros(1, 3, 47, 47)).shape == (1, 2)
    with pytest.raises(ModelError, match=r"46 x 46.*47 x 47"):
        network(torch.zeros(1, 3, 46, 46))
    with pytest.raises(ModelError, match=r"carnet18.*\b47\b.*--image-size 46"):
        check_image_size(network, "carnet18", 46)


def test_the_command_prints_what_the_function_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["summary", "carnet_n", "--num-classes", "3", "--in-channels", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(summarize("carnet_n", num_classes=3, in_channels=1).to_json()))
    assert printed["input_shape"] == [1, 1, 128, 128]
    network = create_model("carnet_n", num_classes=3, in_channels=1)
    assert summarize(network, "carnet_n", num_classes=3, in_channels=1).to_json()["macs"] == printed["macs"]


def test_every_model_has_its_head_where_it_says() -> None:
    for name in list_models():
        network = create_model(name, num_classes=7)
        (head,) = head_names(network)
        assert network.get_submodule(head).out_features == 7


def test_timm_models() -> None:
    pytest.importorskip("timm")
    network = create_model("timm/mobilenetv3_small_050", num_classes=5)
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert network.get_submodule(*head_names(network)).out_features == 5
    assert preprocessing_of("timm/mobilenetv3_small_050").mean == (0.485, 0.456, 0.406)
    with pytest.raises(ModelError, match=r"'mobilenetv3_smal_050'.*mobilenetv3_small_050"):
        create_model("timm/mobilenetv3_smal_050", num_classes=5)
