"""All commands: help, exit codes, errors without a traceback, and standard streams that fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from children import PATIENCE, finished, started, wait_for

import carnet
from carnet import TrainingConfig
from carnet.cli.main import COMMANDS

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert f"carnet {command}" in out.partition("Example")[2]
    assert out.startswith(f"usage: carnet {command} [-h]")
    # Everything fits into 80 columns, except for the usage, which the terminal wraps.
    _, *lines = out.splitlines()
    assert max(map(len, lines)) <= 80


def test_top_level(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert all(f"  {command} " in out for command in COMMANDS)
    assert call()[:2] == (0, out)
    assert call("--version")[1] == f"carnet {carnet.__version__}\n"
    code, out, err = call("trian")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'trian'" in err
    assert "carnet train?" in err


def test_flags_are_the_recipe(call: Call) -> None:
    for command in ("train", "compare"):
        out = call(command, "--help")[1]
        assert all(f"--{field.name.replace('_', '-')} " in out for field in fields(TrainingConfig))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train"], "DATA"),
        (["train", "nowhere"], "nowhere"),
        (["train", "nowhere", "--lr", "0"], "--lr must be above 0"),
        (["train", "nowhere", "--epohcs", "3"], "--epochs INT"),
        (["train", "nowhere", "--epochs", "three"], "three"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "nowhere", "--model", "resnet"], "resnet18"),
        (["evaluate", "nowhere", "data"], "nowhere"),
        (["evaluate", "nowhere.onnx", "data", "--device", "cuda"], "--device cuda"),
        (["predict", "nowhere", "a.jpg"], "nowhere"),
        (["predict", "nowhere"], "-"),
        (["predict", "nowhere.onnx", "a.jpg"], "nowhere.onnx"),
        (["predict", "nowhere", ""], "empty"),
        (["predict", "nowhere.onnx", "a.jpg", "--csv", "--top-k", "3"], "--top-k"),
        (["export", "nowhere"], "nowhere"),
        (["verify", "nowhere.onnx"], "nowhere.onnx"),
        (["demo", "--seed", "-1"], "--seed"),
        (["benchmark", "carnet_n", "--batch-sizes", "1,many"], "'1,many'"),
        (["compare", "nowhere", "--reach", "high"], "'high'"),
        (["compare", "a", "b", "--seeds", "5"], "--seeds"),
        (["compare", "a", "b", "--lr", "0.1"], "--models"),
        (["summary", "carnet81"], "carnet18"),
        (["summary", "carnet18", "--image-size", "40"], "47"),
        (["summary", "carnet18", "--num-classes", "0"], "num_classes"),
    ],
)
def test_bad_input(arguments: list[str], named: str, call: Call) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert "Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_reported() -> None:
    with Path("/dev/full").open("w") as full:
        ended = finished([sys.executable, "-m", "carnet", "--help"], stdout=full)
    assert (ended.returncode, ended.stderr) == (2, "carnet: input or output: No space left on device\n")


def test_ctrl_c_in_a_real_process(photos: Path, tmp_path: Path) -> None:
    """A signal ends training with a checkpoint, exit code 130 and the way to continue."""
    run_folder = tmp_path / "run"
    command = [sys.executable, "-m", "carnet", "train", photos, "--model", "carnet_n", "--image-size", "48"]
    with started([*command, "--epochs", "5000", "--output", run_folder], stderr=subprocess.PIPE) as process:
        wait_for(run_folder / "model.safetensors", process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert f"carnet train --resume {run_folder}" in err
    assert "Traceback" not in err
    assert (run_folder / "model.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such shell")
def test_a_reader_that_goes_away_does_not_end_training(photos: Path, tmp_path: Path) -> None:
    flags = f"--model carnet_n --image-size 48 --epochs 2 --batch-size 8 --output {tmp_path / 'run'}"
    script = f"set -o pipefail; {sys.executable} -m carnet train {photos} {flags} | head -n 1"
    answer = finished(["bash", "-c", script])
    assert (answer.returncode, answer.stderr, answer.stdout.count("\n")) == (0, "", 1)
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="sitecustomize is found elsewhere on Windows")
def test_missing_extra_is_one_line(tmp_path: Path) -> None:
    """A `torch` that cannot be found stands in for a base installation."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Hide:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    for arguments in (["summary", "carnet18"], ["train", "x"], ["demo", "--output", str(tmp_path / "demo")]):
        answer = finished([sys.executable, "-m", "carnet", *arguments], env=environment)
        assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
        assert 'pip install "carnet[train]"' in answer.stderr
