"""`carnet evaluate`: evaluate a model on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from carnet.cli.main import console, print_json, table
from carnet.errors import ConfigError
from carnet.text import counted, quoted

if TYPE_CHECKING:
    from carnet.evaluation import EvaluationReport, PredictFn
    from carnet.spec import ModelSpec


@dataclass(frozen=True)
class Command:
    """Evaluate a model on labelled images, and write a report to open in a browser.

    Images that are byte for byte among the training images of the run are counted, and the accuracy is given with and
    without them. For an exported model these are not known.

    Examples:
      carnet evaluate runs/photos-carnet_s
      carnet evaluate runs/photos-carnet_s photos --split test
      carnet evaluate model.onnx new-photos --split all
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run, or a .onnx file written by carnet export."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
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
        from carnet.edge.model_file import is_model_file
        from carnet.evaluation import select_samples
        from carnet.report.findings import findings
        from carnet.report.html import evaluation_html
        from carnet.run_folder import RunFolder

        is_exported = is_model_file(self.model)
        target = self.output or self.model / f"report-{self.split}.html"
        if is_exported and self.output is None:
            # One folder may hold several models.
            target = self.model.with_name(f"{self.model.name.removesuffix('.onnx')}.{target.name}")
        with console(self.json) as progress:
            predict_fn, spec, digests = self._open(is_exported)
            # Never overwrite a model or a table of images by mistake.
            files.check_target(target, ".html", ".htm")
            data, layout = self.data, self.layout
            ignore: Sequence[str] = () if self.ignore is None else read_ignore_file(self.ignore)
            if not data:
                data, layout_then, ignore_then = RunFolder.open(self.model).recorded_data()
                layout, ignore = layout_then if layout == "auto" else layout, ignore or ignore_then
            selected = select_samples(
                data, self.split, spec.classes, digests, layout=layout, ignore=ignore, progress=progress
            )
            report = selected.evaluate(
                predict_fn,
                spec,
                batch_size=self.batch_size,
                skip_unreadable=self.skip_unreadable,
                progress=partial(progress.bar, "evaluating"),
            )
            model, name = self.model.resolve().name, short_name(Path(data))
            facts = [
                ("model" if is_exported else "run", f"{model}, a {spec.model}"),
                ("input", f"{spec.image_size} x {spec.image_size} px, {spec.resize}"),
                ("images", f"{name}, {self.split}"),
            ]
            notes = _notes(report, self.ignore)
            page = evaluation_html(report, title=f"{model} on {name}", facts=facts, notes=notes)
            # Print the results before writing the page can fail.
            if self.json:
                print_json(report.to_json() | {"split": self.split, "report": str(target)})
            else:
                progress.say("\n".join([*_numbers(report), "", *notes, *findings(report)]))
            files.write_text(target, page)
            if not self.json:
                progress.say(f"The report is {target}.")
        return 0

    def _open(self, is_exported: bool) -> tuple[PredictFn, ModelSpec, dict[str, set[str]] | None]:
        """Return a function from images to logits, its spec, and the image digests of each split, None if not known."""
        if not is_exported:
            from carnet.models.weights import load
            from carnet.run_folder import RunFolder

            model = load(self.model, device=self.device)
            return model.logits, model.spec, RunFolder.open(self.model).digests()
        from carnet.edge.classifier import Classifier

        if self.device not in ("auto", "cpu"):
            raise ConfigError(f"--device {self.device} is for runs only; {self.model} is computed on the CPU")
        if not self.data:
            raise ConfigError(f"DATA is missing; name the images: carnet evaluate {quoted(self.model)} DATA")
        classifier = Classifier(self.model)
        return classifier.calibrated_logits, classifier.spec, None


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
        f"top-5 {percent(report.top5)}, macro F1 {percent(report.macro_f1)}, loss {report.loss:.3f}, "
        f"{report.num_images:,} images",
    ]
