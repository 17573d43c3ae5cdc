"""A comparison says no more than the runs show."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparing import compare, graph_of

from carnet.comparison.runs import read_run
from carnet.comparison.verdict import (
    Group,
    common_targets,
    compare_pairs,
    differences,
    group_runs,
    notes_on,
    require_comparable,
)
from carnet.errors import ConfigError, ModelError, RunError
from carnet.export.graph import Graph
from carnet.models.weights import TrainedModel
from carnet.text import Silent


def test_what_is_not_alike_is_noted(folder: Path) -> None:
    runs = [read_run(folder / name, Silent()) for name in ("carnet_n-seed-0", "carnet_n-seed-1", "carnet_s-seed-0")]
    notes = list(notes_on(group_runs(runs)))
    assert notes == ["the interval of carnet_s is that of one run, and leaves out what other seeds would give"]
    runs[1] = replace(
        runs[1],
        resolved=replace(runs[1].resolved, device_name="another one", compile=True, cutmix=0.5),
        versions={**runs[1].versions, "torch": "3.0"},
        document={**runs[1].document, "kept": "best", "notes": ["smaller pieces from epoch 2 on"]},
    )
    notes = list(notes_on(group_runs(runs)))
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
    assert "every image that judges is a training image" in next(notes_on(group_runs(leaky)))
    unknown = [replace(run, report=replace(run.report, leaks_known=False)) for run in (one, other)]
    assert "it is not known which images these runs were trained on" in next(notes_on(group_runs(unknown)))


def test_runs_evaluated_on_other_images_or_classes_are_refused(folder: Path) -> None:
    one, other = (read_run(folder / f"carnet_{size}-seed-0", Silent()) for size in "ns")
    require_comparable([one, other])
    turned = replace(other, report=replace(other.report, samples=other.report.samples[::-1]))
    with pytest.raises(RunError, match="is evaluated on other images than"):
        require_comparable([one, turned])
    renamed = replace(other, report=replace(other.report, classes=("a", "b", "c")))
    with pytest.raises(RunError, match="knows other classes than"):
        require_comparable([one, renamed])


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
def test_a_network_that_cannot_be_exported_keeps_its_place(error: Exception, folder: Path, tmp_path: Path) -> None:
    def refuse(trained: TrainedModel) -> Graph:
        if trained.spec.model == "carnet_s":
            raise error
        return graph_of(trained)

    paths = [folder / "carnet_n-seed-0", folder / "carnet_s-seed-0"]
    answer = compare(paths, tmp_path / "answer", to_graph=refuse)
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
    pairs = compare_pairs(groups_of(read, good, bad, same))
    assert pairs[0]["sentence"].startswith("A is better than B, by ")
    assert "adjusted for 3 pairs" in pairs[0]["sentence"]
    assert pairs[1]["sentence"].startswith("These runs cannot tell A and C apart: they differ by ")
    assert pairs[2]["sentence"].startswith("C is better than B, by ")
    (single,) = compare_pairs(groups_of(read, bad[:1], good[:1]))
    assert single["sentence"].startswith("B is better than A, by ")
    assert single["sentence"].endswith("other seeds were not tried.")
    (uneven,) = compare_pairs(groups_of(read, good, bad[:1]))
    assert uneven["seeds"] == [3, 1]
    assert uneven["difference"] == pytest.approx(good.mean() - bad[0].mean())
    assert uneven["sentence"].endswith("B has one run, which is taken to vary with the seed as the other does.")
    (nothing,) = compare_pairs(groups_of(read, good[:1], good[:1]))
    assert nothing["sentence"].endswith("More than one seed of each would say more.")
    (little,) = compare_pairs(groups_of(read, good[:1], same[:1]))
    assert f"about {little['enough_images'] - 400:,} more images would; so may more seeds." in little["sentence"]


def test_several_pairs_make_each_less_sure(folder: Path) -> None:
    def read() -> object:
        return read_run(folder / "carnet_n-seed-0", Silent())

    places = np.arange(400)
    networks = [np.ones((1, 400), bool), (places >= 6)[None], ((places < 6) | (places >= 12))[None]]
    first, *_ = compare_pairs(groups_of(read, *networks))
    assert first["p_value"] == pytest.approx(2 / 2**6)
    assert first["p_value_adjusted"] == pytest.approx(3 * 2 / 2**6)
    assert first["sentence"].startswith("These runs cannot tell A and B apart")
    (alone,) = compare_pairs(groups_of(read, *networks[:2]))
    assert alone["sentence"].startswith("A is better than B")


def test_targets_are_what_all_reach(folder: Path) -> None:
    run = read_run(folder / "carnet_n-seed-0", Silent())

    def ending(top1: float) -> object:
        return replace(run, history=({**run.history[-1], "valid_top1": top1},))

    def targets(*ends: float) -> list[float]:
        return common_targets([Group("x", "", (ending(end),), np.ones((1, 2), bool)) for end in ends])  # type: ignore[arg-type]

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
    assert "| time to 150% | never | never |" in (tmp_path / "answer" / "table.md").read_text()


def test_networks_of_other_sides_are_said_to_be(folder: Path) -> None:
    run = read_run(folder / "carnet_n-seed-0", Silent())
    own = {
        name: replace(run, requested=replace(run.requested, model=name, image_size=None))
        for name in ("carnet_n", "carnet18")
    }
    assert differences(own["carnet_n"], own["carnet18"]) == ["--image-size 244 (was 128)"]
    recorded = replace(run, requested=replace(own["carnet_n"].requested, image_size=128))
    assert not differences(own["carnet_n"], recorded)
