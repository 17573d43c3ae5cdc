"""Speed changes no results: budgets, precision, memory layout, compilation, gradient accumulation, CutMix, memory."""

import copy
import functools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import SMALL, StopAt, fit_job, new_job, same_weights
from safetensors.torch import load_file
from torch import nn

from carnet import TrainingConfig
from carnet.errors import RunError, StoppedError
from carnet.models.weights import normalize_on
from carnet.spec import ModelSpec
from carnet.text import Silent
from carnet.training.loop import Callback, Training
from carnet.training.pipeline import Batch, cut_mix
from carnet.training.preparation import new_network, prepare_trial_steps, scan_data
from carnet.training.resolve import first_guess, resolve
from carnet.training.run import train
from carnet.training.step import StepResult, TrainingStep, compiler_problem

needs_compiler = pytest.mark.skipif(bool(compiler_problem("cpu")), reason=compiler_problem("cpu"))


class Ticking:
    """A clock that advances by a fixed time whenever it is read, which is once per step."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(run / "model.safetensors"))


def test_trial_steps_leave_no_trace(photos: Path) -> None:
    scan = scan_data(photos, SMALL, (), Silent())
    network, spec, _ = new_network(SMALL, scan.image_size, scan.images.data.classes, None)
    before = copy.deepcopy(network.state_dict())
    guess = first_guess(SMALL, num_train=scan.num_train, image_size=scan.image_size)
    measure, _ = prepare_trial_steps(guess, network, spec, scan.pipeline(guess, spec), started=time.monotonic())
    resolve(SMALL, scan, measure)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    measure.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training


def test_the_end_of_the_budget_ends_the_run(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    budget = replace(SMALL, epochs=None, budget="10m", compile=False)
    job = new_job(photos, budget, run, training_seconds=1e-9)
    assert job.config.num_steps > 6
    state = fit_job(job)
    assert (state.num_steps, len(state.history)) == (1, 1)
    document = train(resume=run, progress=Silent()).document
    assert document["stopped_early"]
    assert document["epochs"] == 1
    (note,) = document["notes"]
    assert "budget of 10m" in note
    assert note in (run / "report.html").read_text()


def test_a_slower_machine_gets_a_shorter_schedule(photos: Path, tmp_path: Path) -> None:
    budget = replace(SMALL, epochs=None, budget="10m", compile=False)
    # 100 seconds hold fewer steps than were planned.
    job = new_job(photos, budget, tmp_path / "run", training_seconds=100.0)
    state = fit_job(job, clock=Ticking(1.0))
    assert state.num_steps < min(100, job.config.num_steps)
    assert any("10m" in note for note in state.notes)
    assert state.history[-1]["lr"] < 0.05 * max(epoch["lr"] for epoch in state.history)
    document = train(resume=tmp_path / "run", progress=Silent()).document
    assert document["stopped_early"]
    assert document["epochs"] == len(state.history)


def test_a_faster_machine_gets_a_longer_schedule(photos: Path, tmp_path: Path) -> None:
    asked = replace(SMALL, epochs=None, budget="10m", compile=False)
    two_epochs = {"epochs": 2, "num_steps": 6, "training_seconds": 6.0}
    state = fit_job(new_job(photos, asked, tmp_path / "run", **two_epochs), clock=Ticking(0.1))
    assert state.num_steps > 6
    assert len(state.history) > 2
    assert any("2 epochs" in note and "10m" in note for note in state.notes)
    assert state.history[-1]["lr"] < 0.05 * max(epoch["lr"] for epoch in state.history)
    assert not train(resume=tmp_path / "run", progress=Silent()).document["stopped_early"]


def test_a_faster_machine_trains_no_more_epochs_than_were_asked_for(photos: Path, tmp_path: Path) -> None:
    planned = {"training_seconds": 10.0, "num_steps": 4, "max_steps": 6}
    job = new_job(photos, replace(SMALL, budget="10m"), tmp_path / "run", **planned)
    state = fit_job(job, clock=Ticking(0.001))
    assert (state.num_steps, len(state.history)) == (6, 2)
    assert state.history[-1]["lr"] < 0.2 * max(epoch["lr"] for epoch in state.history)


@pytest.mark.parametrize(
    ("backend", "moments"),
    [
        ("eager", [("epoch 2/2", 2)]),
        pytest.param("inductor", [("epoch 1/2", 1), ("epoch 2/2", 2)], marks=pytest.mark.slow),
    ],
)
@needs_compiler
def test_exact_resume_with_everything_on(
    backend: str, moments: list[tuple[str, int]], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick case only traces the network; generating code takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    recipe = replace(SMALL, compile=True, precision="bf16", micro_batch=4, cache="disk", workers=2, batch_size=10)
    train(photos, recipe, output=tmp_path / "whole", progress=Silent())
    plan = json.loads((tmp_path / "whole" / "config.json").read_text())["resolved"]
    assert (plan["compile"], plan["precision"], plan["micro_batch"]) == (True, "bf16", 4)
    for number, moment in enumerate(moments):
        run = tmp_path / f"run{number}"
        with pytest.raises(StoppedError):
            train(photos, recipe, output=run, progress=StopAt(*moment))
        torch.compiler.reset()
        train(resume=run, config=replace(recipe, cache="ram", workers=0), progress=Silent())
        assert same_weights(run, tmp_path / "whole")
    with pytest.raises(RunError, match=r"--micro-batch 2 \(was 4\)"):
        train(resume=run, config=replace(recipe, micro_batch=2))
    with pytest.raises(RunError, match=r"--compile off \(was on\)"):
        train(resume=run, config=replace(recipe, compile=False))


@pytest.mark.slow
@needs_compiler
def test_compiled_learns_like_plain(photos: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, precision="fp32", epochs=1)
    train(photos, replace(recipe, compile=True), output=tmp_path / "compiled", progress=Silent())
    train(photos, replace(recipe, fast_depthwise=False), output=tmp_path / "plain", progress=Silent())
    one, other = weights(tmp_path / "compiled"), weights(tmp_path / "plain")
    # A bias before batch norm has no gradient but rounding errors, which Adam turns into whole steps.
    names = [name for name in one if not name.endswith("conv1.bias") and "num_batches" not in name]
    distance = sum(float((one[name] - other[name]).square().sum()) for name in names) ** 0.5
    length = sum(float(other[name].square().sum()) for name in names) ** 0.5
    assert distance < 0.02 * length


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_either_layout_trains(layout: Any, photos: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, epochs=1, memory_format=layout, precision="fp32")
    train(photos, recipe, output=tmp_path / "run", progress=Silent())
    plan = json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]
    assert plan["memory_format"] == layout


def test_gradients_add_up_over_micro_batches() -> None:
    """Without batch norm, micro-batches give the gradients of the batch."""
    asked = TrainingConfig(image_size=9, batch_size=10, device="cpu", precision="fp32")
    spec = ModelSpec(model="x", classes=("a", "b", "c"), image_size=9)
    torch.manual_seed(0)
    batch = Batch(torch.randint(0, 256, (10, 9, 9, 3), dtype=torch.uint8), torch.randint(0, 3, (10,)))
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 3))
    ends = {}
    for micro_batch in (10, 5, 4, 1):
        config = replace(first_guess(asked, num_train=10, image_size=9), micro_batch=micro_batch)
        learner = copy.deepcopy(network)
        take = TrainingStep(learner, spec, config)
        results = [take(batch, 0, lambda _: None) for _ in range(3)]
        ends[micro_batch] = (
            [result.loss for result in results],
            torch.cat([p.flatten() for p in learner.parameters()]),
        )
        assert all(result.num_images == 10 for result in results)
    for losses, parameters in ends.values():
        assert losses == pytest.approx(ends[10][0], rel=1e-4)
        assert torch.allclose(parameters, ends[10][1], atol=1e-5)


def take_step(network: nn.Module, batch: Batch, seed: int, **changes: Any) -> float:
    """Return the loss of one step on a copy of the network."""
    asked = TrainingConfig(image_size=9, batch_size=10, device="cpu", precision="fp32", **changes)
    spec = ModelSpec(model="x", classes=("a", "b", "c"), image_size=9)
    step = TrainingStep(copy.deepcopy(network), spec, first_guess(asked, num_train=10, image_size=9))
    return step(batch, seed, lambda _: None).loss


def a_batch() -> Batch:
    torch.manual_seed(0)
    return Batch(torch.randint(0, 256, (10, 9, 9, 3), dtype=torch.uint8), torch.randint(0, 3, (10,)))


def test_both_labels_of_cutmix_count_by_their_shares() -> None:
    batch = a_batch()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 3))
    mixed = {seed: cut_mix(batch, 1.0, np.random.default_rng(seed)) for seed in range(20)}
    # Unequal shares.
    seed, both = next((seed, one) for seed, one in mixed.items() if abs(one.label_share - 0.5) > 0.2)
    assert both.other_labels is not None
    own, other = (F.one_hot(labels, 3).float() for labels in (both.labels, both.other_labels))
    wanted = 0.9 * (both.label_share * own + (1 - both.label_share) * other) + 0.1 / 3
    spec = ModelSpec(model="x", classes=("a", "b", "c"), image_size=9)
    expected = F.cross_entropy(network(normalize_on(torch.device("cpu"), both.images, spec)), wanted).item()
    assert take_step(network, batch, seed, cutmix=1.0, label_smoothing=0.1) == pytest.approx(expected, rel=1e-5)


def test_dropout_follows_from_the_seed_of_the_step() -> None:
    batch = a_batch()
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(243, 3))
    loss = take_step(network, batch, 5)
    torch.rand(7)
    assert take_step(network, batch, 5) == loss
    assert take_step(network, batch, 6) != loss


class RunOutOfMemory(Callback):
    """From the second step of the second epoch on, more than three images do not fit into memory."""

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        def refuse(network: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if len(inputs[0]) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")

        if run.steps_done == 4:
            run.network.register_forward_pre_hook(refuse)


def test_a_gpu_that_runs_out_of_memory_gets_smaller_micro_batches(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(photos, SMALL, output=run, callbacks=[RunOutOfMemory()], progress=Silent())
    (note,) = result.document["notes"]
    assert "epoch 2, step 2" in note
    assert "2 images" in note
    assert result.document["epochs"] == 2
    again = train(resume=run, progress=Silent())
    assert again.document["notes"] == [note]
