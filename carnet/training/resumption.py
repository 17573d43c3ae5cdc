"""Take up a run where it was left, and nothing else than that run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from carnet import files
from carnet.config import TrainingConfig
from carnet.data.scan import CheckedImages
from carnet.errors import DataError, RunError
from carnet.machine import versions
from carnet.prefetch import available_cores
from carnet.run_folder import RunFolder
from carnet.text import Progress, counted, first_few, quoted
from carnet.training.checkpoint import Checkpoint, DamagedCheckpointError, read_checkpoint
from carnet.training.preparation import Job, drawn_batch, look_at, new_network, start_weights, whiten_first
from carnet.training.resolve import Plan, filled_from, processor_features, recorded_recipe
from carnet.training.step import compiler_problem


def prepare_resumed(
    run: RunFolder,
    data: Path | str | None,
    config: TrainingConfig,
    plan: Plan,
    *,
    ignore: Sequence[str],
    progress: Progress,
) -> Job:
    """Take up a run where its last good checkpoint left it, and nothing else than that run.

    Raises:
        RunError: if recipe, plan or images are not the run's, or no checkpoint can be read.
        DataError: if the images are gone.
    """
    checkpoint = _last_good_checkpoint(run, progress)
    record = run.read_config() if checkpoint is None else checkpoint.record
    source = run.config if checkpoint is None else run.checkpoint
    recorded = recorded_recipe(record["recipe"], source)
    config = filled_from(config, recorded)
    if differences := recorded.differences(config):
        raise RunError(
            f"--resume goes on with the recipe of {run.path}; it does not have {', '.join(differences)}; "
            + _another_run(run, recorded, config)
        )
    then, now = Plan.from_json(record["plan"], source), plan
    plan = _take_up_plan(run, now, then, recorded, config)
    # A run that has no checkpoint begins here, and of one that is finished the report alone may be missing.
    moved = checkpoint is not None and not run.result.exists() and now.device_name != then.device_name
    notes = (f"begun on {then.device_name}, continued on {now.device_name}",) if moved else ()
    there, ignore = data or record["data"]["path"], ignore or record["data"].get("ignore", ())
    try:
        found = look_at(there, config, plan, ignore, progress)
    except DataError as error:
        if data or not Path(there).is_absolute() or Path(there).exists():
            raise
        way_out = f"say where the images are: carnet train DATA --resume {quoted(run.path)}"
        raise DataError(f"{error}; {way_out}") from error
    images = found.images
    if images.content_hash != record["data"]["content_hash"]:
        raise RunError(
            f"the images are not those of {run.path}, {_what_changed(run, images)}; --init starts from its weights"
        )
    # A checkpoint brings all weights; published ones need not be fetched again.
    begun = checkpoint is not None
    network, spec = new_network(replace(config, pretrained=config.pretrained and not begun), images.data.classes)
    if not begun:
        start_weights(network, spec, config, record["init"])
        if record["init"] is None:
            whiten_first(network, spec, config, plan, found)
        # A kill may have come before it was written.
        picture, _ = drawn_batch(found, config, spec, plan)
        files.write_bytes(run.batch, picture)
    progress.say("\n".join([_continuation(run, config, checkpoint, record), *(f"Note: {note}." for note in notes)]))
    return Job(
        run=run,
        config=config,
        plan=plan,
        spec=spec,
        found=found,
        network=network,
        record=record,
        checkpoint=checkpoint,
        notes=notes,
    )


def _another_run(run: RunFolder, recorded: TrainingConfig, config: TrainingConfig) -> str:
    """How to train by a recipe that is not the run's: a clause."""
    if (config.model, config.in_channels) != (recorded.model, recorded.in_channels):
        return "without --resume, a new run trains so"
    return f"carnet train DATA --init {quoted(run.path)} trains a new run so, from its weights"


def _what_changed(run: RunFolder, images: CheckedImages) -> str:
    """Which are new, gone or changed, as far as the record tells."""
    then, now = (
        {row["filepath"]: (row["split"], row["label"], row["sha256"]) for row in rows}
        for rows in (run.images(), images.rows())
    )
    changes = {
        "new": sorted(now.keys() - then.keys()),
        "gone": sorted(then.keys() - now.keys()),
        "changed": sorted(name for name in now.keys() & then.keys() if now[name] != then[name]),
    }
    if not then:
        return "of which its data.csv is gone"
    told = [f"{len(names):,} {what} ({first_few(names, 2)})" for what, names in changes.items() if names]
    return ", ".join(told) or "as its data.csv lists them"


def _take_up_plan(run: RunFolder, now: Plan, then: Plan, recorded: TrainingConfig, config: TrainingConfig) -> Plan:
    """The plan of the run, with what may change; measured choices stay, unless they are asked for otherwise.

    Raises:
        RunError: if this machine, or a flag, wants another plan.
    """
    names = ("precision", "memory_format", "threads", "micro_batch", "compile", "fast_depthwise", "muon_precision")
    changed = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(recorded, name)}
    words = {"on": True, "off": False}
    asked = {name: words.get(flag, flag) for name, flag in changed.items() if flag not in ("auto", 0)}
    expected = replace(now, **{name: getattr(then, name) for name in names} | asked)
    differences = expected.differences(then)
    if then.threads > (cores := available_cores()):
        differences.append(f"{cores} cores (was --threads {then.threads})")
    if differences:
        raise RunError(f"{run.path} was planned otherwise: {', '.join(differences)}; --init starts from its weights")
    if then.compile and (problem := compiler_problem(then.device)):
        raise RunError(f"{run.path} was compiled, and here {problem}; --init starts from its weights")
    return replace(then, workers=now.workers if config.workers != recorded.workers else then.workers)


def _last_good_checkpoint(run: RunFolder, progress: Progress) -> Checkpoint | None:
    """The last checkpoint, or the one before it where the last is damaged; None where there is none yet."""
    reasons = []
    for path in (run.checkpoint, run.previous_checkpoint):
        # A kill between two renamings leaves the previous one alone; nothing is damaged then.
        if not path.exists():
            continue
        try:
            checkpoint = read_checkpoint(path)
        except DamagedCheckpointError as error:
            reasons.append(f"{path}: {error}")
            continue
        if reasons:
            progress.say(f"Note: {reasons[0]}; goes on from the checkpoint before it, {path.name}.")
        if path != run.checkpoint:
            # Under its own name it would be the next to be overwritten.
            run.promote_previous_checkpoint()
        return checkpoint
    if reasons:
        raise RunError(
            f"no checkpoint can be read ({'; '.join(reasons)}); --init starts from the weights of {run.path}"
        )
    return None


def _continuation(
    run: RunFolder, config: TrainingConfig, checkpoint: Checkpoint | None, record: Mapping[str, Any]
) -> str:
    if checkpoint is None:
        lines = [f"Goes on with {run.path}: it has no checkpoint yet and starts at the beginning."]
    else:
        epochs, steps = checkpoint.state["epoch"], counted(checkpoint.state["step"], "step")
        lines = [f"Goes on with {run.path}: {epochs} of {config.epochs} epochs and {steps} are done."]
    now = versions() | {"processor features": processor_features()}
    then = record["versions"] | {"processor features": record["processor_features"]}
    changes = [
        f"{name} {now.get(name)} (was {then.get(name)})" for name in now | then if now.get(name) != then.get(name)
    ]
    if changes:
        lines.append(f"Note: {', '.join(changes)}; the last digits can differ from those of an uninterrupted run.")
    return "\n".join(lines)
