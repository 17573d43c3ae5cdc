"""Which runs belong together: those of one network, trained in one way, whatever their seed.

What has to be known of runs that are compared: where they are not what they seem to be, side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from carnet.comparison.runs import ComparedRun, recipe_differences
from carnet.errors import RunError
from carnet.significance import Correct
from carnet.text import counted, first_few


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
        RunError: if a run was judged by other images, or knows other classes, than the first; or if there are fewer
            than two of these images.
    """
    first = runs[0]
    if first.report.num_images < 2:
        raise RunError(
            f"{first.path} is judged by {counted(first.report.num_images, 'image')}; at least two are needed"
        )
    for run in runs[1:]:
        if run.report.classes != first.report.classes:
            raise RunError(f"{run.path} knows other classes than {first.path}")
        if run.report.samples != first.report.samples:
            raise RunError(f"{run.path} is judged by other images than {first.path}; runs of one data set are compared")


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
    found = recipe_differences(one.requested, replace(other.requested, model=one.requested.model))
    if one.start != other.start:
        found.append(f"--init {other.start or 'none'} (was {one.start or 'none'})")
    if one.content_hash != other.content_hash:
        found.append("other training images")
    return found


_COMPUTED_BY = (
    *("device_name", "devices", "threads", "precision", "compile", "micro_batch"),
    *("fast_depthwise", "memory_format", "muon_precision"),
)
"""Parts of a plan on which it depends how long an epoch takes."""
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
