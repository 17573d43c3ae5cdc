"""A comparison: trains what is missing, reuses what is there, and says no more than the runs show."""

from __future__ import annotations

import csv
import hashlib
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

import numpy as np
import pytest
from children import PATIENCE, started, wait_for
from runs import write_table

from carnet import TrainingConfig
from carnet.cli.main import run as run_command
from carnet.comparison import runs as training_of_runs
from carnet.comparison.runs import read_history, read_run, train_alone, train_here, train_runs
from carnet.comparison.verdict import (
    Group,
    _targets,
    compare,
    group_runs,
    judge_pairs,
    notes_on,
    require_comparable,
)
from carnet.errors import ConfigError, DataError, ModelError, OutOfMemoryError, RunError, StoppedError
from carnet.export import graph
from carnet.export.graph import to_graph
from carnet.models.weights import TrainedModel
from carnet.run_folder import RunFolder
from carnet.text import Silent
from carnet.training.checkpoint import read_checkpoint

SMALL = TrainingConfig(model="carnet_n", image_size=32, epochs=2, batch_size=8, compile=False)
MODELS = ("carnet_n", "carnet_s")


@pytest.fixture(scope="session")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks with two seeds each. Read only."""
    folder = tmp_path_factory.mktemp("comparison")
    # In this process, since starting four more takes long; that they are processes is tested below.
    train_runs(str(photos), MODELS, seeds=2, config=SMALL, folder=folder, progress=Silent(), train=train_here)
    return folder


@pytest.fixture(autouse=True)
def each_graph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing a network as ONNX takes seconds, and these tests have two of them."""
    monkeypatch.setattr(graph, "to_graph", _graph_of)


def _graph_of(trained: TrainedModel) -> graph.Graph:
    weights = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in trained.network.state_dict().values()))
    key = (json.dumps(trained.spec.to_json()), weights.hexdigest())
    if key not in _graphs:
        _graphs[key] = to_graph(trained)
    return _graphs[key]


_graphs: dict[tuple[str, str], graph.Graph] = {}


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
    with pytest.raises(RunError, match=r"carnet_n-seed-0 was trained on other images in .*; choose another --output"):
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
    with pytest.raises(RunError, match="or on the same in other classes or splits; choose another --output"):
        train_runs(str(photos), MODELS, seeds=1, config=SMALL, folder=tmp_path, progress=Silent())


def test_what_one_network_meets_leaves_the_others_their_comparison(
    folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train_alone(data: str, config: TrainingConfig, path: Path) -> None:
        if config.model == "resnet18":
            raise OutOfMemoryError("a step does not fit")
        shutil.copytree(folder / path.name, path)

    monkeypatch.setattr(training_of_runs, "train_alone", train_alone)
    flags = ["--seeds", "1", "--image-size", "32", "--epochs", "2", "--batch-size", "8", "--compile", "off"]
    flags += ["--output", str(tmp_path / "answer"), "--json"]
    assert run_command(["compare", str(photos), "--models", "carnet_n,resnet18,carnet_s", *flags]) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [row["label"] for row in document["models"]] == ["carnet_n", "carnet_s"]
    assert document["notes"][0] == "resnet18-seed-0 could not be trained: a step does not fit"
    assert "resnet18, seed 0, could not be trained: a step does not fit" in printed.err
    # With nothing left to compare, it is the error of the whole.
    assert run_command(["compare", str(photos), "--models", "carnet_n,resnet18", *flags]) == 2
    assert capsys.readouterr().err.endswith("carnet: a step does not fit\n")


@pytest.mark.parametrize("flags", [["--seed", "5"], ["--model", "carnet18"]])
def test_flags_that_would_have_no_effect(
    flags: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", str(photos), "--models", "carnet_n,carnet_s", *flags, "--output", str(tmp_path)]
    assert run_command(command) == 2
    assert "--models names the networks here, and --seeds how many runs" in capsys.readouterr().err


def test_what_is_not_alike_is_noted(folder: Path) -> None:
    runs = [read_run(folder / name, Silent()) for name in ("carnet_n-seed-0", "carnet_n-seed-1", "carnet_s-seed-0")]
    notes = notes_on(group_runs(runs))
    assert notes == ["the interval of carnet_s is that of one run, and leaves out what other seeds would give"]
    runs[1] = replace(
        runs[1],
        resolved=replace(runs[1].resolved, device_name="another one", compile=True, cutmix=0.5),
        versions={**runs[1].versions, "torch": "3.0"},
        document={**runs[1].document, "kept": "best", "notes": ["smaller pieces from epoch 2 on"]},
    )
    notes = notes_on(group_runs(runs))
    assert any("so their seconds cannot be compared" in note and "another one" in note for note in notes)
    assert any(re.search(r"trained by torch .* and 3\.0", note) for note in notes)
    assert any("not computed alike (device name, compile)" in note for note in notes)
    assert any("came to other recipes: --cutmix 0.5 (was" in note for note in notes)
    assert any("kept the epochs that did best on the very images" in note for note in notes)
    assert "carnet_n-seed-1: smaller pieces from epoch 2 on" in notes


def test_images_that_judge_nothing_are_noted(folder: Path) -> None:
    one, other = (read_run(folder / f"carnet_{size}-seed-0", Silent()) for size in "ns")
    leaked = np.ones(one.report.num_images, bool)
    leaky = [replace(run, report=replace(run.report, leaked=leaked)) for run in (one, other)]
    assert "every image that judges is a training image" in notes_on(group_runs(leaky))[0]
    unknown = [replace(run, report=replace(run.report, leaks_known=False)) for run in (one, other)]
    assert "it is not known which images these runs were trained on" in notes_on(group_runs(unknown))[0]


def test_some_training_images_do_not_judge(folder: Path, photos: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    shutil.copy(data / "train" / "red" / "0.jpg", data / "valid" / "red" / "9.jpg")
    report = read_run(folder / "carnet_n-seed-0", Silent(), data=str(data)).report
    assert (report.num_images, report.num_leaked) == (11, 0)


def test_runs_judged_by_other_images_or_classes_are_refused(folder: Path) -> None:
    one, other = (read_run(folder / f"carnet_{size}-seed-0", Silent()) for size in "ns")
    require_comparable([one, other])
    turned = replace(other, report=replace(other.report, samples=other.report.samples[::-1]))
    with pytest.raises(RunError, match="is judged by other images than"):
        require_comparable([one, turned])
    renamed = replace(other, report=replace(other.report, classes=("a", "b", "c")))
    with pytest.raises(RunError, match="knows other classes than"):
        require_comparable([one, renamed])


def test_runs_whose_images_have_moved(folder: Path, photos: Path, tmp_path: Path) -> None:
    paths = [Path(shutil.copytree(folder / name, tmp_path / name)) for name in ("carnet_n-seed-0", "carnet_s-seed-0")]
    for path in paths:
        text = (path / "config.json").read_text()
        (path / "config.json").write_text(text.replace(json.dumps(str(photos)), json.dumps(str(tmp_path / "gone"))))
    with pytest.raises(DataError, match=r"no folder .*gone; say where the images of .*carnet_n-seed-0 are with --data"):
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
        assert f"go on with carnet train --resume {run}" in err
    assert "Traceback" not in err
    read_checkpoint(run / "last.ckpt")


@pytest.mark.skipif(os.name == "nt", reason="such signals are not known on Windows")
def test_a_signal_before_the_first_step_ends_it_too(photos: Path, tmp_path: Path) -> None:
    """The process that would train dies without a word; that is no reason to go on with the next network."""
    command = comparing_for_long(photos)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([*command, "--output", tmp_path / "runs"], **pipes) as process:
        assert process.stderr is not None
        # It has looked at the images, and measures the machine.
        while "Found 3 classes" not in (line := process.stderr.readline()):
            assert line
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert "carnet: stopped" in err
    assert "carnet_s" not in out + err
    assert "Traceback" not in err


def test_runs_of_another_recipe_are_refused(folder: Path, photos: Path) -> None:
    other = TrainingConfig(**(SMALL.to_json() | {"lr": 0.01}))
    with pytest.raises(RunError, match=r"was trained otherwise: --lr 0.01 \(was 0.08\); choose another --output"):
        train_runs(str(photos), MODELS, seeds=1, config=other, folder=folder, progress=Silent())
    # What is left open is not what it came to.
    longer = replace(SMALL, epochs=None, budget="10m")
    with pytest.raises(RunError, match=r"--epochs auto \(was 2\), --budget 10m \(was none\)"):
        train_runs(str(photos), MODELS, seeds=1, config=longer, folder=folder, progress=Silent())


def test_runs_of_other_images_are_refused(folder: Path, photos: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(photos, tmp_path / photos.name)
    with pytest.raises(RunError, match=r"was trained on .* images in .*, not on .*; choose another --output"):
        train_runs(str(elsewhere), MODELS, seeds=1, config=SMALL, folder=folder, progress=Silent())


def it_trains(*arguments: object) -> None:
    pytest.fail("it trains")


def test_what_would_be_missed_late_is_missed_early(photos: Path, tmp_path: Path) -> None:
    def begin(*models: str, seeds: int = 1) -> None:
        train_runs(str(photos), models, seeds=seeds, config=SMALL, folder=tmp_path, progress=Silent(), train=it_trains)

    with pytest.raises(ModelError, match="resnet81"):
        begin("carnet_s", "resnet81")
    with pytest.raises(ConfigError, match="--models names carnet_s twice"):
        begin("carnet_s", "carnet_s")
    with pytest.raises(ConfigError, match="one run has nothing to be compared with"):
        begin("carnet_s")
    with pytest.raises(ModelError, match=r"carnet18 .* px"):
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
    with pytest.raises(ConfigError, match="--seeds must be at least 1"):
        train_runs(str(flat), ["carnet_n"], seeds=0, config=SMALL, folder=tmp_path, progress=Silent())


def test_what_comes_out(folder: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in folder.iterdir() if path.is_dir())
    answer = compare(paths, tmp_path / "answer")
    names = {file.name for file in (tmp_path / "answer").iterdir()}
    assert names == {f"comparison.{end}" for end in ("html", "png", "svg", "json")} | {"table.md", "table.csv"}
    document = json.loads((tmp_path / "answer" / "comparison.json").read_text())
    assert [row["label"] for row in document["models"]] == ["carnet_n", "carnet_s"]
    for row in document["models"]:
        assert row["seeds"] == [0, 1]
        assert row["top1"] == pytest.approx(np.mean(row["top1_of_each"]))
        assert row["top1_ci95"][0] <= row["top1"] <= row["top1_ci95"][1]
        assert row["macs"] > 0
        assert row["peak_memory_bytes"] > 50e6
        assert all(value > 0 for value in row["latency_ms"].values())
    assert document["models"][0]["params"] < document["models"][1]["params"]
    assert len(answer.sentences) == 1
    lines = (tmp_path / "answer" / "table.md").read_text().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    rows = list(csv.DictReader((tmp_path / "answer" / "table.csv").read_text().splitlines()))
    assert [int(row["params"]) for row in rows] == [row["params"] for row in document["models"]]
    page = (tmp_path / "answer" / "comparison.html").read_text(encoding="utf-8")
    assert answer.sentences[0].split(" by ")[0][:20] in page
    assert "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "answer" / "comparison.svg").read_bytes().lstrip().startswith(b"<?xml")


def test_one_network_by_two_recipes(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["requested"]["lr"] = 0.5
    (other / "config.json").write_text(json.dumps(config))
    answer = compare([folder / "carnet_n-seed-0", other], tmp_path / "answer")
    assert [row["label"] for row in answer.document["models"]] == ["carnet_n #1", "carnet_n #2"]
    assert [row["trained_otherwise"] for row in answer.document["models"]] == ["", "--lr 0.5 (was 0.08)"]
    # The same weights: nothing to tell apart.
    assert "cannot tell" in answer.sentences[0]
    assert answer.sentences[1] == "Note: carnet_n #2 was trained otherwise than carnet_n #1: --lr 0.5 (was 0.08)."


def test_what_cannot_be_compared(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two runs"):
        compare([folder / "carnet_n-seed-0"], tmp_path)
    unfinished = shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    with pytest.raises(RunError, match="is not finished; go on with carnet train --resume"):
        compare([folder / "carnet_n-seed-0", unfinished], tmp_path)
    with pytest.raises(RunError, match="is named twice"):
        compare([folder / "carnet_n-seed-0", folder / "carnet_s-seed-0", folder / "carnet_n-seed-0"], tmp_path)
    copied = shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "copied")
    with pytest.raises(RunError, match="were trained alike, with one seed"):
        compare([folder / "carnet_n-seed-0", copied], tmp_path)


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
def test_a_damaged_run_is_found_before_it_is_judged(
    name: str, content: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "run"))
    (run / name).write_text(content)
    monkeypatch.setattr(training_of_runs, "load", None)
    with pytest.raises(RunError, match=rf"{name}.*; carnet train --resume .*run writes it again"):
        read_run(run, Silent())


def test_runs_of_another_start_or_of_other_images_are_no_seeds_of_one(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder / "carnet_n-seed-1", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["init"] = "runs/before"
    config["data"]["content_hash"] = "of others"
    (other / "config.json").write_text(json.dumps(config))
    runs = [read_run(path, Silent()) for path in (folder / "carnet_n-seed-0", other)]
    one, two = group_runs(runs)
    assert (one.label, two.label) == ("carnet_n #1", "carnet_n #2")
    assert two.recipe == "--init runs/before (was none), other training images"


def test_what_a_budget_came_to_does_not_set_runs_apart(folder: Path) -> None:
    runs = [read_run(folder / f"carnet_n-seed-{seed}", Silent()) for seed in (0, 1)]
    runs = [replace(run, requested=replace(run.requested, epochs=None, budget="10m")) for run in runs]
    assert [len(group.runs) for group in group_runs(runs)] == [2]
    runs[1] = replace(runs[1], requested=replace(runs[1].requested, budget="5m"))
    assert [group.recipe for group in group_runs(runs)] == ["", "--budget 5m (was 10m)"]


@pytest.mark.parametrize(
    "error", [ModelError("PyTorch cannot write it as ONNX"), RuntimeError("PyTorch cannot write it as ONNX\nat …")]
)
def test_a_network_that_cannot_be_exported_keeps_its_place(
    error: Exception, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(trained: TrainedModel) -> object:
        if trained.spec.model == "carnet_s":
            raise error
        return _graph_of(trained)

    monkeypatch.setattr(graph, "to_graph", refuse)
    answer = compare([folder / "carnet_n-seed-0", folder / "carnet_s-seed-0"], tmp_path / "answer")
    assert "Note: carnet_s has no latency in ONNX Runtime: PyTorch cannot write it as ONNX." in answer.sentences
    assert "not measured" in (tmp_path / "answer" / "table.md").read_text()
    with (tmp_path / "answer" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["latency_ms onnx_p50"] != "" for row in rows] == [True, False]
    assert all(float(row["latency_ms pytorch_p95"]) > 0 and 0 <= float(row["top1"]) <= 1 for row in rows)
    assert answer.document["models"][1]["latency_ms"]["pytorch_p50"] > 0


def groups_of(read: Callable[[], object], *corrects: np.ndarray) -> list:  # type: ignore[type-arg]
    run = read()
    return [Group(name, "", (run,) * len(correct), correct) for name, correct in zip("ABC", corrects)]  # type: ignore[arg-type]


def test_sentences(folder: Path) -> None:
    def read() -> object:
        return read_run(folder / "carnet_n-seed-0", Silent())

    rng = np.random.default_rng(0)
    good, bad = rng.random((3, 400)) < 0.9, rng.random((3, 400)) < 0.6
    same = rng.random((3, 400)) < 0.88
    pairs = judge_pairs(groups_of(read, good, bad, same))
    assert pairs[0]["sentence"].startswith("A is better than B, by ")
    assert "adjusted for 3 pairs" in pairs[0]["sentence"]
    assert pairs[1]["sentence"].startswith("These runs cannot tell A and C apart: they differ by ")
    assert pairs[2]["sentence"].startswith("C is better than B, by ")
    (single,) = judge_pairs(groups_of(read, bad[:1], good[:1]))
    assert single["sentence"].startswith("B is better than A, by ")
    assert single["sentence"].endswith("other seeds were not tried.")
    (uneven,) = judge_pairs(groups_of(read, good, bad[:1]))
    assert uneven["seeds"] == [3, 1]
    assert uneven["difference"] == pytest.approx(good.mean() - bad[0].mean())
    assert uneven["sentence"].endswith("B has one run, which is taken to vary with the seed as the other does.")
    (nothing,) = judge_pairs(groups_of(read, good[:1], good[:1]))
    assert nothing["sentence"].endswith("More than one seed of each would say more.")
    (little,) = judge_pairs(groups_of(read, good[:1], same[:1]))
    assert f"about {little['enough_images'] - 400:,} more images would; so may more seeds." in little["sentence"]


def test_several_pairs_make_each_less_sure(folder: Path) -> None:
    def read() -> object:
        return read_run(folder / "carnet_n-seed-0", Silent())

    places = np.arange(400)
    networks = [np.ones((1, 400), bool), (places >= 6)[None], ((places < 6) | (places >= 12))[None]]
    first, *_ = judge_pairs(groups_of(read, *networks))
    assert first["p_value"] == pytest.approx(2 / 2**6)
    assert first["p_value_adjusted"] == pytest.approx(3 * 2 / 2**6)
    assert first["sentence"].startswith("These runs cannot tell A and B apart")
    (alone,) = judge_pairs(groups_of(read, *networks[:2]))
    assert alone["sentence"].startswith("A is better than B")


def test_targets_are_what_all_reach(folder: Path) -> None:
    run = read_run(folder / "carnet_n-seed-0", Silent())

    def ending(top1: float) -> object:
        return replace(run, history=({**run.history[-1], "valid_top1": top1},))

    def targets(*ends: float) -> list[float]:
        return _targets([Group("x", "", (ending(end),), np.ones((1, 2), bool)) for end in ends])  # type: ignore[arg-type]

    assert targets(0.84, 0.79) == [0.5, 0.6, 0.7]
    assert targets(0.15) == [0.1]
    assert targets(0.05) == []


def test_times_to_accuracies_of_ones_own_choice(folder: Path, tmp_path: Path) -> None:
    runs = [folder / "carnet_n-seed-0", folder / "carnet_s-seed-0"]
    rows = compare(runs, tmp_path / "answer", reach=(0.001, 1.5)).document["models"]
    first_epochs = [read_run(run, Silent()).history[0]["seconds"] for run in runs]
    never = {"seconds": None, "runs": 0}
    assert [row["seconds_to"] for row in rows] == [
        {"0.1 %": {"seconds": seconds, "runs": 1}, "150 %": never} for seconds in first_epochs
    ]
    assert "| time to 150 % | never | never |" in (tmp_path / "answer" / "table.md").read_text()
