"""A run from beginning to end: prepare, train, judge; in this process, or in several.

What comes after the last step: judge the kept weights, say it, and leave it in the run's folder.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from carnet import files
from carnet.config import TrainingConfig
from carnet.data.scan import describe
from carnet.errors import ConfigError, DataError, RunError, UnreadableImagesError, explaining_lack_of_memory
from carnet.evaluation import EvaluationReport, evaluate
from carnet.machine import versions
from carnet.models.weights import TrainedModel, load
from carnet.report.console import Console
from carnet.report.findings import findings
from carnet.report.html import evaluation_html
from carnet.run_folder import RunFolder
from carnet.text import Progress, Silent, duration, first_few
from carnet.training.checkpoint import EpochMetrics, TrainingState
from carnet.training.distributed import Processes, catch_stop_signals, launch, num_launched
from carnet.training.hooks import built_in_callbacks
from carnet.training.loop import MEMORY_WAY_OUT, Callback, fit_job
from carnet.training.memory import return_freed_memory
from carnet.training.preparation import Job, prepare, prepare_resumed
from carnet.training.resolve import device_and_number


@explaining_lack_of_memory("training", MEMORY_WAY_OUT)
def train(
    data: Path | str | None = None,
    config: TrainingConfig | None = None,
    *,
    output: Path | str | None = None,
    init: Path | str | None = None,
    resume: Path | str | None = None,
    ignore: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a classifier on labelled images.

    With `config.devices` above 1, processes are started for them; a script that calls this then needs the usual
    `if __name__ == "__main__":`. Under torchrun every process calls this, and gets the same result.

    Args:
        data: the images, in a form `carnet.data.find` describes; with `resume`, None is where they were.
        config: the recipe; None: the recommended one, or with `resume` the run's own.
        output: folder of the run, which must be new or empty; None: `runs/<data>-<model>`, numbered if taken. With
            `resume`, the run is copied there and goes on there.
        init: another run whose weights to start from.
        resume: a run to go on with, from its last checkpoint.
        ignore: paths of images to leave out, below the data's folder or whole; with `resume`, none is those of the run.
        callbacks: told of every step and epoch, after the built-in ones.
        progress: shown what happens; None: standard error; `carnet.text.Silent()`: nobody.

    Raises:
        CarnetError: one of its kinds, see `carnet.errors`.
    """
    started = time.monotonic()
    asked = _asked(data, config, init, resume, callbacks)
    if asked.max_memory is not None:
        return_freed_memory()
    callbacks = [*built_in_callbacks(), *callbacks]
    with _shown(progress) as shown, ExitStack() as held, _processes(asked, resume) as processes:
        if resume is None:
            assert data is not None
            begin: Callable[..., Job] = partial(prepare, data, asked, init=init, started=started)
        else:
            begin = partial(prepare_resumed, resume, data, asked)
        job = processes.from_first(partial(begin, output=output, ignore=ignore, progress=shown, held=held))
        if job.config.devices > processes.size:
            work = partial(fit_job, callbacks=callbacks)
            state = launch(work, job, size=job.config.devices, device=job.config.device, progress=shown)
        else:
            with catch_stop_signals() as stop:
                state = fit_job(job, processes, shown, stop, callbacks)
        return processes.from_first(lambda: _finish(job, state, shown))


def _asked(
    data: Path | str | None,
    config: TrainingConfig | None,
    init: Path | str | None,
    resume: Path | str | None,
    callbacks: Sequence[Callback],
) -> TrainingConfig:
    """The recipe, of a run that goes on its own; whatever contradicts it is refused before anything else is done.

    Raises:
        ConfigError: if arguments contradict each other.
        RunError: if the run to go on with cannot be read.
    """
    if resume is not None and init is not None:
        raise ConfigError("--resume goes on with a run's own weights; leave --init out")
    if resume is None and data is None:
        raise ConfigError("say which images to train on: carnet train DATA (or --resume RUN)")
    config = config or recipe_of(resume)
    if config.devices > 1 and num_launched() == 1:
        try:
            pickle.dumps(list(callbacks))
        except Exception as error:
            raise ConfigError(
                f"with --devices {config.devices}, callbacks move to another process, which these cannot ({error}); "
                "define their classes in a module, and let them hold plain values"
            ) from error
    return config


def recipe_of(resume: Path | str | None) -> TrainingConfig:
    """Return the recipe that a run was asked for; None: the recommended one.

    Raises:
        RunError: if the run cannot be read.
    """
    if resume is None:
        return TrainingConfig()
    run = RunFolder.open(resume)
    return TrainingConfig.from_json(run.read_config()["requested"], run.config)


def _shown(progress: Progress | None) -> AbstractContextManager[Progress]:
    """Where a run's words go: as asked, or on standard error; nowhere in processes after the first, or without any."""
    if (num_launched() > 1 and os.environ["RANK"] != "0") or (progress is None and sys.stderr is None):
        return nullcontext(Silent())
    return Console(sys.stderr) if progress is None else nullcontext(progress)


def _processes(asked: TrainingConfig, resume: Path | str | None) -> AbstractContextManager[Processes]:
    """This process alone, or one of those that torchrun has started, which meet where a resumed run was trained."""
    if num_launched() == 1:
        return nullcontext(Processes())
    if resume is not None and asked.device is None:
        # What is wrong with its record is said where the run is taken up.
        with suppress(RunError, ConfigError):
            asked = replace(asked, device=RunFolder.open(resume).read_config()["resolved"].get("device"))
    return Processes.join(device_and_number(asked)[0])


def _finish(job: Job, state: TrainingState, progress: Progress) -> TrainingResult:
    """Judge, and say where the work of hours is if that fails."""
    missing = f"training is done, its report is missing: {job.resume_command} writes it"
    try:
        return finish(job, state, progress)
    except KeyboardInterrupt:
        progress.say(f"Stopped; {missing}.")
        raise
    except UnreadableImagesError as error:
        gone = first_few([str(image) for image in error.errors])
        raise DataError(f"{missing}, when these can be read again: {gone}") from error


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        run: its folder.
        report: the kept weights' answers for the validation images.
        history: one dictionary of metrics per epoch.
        document: what `result.json` says.
        model: the kept weights.
    """

    run: Path
    report: EvaluationReport
    history: Sequence[EpochMetrics]
    document: dict[str, Any]
    model: TrainedModel

    @property
    def top1(self) -> float:
        """Accuracy of the kept weights on the validation images."""
        return self.report.top1


def finish(job: Job, state: TrainingState, progress: Progress) -> TrainingResult:
    """Judge the kept weights once more, from the file, so that what the report describes is what the user has.

    Raises:
        OutputError: if report or result cannot be written.
    """
    run, images = job.run, job.images
    model = load(run.path, device=job.config.device)
    valid = images.data.splits["valid"]
    report = evaluate(
        model.logits,
        valid,
        model.spec,
        batch_size=job.config.evaluation_batch,
        progress=lambda done, total: progress.bar("final validation", done, total),
    )
    report = report.with_leaks({sample.path for sample in images.leaked("valid")})
    document = _result(job, state, report)
    page = evaluation_html(
        report,
        title=f"{model.spec.model} on {images.data.name}",
        facts=_facts(job, state, document),
        history=state.history,
        notes=describe(images),
    )
    files.write_text(run.report, page)
    files.write_json(run.result, document)
    progress.say("\n".join(["", *findings(report), f"The report is {run.report}."]))
    return TrainingResult(run.path, report, tuple(state.history), document, model)


def _result(job: Job, state: TrainingState, report: EvaluationReport) -> dict[str, Any]:
    """What `result.json` says."""
    keys = ("epoch", "valid_top1", "valid_top5", "valid_loss", "train_top1", "train_loss")
    final, best = state.history[-1], state.best or state.history[-1]
    return {
        "run": job.run.path.resolve().name,
        "model": job.spec.model,
        "params": sum(parameter.numel() for parameter in job.network.parameters()),
        "seed": job.config.seed,
        "epochs": len(state.history),
        "stopped_early": state.num_steps < job.config.num_steps,
        "notes": state.notes,
        "kept": "best" if job.config.patience else "final",
        "final": {key: final[key] for key in keys},
        "best": {key: best[key] for key in keys},
        "seconds": round(state.seconds, 1),
        "peak_memory_bytes": state.peak_memory_bytes or None,
        "peak_device_bytes": state.peak_device_bytes or None,
        "num_images": {split: len(samples) for split, samples in job.images.data.splits.items()},
        "num_skipped_unreadable": len(job.images.unreadable),
        "num_ignored": len(job.images.data.ignored),
        "valid": report.summary(),
    }


def _facts(job: Job, state: TrainingState, document: dict[str, Any]) -> list[tuple[str, str]]:
    config, spec = job.config, job.spec
    together = f" in each of {config.devices} processes" if config.devices > 1 else ""
    counts = ", ".join(f"{count:,} {split}" for split, count in document["num_images"].items())
    return [
        ("model", f"{spec.model}, {document['params']:,} parameters"),
        ("images", f"{counts}; {spec.num_classes} classes"),
        ("judged on", "valid" + (" (held back from the data, see data.csv)" if job.images.held_out else "")),
        ("input", f"{spec.image_size} x {spec.image_size} px, {spec.resize}"),
        ("weights", f"{document['kept']} epoch of {document['epochs']}"),
        ("training time", duration(document["seconds"])),
        ("device", f"{config.device} ({config.device_name}), {config.precision}, {config.threads} threads{together}"),
        ("seed", str(job.config.seed)),
        *(("note", note) for note in state.notes),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
    ]
