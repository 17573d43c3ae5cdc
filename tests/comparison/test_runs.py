"""Missing runs are trained, finished ones are read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from children import PATIENCE, started, wait_for
from comparing import MODELS, SMALL, compare, graph_of
from runs import write_table

from carnet import TrainingConfig
from carnet.cli.compare import Command
from carnet.cli.main import parse
from carnet.cli.main import run as run_command
from carnet.comparison.runs import read_history, read_run, train_alone, train_here, train_runs
from carnet.errors import ConfigError, DataError, ModelError, OutOfMemoryError, RunError, StoppedError
from carnet.run_folder import RunFolder
from carnet.text import Silent
from carnet.training.checkpoint import read_checkpoint


def test_it_trains_what_is_missing(folder: Path, photos: Path) -> None:
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    assert names == {"carnet_n-seed-0", "carnet_n-seed-1", "carnet_s-seed-0", "carnet_s-seed-1"}
    trained = []

    def begin(models: Sequence[str], seeds: int) -> None:
        train_runs(
            str(photos),
            models,
            seeds=seeds,
            config=SMALL,
            folder=folder,
            progress=Silent(),
            train=lambda data, config, path: trained.append(path.name),
        )

    begin(MODELS, 2)
    assert trained == []
    begin([*MODELS, "timm/resnet18"], 3)
    assert trained == ["timm-resnet18-seed-0", "timm-resnet18-seed-1"] + [
        f"{name}-seed-2" for name in ("carnet_n", "carnet_s", "timm-resnet18")
    ]


def test_finished_runs_that_saw_other_images_are_refused(folder: Path, photos: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "carnet_n-seed-0"))
    rows = (run / "data.csv").read_text().splitlines(keepends=True)
    digest = rows[1].split(",")[3]
    write_table(run, "".join(rows).replace(digest, digest[::-1]))
    with pytest.raises(RunError, match=r"carnet_n-seed-0.*--output"):
        train_runs(str(photos), MODELS, seeds=1, config=SMALL, folder=tmp_path, progress=Silent())


@pytest.mark.parametrize(("column", "name", "other"), [(1, "label", "red"), (0, "split", "valid")])
def test_finished_runs_that_saw_images_elsewhere_are_refused(
    column: int, name: str, other: str, folder: Path, photos: Path, tmp_path: Path
) -> None:
    """The same bytes, moved to another class or another split since."""
    run = Path(shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "carnet_n-seed-0"))
    head, first, *rest = (run / "data.csv").read_text().splitlines()
    assert head.split(",")[column] == name
    cells = first.split(",")
    assert cells[column] != other
    cells[column] = other
    write_table(run, "\n".join([head, ",".join(cells), *rest]) + "\n")
    with pytest.raises(RunError, match=r"carnet_n-seed-0.*--output"):
        train_runs(str(photos), MODELS, seeds=1, config=SMALL, folder=tmp_path, progress=Silent())


def test_a_network_that_cannot_be_trained_leaves_the_others_their_comparison(
    folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(data: str, config: TrainingConfig, path: Path) -> None:
        if config.model == "resnet18":
            raise OutOfMemoryError("a step does not fit")
        shutil.copytree(folder / path.name, path)

    flags = ["--seeds", "1", "--image-size", "32", "--epochs", "2", "--batch-size", "8", "--compile", "off"]
    flags += ["--output", str(tmp_path / "answer"), "--json"]
    command = parse(Command, "compare", [str(photos), "--models", "carnet_n,resnet18,carnet_s", *flags])
    assert command.run(train, graph_of) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [row["label"] for row in document["models"]] == ["carnet_n", "carnet_s"]
    assert document["notes"][0].startswith("resnet18-seed-0 ")
    assert "a step does not fit" in document["notes"][0]
    assert "a step does not fit" in printed.err
    # With nothing left to compare, it is the error of the whole.
    with pytest.raises(OutOfMemoryError, match=r"^a step does not fit$") as error:
        parse(Command, "compare", [str(photos), "--models", "carnet_n,resnet18", *flags]).run(train, graph_of)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("flags", [["--seed", "5"], ["--model", "carnet18"]])
def test_flags_that_would_have_no_effect(
    flags: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", str(photos), "--models", "carnet_n,carnet_s", *flags, "--output", str(tmp_path)]
    assert run_command(command) == 2
    assert flags[0] in capsys.readouterr().err


def test_training_images_are_left_out_of_the_evaluation(folder: Path, photos: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    shutil.copy(data / "train" / "red" / "0.jpg", data / "valid" / "red" / "9.jpg")
    report = read_run(folder / "carnet_n-seed-0", Silent(), data=str(data)).report
    assert (report.num_images, report.num_leaked) == (11, 0)


def test_runs_whose_images_have_moved(folder: Path, photos: Path, tmp_path: Path) -> None:
    paths = [Path(shutil.copytree(folder / name, tmp_path / name)) for name in ("carnet_n-seed-0", "carnet_s-seed-0")]
    for path in paths:
        text = (path / "config.json").read_text()
        (path / "config.json").write_text(text.replace(json.dumps(str(photos)), json.dumps(str(tmp_path / "gone"))))
    with pytest.raises(DataError, match=r"gone.*carnet_n-seed-0.*--data"):
        compare(paths, tmp_path / "answer")
    assert compare(paths, tmp_path / "answer", data=str(photos)).document["images"]["count"] == 12


@pytest.mark.usefixtures("quick_processes")
def test_a_stopped_run_goes_on_in_a_process_of_its_own(folder: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "carnet_n-seed-0")
    (tmp_path / "carnet_n-seed-0" / "result.json").unlink()
    shutil.copytree(folder / "carnet_n-seed-1", tmp_path / "carnet_n-seed-1")
    (path, _), failed = train_runs(str(photos), ["carnet_n"], seeds=2, config=SMALL, folder=tmp_path, progress=Silent())
    assert failed == []
    again, before = (json.loads((run / "result.json").read_text()) for run in (path, folder / "carnet_n-seed-0"))
    assert again["final"] == before["final"]
    assert again["peak_memory_bytes"] > 50e6


@pytest.mark.skipif(os.name == "nt", reason="such signals are not known on Windows")
@pytest.mark.usefixtures("quick_processes")
def test_a_run_stops_when_it_is_told_to_and_goes_on(photos: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", replace(SMALL, epochs=5000)
    with pytest.raises(StoppedError):
        train_alone(str(photos), config, run, stop_when=(run / "metrics.csv").exists)
    first = read_history(RunFolder(run))
    with pytest.raises(StoppedError):
        train_alone(str(photos), config, run, stop_when=lambda: len(read_history(RunFolder(run))) > len(first))
    assert read_history(RunFolder(run))[: len(first)] == first
    read_checkpoint(run / "last.ckpt")
    with pytest.raises(StoppedError):
        train_alone(str(photos), config, tmp_path / "other", stop_when=lambda: True)
    assert not (tmp_path / "other").exists()


def comparing_for_long(photos: Path) -> list[str]:
    """A command that a signal ends."""
    command = [sys.executable, "-m", "carnet", "compare", str(photos)]
    return [*command, "--models", "carnet_n,carnet_s", "--epochs", "5000"]


@pytest.mark.skipif(os.name == "nt", reason="such signals are not known on Windows")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_a_signal_ends_the_training_too(number: signal.Signals, photos: Path, tmp_path: Path) -> None:
    command = comparing_for_long(photos)
    flags = ["--image-size", "48", "--seeds", "1", "--output", str(tmp_path)]
    run = tmp_path / "carnet_n-seed-0"
    with started([*command, *flags], stderr=subprocess.PIPE) as process:
        wait_for(run / "model.safetensors", process)
        # Ctrl-C reaches the whole group, other signals one process.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        # The process that trains has the same standard error, which is at its end when both are gone.
        _, err = process.communicate(timeout=PATIENCE)
    assert not (run / "result.json").exists()
    assert not (tmp_path / "carnet_s-seed-0").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert f"carnet train --resume {run}" in err
    assert "Traceback" not in err
    read_checkpoint(run / "last.ckpt")


@pytest.mark.skipif(os.name == "nt", reason="such signals are not known on Windows")
def test_a_signal_before_the_first_step_ends_it_too(photos: Path, tmp_path: Path) -> None:
    """The training process dies silently, and the next network is not trained."""
    command = comparing_for_long(photos)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([*command, "--output", tmp_path / "runs"], **pipes) as process:
        assert process.stderr is not None
        # It has scanned the images, and measures the machine.
        while "3 classes" not in (line := process.stderr.readline()):
            assert line
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert "carnet: stopped" in err
    assert "carnet_s" not in out + err
    assert "Traceback" not in err


def test_runs_of_another_recipe_are_refused(folder: Path, photos: Path) -> None:
    other = TrainingConfig(**(SMALL.to_json() | {"lr": 0.01}))
    with pytest.raises(RunError, match=r"--lr 0.01 \(was 0.08\).*--output"):
        train_runs(str(photos), MODELS, seeds=1, config=other, folder=folder, progress=Silent())
    # What was not requested is compared as such, not as it was resolved.
    longer = replace(SMALL, epochs=None, budget="10m")
    with pytest.raises(RunError, match=r"--epochs auto \(was 2\), --budget 10m \(was none\)"):
        train_runs(str(photos), MODELS, seeds=1, config=longer, folder=folder, progress=Silent())


def test_runs_of_other_images_are_refused(folder: Path, photos: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(photos, tmp_path / photos.name)
    with pytest.raises(RunError, match=rf"{re.escape(str(photos))}.*{re.escape(str(elsewhere))}.*--output"):
        train_runs(str(elsewhere), MODELS, seeds=1, config=SMALL, folder=folder, progress=Silent())


def it_trains(*arguments: object) -> None:
    pytest.fail("it trains")


def test_mistakes_are_found_before_the_first_run(photos: Path, tmp_path: Path) -> None:
    def begin(*models: str, seeds: int = 1) -> None:
        train_runs(str(photos), models, seeds=seeds, config=SMALL, folder=tmp_path, progress=Silent(), train=it_trains)

    with pytest.raises(ModelError, match="resnet81"):
        begin("carnet_s", "resnet81")
    with pytest.raises(ConfigError, match=r"--models.*carnet_s.*--seeds"):
        begin("carnet_s", "carnet_s")
    with pytest.raises(ConfigError, match=r"--models.*--seeds"):
        begin("carnet_s")
    with pytest.raises(ModelError, match=r"carnet18.*47.*32"):
        begin("carnet_s", "carnet18")


def test_a_long_error_comes_out_of_its_process(photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    for number in range(400):
        (data / "train" / "red" / f"{'no-picture' * 20}-{number}.jpg").write_text("<html>")
    with pytest.raises(DataError, match="400"):
        train_runs(str(data), MODELS, seeds=1, config=SMALL, folder=tmp_path / "runs", progress=Silent())


def test_every_seed_is_evaluated_on_the_same_images(flat: Path, tmp_path: Path) -> None:
    def begin(train: Callable[[str, TrainingConfig, Path], None]) -> list[Path]:
        config = replace(SMALL, epochs=1)
        runs = tmp_path / "runs"
        return train_runs(str(flat), ["carnet_n"], seeds=2, config=config, folder=runs, progress=Silent(), train=train)[
            0
        ]

    first, second = (read_run(path, Silent()).report for path in begin(train_here))
    assert first.num_images == second.num_images > 0
    assert first.samples == second.samples
    # Where the runs lie, they are the whole answer: nothing is trained again.
    begin(it_trains)


def test_at_least_one_seed(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--seeds.*0"):
        train_runs(str(flat), ["carnet_n"], seeds=0, config=SMALL, folder=tmp_path, progress=Silent())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "[]"),
        ("result.json", "{}"),
        ("metrics.csv", ""),
        ("metrics.csv", "epoch,seconds,valid_top1\n"),
        ("metrics.csv", "epoch;seconds\n1;2,5\n"),
        ("metrics.csv", "epoch,seconds,valid_top1\n1,2\n"),
    ],
)
def test_a_damaged_run_is_found_before_it_is_evaluated(name: str, content: str, folder: Path, tmp_path: Path) -> None:
    """Its weights are gone as well, but nothing tries to load them before."""
    run = Path(shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "run"))
    (run / name).write_text(content)
    (run / "model.safetensors").unlink()
    with pytest.raises(RunError, match=rf"{name}.*carnet train --resume .*run"):
        read_run(run, Silent())
