"""Whole runs on small pictures: what they leave, that they repeat, stop, go on, and refuse."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from carnet import TrainingConfig, evaluate, load, train
from carnet.errors import (
    ConfigError,
    DataError,
    ImageError,
    ModelError,
    NonFiniteLossError,
    OutOfMemoryError,
    OutputError,
    RunError,
    StoppedError,
    UnreadableImagesError,
)
from carnet.progress import Silent
from carnet.training import trainer as trainer_module

SMALL = TrainingConfig(image_size=48, epochs=2, batch_size=8)


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**(SMALL.to_json() | changes))


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metrics(run: Path) -> list[dict[str, str]]:
    """The table without what depends on the clock."""
    with (run / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


class StopAfter:
    """A progress that presses Ctrl-C after some steps."""

    def __init__(self, num_steps: int, number: int = signal.SIGINT, during: str = "epoch 1/2") -> None:
        self.num_steps, self.number, self.during = num_steps, number, during
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        if what == self.during and done == self.num_steps:
            os.kill(os.getpid(), self.number)


def test_what_a_run_leaves(trained_run: Path) -> None:
    assert {path.name for path in trained_run.iterdir()} == {
        "config.json", "curves.png", "data.csv", "last.ckpt", "metrics.csv", "model.json", "model.safetensors",
        "report.html", "result.json",
    }  # fmt: skip
    result = json.loads((trained_run / "result.json").read_text())
    assert (result["kept"], result["epochs"], result["num_images"]) == ("final", 2, {"train": 24, "valid": 12})
    assert [row["epoch"] for row in metrics(trained_run)] == ["1", "2"]
    assert float(metrics(trained_run)[1]["valid_top1"]) == result["final"]["valid_top1"] == result["valid"]["top1"]
    record = json.loads((trained_run / "config.json").read_text())
    assert TrainingConfig.from_json(record["recipe"]) == SMALL
    assert record["plan"]["device"] == "cpu"
    model = json.loads((trained_run / "model.json").read_text())
    assert (model["classes"], model["params"]) == (["blue", "green", "red"], 603_615)


def test_same_seed_same_weights(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    train(photos, SMALL, output=tmp_path / "again")
    assert same_weights(trained_run, tmp_path / "again")
    assert metrics(trained_run) == metrics(tmp_path / "again")
    train(photos, config(seed=1), output=tmp_path / "other")
    assert not same_weights(trained_run, tmp_path / "other")


@pytest.mark.parametrize(
    ("steps", "number", "during"),
    [
        (2, signal.SIGINT, "epoch 1/2"),
        (3, signal.SIGINT, "epoch 1/2"),
        (1, signal.SIGTERM, "epoch 2/2"),
        (12, signal.SIGTERM, "epoch 1/2 validation"),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    steps: int, number: int, during: str, photos: Path, trained_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError, match=r"go on with carnet train --resume") as stopped:
        train(photos, SMALL, output=run, progress=StopAfter(steps, number, during))
    assert stopped.value.exit_code == 128 + number
    assert not (run / "result.json").exists()
    train(resume=run)
    assert same_weights(run, trained_run)
    assert metrics(run) == metrics(trained_run)


def test_resume_with_workers_and_moved_images(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(moved, SMALL, output=run, progress=StopAfter(2))
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no folder"):
        train(resume=run)
    train(tmp_path / "elsewhere", config(workers=1), resume=run)
    assert same_weights(run, trained_run)


def test_resume_refuses_what_would_change_the_result(photos: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photos, data)
    with pytest.raises(StoppedError):
        train(data, SMALL, output=run, progress=StopAfter(1))
    with pytest.raises(RunError, match=r"does not have --lr 0.1 \(was 0.0005\)"):
        train(config=config(lr=0.1), resume=run)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"plan": record["plan"] | {"threads": 99}}))
    with pytest.raises(RunError, match=r"planned otherwise: --threads \d+ \(was 99\)"):
        train(resume=run)
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"planned otherwise: --threads 1 \(was \d+\)"):
        train(config=config(threads=1), resume=run)
    shutil.copy(data / "train" / "red" / "1.jpg", data / "train" / "red" / "0.jpg")
    with pytest.raises(RunError, match="the images are not those of"):
        train(resume=run)
    with pytest.raises(ConfigError, match="leave --output and --init out"):
        train(resume=run, output=tmp_path / "x")
    (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:1000])
    shutil.rmtree(data)
    shutil.copytree(photos, data)
    with pytest.raises(RunError, match="cannot read the checkpoint"):
        train(resume=run)
    (run / "last.ckpt").unlink()
    with pytest.raises(RunError, match="no checkpoint yet"):
        train(resume=run)


def test_loading_a_pickle_is_refused(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    torch.save({"a": torch.zeros(1)}, run / "model.safetensors")
    with pytest.raises(RunError, match="cannot read"):
        load(run)


def test_resuming_a_finished_run_changes_nothing(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    result = train(resume=run)
    assert same_weights(run, trained_run)
    assert result.document["epochs"] == 2


def test_init_keeps_or_renews_the_head(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    frozen = config(epochs=1, lr=1e-12)
    train(photos, frozen, output=tmp_path / "same", init=trained_run)
    old, new = (load_file(run / "model.safetensors") for run in (trained_run, tmp_path / "same"))
    assert torch.allclose(old["linear.weight"], new["linear.weight"], atol=1e-6)
    assert torch.allclose(old["layer4.1.conv2.weight"], new["layer4.1.conv2.weight"], atol=1e-6)
    other = tmp_path / "other"
    for split in ("train", "valid"):
        for name in ("red", "green"):
            shutil.copytree(photos / split / name, other / split / name)
    said = StopAfter(-1)
    train(other, frozen, output=tmp_path / "two", init=trained_run, progress=said)
    new = load_file(tmp_path / "two" / "model.safetensors")
    assert new["linear.weight"].shape == (2, 512)
    assert torch.allclose(old["layer4.1.conv2.weight"], new["layer4.1.conv2.weight"], atol=1e-6)
    assert any("with a new head (other classes)" in text for text in said.said)
    with pytest.raises(RunError, match="is a carnet18, not a resnet18"):
        train(photos, config(model="resnet18"), output=tmp_path / "x", init=trained_run)


def test_patience_keeps_the_best_epoch(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from carnet.training import state as state_module

    ranks = {1: 1, 2: 5, 3: 3, 4: 2, 5: 1, 6: 0}
    monkeypatch.setattr(state_module, "_rank", lambda epoch: ranks[epoch["epoch"]])
    run = tmp_path / "run"
    result = train(photos, config(epochs=6, patience=2), output=run).document
    assert (result["epochs"], result["stopped_early"], result["kept"]) == (4, True, "best")
    assert (result["best"]["epoch"], result["final"]["epoch"]) == (2, 4)
    assert json.loads((run / "model.json").read_text())["epoch"] == 2
    table = metrics(run)
    assert result["valid"]["top1"] == float(table[1]["valid_top1"])
    assert result["valid"]["loss"] == pytest.approx(float(table[1]["valid_loss"]))


def test_non_finite_loss_stops_before_the_weights_are_spoilt(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(
        NonFiniteLossError, match=r"epoch \d+, step \d+, at learning rate 1e\+30; .*--lr 1e\+29"
    ) as error:
        train(photos, config(lr=1e30, epochs=9), output=run)
    assert error.value.exit_code == 1
    assert str(run / "last.ckpt") in str(error.value)
    weights = load_file(run / "last.ckpt")
    assert all(torch.isfinite(tensor).all() for name, tensor in weights.items() if name.startswith("network."))


def test_an_epochs_last_step_cannot_spoil_the_checkpoint(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match="epoch 1, validation"):
        train(photos, config(lr=1e30, batch_size=64), output=run)
    assert json.loads(safe_state(run))["epoch"] == 0
    assert not (run / "model.safetensors").exists()


def safe_state(run: Path) -> str:
    with safe_open(run / "last.ckpt", framework="pt") as file:
        return str(file.metadata()["state"])


def test_an_image_deleted_under_way_leaves_a_checkpoint(photos: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photos, data)
    gone = data / "train" / "red" / "0.jpg"

    class Delete(StopAfter):
        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            if what == "epoch 1/2 validation":
                gone.unlink(missing_ok=True)

    with pytest.raises(ImageError, match=r"red/0\.jpg: no such file"):
        train(data, SMALL, output=run, progress=Delete(-1))
    assert json.loads(safe_state(run))["epoch"] == 1
    shutil.copy(photos / "train" / "red" / "0.jpg", gone)
    assert train(resume=run).document["epochs"] == 2


def test_python_callers_see_progress_unless_they_do_not_want_to(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(photos, config(epochs=1), output=tmp_path / "heard")
    captured = capsys.readouterr()
    assert (captured.out, "epoch 1/1: train loss" in captured.err) == ("", True)
    train(photos, config(epochs=1), output=tmp_path / "silent", progress=Silent())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_remaining_time_is_foretold_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "MEASURED_SECONDS", 0.0)
    heard = StopAfter(-1)
    train(photos, config(batch_size=4), output=tmp_path / "run", progress=heard)
    forecasts = [text for text in heard.said if " s a step, " in text]
    assert len(forecasts) == 1
    assert re.search(r"images/s: about .+ an epoch and .+ to the end", forecasts[0])


def test_out_of_memory_is_one_sentence(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(trainer_module, "normalize_on", exhausted)
    with pytest.raises(OutOfMemoryError, match=r"a step of 8 images of 48 px .*--batch-size 4"):
        train(photos, SMALL, output=tmp_path / "run")


def test_wrong_output_and_start_are_noticed_before_the_images(tmp_path: Path, trained_run: Path) -> None:
    nowhere = tmp_path / "never looked at"
    with pytest.raises(RunError, match="no run folder"):
        train(nowhere, SMALL, output=tmp_path / "run", init=tmp_path / "gone")
    with pytest.raises(OutputError, match="exists"):
        train(nowhere, SMALL, output=trained_run)


def test_checkpoints_inside_an_epoch(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", 0.0)
    saved = []
    original = trainer_module.save_checkpoint

    def recording(path: Path, network: Any, optimizer: Any, state: Any) -> None:
        saved.append((state["epoch"], state["step"]))
        original(path, network, optimizer, state)

    monkeypatch.setattr(trainer_module, "save_checkpoint", recording)
    train(photos, config(epochs=1), output=tmp_path / "run")
    assert saved == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


def test_bf16_trains_and_is_evaluated_in_fp32(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(photos, config(epochs=1, precision="bf16"), output=run)
    assert {tensor.dtype for tensor in load_file(run / "model.safetensors").values()} == {torch.float32, torch.int64}
    assert json.loads((run / "config.json").read_text())["plan"]["precision"] == "bf16"


def test_flat_folder_and_its_split_on_evaluation(flat: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(flat, config(epochs=1), output=run)
    assert result.document["num_images"] == {"train": 24, "valid": 6}
    report = evaluate(run, flat, split="valid")
    assert (report.num_images, report.num_leaked) == (6, 0)
    assert report.top1 == result.top1
    whole = evaluate(run, flat, split="all")
    assert (whole.num_images, whole.num_leaked) == (30, 24)
    with (run / "data.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["split"] for row in rows) == ["train"] * 24 + ["valid"] * 6


def test_leaked_images_are_counted(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    shutil.copy(data / "train" / "red" / "0.jpg", data / "valid" / "red" / "9.jpg")
    report = evaluate(trained_run, data)
    assert (report.num_images, report.num_leaked) == (12, 1)
    assert report.top1_without_leaked == pytest.approx(report.correct[~report.leaked].mean())
    (tmp_path / "bare").mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(trained_run / name, tmp_path / "bare" / name)
    unknown = evaluate(tmp_path / "bare", data)
    assert (unknown.num_leaked, unknown.top1_without_leaked) == (None, None)


def test_unreadable_image_stops_before_a_folder_is_made(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "train" / "red" / "0.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImagesError):
        train(data, SMALL, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = train(data, config(epochs=1, skip_unreadable=True), output=tmp_path / "run")
    assert (result.document["num_skipped_unreadable"], result.document["num_images"]["train"]) == (1, 23)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "carnet81"}, ModelError, "did you mean carnet18"),
        ({"image_size": 46}, ModelError, "at least 47 px"),
        ({"device": "cuda"}, ConfigError, "--device cuda is not available"),
        ({"precision": "fp16"}, ConfigError, "needs a GPU"),
    ],
)
def test_bad_recipes_stop_before_anything_is_read(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(error, match=message):
        train(tmp_path / "never looked at", config(**({"device": "cpu"} | changes)), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_output_must_be_new(photos: Path, trained_run: Path) -> None:
    before = (trained_run / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="go on with --resume"):
        train(photos, SMALL, output=trained_run)
    assert (trained_run / "model.safetensors").read_bytes() == before


def test_tensorboard(photos: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    train(photos, config(logger="tensorboard"), output=run)
    log = accumulator.EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    assert len(log.Scalars("loss/step")) == 6
    assert [s.value for s in log.Scalars("top1/valid")] == pytest.approx(
        [float(row["valid_top1"]) for row in metrics(run)]
    )


def test_timm_model(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, config(model="timm/mobilenetv3_small_050"), output=run, progress=StopAfter(1))
    result = train(resume=run)
    assert result.document["model"] == "timm/mobilenetv3_small_050"
    assert len(load(run).predict(photos / "valid" / "red" / "8.jpg").classes) == 3
