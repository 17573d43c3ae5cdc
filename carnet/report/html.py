"""An evaluation as one HTML file that needs nothing else: no network, no other file, not even its script."""

from __future__ import annotations

import base64
import hashlib
import io
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
            _section("What it can and cannot tell apart", _list("findings", findings(report))),
            _section("Training", _curves(history)) if history else "",
            _section("What was taken for what", _matrix(report)),
            _section("Its surest mistakes", _gallery(report)),
            _section("Class by class", _class_table(report)),
            _section("Facts", _facts(facts)) if facts else "",
            _section("Notes", _list("notes", notes)) if notes else "",
        ]
    return _document(title, "".join(sections))


def _document(title: str, body: str) -> str:
    style = resources.files("carnet.report").joinpath("style.css").read_text(encoding="utf-8")
    # Names come from files and may hold anything; should one slip through, the browser runs only our script.
    digest = base64.b64encode(hashlib.sha256(SORT_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{_text(title)}</h1>\n{body}</main>\n<script>{SORT_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{body}\n</section>\n"


def _list(kind: str, sentences: Sequence[str]) -> str:
    items = "\n".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{kind}">\n{items}\n</ul>'


def _headline(report: EvaluationReport) -> str:
    low, high = report.top1_ci95
    top1 = report.top1
    interval = (
        '<figure class="interval">\n'
        f"<figcaption>{int(report.correct.sum()):,} of {_images(report.num_images)} right; "
        f"95 % interval {100 * low:.1f} to {_percent(high)}</figcaption>\n"
        f'<div class="track"><i style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
        f'<b style="left:{100 * top1:.2f}%"></b></div>\n'
        '<div class="ends"><span>0 %</span><span>100 %</span></div>\n</figure>'
    )
    return (
        f'<div class="headline">\n<div><p class="label">Top-1 accuracy</p>\n'
        f'<div class="value">{_percent(top1)}</div></div>\n{interval}\n</div>\n'
        f"{_leak_warning(report)}{_numbers(report)}"
    )


def _leak_warning(report: EvaluationReport) -> str:
    if not report.num_leaked:
        return ""
    clean = report.top1_without_leaked
    if clean is None:
        rest = "Nothing here shows what it does with new ones."
    else:
        rest = f"Accuracy without them: <strong>{_percent(clean)}</strong>."
    which = f"<strong>{report.num_leaked:,} of {_images(report.num_images)}</strong>"
    stand = "stands" if report.num_leaked == 1 else "stand"
    return f'<p class="warning">{which} also {stand} among the training images, byte for byte. {rest}</p>\n'


def _numbers(report: EvaluationReport) -> str:
    numbers = [
        ("macro F1", _percent(report.macro_f1)),
        ("loss", f"{report.loss:.3f}"),
        ("images", f"{report.num_images:,}"),
        ("seen in training", UNKNOWN if report.num_leaked is None else f"{report.num_leaked:,}"),
    ]
    if len(report.classes) > 5:
        numbers.insert(0, ("top-5 accuracy", _percent(report.top5)))
    cells = "\n".join(f"<div><dt>{key}</dt><dd{_style(value)}>{value}</dd></div>" for key, value in numbers)
    return f'<dl class="numbers">\n{cells}\n</dl>\n'


def _style(value: str) -> str:
    return ' class="unknown"' if value == UNKNOWN else ""


def _curves(history: History) -> str:
    png = base64.b64encode(draw_curves(history)).decode()
    alt = "Loss and accuracy over the epochs of training, on training and validation images"
    image = f'<img alt="{alt}" width="1650" height="690" src="data:image/png;base64,{png}">'
    return f'<div class="wide curves">{image}</div>'


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
            f'<p class="said">{_short(said)} {_percent(float(probabilities[index]))}</p>\n'
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
        return f"<span>{_text(error.reason)}</span>"
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    # What else the file said (place, camera, comments) is not for everyone the report is sent to.
    small.info.clear()
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=82, optimize=True)
    data = base64.b64encode(jpeg.getvalue()).decode()
    return f'<img alt="" width="{small.width}" height="{small.height}" src="data:image/jpeg;base64,{data}">'


def _class_table(report: EvaluationReport) -> str:
    predicted = report.confusion.sum(axis=0).tolist()
    rows = sorted(
        zip(report.per_class, predicted, strict=True),
        # Classes of which nothing is known are not the worst ones.
        key=lambda row: (row[0].num_images == 0, row[0].f1, row[0].recall, row[0].name),
    )
    body = "\n".join(_class_row(result, num_predicted) for result, num_predicted in rows)
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


def _class_row(result: ClassResult, num_predicted: int) -> str:
    precision = _percent(result.precision) if num_predicted else ""
    recall = _percent(result.recall) if result.num_images else ""
    f1 = _percent(result.f1) if result.num_images or num_predicted else ""
    few = ' class="few"' if result.num_images < FEW_IMAGES else ""
    cells = "".join(f"<td>{value}</td>" for value in (f"{result.num_images:,}", precision, recall, f1))
    return f"<tr{few}><td>{_name(result.name)}</td>{cells}</tr>"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "\n".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in facts)
    return f'<dl class="facts">\n{rows}\n</dl>'


def _text(text: str) -> str:
    """Plain text as HTML; a number and its percent sign stay on one line."""
    return escape(displayable(text)).replace(" %", "&nbsp;%")


def _name(name: str) -> str:
    """A name as HTML, kept apart from the sentence around it when it is written from right to left."""
    return f'<span class="name">{escape(displayable(name))}</span>'


def _short(name: str) -> str:
    return _name(shortened(name))


def _percent(share: float) -> str:
    return percent(share).replace(" ", "&nbsp;")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
