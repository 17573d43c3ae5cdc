"""A comparison claims no more than the runs show."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import MODELS, SMALL, compare, graph_of

from carnet.cli.compare import Command
from carnet.cli.main import parse
from carnet.comparison.runs import read_run
from carnet.comparison.verdict import (
    SIGNIFICANCE_LEVEL,
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


def test_differences_between_runs_are_noted(folder: Path) -> None:
    runs = [read_run(folder / name, Silent()) for name in ("carnet_n-seed-0", "carnet_n-seed-1", "carnet_s-seed-0")]
    (note,) = notes_on(group_runs(runs))
    assert "carnet_s" in note
    changed = [
        ({"resolved": replace(runs[1].resolved, device_name="another one")}, "another one", "device name"),
        ({"resolved": replace(runs[1].resolved, compile=True)}, "carnet_n.*compile"),
        ({"resolved": replace(runs[1].resolved, cutmix=0.5)}, r"carnet_n.*--cutmix 0\.5"),
        ({"versions": {**runs[1].versions, "torch": "3.0"}}, r"torch.*3\.0"),
        ({"document": {**runs[1].document, "kept": "best"}}, "carnet_n"),
        ({"document": {**runs[1].document, "notes": ["smaller crops from epoch 2 on"]}}, "seed-1: smaller crops"),
    ]
    for change, *named in changed:
        *more, _ = notes_on(group_runs([runs[0], replace(runs[1], **change), runs[2]]))
        assert len(more) == len(named), more
        assert all(re.search(name, one) for name, one in zip(named, more)), more


def test_leaked_validation_images_are_noted(folder: Path) -> None:
    one, other = (read_run(folder / f"carnet_{size}-seed-0", Silent()) for size in "ns")
    assert list(notes_on(group_runs([one, other]))) == []
    leaked = np.ones(one.report.num_images, bool)
    leaky = [replace(run, report=replace(run.report, leaked=leaked)) for run in (one, other)]
    unknown = [replace(run, report=replace(run.report, leaks_known=False)) for run in (one, other)]
    (all_leaked,), (not_known,) = (notes_on(group_runs(runs)) for runs in (leaky, unknown))
    assert all_leaked != not_known


def test_runs_evaluated_on_other_images_or_classes_are_refused(folder: Path) -> None:
    one, other = (read_run(folder / f"carnet_{size}-seed-0", Silent()) for size in "ns")
    require_comparable([one, other])
    turned = replace(other, report=replace(other.report, samples=other.report.samples[::-1]))
    with pytest.raises(RunError, match=r"carnet_s-seed-0.*carnet_n-seed-0"):
        require_comparable([one, turned])
    renamed = replace(other, report=replace(other.report, classes=("a", "b", "c")))
    with pytest.raises(RunError, match=r"carnet_s-seed-0.*carnet_n-seed-0"):
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
    assert answer.sentences[0][:20] in page
    assert "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "answer" / "comparison.svg").read_bytes().lstrip().startswith(b"<?xml")


def test_the_command_prints_what_the_function_returns(
    folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        pytest.fail("finished runs are not trained")

    runs = shutil.copytree(folder, tmp_path / "runs")
    flags = ["--models", "carnet_n,carnet_s", "--seeds", "2", "--image-size", "32", "--epochs", "2"]
    flags += ["--batch-size", "8", "--compile", "off", "--output", str(runs), "--json"]
    assert parse(Command, "compare", [str(photos), *flags]).run(never, graph_of) == 0
    printed = json.loads(capsys.readouterr().out)
    answer = compare(photos, runs, models=MODELS, seeds=2, config=SMALL, train=never)
    assert answer.untrained == ()
    document = json.loads((runs / "comparison.json").read_text())
    assert printed.keys() == answer.document.keys() == document.keys()
    for name in ("images", "machine", "versions", "pairs", "notes", "runs"):
        assert printed[name] == document[name]
    assert [row["top1"] for row in printed["models"]] == [row["top1"] for row in answer.document["models"]]


def test_one_network_by_two_recipes(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["requested"]["lr"] = 0.5
    (other / "config.json").write_text(json.dumps(config))
    answer = compare([folder / "carnet_n-seed-0", other], tmp_path / "answer")
    assert [row["label"] for row in answer.document["models"]] == ["carnet_n #1", "carnet_n #2"]
    assert [row["trained_otherwise"] for row in answer.document["models"]] == ["", "--lr 0.5 (was 0.08)"]
    # The same weights.
    assert (answer.document["pairs"][0]["difference"], answer.document["pairs"][0]["p_value"]) == (0, 1)
    assert re.search(r"carnet_n #2.*carnet_n #1.*--lr 0\.5 \(was 0\.08\)", answer.sentences[1])


def test_what_cannot_be_compared(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--models"):
        compare([folder / "carnet_n-seed-0"], tmp_path)
    unfinished = shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    with pytest.raises(RunError, match=r"unfinished.*carnet train --resume"):
        compare([folder / "carnet_n-seed-0", unfinished], tmp_path)
    with pytest.raises(RunError, match="carnet_n-seed-0"):
        compare([folder / "carnet_n-seed-0", folder / "carnet_s-seed-0", folder / "carnet_n-seed-0"], tmp_path)
    copied = shutil.copytree(folder / "carnet_n-seed-0", tmp_path / "copied")
    with pytest.raises(RunError, match=r"carnet_n-seed-0.*copied"):
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


def test_what_a_budget_resolved_to_does_not_set_runs_apart(folder: Path) -> None:
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
    assert any(re.search(f"carnet_s.*ONNX Runtime.*{str(error).splitlines()[0]}", one) for one in answer.sentences)
    with (tmp_path / "answer" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["latency_ms onnx_p50"] != "" for row in rows] == [True, False]
    assert all(float(row["latency_ms pytorch_p95"]) > 0 and 0 <= float(row["top1"]) <= 1 for row in rows)
    assert answer.document["models"][1]["latency_ms"]["pytorch_p50"] > 0


def groups_of(read: Callable[[], object], *corrects: np.ndarray) -> list:  # type: ignore[type-arg]
    run = read()
    return [Group(name, "", (run,) * len(correct), correct) for name, correct in zip("ABC", corrects)]  # type: ignore[arg-type]


def names_better(pair: dict[str, Any], better: str, worse: str) -> bool:
    """Return whether a sentence about a significant difference begins with the better network."""
    assert pair["p_value_adjusted"] < SIGNIFICANCE_LEVEL
    return bool(re.match(rf"{better}\b.*?\b{worse}\b", pair["sentence"]))


def test_sentences(folder: Path) -> None:
    def read() -> object:
        return read_run(folder / "carnet_n-seed-0", Silent())

    rng = np.random.default_rng(0)
    good, bad = rng.random((3, 400)) < 0.9, rng.random((3, 400)) < 0.6
    same = rng.random((3, 400)) < 0.88
    pairs = compare_pairs(groups_of(read, good, bad, same))
    assert names_better(pairs[0], "A", "B")
    assert names_better(pairs[2], "C", "B")
    assert pairs[1]["p_value_adjusted"] >= SIGNIFICANCE_LEVEL
    assert re.search(r"\bA\b.*\bC\b", pairs[1]["sentence"])
    assert all("3 pairs" in pair["sentence"] for pair in pairs)
    (single,) = compare_pairs(groups_of(read, bad[:1], good[:1]))
    assert names_better(single, "B", "A")
    assert "seeds" in single["sentence"]
    (uneven,) = compare_pairs(groups_of(read, good, bad[:1]))
    assert uneven["seeds"] == [3, 1]
    assert uneven["difference"] == pytest.approx(good.mean() - bad[0].mean())
    assert "B has one run" in uneven["sentence"]
    (nothing,) = compare_pairs(groups_of(read, good[:1], good[:1]))
    assert (nothing["enough_images"], "more images" in nothing["sentence"]) == (None, False)
    (little,) = compare_pairs(groups_of(read, good[:1], same[:1]))
    assert f"{little['enough_images'] - 400:,} more images" in little["sentence"]


def test_several_pairs_raise_each_p_value(folder: Path) -> None:
    def read() -> object:
        return read_run(folder / "carnet_n-seed-0", Silent())

    places = np.arange(400)
    networks = [np.ones((1, 400), bool), (places >= 6)[None], ((places < 6) | (places >= 12))[None]]
    first, *_ = compare_pairs(groups_of(read, *networks))
    assert first["p_value"] == pytest.approx(2 / 2**6)
    assert first["p_value_adjusted"] == pytest.approx(3 * 2 / 2**6)
    (alone,) = compare_pairs(groups_of(read, *networks[:2]))
    assert names_better(alone, "A", "B")


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
        {"0.1%": {"seconds": seconds, "runs": 1}, "150%": never} for seconds in first_epochs
    ]
    assert "| time to 150% | never | never |" in (tmp_path / "answer" / "table.md").read_text()


def test_other_image_sizes_are_a_difference(folder: Path) -> None:
    run = read_run(folder / "carnet_n-seed-0", Silent())
    own = {
        name: replace(run, requested=replace(run.requested, model=name, image_size=None))
        for name in ("carnet_n", "carnet18")
    }
    assert differences(own["carnet_n"], own["carnet18"]) == ["--image-size 244 (was 128)"]
    recorded = replace(run, requested=replace(own["carnet_n"].requested, image_size=128))
    assert not differences(own["carnet_n"], recorded)
