"""From finished runs to an answer."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from carnet import files, metrics
from carnet.comparison.runs import ComparedRun, read_run
from carnet.edge.model_file import ModelFile, seal
from carnet.edge.runtimes import open_runtime
from carnet.errors import ConfigError, RunError
from carnet.export.graph import serialized, to_graph
from carnet.models.device import one_thread
from carnet.models.summary import summarize
from carnet.progress import Progress, Silent
from carnet.report.comparison import comparison_html, draw_comparison, table_of
from carnet.significance import Correct, accuracy_over_seeds, difference_over_seeds, enough, holm, mcnemar
from carnet.timing import take_turns
from carnet.training.plan import processor_name, versions

SURE = 0.05
"""Differences that chance would make less often than this count as differences."""


@dataclass(frozen=True)
class Group:
    """The runs of one network by one recipe.

    Attributes:
        label: the network's name, with a number where it was trained by several recipes.
        recipe: what sets it apart from the first of these.
        runs: in the order of their seeds.
        correct: (seeds, images) whether each run names each image right.
    """

    label: str
    recipe: str
    runs: tuple[ComparedRun, ...]
    correct: Correct


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        folder: with comparison.html, .png, .svg, .json, table.md and table.csv.
        groups: a row for each network and recipe, as `comparison.json` has it.
        sentences: one for each pair.
        document: what `comparison.json` says.
    """

    folder: Path
    groups: tuple[dict[str, Any], ...]
    sentences: tuple[str, ...]
    document: dict[str, Any]


def compare(paths: Sequence[Path], folder: Path, progress: Progress | None = None) -> Comparison:
    """Compare finished runs, and write a page, a figure and tables.

    Args:
        paths: folders of at least two runs that were judged by the same images.
        folder: where it goes; made if it is missing.
        progress: shown what happens; None: nobody.

    Raises:
        ConfigError: with fewer than two runs.
        RunError: if a run is not finished, or was judged by other images than the first.
        OutputError: if a file cannot be written.
    """
    progress = progress or Silent()
    if len(paths) < 2:
        raise ConfigError("name at least two runs to compare")
    runs = [read_run(path, progress) for path in paths]
    _require_same_images(runs)
    groups = _group(runs)
    progress.say("Measures what each network costs …")
    latencies = _latencies(groups)
    targets = _targets(groups)
    rows = tuple(_row(group, latencies[group.label], targets) for group in groups)
    pairs = _pairs(groups)
    sentences = tuple(pair["sentence"] for pair in pairs)
    run_rows = [_run_document(group.label, run) for group in groups for run in group.runs]
    document = {
        "images": {"count": runs[0].report.num_images, "data": runs[0].document["num_images"]},
        "machine": processor_name(),
        "versions": versions(),
        "models": rows,
        "pairs": pairs,
        "runs": run_rows,
    }
    files.make_folder(folder)
    files.write_json(folder / "comparison.json", document)
    text, csv = table_of(rows)
    files.write_text(folder / "table.md", text)
    files.write_text(folder / "table.csv", csv)
    png, svg = draw_comparison(rows, run_rows)
    files.write_bytes(folder / "comparison.png", png)
    files.write_bytes(folder / "comparison.svg", svg)
    files.write_text(folder / "comparison.html", comparison_html(rows, sentences, document, png))
    return Comparison(folder, rows, sentences, document)


def _require_same_images(runs: Sequence[ComparedRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.report.classes != first.report.classes:
            raise RunError(f"{run.path} knows other classes than {first.path}")
        if run.report.samples != first.report.samples:
            raise RunError(f"{run.path} is judged by other images than {first.path}; runs of one data set are compared")


def _group(runs: Sequence[ComparedRun]) -> list[Group]:
    """Runs that differ in their seed alone belong together."""
    found: list[list[ComparedRun]] = []
    for run in runs:
        for group in found:
            if not _differences(group[0], run):
                group.append(run)
                break
        else:
            found.append([run])
    names = [group[0].recipe.model for group in found]
    groups = []
    for place, (name, members) in enumerate(zip(names, found, strict=True)):
        members.sort(key=lambda run: run.recipe.seed)
        label, recipe = name, ""
        if names.count(name) > 1:
            label = f"{name} #{names[: place + 1].count(name)}"
            recipe = ", ".join(_differences(found[names.index(name)][0], members[0]))
        groups.append(Group(label, recipe, tuple(members), np.stack([run.report.correct for run in members])))
    return groups


def _differences(one: ComparedRun, other: ComparedRun) -> list[str]:
    """What sets another run's recipe apart, besides its seed, and the epochs that the same time came to."""
    same_budget = one.recipe.budget and one.recipe.budget == other.recipe.budget
    epochs = one.recipe.epochs if same_budget else other.recipe.epochs
    found = one.recipe.differences(replace(other.recipe, seed=one.recipe.seed, epochs=epochs))
    if one.recipe.budget != other.recipe.budget:
        found.append(f"--budget {other.recipe.budget} (was {one.recipe.budget})")
    return found


def _row(group: Group, latency: dict[str, float], targets: Sequence[float]) -> dict[str, Any]:
    """What the table says of a network."""
    first, finals = group.runs[0], [run.report.top1 for run in group.runs]
    spec = first.model.spec
    summary = summarize(
        first.model.network,
        spec.model,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
        in_channels=spec.in_channels,
    )
    seconds = [run.document["seconds"] for run in group.runs]
    mean, low, high = _interval(group)
    peaks = [run.document["peak_memory_bytes"] for run in group.runs if run.document.get("peak_memory_bytes")]
    return {
        "label": group.label,
        "recipe": group.recipe,
        "model": spec.model,
        "image_size": spec.image_size,
        "seeds": [run.recipe.seed for run in group.runs],
        "params": summary.params,
        "macs": summary.macs,
        "weights_bytes": (first.path / "model.safetensors").stat().st_size,
        "activations_bytes": summary.activations_bytes,
        "peak_memory_bytes": statistics.median(peaks) if peaks else None,
        "seconds_per_epoch": statistics.fmean(run.document["seconds"] / run.document["epochs"] for run in group.runs),
        "seconds": statistics.fmean(seconds),
        "latency_ms": latency,
        "top1": mean,
        "top1_ci95": [low, high],
        "top1_spread": statistics.stdev(finals) if len(finals) > 1 else None,
        "top1_of_each": finals,
        "top5": statistics.fmean(run.report.top5 for run in group.runs),
        "calibration_error": statistics.fmean(
            metrics.expected_calibration_error(run.report.probabilities.max(axis=1), run.report.correct)
            for run in group.runs
        ),
        "seconds_to": {f"{100 * target:.0f} %": _seconds_to(group, target) for target in targets},
    }


def _interval(group: Group) -> tuple[float, float, float]:
    if len(group.runs) > 1:
        return accuracy_over_seeds(group.correct)
    right, total = int(group.correct.sum()), group.correct.shape[1]
    return right / total, *metrics.wilson_interval(right, total)


def _targets(groups: Sequence[Group]) -> list[float]:
    """Accuracies to race to: tens of per cent that every network ends above, the highest three."""
    lowest = min(run.history[-1]["valid_top1"] for group in groups for run in group.runs)
    highest = int(10 * lowest)
    return [tens / 10 for tens in range(max(1, highest - 2), highest + 1)]


def _seconds_to(group: Group, target: float) -> float | None:
    """Mean seconds to the first epoch that reaches an accuracy; None where a run never does."""
    reached = [next((row["seconds"] for row in run.history if row["valid_top1"] >= target), None) for run in group.runs]
    return None if None in reached else statistics.fmean(value for value in reached if value is not None)


def _latencies(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """Milliseconds of one image on one thread, median and 95th percentile, all networks in turns."""
    calls: dict[str, Callable[[], object]] = {}
    for group in groups:
        model = group.runs[0].model
        image = np.zeros((1, model.spec.image_size, model.spec.image_size, model.spec.in_channels), np.uint8)
        file = ModelFile.from_bytes(seal(serialized(to_graph(model).model), model.spec.to_json()))
        calls[f"{group.label}/onnx"] = partial(open_runtime(file, "onnxruntime", 1), image)
        calls[f"{group.label}/pytorch"] = partial(model.logits, image)
    with one_thread():
        measured = take_turns(calls, rounds=40)
    return {
        group.label: {
            f"{runtime}_{name}": float(np.percentile(measured[f"{group.label}/{runtime}"], share))
            for runtime in ("onnx", "pytorch")
            for name, share in (("p50", 50), ("p95", 95))
        }
        for group in groups
    }


def _pairs(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every two networks: their difference, its interval, and a sentence; p-values are adjusted for their number."""
    pairs = [_pair(one, other) for one, other in itertools.combinations(groups, 2)]
    for pair, adjusted in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_value_adjusted"] = adjusted
        pair["sentence"] = _sentence(pair, len(pairs))
    return pairs


def _pair(one: Group, other: Group) -> dict[str, Any]:
    number = one.correct.shape[1]
    pair: dict[str, Any] = {"one": one.label, "other": other.label, "images": number}
    if min(len(one.runs), len(other.runs)) < 2:
        mean, low, high = metrics.paired_difference(one.correct[0], other.correct[0])
        return pair | {
            "seeds": 1,
            "difference": mean,
            "ci95": [low, high],
            "p_value": mcnemar(one.correct[0], other.correct[0]),
        }
    found, seeds = difference_over_seeds(one.correct, other.correct), min(len(one.runs), len(other.runs))
    images, more_seeds = enough(found, number, seeds)
    return pair | {
        "seeds": seeds,
        "difference": found.mean,
        "ci95": [found.low, found.high],
        "p_value": found.p_value,
        "enough_images": images,
        "enough_seeds": more_seeds,
    }


def _sentence(pair: dict[str, Any], num_pairs: int) -> str:
    """What a pair comes to, for someone who has to choose."""
    better, worse, sign = pair["one"], pair["other"], 1
    if pair["difference"] < 0:
        better, worse, sign = worse, better, -1
    low, high = sorted(100 * sign * end for end in pair["ci95"])
    interval = f"95 % interval {low:+.1f} to {high:+.1f}"
    points = f"{abs(100 * pair['difference']):.1f} points"
    several = f", adjusted for {num_pairs} pairs" if num_pairs > 1 else ""
    if pair["p_value_adjusted"] < SURE:
        sure = f"p = {pair['p_value_adjusted']:.2g}{several}"
        single = "" if pair["seeds"] > 1 else " That is so of these two runs; other seeds were not tried."
        return f"{better} is better than {worse}, by {points} ({interval}; {sure}).{single}"
    apart = f"These runs cannot tell {pair['one']} and {pair['other']} apart: they differ by {points} ({interval})."
    return f"{apart} {_what_would(pair)}"


def _what_would(pair: dict[str, Any]) -> str:
    if pair["seeds"] == 1:
        return "More than one seed of each would say more."
    images, seeds = pair["enough_images"], pair["enough_seeds"]
    ways = []
    if images is not None and images > pair["images"]:
        ways.append(f"{images - pair['images']:,} more images")
    if seeds is not None and seeds > pair["seeds"]:
        ways.append(f"{seeds - pair['seeds']:,} more seeds")
    if not ways:
        return "Only more images and more seeds together would, if there is a difference at all."
    return f"If the difference is what it seems, about {' or '.join(ways)} would."


def _run_document(label: str, run: ComparedRun) -> dict[str, Any]:
    return {
        "label": label,
        "run": run.path.name,
        "seed": run.recipe.seed,
        "top1": run.report.top1,
        "seconds": [row["seconds"] for row in run.history],
        "valid_top1": [row["valid_top1"] for row in run.history],
    }
