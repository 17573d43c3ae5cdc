"""What a run trains, shows and leaves."""

import json
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import SMALL, Listening, StopAt, fit_job, metrics, new_job, same_weights, small
from safetensors.torch import load_file

from carnet import TrainingConfig, create_model, evaluate
from carnet.config import ResolvedConfig
from carnet.errors import (
    ConfigError,
    RunError,
    StoppedError,
)
from carnet.models.weights import load
from carnet.report.plots import draw_batch
from carnet.text import Silent
from carnet.training.augment import Augmentation, Change
from carnet.training.checkpoint import TrainingState
from carnet.training.distributed import Processes, StopFlag
from carnet.training.hooks import ProgressLines
from carnet.training.loop import Callback, Training, fit
from carnet.training.run import train


def test_what_a_run_leaves(trained_run: Path) -> None:
    assert {path.name for path in trained_run.iterdir()} == {
        "batch.png", "config.json", "curves.png", "data.csv", "last.ckpt", "metrics.csv", "model.json",
        "model.safetensors", "previous.ckpt", "report.html", "result.json",
    }  # fmt: skip
    result = json.loads((trained_run / "result.json").read_text())
    assert (result["kept"], result["epochs"], result["num_images"]) == ("final", 2, {"train": 24, "valid": 12})
    assert [row["epoch"] for row in metrics(trained_run)] == ["1", "2"]
    assert float(metrics(trained_run)[1]["valid_top1"]) == result["final"]["valid_top1"] == result["valid"]["top1"]
    record = json.loads((trained_run / "config.json").read_text())
    assert TrainingConfig.from_json(record["requested"]) == SMALL
    resolved = ResolvedConfig.from_json(record["resolved"])
    assert (resolved.device, resolved.cutmix, resolved.min_crop, resolved.num_steps) == ("cpu", 0, 0.35, 6)
    assert sorted(SMALL.differences(resolved)) == [
        "--cutmix 0.0 (was auto)", "--frozen-share 0.0 (was auto)", "--initial-size-ratio 0.5 (was auto)",
        "--lr 0.08 (was auto)", "--min-crop 0.35 (was auto)", "--optimizer muon (was auto)",
        "--valid-seed 0 (was auto)",
    ]  # fmt: skip
    model = json.loads((trained_run / "model.json").read_text())
    network = create_model("carnet_n", num_classes=3)
    params = sum(parameter.numel() for parameter in network.parameters())
    assert (model["classes"], model["params"]) == (["blue", "green", "red"], params)


def test_same_seed_same_weights(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    train(photos, SMALL, output=tmp_path / "again")
    assert same_weights(trained_run, tmp_path / "again")
    assert metrics(trained_run) == metrics(tmp_path / "again")
    train(photos, small(seed=1), output=tmp_path / "other")
    assert not same_weights(trained_run, tmp_path / "other")


@dataclass(frozen=True)
class RecordingAugmentation(Augmentation):
    """Remembers the smallest crop that was allowed for each image."""

    min_crops: list[float] = field(default_factory=list)

    def draw(self, rng: np.random.Generator, min_crop: float = 1.0) -> Change:
        self.min_crops.append(min_crop)
        return super().draw(rng, min_crop)


class Inputs(Callback):
    """Remembers what goes into the network in training: (N, C, S, S)."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_fit_start(self, run: Training) -> None:
        run.network.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0].detach().clone()))


@pytest.mark.parametrize(
    ("changes", "sides"),
    [
        ({"epochs": 3}, [64, 64, 96, 96, 96, 96, 128, 128, 128]),
        # Also inside an epoch.
        ({"epochs": 1, "batch_size": 4}, [64, 64, 96, 96, 128, 128]),
    ],
)
def test_size_and_crops_follow_the_progress(
    changes: dict[str, Any], sides: list[int], photos: Path, tmp_path: Path
) -> None:
    """Progressive resizing and crops at first; full size and nearly uncropped images in the last quarter."""
    job = new_job(photos, small(image_size=128, workers=0, **changes), tmp_path / "run")
    augmentation = RecordingAugmentation(**vars(job.pipeline.augmentation))
    inputs = Inputs()
    fit_job(replace(job, pipeline=replace(job.pipeline, augmentation=augmentation)), [inputs])
    assert [images.shape[-1] for images in inputs.seen] == sides
    assert (augmentation.min_crops[0], augmentation.min_crops[-1]) == (0.35, 0.9)


def test_the_drawn_batch_is_what_the_network_gets(photos: Path, tmp_path: Path) -> None:
    job = new_job(photos, small(epochs=1, batch_size=24, cache="off"), tmp_path / "run")
    inputs = Inputs()
    fit_job(job, [inputs])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (job.spec.mean, job.spec.std))
    pixels = (255 * (inputs.seen[0] * std + mean)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    names = [job.spec.classes[image.label] for image in job.pipeline.load_step(0, 0)]
    assert (tmp_path / "run" / "batch.png").read_bytes() == draw_batch(pixels[:16], names[:16])
    # Images of one colour each, whatever is done to their brightness.
    for image, name in zip(pixels, names, strict=True):
        assert ("red", "green", "blue")[int(image.reshape(-1, 3).mean(axis=0).argmax())] == name


def test_the_ema_is_saved(trained_run: Path) -> None:
    last, kept = load_file(trained_run / "last.ckpt"), load_file(trained_run / "model.safetensors")
    assert all(torch.equal(tensor, last[f"average.{name}"]) for name, tensor in kept.items())
    assert not all(torch.equal(tensor, last[f"network.{name}"]) for name, tensor in kept.items())


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_images_are_made_square_as_asked(cache: str, tmp_path: Path) -> None:
    """The two classes of wide images differ only at the sides, which a centre crop would remove."""
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255))):
        for number in range(12):
            pixels = np.full((48, 144, 3), 128, np.uint8)
            pixels[:, :40], pixels[:, -40:] = colour, colour
            pixels[number, 60:80] = number
            folder = tmp_path / "data" / ("train" if number < 8 else "valid") / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    recipe = small(epochs=12, resize="pad", cache=cache, min_crop=1.0)
    result = train(tmp_path / "data", recipe, output=tmp_path / "run")
    assert load(tmp_path / "run").spec.resize == "pad"
    assert result.top1 == 1


def report(top1: float, loss: float) -> Any:
    """What a validation said, as far as it decides on the best epoch."""
    return SimpleNamespace(top1=top1, top5=1.0, macro_recall=top1, loss=loss)


def test_the_best_epoch_has_the_highest_accuracy_and_then_the_lowest_loss() -> None:
    state = TrainingState(num_steps=9)
    best = []
    for top1, loss in ((0.8, 1.0), (0.9, 2.0), (0.9, 1.5), (0.9, 1.8), (0.8, 0.1)):
        state.add_step(1.0, 1, 2, 0.1)
        state.end_epoch(report(top1, loss), lr=0.1, image_size=48)
        assert state.best is not None
        best.append((state.best["epoch"], state.epochs_since_best))
    # Patience does not wait for the loss.
    assert best == [(1, 0), (2, 0), (3, 1), (3, 2), (3, 3)]


def test_patience_keeps_the_best_epoch(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Steps this small change no prediction, and hardly the loss.
    result = train(photos, small(epochs=9, patience=2, lr=1e-12), output=run).document
    assert (result["epochs"], result["stopped_early"], result["kept"]) == (3, True, "best")
    table = metrics(run)
    best = min(range(3), key=lambda index: float(table[index]["valid_loss"]))
    assert (result["best"]["epoch"], result["final"]["epoch"]) == (best + 1, 3)
    assert json.loads((run / "model.json").read_text())["epoch"] == best + 1
    assert result["valid"]["loss"] == pytest.approx(float(table[best]["valid_loss"]))


def test_progress_goes_to_standard_error_unless_silent(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(photos, small(epochs=1), output=tmp_path / "heard")
    captured = capsys.readouterr()
    assert (captured.out, "epoch 1/1: train loss" in captured.err) == ("", True)
    train(photos, small(epochs=1), output=tmp_path / "silent", progress=Silent())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_remaining_time_is_forecast_once(photos: Path, tmp_path: Path) -> None:
    listening = Listening()
    job = new_job(photos, small(batch_size=4), tmp_path / "run")
    fit(Training(job, Processes(), listening, [ProgressLines(forecast_seconds=0.0)]), StopFlag())
    (forecast,) = [text for text in listening.said if "images/s" in text and not text.startswith("epoch")]
    assert len(re.findall(r"\d+ s", forecast)) >= 2


def test_each_epoch_reports_the_remaining_time(photos: Path, tmp_path: Path) -> None:
    listening = Listening()
    recipe = small(flip=0.0, min_crop=0.25, cutmix=0.5)
    train(photos, recipe, output=tmp_path / "run", progress=listening)
    first, last = [text for text in listening.said if re.match(r"epoch \d/2: ", text)]
    assert re.search(r"about \d+ s left$", first)
    assert "left" not in last
    augmentation = next(text for text in listening.said if "batch.png" in text)
    assert "25%" in augmentation
    assert "CutMix in 50%" in augmentation
    assert "--flip" not in augmentation


def test_init_keeps_or_renews_the_head(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    frozen = small(epochs=1, lr=1e-12)
    train(photos, frozen, output=tmp_path / "same", init=trained_run)
    old, new = (load_file(run / "model.safetensors") for run in (trained_run, tmp_path / "same"))
    assert torch.allclose(old["linear.weight"], new["linear.weight"], atol=1e-6)
    assert torch.allclose(old["stages.3.1.conv2.weight"], new["stages.3.1.conv2.weight"], atol=1e-6)
    other = tmp_path / "other"
    for split in ("train", "valid"):
        for name in ("red", "green"):
            shutil.copytree(photos / split / name, other / split / name)
    listening = Listening()
    train(other, frozen, output=tmp_path / "two", init=trained_run, progress=listening)
    new = load_file(tmp_path / "two" / "model.safetensors")
    assert new["linear.weight"].shape == (2, 256)
    assert torch.allclose(old["stages.3.1.conv2.weight"], new["stages.3.1.conv2.weight"], atol=1e-6)
    assert any("new head" in text for text in listening.said)
    with pytest.raises(RunError, match=r"carnet_n.*resnet18"):
        train(photos, small(model="resnet18"), output=tmp_path / "x", init=trained_run)


def test_bf16_trains_and_is_evaluated_in_fp32(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(photos, small(epochs=1, precision="bf16"), output=run)
    assert {tensor.dtype for tensor in load_file(run / "model.safetensors").values()} == {torch.float32, torch.int64}
    assert float(metrics(run)[0]["valid_loss"]) == pytest.approx(evaluate(run, photos).loss, rel=1e-5)
    assert json.loads((run / "config.json").read_text())["resolved"]["precision"] == "bf16"


def test_tensorboard(photos: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    train(photos, small(logger="tensorboard"), output=run)
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
        train(photos, small(model="timm/mobilenetv3_small_050"), output=run, progress=StopAt("epoch 1/2", 1))
    result = train(resume=run)
    assert result.document["model"] == "timm/mobilenetv3_small_050"
    assert len(load(run).predict(photos / "valid" / "red" / "8.jpg").classes) == 3


@pytest.mark.parametrize("in_channels", [1, 4])
def test_other_channels(in_channels: int, photos: Path, trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(photos, small(epochs=1, in_channels=in_channels), output=run)
    model = load(run)
    assert (model.spec.in_channels, len(model.spec.mean)) == (in_channels, in_channels)
    assert load_file(run / "model.safetensors")["stem.0.weight"].shape == (32, in_channels, 4, 4)
    assert len(model.predict(photos / "valid" / "red" / "8.jpg").classes) == 3
    assert evaluate(run, photos).top1 == result.top1
    with pytest.raises(RunError, match=f"--in-channels {in_channels}"):
        train(photos, small(epochs=1), output=tmp_path / "x", init=run)
    with pytest.raises(ConfigError, match=r"--in-channels .*2"):
        small(in_channels=2)


def test_loading_a_pickle_is_refused(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    torch.save({"a": torch.zeros(1)}, run / "model.safetensors")
    with pytest.raises(RunError, match=r"model\.safetensors"):
        load(run)
