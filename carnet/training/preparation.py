"""What comes before the first step: look at the images, build the network, lay out the run; or take one up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from carnet import files
from carnet.data.check import CheckedImages
from carnet.errors import ConfigError, DataError, MissingExtraError, ModelError, RunError
from carnet.machine import versions
from carnet.models.registry import create_model, normalization
from carnet.models.summary import check_image_size, check_single_image
from carnet.models.trained import check_start, start_from
from carnet.prefetch import available_cores
from carnet.progress import Progress, counted, first_few, quoted
from carnet.run_folder import RunFolder, new_run_path
from carnet.spec import ModelSpec
from carnet.training.checkpoint import Checkpoint, DamagedCheckpointError, read_checkpoint
from carnet.training.config import TrainingConfig
from carnet.training.feed import Feed
from carnet.training.looking import Found, look_at
from carnet.training.plan import Plan, processor_features, whole_micro_batch
from carnet.training.processes import Processes
from carnet.training.recipe import filled_from, with_augmentation, with_batch_size, with_epochs, with_size
from carnet.training.rehearsal import Rehearsal
from carnet.training.schedule import first_side, first_view
from carnet.training.step import compiler_problem, explaining_out_of_memory
from carnet.training.tuning import tune
from carnet.training.whitening import has_patches, whiten


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a trainer needs, in a form that passes between processes.

    Attributes:
        found: the images, and how they are read.
        record: what `config.json` says.
        checkpoint: where to go on; None: at the beginning.
    """

    run: RunFolder
    config: TrainingConfig
    plan: Plan
    spec: ModelSpec
    found: Found
    network: nn.Module
    record: Mapping[str, Any]
    checkpoint: Checkpoint | None = None

    @property
    def images(self) -> CheckedImages:
        """As they were checked."""
        return self.found.images

    def feed(self, processes: Processes) -> Feed:
        """One process's share of the training images."""
        return self.found.feed(self.config, self.spec, self.plan, processes)


def prepare(
    data: Path | str,
    config: TrainingConfig,
    plan: Plan,
    *,
    output: Path | str | None,
    init: Path | str | None,
    ignore: Sequence[str],
    started: float,
    progress: Progress,
) -> Job:
    """Check everything a new run needs, measure what the plan leaves open, then make the run's folder.

    Raises:
        CarnetError: one of its kinds, before anything is written.
    """
    if output is not None:
        RunFolder.new(Path(output))
    where = Path("runs") if output is None else Path(output)
    files.check_folder(where)
    if Path(data).is_dir() and where.resolve().is_relative_to(Path(data).resolve()):
        raise ConfigError(f"{where} would lie among the images in {data}, and be taken for a class; choose --output")
    config = asked = with_size(config)
    check_early(config, init)
    found = look_at(data, config, plan, ignore, progress, started=started)
    images = found.images
    num_train = len(images.data.splits["train"])
    _check_shares(num_train, plan)
    config = with_epochs(with_batch_size(config, num_train, plan.devices), num_train)
    plan = replace(plan, micro_batch=whole_micro_batch(config, plan.devices))
    network, spec = _new_network(config, images.data.classes)
    start = _start(network, spec, config, init)
    config, plan = _tune(config, plan, network, spec, found=found, started=started, progress=progress)
    if init is None:
        _whiten(network, spec, config, plan, found)
    default = Path("runs") / f"{images.data.name}-{config.model.replace('/', '-')}"
    run = RunFolder.new(Path(output) if output is not None else new_run_path(default))
    record = _record(asked, config, plan, images, init=init)
    run.create(images.rows(), record)
    progress.say(_intention(run, config, plan, network, start))
    return Job(
        run=run,
        config=config,
        plan=plan,
        spec=spec,
        found=found,
        network=network,
        record=record,
    )


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
    recorded = TrainingConfig.from_json(record["recipe"])
    config = filled_from(config, recorded)
    if differences := recorded.differences(config):
        raise RunError(f"--resume goes on with the recipe of {run.path}; it does not have {', '.join(differences)}")
    plan = _take_up_plan(run, plan, Plan.from_json(record["plan"]), recorded, config)
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
    network, spec = _new_network(replace(config, pretrained=config.pretrained and not begun), images.data.classes)
    if not begun:
        _start(network, spec, config, record["init"])
        if record["init"] is None:
            _whiten(network, spec, config, plan, found)
    progress.say(_continuation(run, config, checkpoint, record))
    return Job(
        run=run,
        config=config,
        plan=plan,
        spec=spec,
        found=found,
        network=network,
        record=record,
        checkpoint=checkpoint,
    )


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
    names = ("threads", "micro_batch", "compile", "fast_depthwise")
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


def check_early(config: TrainingConfig, init: Path | str | None = None) -> None:
    """Fail on a wrong name, size, start or logger before thousands of images are looked at.

    Raises:
        CarnetError: one of its kinds.
    """
    network = create_model(config.model, num_classes=2, in_channels=config.in_channels)
    check_image_size(network, config.model, config.image_size, config.in_channels)
    if (first := first_side(config)) < config.image_size:
        try:
            check_image_size(network, config.model, first, config.in_channels)
        except ModelError as error:
            raise ConfigError(f"--start-share {config.start_share:g}: {error}; take --start-share 1") from error
    for name in ("batch_size", "micro_batch"):
        if getattr(config, name) == 1:
            check_single_image(network, config.image_size, config.in_channels, f"--{name.replace('_', '-')} 1")
    if init is not None:
        check_start(config.model, config.in_channels, init)
    if init is not None and config.pretrained:
        raise ConfigError("--init and --pretrained both give the weights to start from; choose one")
    if config.logger == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise MissingExtraError("--logger tensorboard", "TensorBoard", "tensorboard")


def _tune(
    config: TrainingConfig,
    plan: Plan,
    network: nn.Module,
    spec: ModelSpec,
    *,
    found: Found,
    started: float,
    progress: Progress,
) -> tuple[TrainingConfig, Plan]:
    splits = found.images.data.splits
    first = Processes(0, plan.devices)
    # A budget may still choose the epochs, on which it depends how much images are changed; that takes no time.
    tried = with_augmentation(config)
    feed = found.feed(tried, spec, plan, first)
    with explaining_out_of_memory(config, plan.micro_batch):
        config, plan = tune(
            config,
            plan,
            lambda: Rehearsal.begin(network, spec, tried, feed),
            steps_per_epoch=feed.batches.steps_per_epoch,
            num_valid=len(splits["valid"]) // plan.devices,
            started=started,
            progress=progress,
        )
    config = with_augmentation(config)
    return config, replace(plan, reasons=(*plan.reasons, found.reason) if found.reason else plan.reasons)


def _whiten(network: nn.Module, spec: ModelSpec, config: TrainingConfig, plan: Plan, found: Found) -> None:
    """Take the first filters from the images of the first batches, which are the same for any number of processes."""
    if has_patches(network) and not config.pretrained:
        batches = found.feed(config, spec, plan, Processes()).read(0, 0, workers=0, view=first_view(config))
        whiten(network, batches, spec)


def _check_shares(num_train: int, plan: Plan) -> None:
    if plan.devices > 1 and num_train < 2 * plan.devices:
        raise DataError(f"{counted(num_train, 'training image')} cannot be shared by {plan.devices} devices; use fewer")


def _new_network(config: TrainingConfig, classes: tuple[str, ...]) -> tuple[nn.Module, ModelSpec]:
    torch.manual_seed(config.seed)
    network = create_model(
        config.model, num_classes=len(classes), in_channels=config.in_channels, pretrained=config.pretrained
    )
    mean, std = normalization(network, config.in_channels)
    spec = ModelSpec(
        model=config.model,
        classes=classes,
        image_size=config.image_size,
        resize=config.resize,
        in_channels=config.in_channels,
        mean=mean,
        std=std,
    )
    return network, spec


def _start(network: nn.Module, spec: ModelSpec, config: TrainingConfig, init: Path | str | None) -> str:
    if init is not None:
        return start_from(network, spec, init)
    if config.pretrained:
        return "starts from timm's published weights"
    filters = ", first filters from the images" if has_patches(network) else ""
    return f"starts from random weights{filters}"


def _record(
    asked: TrainingConfig,
    config: TrainingConfig,
    plan: Plan,
    images: CheckedImages,
    *,
    init: Path | str | None,
) -> dict[str, Any]:
    """What `config.json` says: enough to repeat the run, written before its first step."""
    return {
        "recipe": config.to_json(),
        # With what was left open still open: runs that were asked for alike belong together, whatever it came to.
        "asked": asked.to_json(),
        "plan": plan.to_json(),
        "init": None if init is None else str(Path(init).resolve()),
        "versions": versions(),
        "processor_features": processor_features(),
        "data": {
            "path": images.data.location,
            "content_hash": images.content_hash,
            "classes": list(images.data.classes),
            "num_images": {split: len(samples) for split, samples in images.data.splits.items()},
            "num_unreadable": len(images.unreadable),
            "held_out": images.held_out,
            # As they count from the data, since a list may count from where it was given.
            "ignore": list(images.data.ignored),
        },
    }


def _intention(run: RunFolder, config: TrainingConfig, plan: Plan, network: nn.Module, start: str) -> str:
    params = sum(parameter.numel() for parameter in network.parameters())
    growing = f" that grow from {first_side(config)}," if first_side(config) < config.image_size else ""
    return (
        f"Trains {config.model} ({params:,} parameters, {start}) for {counted(config.epochs, 'epoch')} on "
        f"{config.image_size} px images{growing} in batches of {config.batch_size}, seed {config.seed}.\n"
        f"On {plan.device} ({plan.device_name}):\n"
        + "".join(f"- {reason}\n" for reason in plan.reasons)
        + f"Keeps everything in {run.path}."
    )


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
