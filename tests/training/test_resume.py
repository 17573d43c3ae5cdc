"""Runs that are stopped and resumed end like uninterrupted ones; what would change the result is refused."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import (
    SMALL,
    Listening,
    StopAt,
    fit_job,
    metrics,
    new_job,
    resumed_job,
    rewrite_checkpoint,
    same_weights,
    small,
)

from carnet import files
from carnet.errors import (
    ConfigError,
    DataError,
    OutputError,
    RunError,
    StoppedError,
)
from carnet.machine import available_cores
from carnet.run_folder import RunFolder
from carnet.text import Silent
from carnet.training.checkpoint import read_checkpoint
from carnet.training.loop import Callback, Training
from carnet.training.preparation import Job
from carnet.training.run import train
from carnet.training.step import StepResult


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
    with pytest.raises(StoppedError, match=r"--resume") as stopped:
        train(photos, SMALL, output=run, progress=StopAt(during, steps, number))
    assert stopped.value.exit_code == 128 + number
    assert not (run / "result.json").exists()
    train(resume=run)
    assert same_weights(run, trained_run)
    assert metrics(run) == metrics(trained_run)


def test_seconds_add_up_over_interruptions(photos: Path, tmp_path: Path) -> None:
    """A resumed run does not get its whole budget again; validation counts for it."""

    class Clock(StopAt):
        now = 0.0

        def __call__(self) -> float:
            self.now += 1
            return self.now

        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            self.now += 1000 * ("validation" in what and done == total)
            super().bar(what, done, total, note)

    def train_by(clock: Clock, job: Job) -> list[float]:
        return [epoch["seconds"] for epoch in fit_job(job, clock=clock, progress=clock).history]

    once = train_by(Clock("nothing", 0), new_job(photos, SMALL, tmp_path / "whole"))
    assert once[0] > 1000
    assert once[1] > 2000
    with pytest.raises(StoppedError):
        train_by(Clock("epoch 2/2", 2), new_job(photos, SMALL, tmp_path / "stopped"))
    assert train_by(Clock("nothing", 0), resumed_job(tmp_path / "stopped")) == pytest.approx(once, abs=50)


def test_progressive_resizing_resumes_at_its_side(photos: Path, tmp_path: Path) -> None:
    growing = small(image_size=128, epochs=3, cutmix=1.0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(photos, growing, output=whole)
    assert [row["image_size"] for row in metrics(whole)] == ["96", "96", "128"]
    for during in ("epoch 2/3", "epoch 3/3"):
        with pytest.raises(StoppedError):
            train(photos, growing, output=stopped, progress=StopAt(during, 2))
        train(resume=stopped)
        assert same_weights(stopped, whole)
        assert metrics(stopped) == metrics(whole)
        shutil.rmtree(stopped)


def test_resume_with_workers_and_moved_images(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(moved, SMALL, output=run, progress=StopAt("epoch 1/2", 2))
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="moved"):
        train(resume=run)
    train(tmp_path / "elsewhere", small(workers=1), resume=run)
    assert same_weights(run, trained_run)


def test_resumed_in_another_folder_with_other_workers(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, progress=StopAt("epoch 1/2", 2))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    train(config=small(workers=0, checkpoint_steps=1), resume=run, output=tmp_path / "other")
    assert same_weights(tmp_path / "other", trained_run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    with pytest.raises(OutputError, match="other"):
        train(resume=run, output=tmp_path / "other")


def test_resuming_a_finished_run_changes_nothing(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    result = train(resume=run)
    assert same_weights(run, trained_run)
    assert result.document["epochs"] == 2


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
    train(photos, small(**changes), output=tmp_path / "run", callbacks=[saved])
    assert saved.positions == positions


def test_resume_refuses_what_would_change_the_result(photos: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photos, data)
    with pytest.raises(StoppedError):
        train(data, small(precision="fp32"), output=run, progress=StopAt("epoch 1/2", 1))
    with pytest.raises(RunError, match=r"--lr 0.1 \(was 0.08\)"):
        train(config=small(precision="fp32", lr=0.1), resume=run)
    with pytest.raises(RunError, match=r"--threads 99 \(was \d+\)"):
        train(config=small(precision="fp32", threads=99), resume=run)
    with pytest.raises(RunError, match=r"--precision bf16 \(was fp32\)"):
        train(config=small(precision="bf16"), resume=run)
    with pytest.raises(RunError, match=r"--devices 2 \(was 1\)"):
        train(config=small(precision="fp32", devices=2, threads=available_cores()), resume=run)
    with pytest.raises(RunError, match=r"--batch-size 4 \(was 8\)"):
        train(config=small(precision="fp32", batch_size=4), resume=run)
    with pytest.raises(RunError, match=r"--max-memory 1GB \(was none\), --budget 1h \(was none\)"):
        train(config=small(precision="fp32", max_memory="1GB", budget="1h"), resume=run)
    shutil.copy(data / "train" / "red" / "1.jpg", data / "train" / "red" / "0.jpg")
    with pytest.raises(RunError, match=r"0\.jpg"):
        train(resume=run)
    with pytest.raises(ConfigError, match="--init"):
        train(resume=run, init=run)


def test_what_changed_since_a_run_was_stopped(photos: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    run = tmp_path / "run"
    train(data, small(epochs=1), output=run)
    shutil.copy(data / "train" / "red" / "0.jpg", data / "train" / "red" / "new.jpg")
    (data / "train" / "blue" / "1.jpg").unlink()
    shutil.copy(data / "train" / "green" / "1.jpg", data / "train" / "green" / "2.jpg")
    with pytest.raises(RunError, match=r"1 new \(.*new.jpg\), 1 gone \(.*1.jpg\), 1 changed \(.*2.jpg\); --init"):
        train(resume=run)
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"data.*carnet train DATA --resume"):
        train(resume=run)


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
        train(photos, SMALL, output=run, progress=StopAt("epoch 2/2", 1))
    damage(run / "last.ckpt")
    # What the lost checkpoint knew and the previous one does not.
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text() + "2,0,0,0,0,0,0,0,0\n")
    heard = Listening()
    with pytest.raises(StoppedError):
        train(resume=run, progress=StopAt("epoch 2/2", 2))
    assert [row["epoch"] for row in metrics(run)] == ["1"]
    damage(run / "last.ckpt")
    train(resume=run, progress=heard)
    said = "\n".join(heard.said)
    if damage is not Path.unlink:
        assert re.search(r"Note: .*last\.ckpt.*previous\.ckpt", said)
    assert "1 of 2 epochs and 0 steps are done" in said
    assert same_weights(run, trained_run)
    assert metrics(run) == metrics(trained_run)


def test_without_any_good_checkpoint(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    for name in ("last.ckpt", "previous.ckpt"):
        damage_last_byte(run / name)
    with pytest.raises(RunError, match=r"last\.ckpt.*previous\.ckpt.*--init"):
        train(resume=run)
    for name in ("last.ckpt", "previous.ckpt"):
        (run / name).unlink()
    heard = Listening()
    train(resume=run, progress=heard)
    assert "no checkpoint" in "\n".join(heard.said)
    assert same_weights(run, trained_run)


def test_a_checkpoint_that_cannot_be_read_just_now_is_not_replaced(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "last.ckpt").unlink()
    (run / "last.ckpt").mkdir()
    with pytest.raises(RunError, match=r"last\.ckpt"):
        train(resume=run)
    assert (run / "last.ckpt").is_dir()
    assert (run / "previous.ckpt").is_file()


def test_a_run_is_trained_by_one_process(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with RunFolder.open(run).held(), pytest.raises(RunError, match=run.name):
        train(resume=run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_is_held_while_it_is_trained(photos: Path, tmp_path: Path) -> None:
    held = []

    class Look(Silent):
        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            with files.locked(tmp_path / "run" / "config.json") as alone:
                held.append(not alone and what.startswith("epoch"))

    train(photos, small(epochs=1), output=tmp_path / "run", progress=Look())
    assert any(held)
    with files.locked(tmp_path / "run" / "config.json") as alone:
        assert alone


def test_a_kill_before_the_run_exists_leaves_its_name_free(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "data.csv").write_text("split,label,filepath,sha256,width\n")
    (run / ".config.json.1234.tmp").write_text("{")
    assert train(photos, small(epochs=1), output=run).document["epochs"] == 1


def test_another_machine_is_reported_and_recorded(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, progress=StopAt("epoch 1/2", 1))
    here = json.loads((run / "config.json").read_text())["resolved"]["device_name"]

    def moved(record: dict[str, Any]) -> dict[str, Any]:
        return record | {"resolved": record["resolved"] | {"device_name": "another card"}}

    rewrite_checkpoint(run / "last.ckpt", record=moved)
    heard = StopAt("epoch 2/2", 1)
    with pytest.raises(StoppedError):
        train(resume=run, progress=heard)
    (note,) = train(resume=run).document["notes"]
    assert note in "\n".join(heard.said)
    assert "another card" in note
    assert here in note


def test_other_versions_are_reported(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, progress=StopAt("epoch 1/2", 1))
    rewrite_checkpoint(run / "last.ckpt", record=lambda record: record | {"processor_features": "OLDER"})
    heard = StopAt("epoch 2/2", 1)
    with pytest.raises(StoppedError):
        train(resume=run, progress=heard)
    assert re.search(r"Note: processor features .+ \(was OLDER\)", "\n".join(heard.said))
