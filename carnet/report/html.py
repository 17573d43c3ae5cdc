"""An evaluation and an export as pages, and what every page is made of.

A page is one HTML file that needs nothing else, no network, no other file, not even its script. The templates say how
it looks; whatever they show goes through `_shown`, so that no name, wherever it comes from, becomes markup.
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
from markupsafe import Markup, escape
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
"""Pixels."""
PARTS = "style.css", "sort.js"
"""What every page holds."""


def evaluation_html(
    report: EvaluationReport,
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    history: History = (),
    notes: Sequence[str] = (),
) -> str:
    """Write a report as one self-contained HTML document, to be saved as UTF-8.

    The images of the surest mistakes are read again from their files; where one cannot be, the reason
    stands in its place.

    Args:
        report: what the model did.
        title: the heading, plain text.
        facts: pairs of plain texts such as ("model", "carnet18"), in the order they are to be read.
        history: rows of epochs as `draw_curves` takes them; without any there are no curves.
        notes: plain sentences at the end.

    Raises:
        ValueError: for a report without images.
    """
    # A model that answers with infinities is reported as such; numpy need not warn of it as well.
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
        sentences: what came out, plain text.
        gate_report: numbers, as `carnet.export.exporter.GateReport.to_json` gives them.
        crossed: temperature and threshold, judged on images they were not chosen on.
        threshold: what the file has.
        quantization: what was tried, as the JSON report has it; None: nothing.
        document: what the file says about itself.
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
    """The element of a page that holds a PNG or JPEG file of ours."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        kind, (width, height) = str(image.format).lower(), image.size
    element = Markup('<img alt="{}" width="{}" height="{}" src="data:image/{};base64,{}">')
    return element.format(alt, width, height, kind, base64.b64encode(content).decode())


def _thumbnail(path: Path) -> bytes:
    """An image file, small, as JPEG.

    Raises:
        ImageError: if it cannot be read.
    """
    with open_image(path) as image:
        small = decode(image, path, min_side=2 * THUMBNAIL_SIDE)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    # What else the file said (place, camera, comments) is not for everyone the report is sent to.
    small.info.clear()
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=82, optimize=True)
    return jpeg.getvalue()


def _mistakes(report: EvaluationReport) -> list[dict[str, Any]]:
    """The surest ones, each with its picture, or the problem because of which there is none."""
    mistakes = []
    probabilities = report.probabilities.max(axis=1)
    for index in confident_mistakes(report, MAX_MISTAKES):
        sample = report.samples[index]
        mistake: dict[str, Any] = {
            "said": report.classes[int(report.predictions[index])],
            "true": report.classes[int(report.labels[index])],
            "probability": float(probabilities[index]),
            "file": sample.path.name,
        }
        try:
            mistake["thumbnail"] = _thumbnail(sample.path)
        except ImageError as error:
            mistake["problem"] = error.reason
        mistakes.append(mistake)
    return mistakes


def render(template: str, **values: Any) -> str:
    """A whole page, from the template of that name and plain values."""
    return _environment().get_template(f"{template}.html").render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("carnet.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    environment.filters.update(image=_image, percent=percent, shortened=shortened, thousands="{:,}".format)
    style, script = (resources.files("carnet.report").joinpath(name).read_text("utf-8") for name in PARTS)
    # Names come from files and may hold anything; should one slip through, the browser runs only our script.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(
        counted=counted,
        style=Markup(style),
        script=Markup(script),
        policy=Markup(f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"),
    )
    return environment


def _shown(value: Any) -> Any:
    """What a page shows of a value: text that commands nothing; a number and its percent sign stay on one line."""
    if isinstance(value, Markup):
        return value
    return Markup(str(escape(displayable(str(value)))).replace(" %", "&nbsp;%"))
