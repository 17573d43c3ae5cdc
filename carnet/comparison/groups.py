"""Which runs belong together: those of one network, trained in one way, whatever their seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from carnet.comparison.runs import ComparedRun, recipe_differences
from carnet.errors import RunError
from carnet.progress import counted
from carnet.significance import Correct


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
            if group[0].recipe.model == run.recipe.model and not differences(group[0], run):
                group.append(run)
                break
        else:
            found.append([run])
    names = [group[0].recipe.model for group in found]
    groups = []
    for place, (name, members) in enumerate(zip(names, found, strict=True)):
        members.sort(key=lambda run: run.recipe.seed)
        for one, other in pairwise(members):
            if one.recipe.seed == other.recipe.seed:
                raise RunError(f"{one.path} and {other.path} were trained alike, with one seed; leave one of them out")
        label = f"{name} #{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        recipe = ", ".join(differences(found[0][0], members[0]))
        groups.append(Group(label, recipe, tuple(members), np.stack([run.report.correct for run in members])))
    return groups


def differences(one: ComparedRun, other: ComparedRun) -> list[str]:
    """What sets another run's training apart, besides its network and its seed."""
    found = recipe_differences(one.recipe, replace(other.recipe, model=one.recipe.model))
    if one.start != other.start:
        found.append(f"--init {other.start or 'none'} (was {one.start or 'none'})")
    if one.content_hash != other.content_hash:
        found.append("other training images")
    return found
