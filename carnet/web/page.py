"""The page that classifies photos, from its templates; the same for a service and for a folder without one."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

from PIL import Image, ImageDraw

from carnet.edge.classifier import Classifier
from carnet.report.findings import percent
from carnet.report.html import environment
from carnet.text import counted, first_few

Engine = Literal["service", "browser"]
"""What computes: the service that gave the page, or the browser itself."""
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_POLICY = (
    "default-src 'none'; script-src 'self'{scripts}; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY.format(scripts="") + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Headers of the page and its files: nothing is asked of any other machine."""
SHOWN_CLASSES = 5


def page_html(
    classifier: Classifier,
    engine: Engine,
    *,
    version: str = "",
    title: str = "Photo classifier",
    says_classes: bool = True,
) -> str:
    """Return the page.

    Args:
        classifier: an opened model file.
        engine: what computes.
        version: changes with any file of a folder, so that a browser never mixes two versions.
        title: the heading, plain text.
        says_classes: whether the page itself names the classes and the accuracy; not where a token protects them.
    """
    spec, metrics = classifier.spec, classifier.document.get("metrics") or {}
    facts = [("Network", spec.model), ("Classes", first_few(spec.classes, 40))]
    if "top1" in metrics:
        number, (low, high) = counted(metrics["num_images"], "photo"), metrics["top1_ci95"]
        accuracy = f"{percent(metrics['top1'])} of {number} (95% interval {low:.1%} to {high:.1%})"
        facts.append(("Right on unseen photos", accuracy))
    if classifier.threshold is not None:
        facts.append(("Confident from", percent(classifier.threshold) if classifier.threshold <= 1 else "never"))
    summary = f"{counted(spec.num_classes, 'class', 'classes')}: {first_few(spec.classes, SHOWN_CLASSES)}."
    page = environment("carnet.web").get_template("page.html")
    return page.render(
        title=title,
        engine=engine,
        version=version,
        policy=_POLICY.format(scripts=" 'wasm-unsafe-eval'") if engine == "browser" else "",
        summary=summary if says_classes else "",
        facts=facts if says_classes else [],
        has_class_maps=classifier.map_centres is not None,
    )


def api_html(description: Mapping[str, Any]) -> str:
    """Return the page that shows the description of a service."""
    return environment("carnet.web").get_template("api.html").render(description=description)


def page_files(classifier: Classifier, *, says_classes: bool) -> dict[str, tuple[str, bytes]]:
    """Return what a service serves besides its answers: path -> media type and content; as `page_html`."""
    files = {f"/{name}": (_TYPES[name[name.rindex(".") :]], static(name)) for name in ("page.js", "style.css")}
    page = page_html(classifier, "service", says_classes=says_classes).encode()
    return {"/": ("text/html; charset=utf-8", page), **files, "/icon.png": ("image/png", icon(192))}


@cache
def static(name: str) -> bytes:
    """Return a file that the page needs; its style is that of the reports and what it needs besides."""
    content = resources.files("carnet.web").joinpath("static", name).read_bytes()
    if name == "style.css":
        content = resources.files("carnet.report").joinpath(name).read_bytes() + content
    return content


@cache
def icon(side: int) -> bytes:
    """Draw the page's icon, a leaf of bars in a frame, as a square PNG."""
    # Drawn larger and reduced, because Pillow draws edges without shades.
    large = 4 * side
    image = Image.new("RGB", (large, large), (27, 79, 114))
    draw = ImageDraw.Draw(image)
    for place, (length, colour) in enumerate(((0.56, "#ffffff"), (0.36, "#bcd3e2"), (0.2, "#7db8e0"))):
        top = (0.29 + 0.155 * place) * large
        draw.rounded_rectangle((0.22 * large, top, (0.22 + length) * large, top + 0.1 * large), 0.05 * large, colour)
    png = io.BytesIO()
    image.resize((side, side), Image.Resampling.LANCZOS).save(png, "PNG", optimize=True)
    return png.getvalue()
