"""Write what a check found as one HTML page: thumbnails, pairs side by side, and boxes to tick for an ignore list."""

from __future__ import annotations

from collections.abc import Mapping

from carnet.checks.check import CheckReport, sizes_of
from carnet.checks.findings import Finding
from carnet.errors import ImageError
from carnet.machine import each_on_threads
from carnet.report.html import render, thumbnail
from carnet.text import counted

MOST_PICTURED = 60
"""Cases of a finding that the page shows; it has the names of all others."""


def check_html(report: CheckReport) -> str:
    """Write a report as one self-contained HTML document, to be saved as UTF-8.

    An image that cannot be read is replaced by the reason.
    """
    places = {
        place.name: place.path
        for finding in report.findings
        for example in finding.examples[:MOST_PICTURED]
        for place in example.images
    }

    def read(name: str) -> bytes | str:
        try:
            return thumbnail(places[name])
        except ImageError as error:
            return error.reason

    seen = dict(zip(places, each_on_threads(read, list(places)), strict=True))
    labels = {
        place.label
        for finding in report.findings
        for example in finding.examples[:MOST_PICTURED]
        for place in example.images
    }
    return render(
        "check",
        script="check.js",
        title=f"{report.name}: what was found",
        report=report,
        sizes=sizes_of(report),
        summary=_summary(report),
        thumbnails={name: content for name, content in seen.items() if isinstance(content, bytes)},
        problems={name: reason for name, reason in seen.items() if isinstance(reason, str)},
        classes=sorted(labels),
        most=MOST_PICTURED,
        dropped={
            name
            for one in report.findings
            if one.kind.treatment == "drop"
            for name in one.dropped
            if name not in one.undecided
        },
        rest=_rest(report),
    )


def _summary(report: CheckReport) -> str:
    number = {name: len(report.of(name)) for name in ("error", "warning", "note")}
    said = [counted(count, name) for name, count in number.items() if count]
    verdict = " Training refuses the data as it is." if report.is_trainable is False else ""
    return f"{', '.join(said)}.{verdict}"


def _rest(report: CheckReport) -> Mapping[str, list[str]]:
    """Return the images of each finding that an ignore list may name and the page does not show."""

    def not_shown(finding: Finding) -> list[str]:
        shown = {place.name for example in finding.examples[:MOST_PICTURED] for place in example.images}
        return [name for name in finding.dropped if name not in shown and name not in finding.undecided]

    return {finding.id: not_shown(finding) for finding in report.findings}
