"""From a folder of images and a recipe to a finished run: prepare, train, judge, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from carnet import files
from carnet.data.check import CheckedImages, check_images, describe
from carnet.data.sources import find_images
from carnet.errors import ConfigError, MissingExtraError, RunError
from carnet.evaluation import EvaluationReport, evaluate
from carnet.models.registry import create_model, normalization
from carnet.models.summary import check_image_size
from carnet.models.trained import check_start, load, start_from
from carnet.progress import Progress, counted, duration
from carnet.report.console import Console
from carnet.report.findings import findings
from carnet.report.html import evaluation_html
from carnet.run_folder import RunFolder, new_run_path
from carnet.spec import ModelSpec
from carnet.training.config import TrainingConfig
from carnet.training.plan import Plan, processor_features, resolve, versions
from carnet.training.state import EpochMetrics, TrainingState
from carnet.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        run: its folder.
        report: the kept weights' answers for the validation images.
        history: one dictionary of metrics per epoch.
        document: what `result.json` says.
    """

    run: Path
    report: EvaluationReport
    history: Sequence[EpochMetrics]
    document: dict[str, Any]

    @property
    def top1(self) -> float:
        """Accuracy of the kept weights on the validation images."""
        return self.report.top1


def train(
    data: Path | str | None = None,
    config: TrainingConfig | None = None,
    *,
    output: Path | str | None = None,
    init: Path | str | None = None,
    resume: Path | str | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a classifier on a folder of images.

    Args:
        data: the images, in either form `carnet.data.sources` describes; with `resume`, None is where they were.
        config: the recipe; None: the published one, or with `resume` the run's own.
        output: folder of the run, which must be new or empty; None: `runs/<data>-<model>`, numbered if taken.
        init: another run whose weights to start from.
        resume: a run to go on with, from its last checkpoint.
        progress: shown what happens; None: standard error; `carnet.progress.Silent()`: nobody.

    Returns:
        The result, once the last epoch is done.

    Raises:
        CarnetError: one of its kinds, see `carnet.errors`.
    """
    if progress is None:
        with Console(sys.stderr) as console:
            return train(data, config, output=output, init=init, resume=resume, progress=console)
    if resume is not None:
        if output is not None or init is not None:
            raise ConfigError("--resume goes on with a run as it is; leave --output and --init out")
        return _resume(RunFolder.open(resume), data, config, progress)
    if init is not None and config is not None and config.pretrained:
        raise ConfigError("--init and --pretrained both give the weights to start from; choose one")
    if data is None:
        raise ConfigError("say which images to train on: carnet train DATA (or --resume RUN)")
    config = config or TrainingConfig()
    default = Path("runs") / f"{Path(data).resolve().name}-{config.model.replace('/', '-')}"
    run = RunFolder.new(Path(output) if output is not None else new_run_path(default))
    plan = resolve(config)
    _check_early(config, init)
    images = _look_at(Path(data), config, progress)
    network, spec = _new_network(config, images.data.classes)
    start = _start(network, spec, config, init)
    run.create()
    files.write_csv(run.data, images.rows())
    files.write_json(run.config, _record(config, plan, images, init))
    progress.say(_intention(run, config, plan, network, start))
    trainer = Trainer(run=run, config=config, plan=plan, spec=spec, images=images, network=network, progress=progress)
    return _finish(trainer, images, progress)


def _resume(
    run: RunFolder, data: Path | str | None, config: TrainingConfig | None, progress: Progress
) -> TrainingResult:
    record = run.read_config()
    recorded = TrainingConfig.from_json(record["recipe"])
    config = config or recorded
    if differences := recorded.differences(config):
        raise RunError(f"--resume goes on with the recipe of {run.path}; it does not have {', '.join(differences)}")
    if not run.checkpoint.exists():
        raise RunError(f"{run.path} has no checkpoint yet; train anew with another --output")
    plan = resolve(config)
    if differences := plan.differences(record["plan"]):
        raise RunError(f"{run.path} was planned otherwise: {', '.join(differences)}; --init starts from its weights")
    images = _look_at(Path(data or record["data"]["path"]), config, progress)
    if images.content_hash != record["data"]["content_hash"]:
        raise RunError(
            f"the images are not those of {run.path} (its data.csv lists them); --init starts from its weights"
        )
    # The checkpoint brings all weights; published ones need not be fetched again.
    network, spec = _new_network(replace(config, pretrained=False), images.data.classes)
    trainer = Trainer(run=run, config=config, plan=plan, spec=spec, images=images, network=network, progress=progress)
    trainer.resume()
    state = trainer.state
    progress.say(f"Goes on with {run.path}: {state.epoch} of {config.epochs} epochs and {state.step} steps are done.")
    return _finish(trainer, images, progress)


def _check_early(config: TrainingConfig, init: Path | str | None) -> None:
    """Fail on a wrong name, size, start or logger before thousands of images are looked at."""
    check_image_size(create_model(config.model, num_classes=2), config.model, config.image_size)
    if init is not None:
        check_start(config.model, init)
    if config.logger == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise MissingExtraError("--logger tensorboard", "TensorBoard", "tensorboard")


def _new_network(config: TrainingConfig, classes: tuple[str, ...]) -> tuple[nn.Module, ModelSpec]:
    torch.manual_seed(config.seed)
    network = create_model(config.model, num_classes=len(classes), pretrained=config.pretrained)
    mean, std = normalization(network)
    spec = ModelSpec(
        model=config.model, classes=classes, image_size=config.image_size, resize=config.resize, mean=mean, std=std
    )
    return network, spec


def _start(network: nn.Module, spec: ModelSpec, config: TrainingConfig, init: Path | str | None) -> str:
    if init is not None:
        return start_from(network, spec, init)
    return "starts from timm's published weights" if config.pretrained else "starts from random weights"


def _look_at(data: Path, config: TrainingConfig, progress: Progress) -> CheckedImages:
    found = find_images(data)
    images = check_images(
        found,
        image_size=config.image_size,
        skip_unreadable=config.skip_unreadable,
        valid_fraction=config.valid_fraction,
        seed=config.seed,
        progress=lambda done, total: progress.bar("looking at the images", done, total),
    )
    progress.say("\n".join(describe(images)))
    return images


def _record(config: TrainingConfig, plan: Plan, images: CheckedImages, init: Path | str | None) -> dict[str, Any]:
    """What `config.json` says: enough to repeat the run, written before its first step."""
    return {
        "recipe": config.to_json(),
        "plan": plan.to_json(),
        "init": None if init is None else str(init),
        "versions": versions(),
        "processor_features": processor_features(),
        "data": {
            "path": str(images.data.root.resolve()),
            "content_hash": images.content_hash,
            "classes": list(images.data.classes),
            "num_images": {split: len(samples) for split, samples in images.data.splits.items()},
            "num_unreadable": len(images.unreadable),
            "held_out": images.held_out,
        },
    }


def _intention(run: RunFolder, config: TrainingConfig, plan: Plan, network: nn.Module, start: str) -> str:
    params = sum(parameter.numel() for parameter in network.parameters())
    return (
        f"Trains {config.model} ({params:,} parameters, {start}) for {counted(config.epochs, 'epoch')} on "
        f"{config.image_size} px images in batches of {config.batch_size}, seed {config.seed}.\n"
        f"On {plan.device} ({plan.device_name}): {'; '.join(plan.reasons)}.\n"
        f"Keeps everything in {run.path}."
    )


def _finish(trainer: Trainer, images: CheckedImages, progress: Progress) -> TrainingResult:
    state = trainer.fit()
    # Judged once more from the file, so that what the report describes is what the user has.
    model = load(trainer.run.path, device=trainer.plan.device)
    valid = images.data.splits["valid"]
    report = evaluate(
        model.logits, valid, model.spec, progress=lambda done, total: progress.bar("final validation", done, total)
    )
    report = report.with_leaks({sample.path for sample in images.leaked("valid")})
    document = _result(trainer, images, state, report)
    run = trainer.run
    page = evaluation_html(
        report,
        title=f"{model.spec.model} on {images.data.root.resolve().name}",
        facts=_facts(trainer, images, document),
        history=state.history,
        notes=describe(images),
    )
    files.write_text(run.report, page)
    files.write_json(run.result, document)
    progress.say("\n".join(["", *findings(report), f"The report is {run.report}."]))
    return TrainingResult(run.path, report, tuple(state.history), document)


def _result(trainer: Trainer, images: CheckedImages, state: TrainingState, report: EvaluationReport) -> dict[str, Any]:
    """What `result.json` says."""
    keys = ("epoch", "valid_top1", "valid_top5", "valid_loss", "train_top1", "train_loss")
    final, best = state.history[-1], state.best or state.history[-1]
    numbers = report.to_json()
    return {
        "run": trainer.run.path.resolve().name,
        "model": trainer.spec.model,
        "params": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "seed": trainer.config.seed,
        "epochs": len(state.history),
        "stopped_early": state.finished,
        "kept": "best" if trainer.config.patience else "final",
        "final": {key: final[key] for key in keys},
        "best": {key: best[key] for key in keys},
        "seconds": round(state.seconds, 1),
        "num_images": {split: len(samples) for split, samples in images.data.splits.items()},
        "num_skipped_unreadable": len(images.unreadable),
        "valid": {key: numbers[key] for key in numbers if key not in ("per_class", "confusion")},
    }


def _facts(trainer: Trainer, images: CheckedImages, document: dict[str, Any]) -> list[tuple[str, str]]:
    plan, spec = trainer.plan, trainer.spec
    counts = ", ".join(f"{count:,} {split}" for split, count in document["num_images"].items())
    return [
        ("model", f"{spec.model}, {document['params']:,} parameters"),
        ("images", f"{counts}; {spec.num_classes} classes"),
        ("judged on", "valid" + (" (held back from the data, see data.csv)" if images.held_out else "")),
        ("input", f"{spec.image_size} x {spec.image_size} px, {spec.resize}"),
        ("weights", f"{document['kept']} epoch of {document['epochs']}"),
        ("training time", duration(document["seconds"])),
        ("device", f"{plan.device} ({plan.device_name}), {plan.precision}, {plan.threads} threads"),
        ("seed", str(trainer.config.seed)),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
    ]
