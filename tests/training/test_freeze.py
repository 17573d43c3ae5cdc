"""Runs that start from trained weights: frozen with a new head, and fine-tuned."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import StopAt, metrics, same_weights
from safetensors.torch import load_file

import carnet
from carnet import TrainingConfig
from carnet.cli.main import run
from carnet.config import ResolvedConfig
from carnet.errors import ConfigError, ModelError, StoppedError
from carnet.models.pretrained import lite0_weights
from carnet.models.weights import load
from carnet.training.run import train

FROZEN = TrainingConfig(model="efficientnet_lite0", freeze=True, image_size=64)
TUNED = TrainingConfig(
    model="efficientnet_lite0", image_size=64, epochs=2, batch_size=8, device="cpu", precision="fp32"
)


@pytest.fixture(scope="module")
def frozen(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "run"
    train(photos, FROZEN, output=path)
    return path


@pytest.fixture(scope="module")
def tuned(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "run"
    train(photos, TUNED, output=path)
    return path


def test_a_frozen_run_keeps_every_weight_but_the_head(frozen: Path) -> None:
    before, after = lite0_weights(), load_file(frozen / "model.safetensors")
    assert before.keys() == after.keys()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"linear.weight", "linear.bias"}
    assert not after["linear.bias"].any()


def test_a_frozen_run_is_an_ordinary_run(frozen: Path, trained_run: Path) -> None:
    assert {path.name for path in frozen.iterdir()} - {"previous.ckpt"} == {
        path.name for path in trained_run.iterdir()
    } - {"previous.ckpt"}
    (epoch,) = metrics(frozen)
    result = json.loads((frozen / "result.json").read_text())
    assert result["valid"]["top1"] == float(epoch["valid_top1"]) == 1
    record = json.loads((frozen / "config.json").read_text())
    assert record["head"]["num_views"] == 8
    assert record["head"]["num_fitted"] == 24
    resolved = ResolvedConfig.from_json(record["resolved"])
    assert (resolved.interpolation, resolved.epochs, resolved.is_fine_tuning) == ("bicubic", 1, True)
    assert json.loads((frozen / "model.json").read_text())["interpolation"] == "bicubic"


def test_what_a_frozen_run_is_good_for(frozen: Path, photos: Path, tmp_path: Path) -> None:
    photo = photos / "valid" / "red" / "8.jpg"
    model = carnet.load(frozen)
    assert model.predict(photo).label == "red"
    assert model.evaluate().top1 == 1
    assert model.explain(photo).label == "red"
    for int8 in (False, True):
        path = tmp_path / f"{int8}.onnx"
        model.export(path, int8=int8, max_drop=50)
        exported = carnet.load(path)
        assert exported.spec.interpolation == "bicubic"
        assert exported.predict(photo).label == "red"
        assert run(["verify", str(path)]) == 0


def test_a_second_run_computes_no_features_again(frozen: Path, photos: Path, tmp_path: Path) -> None:
    class Bars:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def say(self, text: str) -> None:
            pass

        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            self.seen.append(what)

    progress = Bars()
    train(photos, FROZEN, output=tmp_path / "run", progress=progress)
    assert not [what for what in progress.seen if what.startswith("features")]
    assert same_weights(tmp_path / "run", frozen)


@pytest.mark.parametrize("lost", ["result.json", "last.ckpt"])
def test_a_frozen_run_is_resumed(lost: str, frozen: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(frozen, copy)
    (copy / lost).unlink()
    if lost == "last.ckpt":
        (copy / "previous.ckpt").unlink()
        (copy / "model.safetensors").unlink()
    train(resume=copy)
    assert same_weights(copy, frozen)
    assert (copy / "result.json").exists()
    assert len(metrics(copy)) == 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model", "carnet_n"], "--freeze"),
        (["--model", "efficientnet_lite0", "--epochs", "3"], "--epochs"),
        (["--model", "efficientnet_lite0", "--patience", "3"], "--patience"),
        (["--model", "efficientnet_lite0", "--devices", "2"], "--devices"),
        (["--model", "timm/resnet18"], "--pretrained"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_contradicts_freezing_is_one_line(
    flags: list[str], named: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(photos), "--freeze", *flags, "--output", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not (tmp_path / "run").exists()


def test_weights_of_another_run_may_be_frozen(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    asked = TrainingConfig(model="carnet_n", freeze=True)
    result = train(photos, asked, output=tmp_path / "run", init=trained_run)
    assert result.model.spec.image_size == 48
    before, after = load_file(trained_run / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"linear.weight", "linear.bias"}


def test_fine_tuning_keeps_the_first_layers_and_all_statistics(tuned: Path) -> None:
    before, after = lite0_weights(), load_file(tuned / "model.safetensors")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert not [name for name in changed if "running" in name or name.startswith(("stem", "stages.0", "stages.1"))]
    assert {name.split(".")[0] for name in changed} == {"stages", "features", "linear"}
    assert {"features.conv.weight", "features.bn.weight", "stages.6.0.project.conv.weight"} <= changed
    assert json.loads((tuned / "result.json").read_text())["valid"]["top1"] == 1


def test_the_share_of_the_first_layers_may_be_chosen(photos: Path, tmp_path: Path) -> None:
    train(photos, replace(TUNED, frozen_share=0.0, epochs=1), output=tmp_path / "run")
    before, after = lite0_weights(), load_file(tmp_path / "run" / "model.safetensors")
    assert not torch.equal(before["stem.conv.weight"], after["stem.conv.weight"])


def test_fine_tuning_begins_with_a_fitted_head_and_small_steps(tuned: Path) -> None:
    record = json.loads((tuned / "config.json").read_text())
    resolved = ResolvedConfig.from_json(record["resolved"])
    assert record["head"]["num_fitted"] == 24
    assert resolved.lr < 0.08
    assert (resolved.initial_size_ratio, resolved.is_fine_tuning) == (1, True)
    assert 0 < resolved.frozen_share < 1
    assert float(metrics(tuned)[0]["train_loss"]) < 1.2


def test_fine_tuning_is_resumed_exactly(photos: Path, tuned: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, TUNED, output=path, progress=StopAt("epoch 1/2", 2))
    train(resume=path)
    assert same_weights(path, tuned)


def test_fine_tuning_that_lost_its_checkpoint_begins_again_exactly(photos: Path, tuned: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, TUNED, output=path, progress=StopAt("epoch 1/2", 2))
    for name in ("last.ckpt", "previous.ckpt"):
        (path / name).unlink(missing_ok=True)
    train(resume=path)
    assert same_weights(path, tuned)


def test_a_run_from_another_run_is_fine_tuned_with_its_side(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    train(photos, TrainingConfig(model="carnet_n", epochs=1), output=tmp_path / "run", init=trained_run)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["resolved"]["image_size"] == 48
    assert record["resolved"]["is_fine_tuning"]
    # Its classes are the same, so that its head is kept.
    assert record["head"] is None


def test_a_network_of_timm_starts_from_a_file(photos: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet18", num_classes=3).state_dict(), path)
    asked = TrainingConfig(model="timm/resnet18", weights=str(path), freeze=True, image_size=64)
    result = train(photos, asked, output=tmp_path / "run")
    assert load(tmp_path / "run").spec.interpolation == result.model.spec.interpolation == "bicubic"
    asked = TrainingConfig(model="timm/levit_128s", weights=str(path), freeze=True)
    with pytest.raises((ModelError, ConfigError)):
        train(photos, asked, output=tmp_path / "other")


def test_grey_images(photos: Path, tmp_path: Path) -> None:
    asked = TrainingConfig(model="efficientnet_lite0", freeze=True, image_size=64, in_channels=1)
    model = train(photos, asked, output=tmp_path / "run").model
    assert model.spec.mean == pytest.approx((127 / 255,))
