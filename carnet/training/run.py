"""`train`: a run from beginning to end (prepare, fit, evaluate, report), in this process or in several."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from carnet import files
from carnet.config import TrainingConfig
from carnet.data.description import describe
from carnet.errors import ConfigError, DataError, RunError, UnreadableImagesError, explaining_lack_of_memory
from carnet.evaluation import EvaluationReport, evaluate
from carnet.machine import versions
from carnet.models.weights import TrainedModel, load
from carnet.report.console import shown
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
    started: float | None = None,
) -> TrainingResult:
    """Train an image classifier, and return the result after the last epoch.

    `carnet.model.train` documents the arguments; it takes single settings as well, and returns a model. The budget
    began at `started`, by `time.monotonic`; None: now.

    Raises:
        CarnetError: see `carnet.errors`.
    """
    started = time.monotonic() if started is None else started
    requested = _requested_config(data, config, init, resume, callbacks)
    if requested.max_memory is not None:
        return_freed_memory()
    with _console(progress) as console, ExitStack() as held, _processes(requested, resume) as processes:
        if resume is None:
            assert data is not None
            begin: Callable[..., Job] = partial(prepare, data, requested, init=init, started=started)
        else:
            begin = partial(prepare_resumed, resume, data, requested)
        job = processes.from_first(partial(begin, output=output, ignore=ignore, progress=console, held=held))
        callbacks = [*built_in_callbacks(), *callbacks]
        if job.config.devices > processes.size:
            work = partial(fit_job, callbacks=callbacks)
            state = launch(work, job, size=job.config.devices, device=job.config.device, progress=console)
        else:
            with catch_stop_signals() as stop:
                state = fit_job(job, processes, console, stop, callbacks)
        return processes.from_first(lambda: _finish(job, state, console))


def _requested_config(
    data: Path | str | None,
    config: TrainingConfig | None,
    init: Path | str | None,
    resume: Path | str | None,
    callbacks: Sequence[Callback],
) -> TrainingConfig:
    """Return the requested config, or that of a resumed run, after checking the arguments of `train`.

    Raises:
        ConfigError: if they contradict each other, or callbacks cannot be pickled for several processes.
        RunError: if the run to resume cannot be read.
    """
    if resume is not None and init is not None:
        raise ConfigError("--resume continues with the run's own weights; leave --init out")
    if resume is None and data is None:
        raise ConfigError("say which images to train on: carnet train DATA (or --resume RUN)")
    config = config or recipe_of(resume)
    if config.devices > 1 and num_launched() == 1:
        try:
            pickle.dumps(list(callbacks))
        except Exception as error:
            raise ConfigError(
                f"with --devices {config.devices}, callbacks must be picklable ({error}); define their classes in a "
                "module, with plain values as attributes"
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


def _console(progress: Progress | None) -> AbstractContextManager[Progress]:
    """Return what shows messages: nothing does without standard error, and in all processes but the first."""
    if num_launched() > 1 and os.environ["RANK"] != "0":
        return nullcontext(Silent())
    return shown(progress)


def _processes(requested: TrainingConfig, resume: Path | str | None) -> AbstractContextManager[Processes]:
    """Connect the processes of torchrun, on the device of a resumed run; or return this process alone."""
    if num_launched() == 1:
        return nullcontext(Processes())
    if resume is not None and requested.device is None:
        # `prepare_resumed` reports what is wrong with the record.
        with suppress(RunError, ConfigError):
            requested = replace(requested, device=RunFolder.open(resume).read_config()["resolved"].get("device"))
    return Processes.join(device_and_number(requested)[0])


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training run.

    Attributes:
        run: the run folder.
        report: the evaluation of the saved weights on the validation images.
        history: the metrics of each epoch.
        document: the content of `result.json`.
        model: the saved weights.
    """

    run: Path
    report: EvaluationReport
    history: Sequence[EpochMetrics]
    document: dict[str, Any]
    model: TrainedModel

    @property
    def top1(self) -> float:
        """Top-1 accuracy of the saved weights on the validation images."""
        return self.report.top1


def _finish(job: Job, state: TrainingState, progress: Progress) -> TrainingResult:
    """Evaluate the saved weights, and write the report and the result.

    Raises:
        DataError: if a validation image cannot be read any more.
        OutputError: if a file cannot be written.
    """
    run, images = job.run, job.scan.images
    missing = f"training is done, only its report is missing: {job.resume_command} writes it"
    try:
        # From the file, so that the report describes what the user has.
        model = load(run.path, device=job.config.device)
        report = evaluate(
            model.logits,
            images.data.splits["valid"],
            model.spec,
            batch_size=job.config.evaluation_batch,
            progress=partial(progress.bar, "final validation"),
        )
        report = report.with_leaks(
            {sample.path for sample in images.leaked("valid")},
            {sample.path for sample in images.near_leaked("valid")} if images.near is not None else None,
        )
        document = _result(job, state, report)
        title, notes = f"{model.spec.model} on {images.data.name}", describe(images)
        facts = _facts(job, state, document)
        page = evaluation_html(report, title=title, facts=facts, history=state.history, notes=notes)
        files.write_text(run.report, page)
        files.write_json(run.result, document)
    except KeyboardInterrupt:
        progress.say(f"Stopped; {missing}.")
        raise
    except UnreadableImagesError as error:
        unreadable = first_few([str(image) for image in error.errors])
        raise DataError(f"{missing}, when these can be read again: {unreadable}") from error
    progress.say("\n".join(["", *findings(report), f"The report is {run.report}."]))
    return TrainingResult(run.path, report, tuple(state.history), document, model)


def _result(job: Job, state: TrainingState, report: EvaluationReport) -> dict[str, Any]:
    """Return the content of `result.json`."""
    keys = ("epoch", "valid_top1", "valid_top5", "valid_macro_recall", "valid_loss", "train_top1", "train_loss")
    final, best = state.history[-1], state.best or state.history[-1]
    return {
        "run": job.run.path.resolve().name,
        "model": job.spec.model,
        "params": sum(parameter.numel() for parameter in job.network.parameters()),
        "seed": job.config.seed,
        "teacher": (job.record.get("teacher") or {}).get("name"),
        "epochs": len(state.history),
        "stopped_early": state.num_steps < job.config.num_steps,
        "notes": state.notes,
        "kept": "best" if job.config.patience else "final",
        "final": {key: final[key] for key in keys if key in final},
        "best": {key: best[key] for key in keys if key in best},
        "seconds": round(state.seconds, 1),
        "peak_memory_bytes": state.peak_memory_bytes or None,
        "peak_device_bytes": state.peak_device_bytes or None,
        "num_images": job.scan.images.num_images,
        "num_skipped_unreadable": job.scan.images.num_unreadable,
        "num_ignored": len(job.scan.images.ignored),
        "valid": report.summary(),
    }


def _facts(job: Job, state: TrainingState, document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the report that say how the model was trained."""
    config, spec = job.config, job.spec
    together = f" in each of {config.devices} processes" if config.devices > 1 else ""
    counts = ", ".join(f"{count:,} {split}" for split, count in document["num_images"].items())
    return [
        ("model", f"{spec.model}, {document['params']:,} parameters"),
        ("images", f"{counts}; {spec.num_classes} classes"),
        *([("teacher", document["teacher"])] if document["teacher"] else []),
        ("evaluated on", "valid" + (" (held back from the data, see data.csv)" if job.scan.images.held_out else "")),
        ("input", f"{spec.image_size} x {spec.image_size} px, {spec.resize}"),
        ("weights", f"{document['kept']} epoch of {document['epochs']}"),
        ("training time", duration(document["seconds"])),
        ("device", f"{config.device} ({config.device_name}), {config.precision}, {config.threads} threads{together}"),
        ("seed", str(job.config.seed)),
        *(("note", note) for note in state.notes),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
    ]
