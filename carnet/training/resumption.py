"""Take up a run where it was left, and nothing else than that run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from carnet import files
from carnet.config import FREE, OF_MACHINE, ResolvedConfig, TrainingConfig, change
from carnet.data.scan import ScannedImages
from carnet.errors import ConfigError, DataError, RunError
from carnet.machine import available_cores, versions
from carnet.models.weights import device_name
from carnet.run_folder import RunFolder
from carnet.text import Progress, counted, first_few, quoted
from carnet.training.checkpoint import Checkpoint, DamagedCheckpointError, read_checkpoint
from carnet.training.measure import processor_features
from carnet.training.preparation import Job, drawn_batch, new_network, scan_data, start_weights, whiten_first
from carnet.training.resolve import device_and_number
from carnet.training.step import compiler_problem


def prepare_resumed(
    run: RunFolder,
    data: Path | str | None,
    asked: TrainingConfig,
    *,
    ignore: Sequence[str],
    progress: Progress,
) -> Job:
    """Take up a run where its last good checkpoint left it, and nothing else than that run.

    Raises:
        RunError: if config or images are not the run's, this machine cannot go on with it, or no checkpoint is whole.
        DataError: if the images are gone.
    """
    checkpoint = _last_good_checkpoint(run, progress)
    record = run.read_config() if checkpoint is None else checkpoint.record
    source = run.config if checkpoint is None else run.checkpoint
    config = _taken_up(run, asked, record, source)
    # A run that has no checkpoint begins here, and of one that is finished the report alone may be missing.
    here = device_name(config.device)
    moved = checkpoint is not None and not run.result.exists() and here != config.device_name
    notes = (f"begun on {config.device_name}, continued on {here}",) if moved else ()
    there, ignore = data or record["data"]["path"], ignore or record["data"].get("ignore", ())
    try:
        scan = scan_data(there, config, ignore, progress)
    except DataError as error:
        if data or not Path(there).is_absolute() or Path(there).exists():
            raise
        way_out = f"say where the images are: carnet train DATA --resume {quoted(run.path)}"
        raise DataError(f"{error}; {way_out}") from error
    images = scan.images
    if images.content_hash != record["data"]["content_hash"]:
        raise RunError(
            f"the images are not those of {run.path}, {_what_changed(run, images)}; --init starts from its weights"
        )
    # A checkpoint brings all weights; published ones need not be fetched again.
    begun = checkpoint is not None
    started = replace(config, pretrained=config.pretrained and not begun)
    network, spec = new_network(started, config.image_size, images.data.classes)
    pipeline = scan.pipeline(config, spec)
    if not begun:
        start_weights(network, spec, config, record["init"])
        first = pipeline.load_step(0, 0)
        if record["init"] is None:
            whiten_first(network, spec, config, pipeline, first)
        # A kill may have come before it was written.
        picture, _ = drawn_batch(config, spec, pipeline, first)
        files.write_bytes(run.batch, picture)
    progress.say("\n".join([_continuation(run, config, checkpoint, record), *(f"Note: {note}." for note in notes)]))
    return Job(
        run=run,
        config=config,
        spec=spec,
        scan=scan,
        pipeline=pipeline,
        network=network,
        record=record,
        checkpoint=checkpoint,
        notes=notes,
    )


def _taken_up(run: RunFolder, asked: TrainingConfig, record: Mapping[str, Any], source: Path) -> ResolvedConfig:
    """The config of the run, with what does not change the result as it is asked for now.

    Raises:
        RunError: if it cannot be read, anything else is asked for, or this machine cannot compute so.
    """
    requested = TrainingConfig.from_json(record["requested"], source)
    resolved = ResolvedConfig.from_json(record["resolved"], source)
    _require_same(run, asked, requested, resolved)
    _require_possible(run, asked, resolved)
    free = {name: getattr(asked, name) for name in FREE}
    if asked.workers is None:
        free["workers"] = resolved.workers
    return replace(resolved, **free)


def _require_same(run: RunFolder, asked: TrainingConfig, requested: TrainingConfig, resolved: ResolvedConfig) -> None:
    """Whether nothing is asked for that is not the run's, as it was requested or as it was resolved.

    Raises:
        RunError: naming what is.
    """
    may_differ = FREE | {"keep_memory"}
    others = [
        field.name
        for field in fields(TrainingConfig)
        if field.name not in may_differ
        and getattr(asked, field.name) not in (None, getattr(requested, field.name), getattr(resolved, field.name))
    ]
    changes = {name: change(name, getattr(resolved, name), getattr(asked, name)) for name in others}
    if recipe := [told for name, told in changes.items() if name not in OF_MACHINE]:
        way_out = f"carnet train DATA --init {quoted(run.path)} trains a new run so, from its weights"
        if {"model", "in_channels"} & set(others):
            way_out = "without --resume, a new run trains so"
        raise RunError(
            f"--resume goes on with the recipe of {run.path}; it does not have {', '.join(recipe)}; {way_out}"
        )
    if changes:
        raise RunError(
            f"{run.path} was planned otherwise: {', '.join(changes.values())}; --init starts from its weights"
        )


def _require_possible(run: RunFolder, asked: TrainingConfig, resolved: ResolvedConfig) -> None:
    """Whether this machine can compute as the run was computed so far.

    Raises:
        RunError: if it cannot.
    """
    problems = []
    try:
        _, devices = device_and_number(replace(asked, device=resolved.device))
        if devices != resolved.devices:
            problems.append(change("devices", resolved.devices, devices))
    except ConfigError as error:
        problems.append(str(error))
    if resolved.threads > (cores := available_cores()):
        problems.append(f"{cores} cores (was --threads {resolved.threads})")
    if problems:
        raise RunError(f"{run.path} was planned otherwise: {', '.join(problems)}; --init starts from its weights")
    if resolved.compile and (problem := compiler_problem(resolved.device)):
        raise RunError(f"{run.path} was compiled, and here {problem}; --init starts from its weights")


def _what_changed(run: RunFolder, images: ScannedImages) -> str:
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
    run: RunFolder, config: ResolvedConfig, checkpoint: Checkpoint | None, record: Mapping[str, Any]
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
