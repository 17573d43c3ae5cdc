"""Whole runs with everything that makes training fast: they stop, resume, and learn like plain ones."""

import copy
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import StopAt, same_weights
from safetensors.torch import load_file
from torch import nn

from carnet import TrainingConfig
from carnet.config import ResolvedConfig
from carnet.errors import RunError, StoppedError
from carnet.spec import ModelSpec
from carnet.text import Silent
from carnet.training import preparation, resumption, step
from carnet.training.distributed import Processes
from carnet.training.measure import Measure
from carnet.training.pipeline import Batch, cut_mix
from carnet.training.preparation import DataScan
from carnet.training.resolve import first_guess
from carnet.training.run import train
from carnet.training.step import TrainingStep, compiler_problem

SMALL = TrainingConfig(model="carnet_n", image_size=48, epochs=2, batch_size=8)
needs_compiler = pytest.mark.skipif(bool(compiler_problem("cpu")), reason=compiler_problem("cpu"))


def run_with(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *arguments: Any, **keywords: Any) -> Any:
    """Train with a config that was resolved otherwise."""
    original = preparation.resolve

    def resolved_otherwise(*args: Any) -> ResolvedConfig:
        return replace(original(*args), **changes)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "resolve", resolved_otherwise)
        return train(*arguments, progress=Silent(), **keywords)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(run / "model.safetensors"))


def test_the_rehearsal_leaves_no_trace(
    photos: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = ResolvedConfig.from_json(json.loads((trained_run / "config.json").read_text())["resolved"])
    monkeypatch.setattr(preparation, "resolve", lambda *_: recorded)
    train(photos, SMALL, output=tmp_path / "unrehearsed", progress=Silent())
    assert same_weights(trained_run, tmp_path / "unrehearsed")


def test_the_end_of_the_budget_ends_the_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    recipe = replace(SMALL, epochs=None, budget="10m", compile=False)
    document = run_with({"training_seconds": 1e-9}, monkeypatch, photos, recipe, output=run).document
    assert document["stopped_early"]
    assert document["epochs"] == 1
    assert any("the budget of 10m was spent in epoch 1" in note for note in document["notes"])
    assert "was spent in" in (run / "report.html").read_text()
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["resolved"]["epochs"] > 2
    train(resume=run, progress=Silent())


def test_a_slower_machine_gets_a_shorter_schedule(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = replace(SMALL, epochs=None, budget="10m", compile=False)
    slow = iter(range(1, 10**6))
    monkeypatch.setattr("carnet.training.loop.time.perf_counter", lambda: float(next(slow)))
    # A reading of that clock takes a second, and so does a step: 100 seconds hold fewer steps than the recipe's epochs.
    result = run_with({"training_seconds": 100.0}, monkeypatch, photos, planned, output=tmp_path / "run")
    document = result.document
    assert document["stopped_early"]
    assert any("at the pace of the run" in note and "fitted into 10m" in note for note in document["notes"])
    assert result.history[-1]["lr"] < 0.05 * max(epoch["lr"] for epoch in result.history)
    again = train(resume=tmp_path / "run", progress=Silent())
    assert again.document["epochs"] == document["epochs"]


def test_a_faster_machine_gets_a_longer_schedule(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = iter(range(1, 10**6))
    monkeypatch.setattr("carnet.training.loop.time.perf_counter", lambda: next(quick) / 10)

    def two_epochs(asked: TrainingConfig, scan: DataScan, measure: object) -> ResolvedConfig:
        guess = first_guess(replace(asked, epochs=2), num_train=scan.num_train, image_size=scan.image_size)
        return replace(guess, training_seconds=6.0)

    monkeypatch.setattr(preparation, "resolve", two_epochs)
    result = train(photos, replace(SMALL, epochs=None, budget="1s"), output=tmp_path / "run", progress=Silent())
    assert result.document["epochs"] > 2
    assert not result.document["stopped_early"]
    assert any("2 epochs were planned" in note and "fitted into 1s" in note for note in result.document["notes"])
    assert result.history[-1]["lr"] < 0.05 * max(epoch["lr"] for epoch in result.history)


def test_a_faster_machine_trains_no_more_epochs_than_were_asked_for(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = iter(range(1, 10**6))
    monkeypatch.setattr("carnet.training.loop.time.perf_counter", lambda: next(quick) / 1000)
    planned = {"training_seconds": 10.0, "num_steps": 4, "max_steps": 6}
    result = run_with(planned, monkeypatch, photos, replace(SMALL, budget="10s"), output=tmp_path / "run")
    assert result.document["epochs"] == 2
    assert result.history[-1]["lr"] < 0.2 * max(epoch["lr"] for epoch in result.history)


@pytest.mark.parametrize(
    ("backend", "moments"),
    [
        ("eager", [("epoch 2/2", 2)]),
        pytest.param("inductor", [("epoch 1/2", 1), ("epoch 2/2", 2)], marks=[pytest.mark.slow, needs_compiler]),
    ],
)
def test_exact_resume_with_everything_on(
    backend: str, moments: list[tuple[str, int]], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is traced here; generating code for it takes minutes, and is a slow test."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(Measure, "compiler_problem", staticmethod(lambda _: ""))
    monkeypatch.setattr(resumption, "compiler_problem", lambda _: "")
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
    with pytest.raises(RunError, match=r"planned otherwise: --micro-batch 2 \(was 4\)"):
        train(resume=run, config=replace(recipe, micro_batch=2))
    with pytest.raises(RunError, match=r"planned otherwise: --compile off \(was on\)"):
        train(resume=run, config=replace(recipe, compile=False))


@pytest.mark.slow
@needs_compiler
def test_compiled_learns_like_plain(photos: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, precision="fp32", epochs=1)
    train(photos, replace(recipe, compile=True), output=tmp_path / "compiled", progress=Silent())
    train(photos, replace(recipe, fast_depthwise=False), output=tmp_path / "plain", progress=Silent())
    one, other = weights(tmp_path / "compiled"), weights(tmp_path / "plain")
    # Adam turns rounding of a vanishing gradient, as a bias before batch norm has, into a whole step.
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
    """Without batch norm, parts of a batch learn what the batch does."""
    asked = TrainingConfig(image_size=9, batch_size=10, device="cpu", precision="fp32")
    spec = ModelSpec(model="x", classes=("a", "b", "c"), image_size=9)
    torch.manual_seed(0)
    batch = Batch(torch.randint(0, 256, (10, 9, 9, 3), dtype=torch.uint8), torch.randint(0, 3, (10,)))
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 3))
    ends = {}
    for micro_batch in (10, 5, 4, 1):
        config = replace(first_guess(asked, num_train=10, image_size=9), micro_batch=micro_batch)
        learner = copy.deepcopy(network)
        processes = Processes()
        fabric = processes.fabric(config, [])
        take = TrainingStep(learner, spec, config, processes=processes, fabric=fabric)
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
    """The loss of one step, of which nothing is left."""
    asked = TrainingConfig(image_size=9, batch_size=10, device="cpu", precision="fp32", **changes)
    spec = ModelSpec(model="x", classes=("a", "b", "c"), image_size=9)
    config, processes = first_guess(asked, num_train=10, image_size=9), Processes()
    fabric = processes.fabric(config, [])
    step = TrainingStep(copy.deepcopy(network), spec, config, processes=processes, fabric=fabric)
    return step(batch, seed, lambda _: None).loss


def a_batch() -> Batch:
    torch.manual_seed(0)
    return Batch(torch.randint(0, 256, (10, 9, 9, 3), dtype=torch.uint8), torch.randint(0, 3, (10,)))


def test_the_loss_has_each_label_with_its_share() -> None:
    batch = a_batch()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 3))
    mixed = {seed: cut_mix(batch, 1.0, np.random.default_rng(seed)) for seed in range(20)}
    # Shares that are not alike.
    seed, both = next((seed, one) for seed, one in mixed.items() if abs(one.label_share - 0.5) > 0.2)
    assert both.other_labels is not None
    own, other = (F.one_hot(labels, 3).float() for labels in (both.labels, both.other_labels))
    wanted = 0.9 * (both.label_share * own + (1 - both.label_share) * other) + 0.1 / 3
    spec = ModelSpec(model="x", classes=("a", "b", "c"), image_size=9)
    expected = F.cross_entropy(network(step.normalize_on(torch.device("cpu"), both.images, spec)), wanted).item()
    assert take_step(network, batch, seed, cutmix=1.0, label_smoothing=0.1) == pytest.approx(expected, rel=1e-5)


def test_what_a_network_drops_follows_from_the_step() -> None:
    batch = a_batch()
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(243, 3))
    loss = take_step(network, batch, 5)
    torch.rand(7)
    assert take_step(network, batch, 5) == loss
    assert take_step(network, batch, 6) != loss


def test_a_gpu_that_runs_out_of_memory_gets_less_at_a_time(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = step.normalize_on
    limits = [100]

    def limited(device: torch.device, images: torch.Tensor, spec: Any) -> torch.Tensor:
        if len(images) > limits[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(device, images, spec)

    class Shrink(Silent):
        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            if (what, done) == ("epoch 2/2", 1):
                limits[0] = 3

    monkeypatch.setattr(step, "normalize_on", limited)
    run = tmp_path / "run"
    result = train(photos, SMALL, output=run, progress=Shrink())
    (note,) = result.document["notes"]
    assert note.startswith("out of memory in epoch 2, step 2: from there on 2 images go through the network at a time")
    assert result.document["epochs"] == 2
    again = train(resume=run, progress=Silent())
    assert again.document["notes"] == [note]
