"""From finished runs to an answer.

Runs of one network, trained in one way, belong together, whatever their seed. Two networks at a time: which is better,
by how much, and how sure is that. Where runs are not what they seem to be side by side, notes say so.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from carnet import files, metrics
from carnet.comparison.latency import ToGraph, latencies_in_turns
from carnet.comparison.runs import ComparedRun, check_finished, read_run, recipe_differences, sized
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
from carnet.training.measurements import measure_matrix_rates


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        folder: with comparison.html, .png, .svg, .json, table.md and table.csv.
        document: what `comparison.json` says.
    """

    folder: Path
    document: dict[str, Any]

    @property
    def sentences(self) -> list[str]:
        """One for each pair of networks, and what else has to be known of it."""
        return [pair["sentence"] for pair in self.document["pairs"]] + [
            f"Note: {note}." for note in self.document["notes"]
        ]


def compare(
    paths: Sequence[Path],
    folder: Path,
    progress: Progress | None = None,
    *,
    reach: Sequence[float] = (),
    data: str = "",
    untrained: Sequence[str] = (),
    to_graph: ToGraph | None = None,
) -> Comparison:
    """Compare finished runs, and write a page, a figure and tables.

    Args:
        paths: folders of at least two runs that were evaluated on the same images.
        folder: where it goes; made if it is missing.
        progress: shown what happens; None: nobody.
        reach: accuracies to tell the time to; none: tens of per cent that all runs reach.
        data: the runs' images, if they are no longer where they were.
        untrained: what could not be trained, for the notes.
        to_graph: exports networks, to measure their latencies; None: as `carnet export` does.

    Raises:
        ConfigError: with fewer than two runs.
        RunError: if a run is not finished, was evaluated on other images than the first, or is there twice.
        OutputError: if a file cannot be written.
    """
    progress = progress or Silent()
    if len(paths) < 2:
        raise ConfigError("name at least two runs to compare, or images and the --models to train on them")
    check_finished(paths)
    files.check_folder(folder)
    files.make_folder(folder)
    runs = [read_run(path, progress, data=data) for path in paths]
    require_comparable(runs)
    groups = group_runs(runs)
    latencies, notes = latencies_in_turns({group.label: group.runs[0].model for group in groups}, progress, to_graph)
    targets = reach or _targets(groups)
    answer = Comparison(folder, _document(groups, latencies, targets, [*untrained, *notes_on(groups), *notes]))
    _write(answer)
    return answer


def _document(
    groups: Sequence[Group], latencies: Mapping[str, dict[str, float]], targets: Sequence[float], notes: Sequence[str]
) -> dict[str, Any]:
    """What `comparison.json` says."""
    first = groups[0].runs[0]
    return {
        "images": {
            "count": first.report.num_images,
            "data": first.document["num_images"],
            "unseen": first.report.leaks_known and not first.report.leaked.any(),
        },
        "machine": f"{processor_name()} ({instruction_set()})",
        "matrix_gflops": measure_matrix_rates().to_json(),
        "versions": versions(),
        "models": [_row(group, latencies[group.label], targets) for group in groups],
        "pairs": compare_pairs(groups),
        "notes": list(notes),
        "runs": [_run_document(group.label, run) for group in groups for run in group.runs],
    }


def _write(answer: Comparison) -> None:
    """The document, and what people look at."""
    folder, document = answer.folder, answer.document
    rows = document["models"]
    files.write_json(folder / "comparison.json", document)
    text, csv = table_of(rows)
    files.write_text(folder / "table.md", text)
    files.write_text(folder / "table.csv", csv)
    png, svg = draw_comparison(rows, document["runs"])
    files.write_bytes(folder / "comparison.png", png)
    files.write_bytes(folder / "comparison.svg", svg)
    files.write_text(folder / "comparison.html", comparison_html(rows, answer.sentences, document, png))


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
    mean, low, high = _interval(group)
    top5s = [run.report.top5 for run in group.runs]
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
        "top1": mean,
        "top1_ci95": [low, high],
        "top1_spread": _spread(finals),
        "top1_of_each": finals,
        "top5": statistics.fmean(top5s),
        "top5_spread": _spread(top5s),
        "top5_of_each": top5s,
        # As training saw it: on all of valid, of the last epoch whatever was kept.
        "final_top1": statistics.fmean(run.document["final"]["valid_top1"] for run in group.runs),
        "final_top5": statistics.fmean(run.document["final"]["valid_top5"] for run in group.runs),
        "calibration_error": statistics.fmean(
            metrics.expected_calibration_error(run.report.probabilities.max(axis=1), run.report.correct)
            for run in group.runs
        ),
        "seconds_to": {f"{100 * target:g} %": seconds_to(histories, target) for target in targets},
    }


def _median_of(group: Group, key: str) -> float | None:
    """Of what the results of the runs say; None where none says it."""
    values = [run.document[key] for run in group.runs if run.document.get(key)]
    return statistics.median(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


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


def seconds_to(histories: Sequence[Sequence[Mapping[str, float]]], target: float) -> dict[str, float | None]:
    """Mean seconds to the first epoch that reaches an accuracy, over the runs that do, and how many these are."""
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
"""Differences that chance would make less often than this count as differences."""
_SMALL = 0.001
"""How much smaller a p-value is says nothing to anybody."""


def compare_pairs(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every two networks: their difference, its interval, and a sentence; p-values are adjusted for their number."""
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
    """What a pair comes to, for someone who has to choose."""
    better, worse, sign = pair["one"], pair["other"], 1
    if pair["difference"] < 0:
        better, worse, sign = worse, better, -1
    low, high = sorted(100 * sign * end for end in pair["ci95"])
    alone, several = (" of this pair alone", f", adjusted for {num_pairs} pairs") if num_pairs > 1 else ("", "")
    sure = f"95 % interval{alone} {low:+.1f} to {high:+.1f}; {_p(pair['p_value_adjusted'])}{several}"
    points = f"{abs(100 * pair['difference']):.1f} points"
    if pair["p_value_adjusted"] < SIGNIFICANCE_LEVEL:
        return f"{better} is better than {worse}, by {points} ({sure}).{_of_few_seeds(pair)}"
    apart = f"These runs cannot tell {pair['one']} and {pair['other']} apart: they differ by {points} ({sure})."
    return f"{apart} {_what_would(pair)}"


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value >= _SMALL else f"p below {_SMALL:g}"


def _of_few_seeds(pair: dict[str, Any]) -> str:
    """What a single run leaves open."""
    match sorted(pair["seeds"]):
        case [1, 1]:
            return " That is so of these two runs; other seeds were not tried."
        case [1, _]:
            single = pair["one"] if pair["seeds"][0] == 1 else pair["other"]
            return f" {single} has one run, which is taken to vary with the seed as the other does."
        case _:
            return ""


def _what_would(pair: dict[str, Any]) -> str:
    images, seeds = pair["enough_images"], pair["enough_seeds"]
    ways = [] if images is None else [f"{images - pair['images']:,} more images"]
    if pair["seeds"] == [1, 1]:
        # How much seeds differ cannot be told from one of each.
        if not ways:
            return "More than one seed of each would say more."
        return f"If the difference is what it seems, about {ways[0]} would; so may more seeds."
    if seeds is not None:
        one, other = pair["seeds"]
        ways.append(f"{seeds - one:,} more seeds" if one == other else f"{seeds:,} seeds of each")
    if not ways:
        return "Only more images and more seeds together would, if there is a difference at all."
    return f"If the difference is what it seems, about {' or '.join(ways)} would."


@dataclass(frozen=True)
class Group:
    """The runs of one network, trained in one way.

    Attributes:
        label: the network's name, with a number where it was trained in several ways.
        recipe: what sets its training apart from that of the first group.
        runs: in the order of their seeds.
        correct: (seeds, images) whether each run names each image right.
    """

    label: str
    recipe: str
    runs: tuple[ComparedRun, ...]
    correct: Correct


def require_comparable(runs: Sequence[ComparedRun]) -> None:
    """Answers for other images cannot be compared.

    Raises:
        RunError: if a run was evaluated on other images, or knows other classes, than the first; or if there are fewer
            than two of these images.
    """
    first = runs[0]
    if first.report.num_images < 2:
        raise RunError(
            f"{first.path} is evaluated on {counted(first.report.num_images, 'image')}; at least two are needed"
        )
    for run in runs[1:]:
        if run.report.classes != first.report.classes:
            raise RunError(f"{run.path} knows other classes than {first.path}")
        if run.report.samples != first.report.samples:
            raise RunError(
                f"{run.path} is evaluated on other images than {first.path}; runs of one data set are compared"
            )


def group_runs(runs: Sequence[ComparedRun]) -> list[Group]:
    """Runs that differ in their seed alone belong together.

    Raises:
        RunError: if two of them do not even differ in that, so that they are no two answers to one question.
    """
    found: list[list[ComparedRun]] = []
    for run in runs:
        for group in found:
            if group[0].requested.model == run.requested.model and not differences(group[0], run):
                group.append(run)
                break
        else:
            found.append([run])
    names = [group[0].requested.model for group in found]
    groups = []
    for place, (name, members) in enumerate(zip(names, found, strict=True)):
        members.sort(key=lambda run: run.requested.seed)
        for one, other in pairwise(members):
            if one.requested.seed == other.requested.seed:
                raise RunError(f"{one.path} and {other.path} were trained alike, with one seed; leave one of them out")
        label = f"{name} #{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        recipe = ", ".join(differences(found[0][0], members[0]))
        groups.append(Group(label, recipe, tuple(members), np.stack([run.report.correct for run in members])))
    return groups


def differences(one: ComparedRun, other: ComparedRun) -> list[str]:
    """What sets another run's training apart, besides its network and its seed."""
    found = recipe_differences(sized(one.requested), replace(sized(other.requested), model=one.requested.model))
    if one.start != other.start:
        found.append(f"--init {other.start or 'none'} (was {one.start or 'none'})")
    if one.content_hash != other.content_hash:
        found.append("other training images")
    return found


_COMPUTED_BY = (
    *("device_name", "devices", "threads", "precision", "compile", "micro_batch"),
    *("fast_depthwise", "memory_format", "muon_precision"),
)
"""Fields of a config on which it depends how long an epoch takes."""
_PACKAGES = ("carnet", "torch")


def notes_on(groups: Sequence[Group]) -> list[str]:
    """One clause each, the gravest first."""
    return [
        *_about_images(groups[0].runs[0]),
        *(f"{one.label} was trained otherwise than {groups[0].label}: {one.recipe}" for one in groups if one.recipe),
        *_about_machines(groups),
        *(note for group in groups for note in _about_group(group)),
        *_about_single_runs(groups),
    ]


def _about_images(first: ComparedRun) -> Iterator[str]:
    if not first.report.leaks_known:
        yield "it is not known which images these runs were trained on, so some may be among those that judge them"
    elif first.report.leaked.all():
        yield "every image that judges is a training image, byte for byte, so this says nothing about new ones"


def _about_machines(groups: Sequence[Group]) -> Iterator[str]:
    runs = [run for group in groups for run in group.runs]
    machines = sorted({str(run.resolved.device_name) for run in runs})
    if len(machines) > 1:
        yield f"these runs were trained on {first_few(machines)}, so their seconds cannot be compared"
    for package in _PACKAGES:
        numbers = sorted({run.versions[package] for run in runs if package in run.versions})
        if len(numbers) > 1:
            yield f"these runs were trained by {package} {' and '.join(numbers)}"


def _about_group(group: Group) -> Iterator[str]:
    first, *others = group.runs
    unlike = [
        name
        for name in _COMPUTED_BY
        if any(getattr(run.resolved, name) != getattr(first.resolved, name) for run in others)
    ]
    if unlike:
        named = first_few([name.replace("_", " ") for name in unlike])
        yield f"runs of {group.label} were not computed alike ({named}), so their mean seconds are of several kinds"
    # The seed divides the images where nothing else was asked for, and time decides the epochs of a budget.
    names = ["seed", "valid_seed"] + (["epochs"] if first.requested.budget else [])
    alike = {name: getattr(first.resolved, name) for name in names}
    came_to = {
        difference for run in others for difference in first.resolved.differences(replace(run.resolved, **alike))
    }
    if came_to:
        yield f"runs of {group.label} were asked for alike and came to other recipes: {first_few(sorted(came_to))}"
    if any(run.document.get("kept") == "best" for run in group.runs):
        yield f"{group.label} kept the epochs that did best on the very images that judge here, which flatters it"
    for run in group.runs:
        for note in run.document.get("notes") or ():
            yield f"{run.path.name}: {note}"


def _about_single_runs(groups: Sequence[Group]) -> Iterator[str]:
    single = [group.label for group in groups if len(group.runs) == 1]
    if single and len(single) < len(groups):
        yield f"the interval of {first_few(single)} is that of one run, and leaves out what other seeds would give"
