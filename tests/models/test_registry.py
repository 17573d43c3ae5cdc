import pytest
import torch

from carnet.errors import ModelError
from carnet.models.registry import create_model, head_names, list_models, normalization
from carnet.models.summary import check_image_size


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
    with pytest.raises(ModelError, match="unknown model 'carnet81'; did you mean carnet18"):
        create_model("carnet81", num_classes=2)
    with pytest.raises(ModelError, match="there are carnet18, carnet_m"):
        create_model("zzz", num_classes=2)


def test_pretrained_needs_published_weights() -> None:
    with pytest.raises(ModelError, match="no published weights"):
        create_model("carnet18", num_classes=2, pretrained=True)


def test_smallest_input_is_47_px() -> None:
    network = create_model("carnet18", num_classes=2)
    assert network.eval()(torch.zeros(1, 3, 47, 47)).shape == (1, 2)
    with pytest.raises(ModelError, match=r"46 x 46 pixels.*at least 47 x 47"):
        network(torch.zeros(1, 3, 46, 46))
    with pytest.raises(ModelError, match="carnet18 needs images of at least 47 px"):
        check_image_size(network, "carnet18", 46)


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
    assert normalization(network)[0] == (0.485, 0.456, 0.406)
    with pytest.raises(ModelError, match=r"has no model 'mobilenetv3_smal_050'; did you mean .*mobilenetv3_small_050"):
        create_model("timm/mobilenetv3_smal_050", num_classes=5)
