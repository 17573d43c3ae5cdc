"""Which runs belong together: those of one network by one recipe, whatever their seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from carnet.comparison.runs import ComparedRun
from carnet.errors import RunError
from carnet.significance import Correct


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


def require_same_images(runs: Sequence[ComparedRun]) -> None:
    """Answers for other images cannot be compared.

    Raises:
        RunError: if a run was judged by other images, or knows other classes, than the first.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.report.classes != first.report.classes:
            raise RunError(f"{run.path} knows other classes than {first.path}")
        if run.report.samples != first.report.samples:
            raise RunError(f"{run.path} is judged by other images than {first.path}; runs of one data set are compared")


def group_runs(runs: Sequence[ComparedRun]) -> list[Group]:
    """Runs that differ in their seed alone belong together."""
    found: list[list[ComparedRun]] = []
    for run in runs:
        for group in found:
            if not differences(group[0], run):
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
            recipe = ", ".join(differences(found[names.index(name)][0], members[0]))
        groups.append(Group(label, recipe, tuple(members), np.stack([run.report.correct for run in members])))
    return groups


def differences(one: ComparedRun, other: ComparedRun) -> list[str]:
    """What sets another run's recipe apart, besides its seed, and the epochs that the same time came to."""
    same_budget = one.recipe.budget and one.recipe.budget == other.recipe.budget
    epochs = one.recipe.epochs if same_budget else other.recipe.epochs
    found = one.recipe.differences(replace(other.recipe, seed=one.recipe.seed, epochs=epochs))
    if one.recipe.budget != other.recipe.budget:
        found.append(f"--budget {other.recipe.budget} (was {one.recipe.budget})")
    return found
