"""`carnet evaluate`: how good is a trained model, and where does it fail?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from carnet.cli.output import console, print_json

if TYPE_CHECKING:
    from carnet.evaluation import EvaluationReport


@dataclass(frozen=True)
class Command:
    """Judge a trained model on labelled images, and write a report to open in a browser.

    Images that stand byte for byte among the run's training images are counted, and the accuracy is given with and
    without them.

    Example:  carnet evaluate runs/photos-carnet_s photos --split valid
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder, table or archive of images, as for carnet train."""
    split: Literal["train", "valid", "test", "all"] = "valid"
    """Which images; all is for data without splits."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="HTML")] = None
    """Where the report goes (default: report-SPLIT.html in the run's folder)."""
    batch_size: int = 32
    """Images at a time; takes memory, does not change the numbers."""
    skip_unreadable: bool = False
    """Leave out, and count, images that cannot be decoded, instead of stopping."""
    ignore: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Leave out, and count, the images whose paths this list holds, one on each line."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    json: bool = False
    """Print the numbers as one JSON document."""

    def run(self) -> int:
        from carnet import files
        from carnet.data.ignore import read_ignore_file
        from carnet.data.samples import short_name
        from carnet.models.trained import evaluate
        from carnet.report.findings import findings
        from carnet.report.html import evaluation_html
        from carnet.run_folder import RunFolder
        from carnet.spec import ModelSpec

        with console(self.json) as progress:
            report = evaluate(
                self.run_folder,
                self.data,
                split=self.split,
                device=self.device,
                batch_size=self.batch_size,
                skip_unreadable=self.skip_unreadable,
                ignore=read_ignore_file(self.ignore) if self.ignore is not None else (),
                progress=lambda done, total: progress.bar("evaluating", done, total),
            )
            target = self.output or self.run_folder / f"report-{self.split}.html"
            run, name = self.run_folder.resolve().name, short_name(Path(self.data))
            spec = ModelSpec.from_json(files.read_json(RunFolder.open(self.run_folder).model))
            facts = [
                ("run", f"{run}, a {spec.model}"),
                ("input", f"{spec.image_size} x {spec.image_size} px, {spec.resize}"),
                ("images", f"{name}, {self.split}"),
            ]
            notes = _notes(report, self.ignore)
            page = evaluation_html(report, title=f"{run} on {name}", facts=facts, notes=notes)
            files.write_text(target, page)
            if self.json:
                print_json(report.to_json() | {"split": self.split, "report": str(target)})
            else:
                progress.say("\n".join([_table(report), "", *notes, *findings(report), f"The report is {target}."]))
        return 0


def _notes(report: EvaluationReport, ignore: Path | None) -> list[str]:
    from carnet.progress import counted

    notes = [f"Note: {warning}." for warning in report.warnings]
    if ignore is not None:
        notes.append(f"Ignored: {counted(report.num_ignored, 'image')}, as asked.")
    return notes + [f"Left out because it cannot be read: {error}." for error in report.unreadable]


def _table(report: EvaluationReport) -> str:
    wide = max(len(result.name) for result in report.per_class) + 2
    lines = [f"{'class':{wide}}{'images':>8}{'precision':>11}{'recall':>8}{'F1':>8}"]
    for result in sorted(report.per_class, key=lambda result: result.f1):
        shares = (100 * result.precision, 100 * result.recall, 100 * result.f1)
        lines.append(f"{result.name:{wide}}{result.num_images:>8}{shares[0]:>11.1f}{shares[1]:>8.1f}{shares[2]:>8.1f}")
    low, high = report.top1_ci95
    lines.append(
        f"top-1 {100 * report.top1:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}), "
        f"top-5 {100 * report.top5:.1f} %, macro F1 {100 * report.macro_f1:.1f}, loss {report.loss:.3f}, "
        f"{report.num_images:,} images"
    )
    return "\n".join(lines)
