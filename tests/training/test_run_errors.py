"""What stops a run, before its first step or later, is one sentence, and leaves what was there before."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    SMALL,
    Listening,
    same_weights,
    small,
)
from safetensors import safe_open
from safetensors.torch import load_file

from carnet import TrainingConfig
from carnet.errors import (
    ConfigError,
    DataError,
    ImageError,
    ModelError,
    NonFiniteLossError,
    OutOfMemoryError,
    OutputError,
    RunError,
    UnreadableImagesError,
)
from carnet.text import Silent
from carnet.training.loop import Callback, Training
from carnet.training.preparation import check_early, scan_data
from carnet.training.run import train
from carnet.training.step import StepResult


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "carnet81"}, ModelError, "carnet18"),
        ({"model": "carnet18", "image_size": 46}, ModelError, "--image-size 46"),
        ({"device": "cuda"}, ConfigError, "--device cuda"),
        ({"precision": "fp16"}, ConfigError, "--precision fp16"),
    ],
)
def test_bad_recipes_stop_before_anything_is_read(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(error, match=message):
        train(tmp_path / "never read", small(**({"device": "cpu"} | changes)), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["batch_size", "micro_batch"])
def test_one_image_at_a_time_is_too_few_where_it_becomes_one_position(flag: str) -> None:
    with pytest.raises(ModelError, match=f"--{flag.replace('_', '-')} 1 .*--image-size 32"):
        check_early(TrainingConfig(image_size=32, **{flag: 1}))
    check_early(TrainingConfig(image_size=64, **{flag: 1}))


def test_a_network_of_one_size_says_how_to_train_it(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"--initial-size-ratio 0.5.*timm/vit_tiny.*--initial-size-ratio 1"):
        train(photos, small(model="timm/vit_tiny_patch16_224", image_size=224), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_output_and_init_are_noticed_before_the_images_are_read(tmp_path: Path, trained_run: Path) -> None:
    nowhere = tmp_path / "never read"
    with pytest.raises(RunError, match="gone"):
        train(nowhere, SMALL, output=tmp_path / "run", init=tmp_path / "gone")
    with pytest.raises(OutputError, match=trained_run.name):
        train(nowhere, SMALL, output=trained_run)


def test_output_must_be_new(photos: Path, trained_run: Path) -> None:
    before = (trained_run / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="--resume"):
        train(photos, SMALL, output=trained_run)
    assert (trained_run / "model.safetensors").read_bytes() == before


def test_a_run_among_its_own_images_is_refused(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--output"):
        train(flat, SMALL, output=flat / "runs" / "a")
    monkeypatch.chdir(flat)
    with pytest.raises(ConfigError, match=r"runs.*--output"):
        train(".", SMALL)
    assert not (flat / "runs").exists()


def test_unreadable_image_stops_before_a_folder_is_made(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "train" / "red" / "0.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImagesError):
        train(data, SMALL, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = train(data, small(epochs=1, skip_unreadable=True), output=tmp_path / "run")
    assert (result.document["num_skipped_unreadable"], result.document["num_images"]["train"]) == (1, 23)


def test_a_budget_that_is_spent_on_scanning(photos: Path) -> None:
    recipe = small(budget="3s", cache="off")
    with pytest.raises(ConfigError, match="--budget 3s"):
        scan_data(photos, recipe, (), Silent(), started=time.monotonic() - 3)
    # The length of a resumed run is planned already.
    scan_data(photos, recipe, (), Silent())


class Meddle(Silent):
    """A progress that does something at the second step."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        if (what, done) == ("epoch 1/2", 2):
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
        with pytest.raises(OutputError, match=r"last\.ckpt.*--resume"):
            train(photos, small(checkpoint_steps=3), output=run, progress=Meddle(fill_the_disk))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == whole
    train(resume=run)
    assert same_weights(run, trained_run)


@pytest.mark.skipif(os.name == "nt", reason="what is held cannot be deleted there")
def test_a_run_folder_deleted_during_training(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutputError, match=str(run)):
        train(photos, SMALL, output=run, progress=Meddle(lambda: shutil.rmtree(run)))
    assert not run.exists()


def test_a_checkpoint_that_cannot_be_replaced(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutputError, match=r"last\.ckpt.*--resume"):
        train(
            photos,
            small(checkpoint_steps=3),
            output=run,
            # The name that the last checkpoint should get.
            progress=Meddle((run / "previous.ckpt").mkdir),
        )
    assert json.loads(safe_state(run))["step"] == 0


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write everywhere")
def test_a_read_only_run_folder(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutputError, match=r"last\.ckpt.*--resume"):
        train(photos, small(checkpoint_steps=3), output=run, progress=Meddle(lambda: run.chmod(0o500)))
    run.chmod(0o700)
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="closed"):
        train(photos, SMALL, output=tmp_path / "closed" / "run")


def test_non_finite_loss_stops_before_the_update(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match=r"epoch \d+, step \d+, .*1e\+30.*--lr 1e\+29") as error:
        train(photos, small(lr=1e30, epochs=9), output=run)
    assert error.value.exit_code == 1
    assert str(run / "last.ckpt") in str(error.value)
    weights = load_file(run / "last.ckpt")
    assert all(torch.isfinite(tensor).all() for name, tensor in weights.items() if name.startswith("network."))


def test_an_epochs_last_step_cannot_spoil_the_checkpoint(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match="epoch 1, validation"):
        train(photos, small(lr=1e30, batch_size=64), output=run)
    assert json.loads(safe_state(run))["epoch"] == 0
    assert not (run / "model.safetensors").exists()


def safe_state(run: Path) -> str:
    with safe_open(run / "last.ckpt", framework="pt") as file:
        return str(file.metadata()["state"])


def test_an_image_deleted_during_training_leaves_a_checkpoint(photos: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photos, data)
    gone = data / "train" / "red" / "0.jpg"

    class Delete(Silent):
        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            if what == "epoch 1/2 validation":
                gone.unlink(missing_ok=True)

    with pytest.raises(ImageError, match=r"red/0\.jpg"):
        train(data, small(cache="off"), output=run, progress=Delete())
    assert json.loads(safe_state(run))["epoch"] == 1
    shutil.copy(photos / "train" / "red" / "0.jpg", gone)
    assert train(resume=run).document["epochs"] == 2


class Exhaust(Callback):
    """No memory is left for the second step."""

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        def exhausted(*_: object) -> None:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes")

        run.network.register_forward_pre_hook(exhausted)


def test_out_of_memory_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"8 images of 48 px .*--micro-batch 4"):
        train(photos, SMALL, output=tmp_path / "run", callbacks=[Exhaust()])


class DeleteAtTheEnd(Callback):
    """Deletes an image after the last epoch."""

    def __init__(self, image: Path) -> None:
        self.image = image

    def on_fit_end(self, run: Training) -> None:
        self.image.unlink()


class InterruptReport(Listening):
    """Presses Ctrl-C while the saved weights are evaluated."""

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        if what == "final validation":
            raise KeyboardInterrupt


def test_a_failure_after_the_last_step_says_that_training_is_done(photos: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    image, run = data / "valid" / "red" / "8.jpg", tmp_path / "run"
    with pytest.raises(DataError, match=r"--resume .*8\.jpg"):
        train(data, small(epochs=1, cache="off"), output=run, callbacks=[DeleteAtTheEnd(image)])
    shutil.copy(photos / "valid" / "red" / "8.jpg", image)
    heard = InterruptReport()
    with pytest.raises(KeyboardInterrupt):
        train(resume=run, progress=heard)
    assert f"--resume {run}" in heard.said[-1]
    assert not (run / "result.json").exists()
    assert train(resume=run).document["epochs"] == 1
