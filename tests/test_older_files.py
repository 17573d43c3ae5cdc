"""Files of older versions are read and give the same numbers as then; `fixtures/make.py` made them.

These tests use only the commands and the public names, so that modules, fields and formats may change behind them. If
a format changes on purpose, the code translates the old one; where a command prints a number under a new name, RENAMED
lists it. A file that is no longer supported is refused with one line, and its test expects that.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import carnet
from carnet.cli.main import main

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.stem for path in FIXTURES.glob("*.zip"))
RENAMED = {"sure": "confident", "accuracy_when_sure": "confident_accuracy"}
"""Names of numbers in the JSON of that time -> their present names."""
OF_THE_DAY = {"seconds", "seconds_per_epoch", "seconds_to", "peak_memory_bytes", "machine", "versions", "matrix_gflops"}
OF_THE_DAY |= {"latency_ms", "latency_p95_ms", "latency_ms_pytorch", "report", "notes", "sentence", "sentences"}
"""Entries that depend on the clock, the machine or the wording."""
SHORT = ("train", "pictures", "--output", "new", "--model", "carnet_n", "--image-size", "32", "--epochs", "1")
Command = Callable[..., Any]


@pytest.fixture(params=VERSIONS)
def then(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the commands printed then, with their files in the current folder."""
    with zipfile.ZipFile(FIXTURES / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return dict(json.loads((FIXTURES / f"{request.param}.json").read_text(encoding="utf-8")))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command that succeeds, and return the document that it prints."""
    # The command line sets it for its process.
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")

    def call(*words: str) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([*words, "--json"])
        out, err = capsys.readouterr()
        assert not end.value.code, err
        return json.loads(out)

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command that is refused, and return its one line of error."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")

    def call(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return call


def same(now: Any, then: Any, tolerance: float = 1e-3, where: str = "") -> None:
    """Assert that each number of that time is there and equal."""
    if isinstance(then, dict):
        for name, value in then.items():
            if name not in OF_THE_DAY:
                same(now[RENAMED.get(name, name)], value, tolerance, f"{where}.{name}")
    elif isinstance(then, list):
        assert len(now) == len(then), where
        for place, (one, other) in enumerate(zip(now, then)):
            same(one, other, tolerance, f"{where}[{place}]")
    elif isinstance(then, float):
        assert now == pytest.approx(then, abs=tolerance), where
    else:
        assert now == then, where


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def images(then: dict[str, Any]) -> list[str]:
    return [answer["image"] for answer in then["predict finished"]]


def test_there_are_fixtures_and_they_are_small() -> None:
    assert VERSIONS
    assert sum(path.stat().st_size for path in FIXTURES.iterdir() if path.is_file()) < 700_000


@pytest.mark.parametrize("split", ["valid", "train"])
def test_a_run_is_evaluated(split: str, then: dict[str, Any], command: Command) -> None:
    # Its images have moved, and its training images are found by their content.
    now = command("evaluate", "finished", "pictures", "--split", split, "--output", "report.html")
    same(now, then[f"evaluate {split}"])


def test_a_run_predicts(then: dict[str, Any], command: Command) -> None:
    same(command("predict", "finished", *images(then)), then["predict finished"])


def test_a_run_is_read_by_the_library(then: dict[str, Any]) -> None:
    model = carnet.load("finished")
    for answer in then["predict finished"]:
        same(model.predict(answer["image"]).to_json(), answer["predictions"])
    assert carnet.evaluate("finished", "pictures").top1 == pytest.approx(then["train"]["valid"]["top1"])


@pytest.mark.parametrize("form", ["", "int8"])
def test_a_run_is_exported(form: str, then: dict[str, Any], command: Command) -> None:
    name = "model-int8.onnx" if form else "model.onnx"
    flags = ["--int8"] if form else []
    Path("new").mkdir()
    now = command("export", "finished", "--data", "pictures", "--output", f"new/{name}", *flags)
    for number in ("num_images", "num_leaked_left_out", "top1", "top1_pytorch"):
        assert now[RENAMED.get(number, number)] == pytest.approx(then[f"export {form}".strip()][number])
    same(command("predict", f"new/{name}", *images(then)), then[f"predict {name}"], 0.05 if form else 1e-3)


@pytest.mark.parametrize("name", ["model.onnx", "model-int8.onnx"])
def test_a_model_file_answers(name: str, then: dict[str, Any], command: Command) -> None:
    # Other processors round products of int8 differently.
    same(command("predict", name, *images(then)), then[f"predict {name}"], 0.05 if "int8" in name else 1e-3)
    checks = command("verify", name)
    assert checks["passed"]
    assert [check["picture"] for check in checks["checks"]] == [
        check["picture"] for check in then[f"verify {name}"]["checks"]
    ]


def test_a_model_file_is_evaluated_explained_and_timed(then: dict[str, Any], command: Command) -> None:
    now = command("evaluate", "model.onnx", "pictures", "--output", "report.html")
    assert now["top1"] == pytest.approx(then["evaluate valid"]["top1"])
    assert now["confusion"] == then["evaluate valid"]["confusion"]
    image = images(then)[0]
    assert carnet.Classifier("model.onnx").explain(image).picture.size
    (answer,) = command("predict", "model.onnx", image, "--explain", "heat")
    assert Path(answer["heat"]).exists()
    assert command("benchmark", "finished", "model.onnx", "--rounds", "1", "--runtimes", "onnxruntime")


def test_runs_are_compared(then: dict[str, Any], command: Command) -> None:
    now = command("compare", "finished", "plain", "--data", "pictures", "--output", "again")
    same(now, then["compare"])
    # The command wrote the same as it printed.
    same(json.loads(Path("comparison/comparison.json").read_text()), then["compare"])


def test_a_finished_run_is_left_as_it_is(then: dict[str, Any], command: Command) -> None:
    weights = Path("finished/model.safetensors").read_bytes()
    same(command("train", "pictures", "--resume", "finished"), then["train"])
    assert Path("finished/model.safetensors").read_bytes() == weights


def test_an_interrupted_run_goes_on_to_its_end(then: dict[str, Any], command: Command) -> None:
    """It was stopped inside its fifth epoch, and ends with the accuracy of the uninterrupted run."""
    done = rows(Path("interrupted/metrics.csv"))
    assert len(done) == 4
    now = command("train", "pictures", "--resume", "interrupted")
    same(now, then["train"] | {"run": "interrupted"}, 0.05)
    after = rows(Path("interrupted/metrics.csv"))
    assert after[:4] == done
    assert len(after) == then["train"]["epochs"]
    # The same seed gives the same order and augmentation, so that even the losses are nearly the same.
    whole = rows(Path("finished/metrics.csv"))
    assert [float(row["train_loss"]) for row in after] == pytest.approx(
        [float(row["train_loss"]) for row in whole], abs=0.05
    )


def test_an_interrupted_run_goes_on_in_a_copy(then: dict[str, Any], command: Command) -> None:
    before = Path("interrupted/last.ckpt").read_bytes()
    same(
        command("train", "pictures", "--resume", "interrupted", "--output", "copy"),
        then["train"] | {"run": "copy"},
        0.05,
    )
    assert Path("interrupted/last.ckpt").read_bytes() == before


def test_another_recipe_and_other_images_are_refused(then: dict[str, Any], refused: Command) -> None:
    assert "--lr" in refused("train", "pictures", "--resume", "interrupted", "--lr", "0.01")
    # A byte behind the image changes the file, and not its pixels.
    changed = Path("pictures/train/green/0.png")
    changed.write_bytes(changed.read_bytes() + b" ")
    assert "0.png" in refused("train", "pictures", "--resume", "interrupted")


@pytest.mark.parametrize("source", ["finished", "interrupted"])
def test_a_new_run_starts_from_its_weights(source: str, then: dict[str, Any], command: Command) -> None:
    now = command(*SHORT, "--init", source, "--lr", "1e-6", "--ema", "0", "--start-share", "1")
    # The learning rate is nearly zero, so the accuracy stays.
    assert now["valid"]["top1"] >= 0.9


def test_old_measurements_are_ignored_or_read(
    then: dict[str, Any], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    assert (tmp_path / "cache" / "measurements.json").exists()
    assert command(*SHORT)["epochs"] == 1


def test_networks_have_the_same_costs(then: dict[str, Any], command: Command) -> None:
    same(command("summary", "carnet_n", "--num-classes", "3", "--image-size", "32"), then["summary"])


def test_a_damaged_file_is_refused_with_one_line(then: dict[str, Any], refused: Command) -> None:
    predict, evaluate = ("predict", "finished", images(then)[0]), ("evaluate", "finished", "pictures")
    for name, words in {
        "finished/model.safetensors": predict,
        "finished/model.json": predict,
        "finished/data.csv": evaluate,
        "model.onnx": ("predict", "model.onnx", images(then)[0]),
        "interrupted/last.ckpt": ("train", "pictures", "--resume", "interrupted"),
    }.items():
        whole = Path(name).read_bytes()
        damaged = bytearray(whole)
        # In JSON and CSV, this changes the case of a letter.
        damaged[len(whole) // 2] ^= 0x20
        Path(name).write_bytes(damaged)
        assert Path(name).name in refused(*words)
        Path(name).write_bytes(whole)
