"""Whole runs on small pictures: what they leave, that they repeat, stop, go on, and refuse."""

import csv
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import fit_job, new_job, resumed_job, rewrite_checkpoint, same_weights
from safetensors import safe_open
from safetensors.torch import load_file

from carnet import TrainingConfig, create_model, evaluate, files
from carnet.config import ResolvedConfig
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
from carnet.machine import available_cores
from carnet.models.weights import load
from carnet.report.plots import draw_batch
from carnet.run_folder import RunFolder
from carnet.text import Silent
from carnet.training import preparation
from carnet.training.augment import Augmentation, Change
from carnet.training.checkpoint import TrainingState, read_checkpoint
from carnet.training.distributed import Processes, catch_stop_signals
from carnet.training.hooks import ProgressLines
from carnet.training.loop import Callback, Training, fit
from carnet.training.preparation import Job, scan_data
from carnet.training.run import train
from carnet.training.step import StepResult

SMALL = TrainingConfig(model="carnet_n", image_size=48, epochs=2, batch_size=8)


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**(SMALL.to_json() | changes))


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
            signal.raise_signal(self.number)


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
    assert SMALL.differences(resolved) == [
        "--cutmix 0.0 (was auto)", "--min-crop 0.35 (was auto)", "--valid-seed 0 (was auto)"
    ]  # fmt: skip
    model = json.loads((trained_run / "model.json").read_text())
    network = create_model("carnet_n", num_classes=3)
    params = sum(parameter.numel() for parameter in network.parameters())
    assert (model["classes"], model["params"]) == (["blue", "green", "red"], params)


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
        (3, signal.SIGINT, "epoch 2/2"),
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
def test_images_are_shown_as_the_run_goes_on(
    changes: dict[str, Any], sides: list[int], photos: Path, tmp_path: Path
) -> None:
    """Small and cropped at first, at full side and nearly whole in the last quarter."""
    job = new_job(photos, config(image_size=128, workers=0, **changes), tmp_path / "run")
    augmentation = RecordingAugmentation(**vars(job.pipeline.augmentation))
    inputs = Inputs()
    fit_job(replace(job, pipeline=replace(job.pipeline, augmentation=augmentation)), [inputs])
    assert [images.shape[-1] for images in inputs.seen] == sides
    assert (augmentation.min_crops[0], augmentation.min_crops[-1]) == (0.35, 0.9)


def test_the_drawn_batch_is_what_goes_in(photos: Path, tmp_path: Path) -> None:
    job = new_job(photos, config(epochs=1, batch_size=24, cache="off"), tmp_path / "run")
    inputs = Inputs()
    fit_job(job, [inputs])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (job.spec.mean, job.spec.std))
    pixels = (255 * (inputs.seen[0] * std + mean)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    names = [job.spec.classes[image.label] for image in job.pipeline.load_step(0, 0)]
    assert (tmp_path / "run" / "batch.png").read_bytes() == draw_batch(pixels[:16], names[:16])
    # Images of one colour each, whatever is done to their brightness.
    for image, name in zip(pixels, names, strict=True):
        assert ("red", "green", "blue")[int(image.reshape(-1, 3).mean(axis=0).argmax())] == name


def test_the_average_of_the_weights_is_what_is_kept(trained_run: Path) -> None:
    last, kept = load_file(trained_run / "last.ckpt"), load_file(trained_run / "model.safetensors")
    assert all(torch.equal(tensor, last[f"average.{name}"]) for name, tensor in kept.items())
    assert not all(torch.equal(tensor, last[f"network.{name}"]) for name, tensor in kept.items())


def test_seconds_are_those_of_all_sessions(photos: Path, tmp_path: Path) -> None:
    """A budget would be given anew at every resumption otherwise; validating counts as well."""

    class Clock(StopAfter):
        now = 0.0

        def __call__(self) -> float:
            self.now += 1
            return self.now

        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            self.now += 1000 * ("validation" in what and done == total)
            super().bar(what, done, total, note)

    def train_by(clock: Clock, job: Job) -> list[float]:
        return [epoch["seconds"] for epoch in fit_job(job, clock=clock, progress=clock).history]

    once = train_by(Clock(10**9), new_job(photos, SMALL, tmp_path / "whole"))
    assert once[0] > 1000
    assert once[1] > 2000
    with pytest.raises(StoppedError):
        train_by(Clock(2, during="epoch 2/2"), new_job(photos, SMALL, tmp_path / "stopped"))
    assert train_by(Clock(10**9), resumed_job(tmp_path / "stopped")) == pytest.approx(once, abs=50)


def test_images_that_grow_are_taken_up_at_their_side(photos: Path, tmp_path: Path) -> None:
    growing = config(image_size=128, epochs=3, cutmix=1.0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(photos, growing, output=whole)
    assert [row["image_size"] for row in metrics(whole)] == ["96", "96", "128"]
    for during in ("epoch 2/3", "epoch 3/3"):
        with pytest.raises(StoppedError):
            train(photos, growing, output=stopped, progress=StopAfter(2, during=during))
        train(resume=stopped)
        assert same_weights(stopped, whole)
        assert metrics(stopped) == metrics(whole)
        shutil.rmtree(stopped)


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
        train(data, config(precision="fp32"), output=run, progress=StopAfter(1))
    with pytest.raises(RunError, match=r"does not have --lr 0.1 \(was 0.08\)"):
        train(config=config(precision="fp32", lr=0.1), resume=run)
    with pytest.raises(RunError, match=r"planned otherwise: --threads 99 \(was \d+\)"):
        train(config=config(precision="fp32", threads=99), resume=run)
    with pytest.raises(RunError, match=r"planned otherwise: --precision bf16 \(was fp32\)"):
        train(config=config(precision="bf16"), resume=run)
    with pytest.raises(RunError, match=r"planned otherwise: --devices 2 \(was 1\)"):
        train(config=config(precision="fp32", devices=2, threads=available_cores()), resume=run)
    with pytest.raises(RunError, match=r"does not have --batch-size 4 \(was 8\)"):
        train(config=config(precision="fp32", batch_size=4), resume=run)
    with pytest.raises(RunError, match=r"does not have --max-memory 1GB \(was none\), --budget 1h \(was none\)"):
        train(config=config(precision="fp32", max_memory="1GB", budget="1h"), resume=run)
    shutil.copy(data / "train" / "red" / "1.jpg", data / "train" / "red" / "0.jpg")
    with pytest.raises(RunError, match="the images are not those of"):
        train(resume=run)
    with pytest.raises(ConfigError, match="leave --init out"):
        train(resume=run, init=run)


def test_as_many_are_held_back_as_asked(flat: Path) -> None:
    recipe = config(valid_fraction=0.5)
    splits = scan_data(flat, recipe, (), Silent()).images.data.splits
    assert {name: len(samples) for name, samples in splits.items()} == {"train": 15, "valid": 15}


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_images_are_made_square_as_asked(cache: str, tmp_path: Path) -> None:
    """Wide pictures of which the two classes differ at the sides only: cut out of the middle, they are alike."""
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255))):
        for number in range(12):
            pixels = np.full((48, 144, 3), 128, np.uint8)
            pixels[:, :40], pixels[:, -40:] = colour, colour
            pixels[number, 60:80] = number
            folder = tmp_path / "data" / ("train" if number < 8 else "valid") / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    recipe = config(epochs=12, resize="pad", cache=cache, min_crop=1.0)
    result = train(tmp_path / "data", recipe, output=tmp_path / "run")
    assert load(tmp_path / "run").spec.resize == "pad"
    assert result.top1 == 1


def test_a_budget_that_is_spent_on_looking(photos: Path) -> None:
    recipe = config(budget="3s", cache="off")
    with pytest.raises(ConfigError, match=r"images took all of --budget 3s; all of them take about .*, so give more"):
        scan_data(photos, recipe, (), Silent(), started=time.monotonic() - 3)
    # A run that goes on has been planned.
    scan_data(photos, recipe, (), Silent())


@pytest.mark.parametrize("flag", ["batch_size", "micro_batch"])
def test_one_image_at_a_time_is_too_few_where_it_becomes_one_position(flag: str) -> None:
    with pytest.raises(ModelError, match=f"--{flag.replace('_', '-')} 1 is too few for batch norm at --image-size 32"):
        preparation.check_early(TrainingConfig(image_size=32, **{flag: 1}))
    preparation.check_early(TrainingConfig(image_size=64, **{flag: 1}))


def damage_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_last_byte, lambda path: os.truncate(path, 1000), Path.unlink])
def test_a_damaged_checkpoint_is_recognised_and_the_previous_one_used(
    damage: Callable[[Path], None], photos: Path, trained_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, progress=StopAfter(1, during="epoch 2/2"))
    damage(run / "last.ckpt")
    # What the lost checkpoint knew and the previous one does not.
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text() + "2,0,0,0,0,0,0,0,0\n")
    heard = StopAfter(-1)
    with pytest.raises(StoppedError):
        train(resume=run, progress=StopAfter(2, during="epoch 2/2"))
    assert [row["epoch"] for row in metrics(run)] == ["1"]
    damage(run / "last.ckpt")
    train(resume=run, progress=heard)
    said = "\n".join(heard.said)
    if damage is not Path.unlink:
        assert re.search(r"Note: .*last.ckpt: it.* (wrong|cut off).*; goes on from the checkpoint before it", said)
    assert "1 of 2 epochs and 0 steps are done" in said
    assert same_weights(run, trained_run)
    assert metrics(run) == metrics(trained_run)


def test_without_any_good_checkpoint(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    for name in ("last.ckpt", "previous.ckpt"):
        damage_last_byte(run / name)
    with pytest.raises(RunError, match=r"no checkpoint can be read \(.*last.ckpt: .*previous.ckpt: .*--init"):
        train(resume=run)
    for name in ("last.ckpt", "previous.ckpt"):
        (run / name).unlink()
    heard = StopAfter(-1)
    train(resume=run, progress=heard)
    assert "no checkpoint yet and starts at the beginning" in "\n".join(heard.said)
    assert same_weights(run, trained_run)


def test_a_checkpoint_that_cannot_be_read_just_now_is_not_replaced(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "last.ckpt").unlink()
    (run / "last.ckpt").mkdir()
    with pytest.raises(RunError, match=r"cannot read .*last\.ckpt: .*; allow it, or try again"):
        train(resume=run)
    assert (run / "last.ckpt").is_dir()
    assert (run / "previous.ckpt").is_file()


def test_a_run_is_trained_by_one_process(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with RunFolder.open(run).held(), pytest.raises(RunError, match="is being trained by another process"):
        train(resume=run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_is_held_while_it_is_trained(photos: Path, tmp_path: Path) -> None:
    held = []

    class Look(Silent):
        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            with files.locked(tmp_path / "run" / "config.json") as alone:
                held.append(not alone and what.startswith("epoch"))

    train(photos, config(epochs=1), output=tmp_path / "run", progress=Look())
    assert any(held)
    with files.locked(tmp_path / "run" / "config.json") as alone:
        assert alone


def test_a_kill_before_the_run_exists_leaves_its_name_free(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "data.csv").write_text("split,label,filepath,sha256,width\n")
    (run / ".config.json.1234.tmp").write_text("{")
    assert train(photos, config(epochs=1), output=run).document["epochs"] == 1


def test_resumed_in_another_folder_with_other_workers(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, progress=StopAfter(2))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    train(config=config(workers=0, checkpoint_steps=1), resume=run, output=tmp_path / "other")
    assert same_weights(tmp_path / "other", trained_run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    with pytest.raises(OutputError, match="exists"):
        train(resume=run, output=tmp_path / "other")


def test_another_machine_is_said_and_recorded(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, progress=StopAfter(1))
    here = json.loads((run / "config.json").read_text())["resolved"]["device_name"]

    def moved(record: dict[str, Any]) -> dict[str, Any]:
        return record | {"resolved": record["resolved"] | {"device_name": "another card"}}

    rewrite_checkpoint(run / "last.ckpt", record=moved)
    heard = StopAfter(1, during="epoch 2/2")
    with pytest.raises(StoppedError):
        train(resume=run, progress=heard)
    (note,) = train(resume=run).document["notes"]
    assert note in "\n".join(heard.said)
    assert "another card" in note
    assert here in note


def test_other_versions_are_said(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, progress=StopAfter(1))
    rewrite_checkpoint(run / "last.ckpt", record=lambda record: record | {"processor_features": "OLDER"})
    heard = StopAfter(1, during="epoch 2/2")
    with pytest.raises(StoppedError):
        train(resume=run, progress=heard)
    assert re.search(r"Note: processor features .+ \(was OLDER\)", "\n".join(heard.said))


class Meddle(StopAfter):
    """A progress that does something to the run at the second step."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__(-1)
        self.act = act

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        if what == "epoch 1/2" and done == 2:
            self.act()


def test_no_room_on_disk(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    run = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole: dict[str, bytes] = {}

    def fill_the_disk() -> None:
        whole.update({path.name: path.read_bytes() for path in run.iterdir()})
        # The system itself cuts every file off at this size.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    try:
        with pytest.raises(OutputError, match=r"cannot write .*last\.ckpt: .*; what was there is whole: .*--resume"):
            train(photos, config(checkpoint_steps=3), output=run, progress=Meddle(fill_the_disk))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == whole
    train(resume=run)
    assert same_weights(run, trained_run)


@pytest.mark.skipif(os.name == "nt", reason="what is held cannot be deleted there")
def test_the_run_folder_deleted_under_way(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutputError, match=r"the run folder .*run has gone"):
        train(photos, SMALL, output=run, progress=Meddle(lambda: shutil.rmtree(run)))
    assert not run.exists()


def test_a_checkpoint_that_cannot_be_replaced(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutputError, match=r"last\.ckpt.*--resume"):
        train(
            photos,
            config(checkpoint_steps=3),
            output=run,
            # The last one should get this name.
            progress=Meddle((run / "previous.ckpt").mkdir),
        )
    assert json.loads(safe_state(run))["step"] == 0


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write everywhere")
def test_a_read_only_run_folder(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutputError, match=r"cannot write .*last\.ckpt: Permission denied; what was there is whole"):
        train(photos, config(checkpoint_steps=3), output=run, progress=Meddle(lambda: run.chmod(0o500)))
    run.chmod(0o700)
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match=r"nothing may be written into .*closed"):
        train(photos, SMALL, output=tmp_path / "closed" / "run")


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
    assert torch.allclose(old["stages.3.1.conv2.weight"], new["stages.3.1.conv2.weight"], atol=1e-6)
    other = tmp_path / "other"
    for split in ("train", "valid"):
        for name in ("red", "green"):
            shutil.copytree(photos / split / name, other / split / name)
    said = StopAfter(-1)
    train(other, frozen, output=tmp_path / "two", init=trained_run, progress=said)
    new = load_file(tmp_path / "two" / "model.safetensors")
    assert new["linear.weight"].shape == (2, 256)
    assert torch.allclose(old["stages.3.1.conv2.weight"], new["stages.3.1.conv2.weight"], atol=1e-6)
    assert any("with a new head (other classes)" in text for text in said.said)
    with pytest.raises(RunError, match="is a carnet_n, not a resnet18"):
        train(photos, config(model="resnet18"), output=tmp_path / "x", init=trained_run)


def report(top1: float, loss: float) -> Any:
    """What a validation said, as far as it decides on the best epoch."""
    return SimpleNamespace(top1=top1, top5=1.0, loss=loss)


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
    # So small steps change no answer, and hardly a loss.
    result = train(photos, config(epochs=9, patience=2, lr=1e-12), output=run).document
    assert (result["epochs"], result["stopped_early"], result["kept"]) == (3, True, "best")
    table = metrics(run)
    best = min(range(3), key=lambda index: float(table[index]["valid_loss"]))
    assert (result["best"]["epoch"], result["final"]["epoch"]) == (best + 1, 3)
    assert json.loads((run / "model.json").read_text())["epoch"] == best + 1
    assert result["valid"]["loss"] == pytest.approx(float(table[best]["valid_loss"]))


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
        train(data, config(cache="off"), output=run, progress=Delete(-1))
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


def test_the_remaining_time_is_foretold_once(photos: Path, tmp_path: Path) -> None:
    heard = StopAfter(-1)
    job = new_job(photos, config(batch_size=4), tmp_path / "run")
    with catch_stop_signals() as stop:
        fit(Training(job, Processes(), heard, [ProgressLines(measured_seconds=0.0)]), stop)
    (forecast,) = [text for text in heard.said if " s a step, " in text]
    assert re.search(r"images/s: about .+ an epoch and .+ to the end", forecast)


def test_each_epoch_tells_how_much_is_left_and_how_images_are_shown(photos: Path, tmp_path: Path) -> None:
    heard = StopAfter(-1)
    train(photos, config(epochs=2, flip=0.0, min_crop=0.25, cutmix=0.5), output=tmp_path / "run", progress=heard)
    first, last = [text for text in heard.said if re.match(r"epoch \d/2: train loss", text)]
    assert re.search(r" so far, about \d+ s left$", first)
    assert last.endswith(" so far")
    assert "as they go in: pieces of at least 25 % of each, 50 % of batches mixed." in "\n".join(heard.said)


class Exhaust(Callback):
    """No memory is left for the second step."""

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        def exhausted(*_: object) -> None:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes")

        run.network.register_forward_pre_hook(exhausted)


def test_out_of_memory_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"8 images of 48 px .*--micro-batch 4"):
        train(photos, SMALL, output=tmp_path / "run", callbacks=[Exhaust()])


def test_wrong_output_and_start_are_noticed_before_the_images(tmp_path: Path, trained_run: Path) -> None:
    nowhere = tmp_path / "never looked at"
    with pytest.raises(RunError, match="no run folder"):
        train(nowhere, SMALL, output=tmp_path / "run", init=tmp_path / "gone")
    with pytest.raises(OutputError, match="exists"):
        train(nowhere, SMALL, output=trained_run)


def test_a_run_among_its_own_images_is_refused(
    photos: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"would lie among the images in .*; choose --output"):
        train(flat, SMALL, output=flat / "runs" / "a")
    monkeypatch.chdir(flat)
    with pytest.raises(ConfigError, match=r"^runs would lie among the images"):
        train(".", SMALL)
    assert not (flat / "runs").exists()


def test_what_changed_since_a_run_was_stopped(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    run = tmp_path / "run"
    train(data, config(epochs=1), output=run)
    shutil.copy(data / "train" / "red" / "0.jpg", data / "train" / "red" / "new.jpg")
    (data / "train" / "blue" / "1.jpg").unlink()
    shutil.copy(data / "train" / "green" / "1.jpg", data / "train" / "green" / "2.jpg")
    with pytest.raises(RunError, match=r"1 new \(.*new.jpg\), 1 gone \(.*1.jpg\), 1 changed \(.*2.jpg\); --init"):
        train(resume=run)
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no folder .*; say where the images are: carnet train DATA --resume"):
        train(resume=run)


def test_held_back_images_may_have_a_seed_of_their_own(flat: Path, tmp_path: Path) -> None:
    def held_back(name: str, **changes: Any) -> tuple[Any, ...]:
        return train(flat, config(epochs=1, **changes), output=tmp_path / name).report.samples

    same = [held_back(f"{seed}", seed=seed, valid_seed=7) for seed in (1, 2)]
    assert same[0] == same[1] == held_back("by its own", seed=7)
    assert same[0] != held_back("otherwise", seed=2)


class DeleteAtTheEnd(Callback):
    """Takes an image away after the last epoch."""

    def __init__(self, image: Path) -> None:
        self.image = image

    def on_fit_end(self, run: Training) -> None:
        self.image.unlink()


class InterruptReport(Silent):
    """Presses Ctrl-C while the kept weights are evaluated."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        if what == "final validation":
            raise KeyboardInterrupt


def test_a_failure_after_the_last_step_says_that_training_is_done(photos: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    image, run = data / "valid" / "red" / "8.jpg", tmp_path / "run"
    with pytest.raises(DataError, match=r"--resume .*8\.jpg"):
        train(data, config(epochs=1, cache="off"), output=run, callbacks=[DeleteAtTheEnd(image)])
    shutil.copy(photos / "valid" / "red" / "8.jpg", image)
    heard = InterruptReport()
    with pytest.raises(KeyboardInterrupt):
        train(resume=run, progress=heard)
    assert f"--resume {run}" in heard.said[-1]
    assert not (run / "result.json").exists()
    assert train(resume=run).document["epochs"] == 1


class Saved(Callback):
    """Where the run stood in each checkpoint, read from the file after the built-in callbacks."""

    def __init__(self) -> None:
        self.positions: list[tuple[int, int]] = []

    def on_fit_start(self, run: Training) -> None:
        state = read_checkpoint(run.folder.checkpoint).state
        if (position := (state["epoch"], state["step"])) not in self.positions:
            self.positions.append(position)

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        self.on_fit_start(run)

    def on_epoch_end(self, run: Training) -> None:
        self.on_fit_start(run)


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({"epochs": 1, "checkpoint_minutes": 1e-9}, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]),
        ({"epochs": 2, "checkpoint_steps": 2}, [(0, 0), (0, 2), (1, 0), (1, 1), (1, 3), (2, 0)]),
    ],
)
def test_checkpoints_inside_an_epoch(
    changes: dict[str, Any], positions: list[tuple[int, int]], photos: Path, tmp_path: Path
) -> None:
    saved = Saved()
    train(photos, config(**changes), output=tmp_path / "run", callbacks=[saved])
    assert saved.positions == positions


def test_bf16_trains_and_is_evaluated_in_fp32(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(photos, config(epochs=1, precision="bf16"), output=run)
    assert {tensor.dtype for tensor in load_file(run / "model.safetensors").values()} == {torch.float32, torch.int64}
    assert float(metrics(run)[0]["valid_loss"]) == pytest.approx(evaluate(run, photos).loss, rel=1e-5)
    assert json.loads((run / "config.json").read_text())["resolved"]["precision"] == "bf16"


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


def test_what_is_held_back_of_train_is_found_again(flat: Path, photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(flat, data / "train")
    shutil.copytree(photos / "valid", data / "test")
    run = tmp_path / "run"
    result = train(data, config(epochs=1), output=run)
    assert result.document["num_images"] == {"train": 24, "valid": 6, "test": 12}
    numbers = {split: evaluate(run, data, split=split).num_images for split in ("train", "valid", "test", "all")}
    assert numbers == {"train": 24, "valid": 6, "test": 12, "all": 42}
    assert evaluate(run, data).top1 == result.top1
    shutil.copytree(photos / "train", tmp_path / "other" / "train")
    with pytest.raises(DataError, match="does not say which images are valid, and none of them were in the run's"):
        evaluate(run, tmp_path / "other")
    assert evaluate(run, tmp_path / "other", split="train").num_images == 24
    with (run / "data.csv").open() as file:
        held_back = next(row for row in csv.DictReader(file) if row["split"] == "valid")
    (data / held_back["filepath"]).unlink()
    report = evaluate(run, data)
    assert report.num_images == 5
    assert "1 of the run's 6 different images in valid cannot be read any more, or are not here" in report.warnings


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
        ({"model": "carnet18", "image_size": 46}, ModelError, "at least 47 px"),
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


def test_a_network_of_one_size_says_how_to_train_it(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(
        ConfigError, match=r"--initial-size-ratio 0.5: timm/vit_tiny.* cannot take .*; take --initial-size-ratio 1"
    ):
        train(photos, config(model="timm/vit_tiny_patch16_224", image_size=224), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_timm_model(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, config(model="timm/mobilenetv3_small_050"), output=run, progress=StopAfter(1))
    result = train(resume=run)
    assert result.document["model"] == "timm/mobilenetv3_small_050"
    assert len(load(run).predict(photos / "valid" / "red" / "8.jpg").classes) == 3


@pytest.mark.parametrize("in_channels", [1, 4])
def test_other_channels(in_channels: int, photos: Path, trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(photos, config(epochs=1, in_channels=in_channels), output=run)
    model = load(run)
    assert (model.spec.in_channels, len(model.spec.mean)) == (in_channels, in_channels)
    assert load_file(run / "model.safetensors")["stem.0.weight"].shape == (32, in_channels, 4, 4)
    assert len(model.predict(photos / "valid" / "red" / "8.jpg").classes) == 3
    assert evaluate(run, photos).top1 == result.top1
    with pytest.raises(RunError, match=f"takes images of other channels; add --in-channels {in_channels}"):
        train(photos, config(epochs=1), output=tmp_path / "x", init=run)
    with pytest.raises(ConfigError, match="--in-channels must be one of 1, 3, 4, got 2"):
        config(in_channels=2)


def test_ignored_images_stay_out_also_on_resume(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    heard = StopAfter(1)
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, ignore=("train/red/0.jpg", "valid/blue/9.jpg"), progress=heard)
    assert "Ignored: 2 images, as asked." in "\n".join(heard.said)
    result = train(resume=run).document
    assert (result["num_images"], result["num_ignored"]) == ({"train": 23, "valid": 11}, 2)
    with pytest.raises(RunError, match="the images are not those of"):
        train(resume=run, ignore=("train/red/1.jpg",))


def test_a_list_that_counts_from_the_current_folder_holds_elsewhere(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.chdir(photos.parent)
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, ignore=("photos/train/red/0.jpg", "none.jpg"), progress=StopAfter(1))
    monkeypatch.chdir(tmp_path)
    assert train(resume=run).document["num_ignored"] == 1
    assert RunFolder(run).read_config()["data"]["ignore"] == ["train/red/0.jpg"]


def test_folder_archive_and_table_train_alike(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    archive = Path(shutil.make_archive(str(tmp_path / "pictures"), "zip", photos.parent, photos.name))
    table = photos.parent / "photos.csv"
    rows = [
        {"class id": "7", "filepaths": path.relative_to(photos.parent).as_posix(), "labels": path.parent.name,
         "data set": path.parent.parent.name}
        for path in sorted(photos.rglob("*.jpg"), reverse=True)
    ]  # fmt: skip
    files.write_text(table, files.csv_text(rows))
    monkeypatch.chdir(tmp_path)
    runs = [train(data, config(epochs=1)).run for data in (photos, archive, table)]
    assert [str(run) for run in runs] == ["runs/photos-carnet_n", "runs/pictures-carnet_n", "runs/photos-carnet_n-2"]
    for run in runs[1:]:
        assert same_weights(run, runs[0])
        assert metrics(run) == metrics(runs[0])
        assert load(run).spec.classes == load(runs[0]).spec.classes
    assert evaluate(runs[0], table).top1 == evaluate(runs[2], archive).top1
    table.unlink()
