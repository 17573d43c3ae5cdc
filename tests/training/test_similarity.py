"""Which images a teacher finds similar: the loss, and the features that a step compares."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import resolved, small
from torch import nn

from carnet.models.registry import create_model
from carnet.spec import ModelSpec
from carnet.training.pipeline import Batch
from carnet.training.similarity import KeepingLinear, keep_features, similarity_loss
from carnet.training.step import Compiler, TrainingStep


def test_similarities_do_not_depend_on_channels_scale_or_rotation() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.rand(8, 5, generator=rng, dtype=torch.float64)
    turned = 3 * features @ torch.linalg.qr(torch.rand(9, 5, generator=rng, dtype=torch.float64)).Q.T + 7
    assert similarity_loss(features, turned).item() == pytest.approx(0)
    other = similarity_loss(features, torch.rand(8, 5, generator=rng, dtype=torch.float64)).item()
    assert 0.01 < other <= 1
    # By its definition: the cosine of the centred matrices of products.
    centre = torch.eye(8, dtype=torch.float64) - 1 / 8
    own, wanted = (centre @ rows @ rows.T @ centre for rows in (features, features[:, :2]))
    expected = 1 - F.cosine_similarity(own.flatten(), wanted.flatten(), dim=0).item()
    assert similarity_loss(features, features[:, :2]).item() == pytest.approx(expected)


@pytest.mark.parametrize("rows", [torch.full((1, 3), 0.1), torch.full((4, 3), 0.1), 1e-8 * torch.rand(4, 3) + 0.1])
def test_images_without_differences_have_small_gradients(rows: torch.Tensor) -> None:
    features = rows.clone().requires_grad_()
    wanted = torch.rand(len(rows), 5, generator=torch.Generator().manual_seed(0))
    (65536 * similarity_loss(features, wanted)).backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert (features.grad.abs() / 65536).max() < 10


def student(teacher: str | None, *, compiler: Compiler | None = None, **changes: Any) -> TrainingStep:
    torch.manual_seed(0)
    config = resolved(
        small(teacher=teacher), num_train=24, compile=compiler is not None, micro_batch=8, ema=0.0, **changes
    )
    spec = ModelSpec(model="carnet_n", classes=("a", "b", "c"), image_size=48)
    step = TrainingStep(create_model("carnet_n", num_classes=3), spec, config, compiler=compiler)
    step.begin()
    return step


def head_of(step: TrainingStep) -> nn.Linear:
    head = step.network.get_submodule("linear")
    assert isinstance(head, nn.Linear)
    return head


def test_compiled_code_of_labels_does_not_lose_the_features_of_a_student() -> None:
    # It traces the network, which is where a layer could be missed; generating code takes minutes.
    compiler = functools.partial(torch.compile, backend="eager", fullgraph=True)
    images = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    for teacher in (None, "a-run", None):
        step = student(teacher, compiler=compiler)
        logits, head = step.forward(images), head_of(step)
        assert isinstance(head, KeepingLinear) == (teacher is not None)
        if isinstance(head, KeepingLinear):
            features = head.take()
            assert features is not None
            assert torch.allclose(F.linear(features, head.weight, head.bias), logits, atol=1e-5)
            assert head.take() is None


def batch(*, with_features: bool = True) -> Batch:
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 48, 48, 3), dtype=torch.uint8, generator=rng)
    answers, features = torch.rand(8, 3, generator=rng).softmax(1), torch.rand(8, 5, generator=rng)
    labels = torch.zeros(8, dtype=torch.long)
    return Batch(images, labels, size=48, answers=answers, features=features if with_features else None)


@pytest.mark.parametrize("micro_batch", [8, 4])
def test_a_step_learns_similarities_and_reports_the_answers_loss(micro_batch: int) -> None:
    results, weights = [], []
    for with_features in (True, False):
        step = student("a-run", cutmix=0.0)
        step.micro_batch = micro_batch
        results.append(step(batch(with_features=with_features), 0, lambda loss: None))
        weights.append(next(step.network.parameters()).detach())
        # Nothing of the step is left in the network, which is copied for its average.
        copy.deepcopy(step.network)
    assert results[0] == results[1]
    assert not torch.allclose(*weights)


def test_a_network_without_one_linear_layer_at_its_end_keeps_nothing() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert keep_features(network, "a network", wanted=True) is None
    assert type(network[1]) is nn.Linear
