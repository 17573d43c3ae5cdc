"""Write evaluations and exports as HTML pages, from the templates beside this file.

A page is one file that needs neither network nor other files, and is complete without its script. Every value that a
template shows is escaped and goes through `_finalize`, so that no name, wherever it comes from, becomes markup.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from carnet.calibration import CrossFitted
from carnet.errors import ImageError
from carnet.evaluation import EvaluationReport
from carnet.preprocess import decode, open_image
from carnet.report.findings import (
    FEW_IMAGES,
    confident_mistakes,
    displayable,
    findings,
    most_confused,
    percent,
    shortened,
)
from carnet.report.plots import MAX_CLASSES_WITH_COUNTS, History, draw_confusion, draw_coverage, draw_curves
from carnet.text import counted

MAX_MISTAKES = 24
MAX_PAIRS = 10
MAX_LAYERS = 12
THUMBNAIL_SIDE = 160
"""The longer side of a thumbnail, in pixels."""


def evaluation_html(
    report: EvaluationReport,
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    history: History = (),
    notes: Sequence[str] = (),
) -> str:
    """Write a report as one self-contained HTML document, to be saved as UTF-8.

    The images of the most confident mistakes are read again from their files; one that cannot be read is replaced by
    the reason.

    Args:
        report: the evaluation.
        title: the heading, plain text.
        facts: pairs of plain texts such as ("model", "carnet18"), in the order in which they are shown.
        history: rows of epochs as `draw_curves` takes them; without any there are no curves.
        notes: plain sentences at the end.

    Raises:
        ValueError: for a report without images.
    """
    # The findings report outputs that are infinite; numpy need not warn of them as well.
    with np.errstate(invalid="ignore"):
        return render(
            "evaluation",
            title=title,
            report=report,
            findings=findings(report),
            curves=draw_curves(history) if history else None,
            confusion=Markup(draw_confusion(report)),
            shows_counts=len(report.classes) <= MAX_CLASSES_WITH_COUNTS,
            pairs=[pair for pair in most_confused(report, MAX_PAIRS) if pair.count + pair.count_reverse > 1],
            mistakes=_mistakes(report),
            num_mistakes=int((~report.correct).sum()),
            few_images=FEW_IMAGES,
            any_few=any(0 < one.num_images < FEW_IMAGES for one in report.per_class),
            facts=facts,
            notes=notes,
        )


def export_html(
    *,
    title: str,
    sentences: Sequence[str],
    gate_report: Mapping[str, Any],
    crossed: CrossFitted,
    threshold: float,
    quantization: Mapping[str, Any] | None,
    document: Mapping[str, Any],
) -> str:
    """Write the report of an export as one self-contained HTML document.

    Args:
        title: the heading, plain text.
        sentences: the results, plain text.
        gate_report: numbers, as `carnet.export.exporter.GateReport.to_json` gives them.
        crossed: temperature and threshold, evaluated on images that they were not chosen on.
        threshold: the threshold of the file.
        quantization: the variants that were tried, as the JSON report has them; None: none were.
        document: the metadata of the file.
    """
    return render(
        "export",
        title=title,
        sentences=sentences,
        gate_report=gate_report,
        curve=draw_coverage(crossed, threshold),
        quantization=quantization,
        max_layers=MAX_LAYERS,
        document=document,
    )


def _image(content: bytes, alt: str = "") -> Markup:
    """Return the element that holds a PNG or JPEG file of ours inside a page."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        kind, (width, height) = str(image.format).lower(), image.size
    element = Markup('<img alt="{}" width="{}" height="{}" src="data:image/{};base64,{}">')
    return element.format(alt, width, height, kind, base64.b64encode(content).decode())


def thumbnail(path: Path) -> bytes:
    """Return a small copy of an image file as JPEG.

    Raises:
        ImageError: if it cannot be read.
    """
    with open_image(path) as image:
        small = decode(image, path, min_side=2 * THUMBNAIL_SIDE)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    # Drop metadata (place, camera, comments), since reports are passed on.
    small.info.clear()
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=82, optimize=True)
    return jpeg.getvalue()


def _mistakes(report: EvaluationReport) -> list[dict[str, Any]]:
    """Return the most confident mistakes, each with a thumbnail or the reason why there is none."""
    mistakes = []
    probabilities = report.probabilities.max(axis=1)
    for index in confident_mistakes(report, MAX_MISTAKES):
        sample = report.samples[index]
        mistake: dict[str, Any] = {
            "predicted": report.classes[int(report.predictions[index])],
            "true": report.classes[int(report.labels[index])],
            "probability": float(probabilities[index]),
            "file": sample.path.name,
        }
        try:
            mistake["thumbnail"] = thumbnail(sample.path)
        except ImageError as error:
            mistake["problem"] = error.reason
        mistakes.append(mistake)
    return mistakes


def render(template: str, *, script: str = "sort.js", **values: Any) -> str:
    """Render a whole page from the template of this name, with one of our scripts, and plain values."""
    return _environment(script).get_template(f"{template}.html").render(values)


@cache
def _environment(script_name: str) -> Environment:
    page = environment("carnet.report")
    page.filters.update(image=_image, percent=percent, shortened=shortened)
    style, script = (
        resources.files("carnet.report").joinpath(name).read_text("utf-8") for name in ("style.css", script_name)
    )
    # Should a name become markup after all, the browser runs no script but ours.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page.globals.update(
        counted=counted,
        style=Markup(style),
        script=Markup(script),
        policy=Markup(f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"),
    )
    return page


def environment(package: str) -> Environment:
    """Return what renders the templates of a package: every value is escaped, and no name is left undefined."""
    page = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    page.filters["thousands"] = "{:,}".format
    return page


def _finalize(value: Any) -> Any:
    """Replace control characters in whatever a template shows, and leave markup of our own as it is."""
    return value if isinstance(value, Markup) else displayable(str(value))
