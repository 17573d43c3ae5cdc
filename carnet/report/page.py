"""What every page is made of: one HTML file that needs nothing else, no network, no other file, not even its script."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Sequence
from html import escape
from importlib import resources

from carnet.report.findings import displayable, percent

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
