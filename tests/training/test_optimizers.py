"""Muon against PyTorch's, and the groups of parameters."""

import copy

import pytest
import torch
from runs import resolved
from torch import nn

from carnet import TrainingConfig, create_model
from carnet.config import published
from carnet.training.optim import Muon, hidden_matrices, make_optimizer, orthogonalized, set_lr


class Matrices(nn.Module):
    """A first layer, a hidden matrix as a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 1)
        self.hidden = nn.Conv2d(32, 48, 1, bias=False)
        self.head = nn.Linear(48, 4)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (16, 16), (64, 4)])
def test_singular_values_are_close_to_one_after_orthogonalization(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    # The singular vectors stay, none is negated; the smallest singular values only become larger.
    u, before, v = torch.linalg.svd(matrix, full_matrices=False)
    after = (u.mT @ orthogonalized(matrix) @ v.mT).diagonal()
    share = before / before.pow(4).sum() ** 0.25
    assert 0.48 < after[share > 0.02].min() <= after.max() < 1.55
    assert (after > 8 * share)[share <= 0.02].all()


def test_a_zero_gradient_changes_nothing() -> None:
    assert not orthogonalized(torch.zeros(40, 40)).any()


def test_the_size_of_a_gradient_does_not_matter() -> None:
    matrix = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalized(matrix), orthogonalized(1e-4 * matrix), rtol=0.1, atol=0.02)


def test_muon_equals_pytorchs_on_matrices_and_adamw_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.optim import _muon

    # PyTorch's Muon with our orthogonalization, which the tests above check.
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", lambda matrix, *_: orthogonalized(matrix))
    network = Matrices()
    reference = copy.deepcopy(network)
    ours = Muon(network, lr=0.02, adamw_lr_ratio=0.1, weight_decay=0.05)
    matrix = nn.Parameter(reference.hidden.weight.detach().flatten(1).clone())
    muon = torch.optim.Muon([matrix], lr=0.02, weight_decay=0.05, momentum=0.95, nesterov=True)
    weights = [reference.first.weight, reference.head.weight]
    adamw = torch.optim.AdamW(
        [{"params": weights}, {"params": [reference.first.bias, reference.head.bias], "weight_decay": 0.0}],
        lr=0.002, weight_decay=0.05, betas=(0.9, 0.99),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for (name, parameter), other in zip(network.named_parameters(), reference.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            if name == "hidden.weight":
                matrix.grad = parameter.grad.flatten(1).clone()
            else:
                other.grad = parameter.grad.clone()
        for optimizer in (ours, muon, adamw):
            optimizer.step()
    torch.testing.assert_close(network.hidden.weight.flatten(1), matrix)
    torch.testing.assert_close(network.first.weight, reference.first.weight)
    torch.testing.assert_close(network.head.bias, reference.head.bias)


def test_hidden_matrices_are_those_of_pointwise_convolutions() -> None:
    network = create_model("carnet_s", num_classes=7)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [names[id(matrix)] for matrix in hidden_matrices(network)]
    assert "stages.0.0.conv2.weight" in found
    assert not [name for name in found if not name.endswith("conv2.weight")]


def test_the_published_optimizer_is_adam() -> None:
    optimizer = make_optimizer(create_model("carnet18", num_classes=3), resolved(published()))
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 5e-4


def test_every_group_keeps_its_own_learning_rate() -> None:
    optimizer = make_optimizer(
        create_model("carnet_n", num_classes=3), resolved(TrainingConfig(lr=0.02, adamw_lr_ratio=0.5))
    )
    set_lr(optimizer, 0.1)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.005, 0.005])


def test_weight_decay_is_the_recipes_and_spares_vectors() -> None:
    network = create_model("carnet_n", num_classes=3)
    muon = make_optimizer(network, resolved(TrainingConfig(weight_decay=0.3)))
    assert [group["weight_decay"] for group in muon.param_groups] == [0.3, 0.3, 0.0]
    adam = make_optimizer(network, resolved(TrainingConfig(optimizer="adam", weight_decay=0.3)))
    assert [group["weight_decay"] for group in adam.param_groups] == [0.3]
