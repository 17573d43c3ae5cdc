"""`carnet evaluate`: evaluate a model on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from carnet.cli.main import console, print_json, table
from carnet.text import counted

if TYPE_CHECKING:
    from carnet.evaluation import EvaluationReport


@dataclass(frozen=True)
class Command:
    """Evaluate a model on labelled images, and write a report to open in a browser.

    Images that are byte for byte among the training images of the run are counted, and the accuracy is given with and
    without them; near copies of training images are counted apart. For an exported model neither is known.

    Examples:
      carnet evaluate runs/photos-carnet_s
      carnet evaluate runs/photos-carnet_s photos --split test
      carnet evaluate model.onnx new-photos --split all
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run, or a .onnx file written by carnet export."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = ""
    """Folder, table, archive or data set of images, as for carnet train (default: the data of the run)."""
    split: Literal["train", "valid", "test", "all"] = "valid"
    """Images to evaluate on; all is for data without splits."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="HTML")] = None
    """File of the report (default: report-SPLIT.html in the run, or NAME.report-SPLIT.html beside a .onnx file)."""
    batch_size: int = 32
    """Images per batch; affects memory and speed, not the results."""
    layout: Literal["auto", "classes", "splits"] = "auto"
    """Meaning of the folders in DATA, as for carnet train (without DATA: as in training)."""
    skip_unreadable: bool = False
    """Skip and count images that cannot be decoded, instead of stopping."""
    ignore: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Skip and count the images listed in this text file, one path per line."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on, for a run; auto uses a GPU if there is one."""
    json: bool = False
    """Print the results as one JSON document."""

    def run(self) -> int:
        from carnet import files
        from carnet.data.samples import read_ignore_file, short_name
        from carnet.model import load
        from carnet.report.findings import findings
        from carnet.report.html import evaluation_html

        with console(self.json) as progress:
            model = load(self.model, device=self.device)
            # One folder may hold several exported models.
            name = f"report-{self.split}.html"
            beside = self.model.with_name(f"{self.model.name.removesuffix('.onnx')}.{name}")
            target = self.output or (self.model / name if model.kind == "run" else beside)
            # Never overwrite a model or a table of images by mistake.
            files.check_target(target, ".html", ".htm")
            ignore: Sequence[str] = () if self.ignore is None else read_ignore_file(self.ignore)
            report = model.evaluate(
                self.data or None,
                split=self.split,
                batch_size=self.batch_size,
                skip_unreadable=self.skip_unreadable,
                layout=self.layout,
                ignore=ignore,
                progress=progress,
            )
            data = short_name(Path(self.data or model.recorded_data().path))
            title = f"{self.model.resolve().name} on {data}"
            facts = [
                ("model" if model.kind == "file" else "run", f"{self.model.resolve().name}, a {model.spec.model}"),
                ("input", f"{model.spec.image_size} x {model.spec.image_size} px, {model.spec.resize}"),
                ("images", f"{data}, {self.split}"),
            ]
            notes = _notes(report, self.ignore)
            page = evaluation_html(report, title=title, facts=facts, notes=notes)
            # Print the results before writing the page can fail.
            if self.json:
                print_json(report.to_json() | {"split": self.split, "report": str(target)})
            else:
                progress.say("\n".join([*_numbers(report), "", *notes, *findings(report)]))
            files.write_text(target, page)
            if not self.json:
                progress.say(f"The report is {target}.")
        return 0


def _notes(report: EvaluationReport, ignore: Path | None) -> list[str]:
    notes = [f"Note: {warning}." for warning in report.warnings]
    if ignore is not None or report.num_ignored:
        notes.append(f"Ignored: {counted(report.num_ignored, 'image')}, as requested.")
    return notes + [f"Skipped because it cannot be decoded: {error}." for error in report.unreadable]


def _numbers(report: EvaluationReport) -> list[str]:
    from carnet.report.findings import percent

    rows = [("class", "images", "precision", "recall", "F1")]
    for result in report.worst_first:
        precision, recall, f1 = ("" if share is None else f"{100 * share:.1f}" for share in result.shares)
        rows.append((result.name, str(result.num_images), precision, recall, f1))
    low, high = report.top1_ci95
    return [
        *table(rows),
        f"top-1 {percent(report.top1)} (95% interval {percent(low)} to {percent(high)}), "
        f"top-5 {percent(report.top5)}, macro recall {percent(report.macro_recall)}, "
        f"macro F1 {percent(report.macro_f1)}, loss {report.loss:.3f}, {report.num_images:,} images",
    ]
