"""What comes after the last step: judge the kept weights, say it, and leave it in the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carnet import files
from carnet.data.check import describe
from carnet.evaluation import EvaluationReport, evaluate
from carnet.machine import versions
from carnet.models.trained import load
from carnet.progress import Progress, duration
from carnet.report.findings import findings
from carnet.report.html import evaluation_html
from carnet.training.preparation import Job
from carnet.training.state import EpochMetrics, TrainingState


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


def finish(job: Job, state: TrainingState, progress: Progress) -> TrainingResult:
    """Judge the kept weights once more, from the file, so that what the report describes is what the user has.

    Raises:
        OutputError: if report or result cannot be written.
    """
    run, images = job.run, job.images
    model = load(run.path, device=job.plan.device)
    valid = images.data.splits["valid"]
    report = evaluate(
        model.logits,
        valid,
        model.spec,
        batch_size=job.plan.judging_batch,
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
    return TrainingResult(run.path, report, tuple(state.history), document)


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
        "stopped_early": state.finished,
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
    plan, spec = job.plan, job.spec
    together = f" in each of {plan.devices} processes" if plan.devices > 1 else ""
    counts = ", ".join(f"{count:,} {split}" for split, count in document["num_images"].items())
    return [
        ("model", f"{spec.model}, {document['params']:,} parameters"),
        ("images", f"{counts}; {spec.num_classes} classes"),
        ("judged on", "valid" + (" (held back from the data, see data.csv)" if job.images.held_out else "")),
        ("input", f"{spec.image_size} x {spec.image_size} px, {spec.resize}"),
        ("weights", f"{document['kept']} epoch of {document['epochs']}"),
        ("training time", duration(document["seconds"])),
        ("device", f"{plan.device} ({plan.device_name}), {plan.precision}, {plan.threads} threads{together}"),
        ("seed", str(job.config.seed)),
        *(("note", note) for note in state.notes),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
    ]
