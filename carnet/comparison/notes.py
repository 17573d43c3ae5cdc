"""What has to be known of runs that are compared: where they are not what they seem to be, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from carnet.comparison.groups import Group
from carnet.comparison.runs import ComparedRun, recipe_differences
from carnet.progress import first_few

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
    machines = sorted({str(run.plan.get("device_name")) for run in runs})
    if len(machines) > 1:
        yield f"these runs were trained on {first_few(machines)}, so their seconds cannot be compared"
    for package in _PACKAGES:
        numbers = sorted({run.versions[package] for run in runs if package in run.versions})
        if len(numbers) > 1:
            yield f"these runs were trained by {package} {' and '.join(numbers)}"


def _about_group(group: Group) -> Iterator[str]:
    first, *others = group.runs
    unlike = [name for name in _COMPUTED_BY if any(run.plan.get(name) != first.plan.get(name) for run in others)]
    if unlike:
        named = first_few([name.replace("_", " ") for name in unlike])
        yield f"runs of {group.label} were not computed alike ({named}), so their mean seconds are of several kinds"
    came_to = {difference for run in others for difference in recipe_differences(first.came_to, run.came_to)}
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
