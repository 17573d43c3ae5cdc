"""An evaluation as a page.

What every page is made of: one HTML file that needs nothing else, no network, no other file, not even its script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from carnet.errors import ImageError
from carnet.evaluation import ClassResult, EvaluationReport
from carnet.preprocess import decode, open_image
from carnet.report.findings import (
    FEW_IMAGES,
    ConfusedPair,
    confident_mistakes,
    displayable,
    findings,
    most_confused,
    percent,
    shortened,
)
from carnet.report.plots import MAX_CLASSES_WITH_COUNTS, History, draw_confusion, draw_curves

MAX_MISTAKES = 24
MAX_PAIRS = 10
THUMBNAIL_SIDE = 160
"""Pixels."""
UNKNOWN = "not known"


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
        sections = [
            _headline(report),
            section("What it can and cannot tell apart", listing("findings", findings(report))),
            section("Training", _curves(history)) if history else "",
            section("What was taken for what", _matrix(report)),
            section("Its surest mistakes", _gallery(report)),
            section("Class by class", _class_table(report)),
            section("Facts", facts_list(facts)) if facts else "",
            section("Notes", listing("notes", notes)) if notes else "",
        ]
    return document(title, "".join(sections))


def _headline(report: EvaluationReport) -> str:
    low, high = report.top1_ci95
    top1 = report.top1
    interval = (
        '<figure class="interval">\n'
        f"<figcaption>{int(report.correct.sum()):,} of {_images(report.num_images)} right; "
        f"95 % interval {100 * low:.1f} to {percent_html(high)}</figcaption>\n"
        f'<div class="track"><i style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
        f'<b style="left:{100 * top1:.2f}%"></b></div>\n'
        '<div class="ends"><span>0 %</span><span>100 %</span></div>\n</figure>'
    )
    return (
        f'<div class="headline">\n<div><p class="label">Top-1 accuracy</p>\n'
        f'<div class="value">{percent_html(top1)}</div></div>\n{interval}\n</div>\n'
        f"{_leak_warning(report)}{_numbers(report)}"
    )


def _leak_warning(report: EvaluationReport) -> str:
    if not report.num_leaked:
        return ""
    clean = report.top1_without_leaked
    if clean is None:
        rest = "Nothing here shows what it does with new ones."
    else:
        rest = f"Accuracy without them: <strong>{percent_html(clean)}</strong>."
    which = f"<strong>{report.num_leaked:,} of {_images(report.num_images)}</strong>"
    stand = "stands" if report.num_leaked == 1 else "stand"
    return f'<p class="warning">{which} also {stand} among the training images, byte for byte. {rest}</p>\n'


def _numbers(report: EvaluationReport) -> str:
    numbers = [
        ("macro F1", percent_html(report.macro_f1)),
        ("loss", f"{report.loss:.3f}"),
        ("images", f"{report.num_images:,}"),
        ("seen in training", UNKNOWN if report.num_leaked is None else f"{report.num_leaked:,}"),
    ]
    if len(report.classes) > 5:
        numbers.insert(0, ("top-5 accuracy", percent_html(report.top5)))
    cells = "\n".join(f"<div><dt>{key}</dt><dd{_style(value)}>{value}</dd></div>" for key, value in numbers)
    return f'<dl class="numbers">\n{cells}\n</dl>\n'


def _style(value: str) -> str:
    return ' class="unknown"' if value == UNKNOWN else ""


def _curves(history: History) -> str:
    alt = "Loss and accuracy over the epochs of training, on training and validation images"
    return picture(draw_curves(history), alt)


def _matrix(report: EvaluationReport) -> str:
    shows_counts = len(report.classes) <= MAX_CLASSES_WITH_COUNTS
    body = (
        f'<div class="wide">{draw_confusion(report)}</div>\n'
        '<p class="small">Each row holds the images of one class, each column what they were called. '
        "The stronger a cell's colour, the larger its share of the row."
        f"{'' if shows_counts else ' Point at a cell for its names and counts.'}</p>"
    )
    pairs = [pair for pair in most_confused(report, MAX_PAIRS) if pair.count + pair.count_reverse > 1]
    if not pairs:
        return body
    listing = "\n".join(f"<li>{_pair(pair)}</li>" for pair in pairs)
    return f'{body}\n<h3>Most often confused</h3>\n<ol class="pairs">\n{listing}\n</ol>'


def _pair(pair: ConfusedPair) -> str:
    called = f"{pair.count:,} of {pair.num_true:,} {_short(pair.true)} were called {_short(pair.predicted)}"
    return f"{called}, {pair.count_reverse:,} the other way" if pair.count_reverse else called


def _gallery(report: EvaluationReport) -> str:
    mistakes = confident_mistakes(report, MAX_MISTAKES)
    if not mistakes:
        return "<p>There are none: every image was named right.</p>"
    probabilities = report.probabilities.max(axis=1)
    items = []
    for index in mistakes:
        sample = report.samples[index]
        said, true = report.classes[int(report.predictions[index])], report.classes[int(report.labels[index])]
        items.append(
            f'<li><div class="picture">{_thumbnail(sample.path)}</div>\n'
            f'<p class="said">{_short(said)} {percent_html(float(probabilities[index]))}</p>\n'
            f'<p>is {_short(true)}</p>\n<p class="file">{_short(sample.path.name)}</p></li>'
        )
    all_mistakes = int((~report.correct).sum())
    whole = len(items) == all_mistakes
    which = "All mistakes" if whole else f"The {len(items)} surest of {all_mistakes:,} mistakes"
    intro = f"{which}; coloured, what the model said and how sure it was."
    listing = "\n".join(items)
    return f'<p class="small">{intro}</p>\n<ul class="gallery">\n{listing}\n</ul>'


def _thumbnail(path: Path) -> str:
    """An `img` element that holds the picture itself, or the reason why there is none."""
    try:
        with open_image(path) as image:
            small = decode(image, path, min_side=2 * THUMBNAIL_SIDE)
    except ImageError as error:
        return f"<span>{text(error.reason)}</span>"
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    # What else the file said (place, camera, comments) is not for everyone the report is sent to.
    small.info.clear()
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=82, optimize=True)
    data = base64.b64encode(jpeg.getvalue()).decode()
    return f'<img alt="" width="{small.width}" height="{small.height}" src="data:image/jpeg;base64,{data}">'


def _class_table(report: EvaluationReport) -> str:
    body = "\n".join(map(_class_row, report.worst_first))
    few = any(0 < result.num_images < FEW_IMAGES for result in report.per_class)
    hint = f" Grey: fewer than {FEW_IMAGES} images, so one image changes the number much." if few else ""
    columns = "".join(f'<th scope="col">{name}</th>' for name in ("class", "images", "precision", "recall"))
    return (
        '<p class="small">Precision: of the images called this, the share that is. Recall: of the images '
        f"that are this, the share that was found. F1 joins the two. The worst come first.{hint}</p>\n"
        '<div class="wide"><table>\n'
        f'<thead><tr>{columns}<th scope="col" aria-sort="ascending">F1</th></tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _class_row(result: ClassResult) -> str:
    precision, recall, f1 = ("" if share is None else percent_html(share) for share in result.shares)
    few = ' class="few"' if result.num_images < FEW_IMAGES else ""
    cells = "".join(f"<td>{value}</td>" for value in (f"{result.num_images:,}", precision, recall, f1))
    return f"<tr{few}><td>{name_span(result.name)}</td>{cells}</tr>"


def _short(name: str) -> str:
    return name_span(shortened(name))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


# Sorts the rows by a clicked column; a second click turns the order around. Empty cells stay last.
SORT_SCRIPT = """
const number = text => parseFloat(text.replaceAll(",", ""));
for (const head of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const value = row => row.cells[head.cellIndex].textContent.trim();
    const compare = (a, b) => {
      const x = value(a), y = value(b);
      if (!x || !y) return !x - !y;
      const order = head.cellIndex ? number(x) - number(y) : x.localeCompare(y);
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  };
}
"""


def document(title: str, body: str) -> str:
    """A whole page: a title in plain text, and HTML below it."""
    style = resources.files("carnet.report").joinpath("style.css").read_text(encoding="utf-8")
    # Names come from files and may hold anything; should one slip through, the browser runs only our script.
    digest = base64.b64encode(hashlib.sha256(SORT_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{text(title)}</h1>\n{body}</main>\n<script>{SORT_SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(heading: str, body: str) -> str:
    """A part of the page under a heading; both HTML."""
    return f"<section>\n<h2>{heading}</h2>\n{body}\n</section>\n"


def listing(kind: str, sentences: Sequence[str]) -> str:
    """Plain sentences below each other, looking as `kind` does in `style.css`."""
    items = "\n".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{kind}">\n{items}\n</ul>'


def facts_list(facts: Sequence[tuple[str, str]]) -> str:
    """Pairs of plain texts, a line each."""
    rows = "\n".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in facts)
    return f'<dl class="facts">\n{rows}\n</dl>'


def text(plain: str) -> str:
    """Plain text as HTML; a number and its percent sign stay on one line."""
    return escape(displayable(plain)).replace(" %", "&nbsp;%")


def name_span(name: str) -> str:
    """A name as HTML, kept apart from the sentence around it when it is written from right to left."""
    return f'<span class="name">{escape(displayable(name))}</span>'


def percent_html(share: float) -> str:
    """0.846 -> "84.6 %", on one line."""
    return percent(share).replace(" ", "&nbsp;")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain texts in rows, which a click on a column sorts."""
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def picture(png: bytes, alt: str) -> str:
    """A PNG inside the page, as wide as the page."""
    # Its sides stand at the beginning, after the format's name.
    width, height = struct.unpack(">II", png[16:24])
    data = base64.b64encode(png).decode()
    image = f'<img alt="{text(alt)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
    return f'<div class="wide curves">{image}</div>'
