"""Compare finished runs: which network is better, by how much, and how certain that is.

Runs of one network that were trained in one way form a group, whatever their seeds. Groups are compared in pairs; notes
say where runs differ in more than they seem to.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from carnet import files, metrics
from carnet.comparison.latency import ToGraph, latencies_in_turns
from carnet.comparison.runs import (
    ComparedRun,
    TrainOne,
    check_finished,
    read_run,
    recipe_differences,
    sized,
    train_runs,
)
from carnet.config import TrainingConfig
from carnet.data.samples import short_name
from carnet.errors import ConfigError, RunError
from carnet.machine import instruction_set, processor_name, versions
from carnet.models.summary import summarize
from carnet.report.comparison import comparison_html, draw_comparison, table_of
from carnet.significance import (
    Correct,
    accuracy_over_seeds,
    difference_of_single_runs,
    difference_over_seeds,
    holm,
    sufficient_numbers,
)
from carnet.text import Progress, Silent, counted, first_few
from carnet.training.measure import measure_matrix_rates


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        folder: folder with comparison.html, .png, .svg, .json, table.md and table.csv.
        document: the content of `comparison.json`.
        untrained: a clause for each run that could not be trained.
    """

    folder: Path
    document: dict[str, Any]
    untrained: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """A sentence for each pair of networks, then the notes."""
        return [pair["sentence"] for pair in self.document["pairs"]] + [
            f"Note: {note}." for note in self.document["notes"]
        ]


def compare(
    targets: Sequence[Path | str] | Path | str,
    output: Path | str | None = None,
    *,
    models: Sequence[str] = (),
    seeds: int = 3,
    config: TrainingConfig | None = None,
    reach: Sequence[float] = (),
    data: Path | str | None = None,
    progress: Progress | None = None,
    train: TrainOne | None = None,
    to_graph: ToGraph | None = None,
) -> Comparison:
    """Compare networks on some images, or finished runs, and write a page, a figure and tables.

    Args:
        targets: the images, with `models`; otherwise folders of at least two runs on the same images.
        output: folder for runs and results; None: runs/compare-DATA with `models`, otherwise comparison.
        models: networks to train; finished runs in `output` are kept, and stopped ones are resumed.
        seeds: runs of each network, with seeds 0, 1, …
        config: the recipe of all networks; None: the default.
        reach: accuracies (0 to 1) to report the time to; empty: tens of percent that all runs reach.
        data: images of finished runs, if they are no longer where they were.
        progress: shows what happens; None: nothing is shown.
        train: trains one run; None: in a process of its own.
        to_graph: exports networks, to measure their latency; None: as `carnet export` does.

    Raises:
        ConfigError: with fewer than two runs, or several `targets` for `models`.
        RunError: if a run is not finished, was evaluated on other images than the first, or is named twice.
        OutputError: if a file cannot be written.
    """
    progress, recipe = progress or Silent(), config or TrainingConfig()
    names = [targets] if isinstance(targets, str | Path) else list(targets)
    paths, untrained = [Path(name) for name in names], list[str]()
    if models and len(names) != 1:
        raise ConfigError("with --models, name one folder, table, archive or data set of images")
    if models:
        folder = Path(output or Path("runs") / f"compare-{short_name(paths[0])}")
        paths, untrained = train_runs(
            str(names[0]), models, seeds=seeds, config=recipe, folder=folder, progress=progress, train=train
        )
    else:
        folder = Path(output or "comparison")
    return _compare_runs(paths, folder, progress, untrained=untrained, reach=reach, data=data, to_graph=to_graph)


def _compare_runs(
    paths: Sequence[Path],
    folder: Path,
    progress: Progress,
    *,
    untrained: Sequence[str],
    reach: Sequence[float],
    data: Path | str | None,
    to_graph: ToGraph | None,
) -> Comparison:
    if len(paths) < 2:
        raise ConfigError("name at least two runs to compare, or images and the --models to train on them")
    check_finished(paths)
    files.check_folder(folder)
    files.make_folder(folder)
    runs = [read_run(path, progress, data=data) for path in paths]
    require_comparable(runs)
    groups = group_runs(runs)
    first = runs[0]
    latencies, unmeasured = latencies_in_turns({one.label: one.runs[0].model for one in groups}, progress, to_graph)
    targets = reach or common_targets(groups)
    document: dict[str, Any] = {
        "images": {
            "count": first.report.num_images,
            "data": first.document["num_images"],
            "unseen": first.report.leaks_known and not first.report.leaked.any(),
        },
        "machine": f"{processor_name()} ({instruction_set()})",
        "matrix_gflops": measure_matrix_rates(),
        "versions": versions(),
        "models": [_row(group, latencies[group.label], targets) for group in groups],
        "pairs": compare_pairs(groups),
        "notes": [*untrained, *notes_on(groups), *unmeasured],
        "runs": [_run_document(group.label, run) for group in groups for run in group.runs],
    }
    answer = Comparison(folder, document, tuple(untrained))
    rows = document["models"]
    files.write_json(folder / "comparison.json", document)
    text, csv = table_of(rows)
    files.write_text(folder / "table.md", text)
    files.write_text(folder / "table.csv", csv)
    png, svg = draw_comparison(rows, document["runs"])
    files.write_bytes(folder / "comparison.png", png)
    files.write_bytes(folder / "comparison.svg", svg)
    files.write_text(folder / "comparison.html", comparison_html(rows, answer.sentences, document, png))
    return answer


def _row(group: Group, latency: dict[str, float], targets: Sequence[float]) -> dict[str, Any]:
    """Return what the table says about a network."""
    first, reports = group.runs[0], [run.report for run in group.runs]
    spec = first.model.spec
    summary = summarize(
        first.model.network,
        spec.model,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
        in_channels=spec.in_channels,
    )
    top1s, top5s = [report.top1 for report in reports], [report.top5 for report in reports]
    if len(reports) > 1:
        top1, low, high = accuracy_over_seeds(group.correct)
    else:
        top1, (low, high) = top1s[0], reports[0].top1_ci95
    histories = [run.history for run in group.runs]
    return {
        "label": group.label,
        "trained_otherwise": group.recipe,
        "model": spec.model,
        "image_size": spec.image_size,
        "seeds": [run.requested.seed for run in group.runs],
        "params": summary.params,
        "macs": summary.macs,
        "weights_bytes": (first.path / "model.safetensors").stat().st_size,
        "activations_bytes": summary.activations_bytes,
        "peak_memory_bytes": _median_of(group, "peak_memory_bytes"),
        "peak_device_bytes": _median_of(group, "peak_device_bytes"),
        "seconds_per_epoch": statistics.fmean(run.document["seconds"] / run.document["epochs"] for run in group.runs),
        "seconds": statistics.fmean(run.document["seconds"] for run in group.runs),
        "latency_ms": latency,
        "top1": top1,
        "top1_ci95": [low, high],
        "top1_spread": _spread(top1s),
        "top1_of_each": top1s,
        "macro_recall": statistics.fmean(report.macro_recall for report in reports),
        "top5": statistics.fmean(top5s),
        "top5_spread": _spread(top5s),
        "top5_of_each": top5s,
        # As training measured it: on all of valid, for the last epoch whatever was kept.
        "final_top1": statistics.fmean(run.document["final"]["valid_top1"] for run in group.runs),
        "final_top5": statistics.fmean(run.document["final"]["valid_top5"] for run in group.runs),
        "calibration_error": statistics.fmean(
            metrics.expected_calibration_error(report.probabilities.max(axis=1), report.correct) for report in reports
        ),
        "seconds_to": {f"{100 * target:g}%": seconds_to(histories, target) for target in targets},
    }


def _median_of(group: Group, key: str) -> float | None:
    """Return the median over the runs that report a number; None where none does."""
    values = [run.document[key] for run in group.runs if run.document.get(key)]
    return statistics.median(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def common_targets(groups: Sequence[Group]) -> list[float]:
    """Return the highest three tens of percent that the last epoch of every run reaches."""
    lowest = min(run.history[-1]["valid_top1"] for group in groups for run in group.runs)
    highest = int(10 * lowest)
    return [tens / 10 for tens in range(max(1, highest - 2), highest + 1)]


def seconds_to(histories: Sequence[Sequence[Mapping[str, float]]], target: float) -> dict[str, float | None]:
    """Return the mean seconds to the first epoch that reaches an accuracy, and how many runs reach it."""
    firsts = (next((row["seconds"] for row in rows if row["valid_top1"] >= target), None) for rows in histories)
    reached = [seconds for seconds in firsts if seconds is not None]
    return {"seconds": statistics.fmean(reached) if reached else None, "runs": len(reached)}


def _run_document(label: str, run: ComparedRun) -> dict[str, Any]:
    return {
        "label": label,
        "run": run.path.name,
        "seed": run.requested.seed,
        "device": f"{run.resolved.device} ({run.resolved.device_name})",
        "top1": run.report.top1,
        "seconds": [row["seconds"] for row in run.history],
        "valid_top1": [row["valid_top1"] for row in run.history],
    }


SIGNIFICANCE_LEVEL = 0.05
"""Differences with a smaller p-value count as differences."""
_SMALLEST_P = 0.001
"""Smaller p-values are printed as "below"."""


def compare_pairs(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Compare every two networks: difference, interval, p-value adjusted for the number of pairs, and a sentence."""
    both = list(itertools.combinations(groups, 2))
    pairs = [_pair(one, other, SIGNIFICANCE_LEVEL / len(both)) for one, other in both]
    for pair, adjusted in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_value_adjusted"] = adjusted
        pair["sentence"] = _sentence(pair, len(pairs))
    return pairs


def _pair(one: Group, other: Group, alarm: float) -> dict[str, Any]:
    number, seeds = one.correct.shape[1], sorted((len(one.runs), len(other.runs)))
    if seeds[1] > 1:
        found = difference_over_seeds(one.correct, other.correct)
    else:
        found = difference_of_single_runs(one.correct[0], other.correct[0])
    images, more_seeds = sufficient_numbers(found, number, seeds[0], alarm)
    return {
        "one": one.label,
        "other": other.label,
        "images": number,
        "seeds": [len(one.runs), len(other.runs)],
        "difference": found.mean,
        "ci95": [found.low, found.high],
        "p_value": found.p_value,
        "enough_images": images,
        "enough_seeds": more_seeds,
    }


def _sentence(pair: dict[str, Any], num_pairs: int) -> str:
    """Return the result of a pair, for someone who has to choose."""
    better, worse, sign = pair["one"], pair["other"], 1
    if pair["difference"] < 0:
        better, worse, sign = worse, better, -1
    low, high = sorted(100 * sign * end for end in pair["ci95"])
    alone, several = (" of this pair alone", f", adjusted for {num_pairs} pairs") if num_pairs > 1 else ("", "")
    p_value = pair["p_value_adjusted"]
    p = f"p = {p_value:.2g}" if p_value >= _SMALLEST_P else f"p below {_SMALLEST_P:g}"
    evidence = f"95% interval{alone} {low:+.1f} to {high:+.1f}; {p}{several}"
    points = f"{abs(100 * pair['difference']):.1f} points"
    if p_value >= SIGNIFICANCE_LEVEL:
        apart = f"These runs cannot tell {pair['one']} and {pair['other']} apart: they differ by {points} ({evidence})."
        return f"{apart} {_what_would_help(pair)}"
    sentence = f"{better} is better than {worse}, by {points} ({evidence})."
    seeds = sorted(pair["seeds"])
    if seeds == [1, 1]:
        return f"{sentence} This holds for these two runs; other seeds were not tried."
    if seeds[0] == 1:
        single = pair["one"] if pair["seeds"][0] == 1 else pair["other"]
        return f"{sentence} {single} has one run, which is assumed to vary with the seed as the other's do."
    return sentence


def _what_would_help(pair: dict[str, Any]) -> str:
    """Return what would tell two networks apart."""
    images, seeds = pair["enough_images"], pair["enough_seeds"]
    ways = [] if images is None else [f"{images - pair['images']:,} more images"]
    if pair["seeds"] == [1, 1]:
        # One seed of each does not show how much seeds differ.
        if not ways:
            return "Train more than one seed of each to learn more."
        return f"If the difference is as large as it seems, about {ways[0]} would; more seeds may, too."
    if seeds is not None:
        one, other = pair["seeds"]
        ways.append(f"{seeds - one:,} more seeds" if one == other else f"{seeds:,} seeds of each")
    if not ways:
        return "Only more images together with more seeds would, if there is a difference at all."
    return f"If the difference is as large as it seems, about {' or '.join(ways)} would."


@dataclass(frozen=True)
class Group:
    """The runs of one network, trained in one way.

    Attributes:
        label: the network's name, with a number where it was trained in several ways.
        recipe: how its training differs from that of the first group.
        runs: in the order of their seeds.
        correct: (seeds, images) whether each run classifies each image correctly.
    """

    label: str
    recipe: str
    runs: tuple[ComparedRun, ...]
    correct: Correct


def require_comparable(runs: Sequence[ComparedRun]) -> None:
    """Raise a RunError unless all runs know the same classes and were evaluated on the same images, at least two."""
    first = runs[0]
    if first.report.num_images < 2:
        raise RunError(
            f"{first.path} is evaluated on {counted(first.report.num_images, 'image')}; a comparison needs at least 2"
        )
    for run in runs[1:]:
        if run.report.classes != first.report.classes:
            raise RunError(f"{run.path} has other classes than {first.path}; compare runs on the same data")
        if run.report.samples != first.report.samples:
            raise RunError(f"{run.path} is evaluated on other images than {first.path}; compare runs on the same data")


def group_runs(runs: Sequence[ComparedRun]) -> list[Group]:
    """Group runs that differ only in their seed; raise a RunError if two do not even differ in that."""
    found: list[list[ComparedRun]] = []
    for run in runs:
        for group in found:
            if group[0].requested.model == run.requested.model and not differences(group[0], run):
                group.append(run)
                break
        else:
            found.append([run])
    names = [_name(group[0].requested) for group in found]
    groups = []
    for place, (name, members) in enumerate(zip(names, found, strict=True)):
        members.sort(key=lambda run: run.requested.seed)
        for one, other in itertools.pairwise(members):
            if one.requested.seed == other.requested.seed:
                raise RunError(f"{one.path} and {other.path} have the same recipe and seed; leave one of them out")
        label = f"{name} #{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        recipe = ", ".join(differences(found[0][0], members[0]))
        groups.append(Group(label, recipe, tuple(members), np.stack([run.report.correct for run in members])))
    return groups


def _name(requested: TrainingConfig) -> str:
    """Return the name of a network, and whether another one taught it."""
    return f"{requested.model}, taught" if requested.teacher else requested.model


def differences(one: ComparedRun, other: ComparedRun) -> list[str]:
    """Return how another run's training differs, apart from its network and its seed."""
    found = recipe_differences(sized(one.requested), replace(sized(other.requested), model=one.requested.model))
    if one.start != other.start:
        found.append(f"--init {other.start or 'none'} (was {one.start or 'none'})")
    if one.content_hash != other.content_hash:
        found.append("other training images")
    return found


_TIMING_FIELDS = (
    *("device_name", "devices", "threads", "precision", "compile", "micro_batch"),
    *("fast_depthwise", "memory_format", "muon_precision"),
)
"""Fields of a config that decide how long an epoch takes."""


def notes_on(groups: Sequence[Group]) -> Iterator[str]:
    """Yield a clause for each reservation about a comparison, the most serious first."""
    first, runs = groups[0].runs[0].report, [run for group in groups for run in group.runs]
    if not first.leaks_known:
        yield "the training images of these runs are not recorded, so the validation images may be among them"
    elif first.leaked.all():
        yield "every validation image is byte for byte a training image, so the accuracies say nothing about new images"
    for group in groups:
        if group.recipe:
            yield f"{group.label} was trained with another recipe than {groups[0].label}: {group.recipe}"
    machines = sorted({str(run.resolved.device_name) for run in runs})
    if len(machines) > 1:
        yield f"these runs were trained on different devices ({first_few(machines)}), so their times cannot be compared"
    for package in ("carnet", "torch"):
        numbers = sorted({run.versions[package] for run in runs if package in run.versions})
        if len(numbers) > 1:
            yield f"these runs were trained with {package} {' and '.join(numbers)}"
    for group in groups:
        yield from _notes_on_group(group)
    single = [group.label for group in groups if len(group.runs) == 1]
    if single and len(single) < len(groups):
        yield f"the interval of {first_few(single)} is that of one run, and leaves out the variation over seeds"


def _notes_on_group(group: Group) -> Iterator[str]:
    first, *others = (run.resolved for run in group.runs)
    different = [name for name in _TIMING_FIELDS if any(getattr(one, name) != getattr(first, name) for one in others)]
    if different:
        named = first_few([name.replace("_", " ") for name in different])
        yield f"runs of {group.label} were computed in different ways ({named}), so their mean times mix these"
    # The seed splits the images unless it was chosen otherwise, and a budget decides the epochs.
    names = ["seed", "valid_seed"] + (["epochs"] if group.runs[0].requested.budget else [])
    expected = {name: getattr(first, name) for name in names}
    found = {difference for one in others for difference in first.differences(replace(one, **expected))}
    if found:
        yield f"runs of {group.label} have equal requested and different resolved configs: {first_few(sorted(found))}"
    if any(run.document.get("kept") == "best" for run in group.runs):
        yield f"{group.label} kept the epoch that is best on these validation images, so its accuracy is biased upwards"
    for run in group.runs:
        for note in run.document.get("notes") or ():
            yield f"{run.path.name}: {note}"
