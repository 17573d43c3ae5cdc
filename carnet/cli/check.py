"""`carnet check`: find what is wrong with labelled images before training on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from carnet.cli.main import console, print_json, words
from carnet.errors import DataError, OutputError
from carnet.text import counted, duration

if TYPE_CHECKING:
    from carnet.checks.check import CheckReport
    from carnet.checks.findings import Finding

_SHOWN = 3
"""Examples of a finding that the terminal shows."""
_HEADINGS = {"error": "Training refuses the data", "warning": "Results may mislead", "note": "Good to know"}


@dataclass(frozen=True)
class Command:
    """Find what is wrong with labelled images: broken files, blank or blurred photos, one photo under two labels or in
    two splits, wrong labels, classes with too few images. No file of yours is changed.

    A second look reads only what has changed. Exit codes: 0 nothing but notes, or warnings without --strict; 1 warnings
    with --strict; 2 the data cannot be trained on, or a flag is wrong.

    Examples:
      carnet check photos
      carnet check photos --report check.html --write-ignore ignore.txt
      carnet check photos --only leak,conflict,labels --model runs/photos-carnet_s
      carnet check photos --fast --strict --json
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder, table, archive or data set of images, as for carnet train."""
    fast: bool = False
    """Check names, classes and equal files only; no image is decoded."""
    only: Annotated[str, tyro.conf.arg(metavar="ID,...")] = ""
    """Find only these: ids, groups (files, photos, duplicates, labels, classes), or leak, conflict, copy."""
    skip: Annotated[str, tyro.conf.arg(metavar="ID,...")] = ""
    """Do not find these."""
    strict: bool = False
    """End with exit code 1 if there are warnings."""
    report: Annotated[Path | None, tyro.conf.arg(metavar="HTML")] = None
    """Write a page with thumbnails and pairs side by side, in which an ignore list can be ticked."""
    write_ignore: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a list of images to leave out, for --ignore; those that a person has to decide on are comments."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Check the labels with the features of this run, instead of pretrained ones."""
    layout: Literal["auto", "classes", "splits"] = "auto"
    """Meaning of the folders in DATA, as for carnet train."""
    ignore: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Leave out the images listed in this text file, one path per line."""
    json: bool = False
    """Print the findings as one JSON document."""

    def run(self) -> int:
        from carnet import files
        from carnet.data.samples import read_ignore_file
        from carnet.data_check import check

        if self.report is not None:
            files.check_target(self.report, ".html", ".htm", flag="--report")
        if self.write_ignore is not None:
            files.check_target(self.write_ignore, ".txt", flag="--write-ignore")
            if self.write_ignore.exists():
                # It may hold what a person has decided.
                raise OutputError(f"{self.write_ignore} exists; name another file with --write-ignore, or move it away")
        ignore = () if self.ignore is None else read_ignore_file(self.ignore)
        try:
            with console(self.json) as progress:
                report = check(
                    self.data,
                    only=words(self.only),
                    skip=words(self.skip),
                    fast=self.fast,
                    model=self.model,
                    layout=self.layout,
                    ignore=ignore,
                    progress=progress,
                )
                if not self.json:
                    progress.say("\n".join(lines_of(report)))
                written = self._write(report)
                if not self.json:
                    progress.say("\n".join(written))
        except DataError as error:
            if self.json:
                # A script can tell data that cannot be used from a wrong flag.
                print_json({"data": self.data, "trainable": False, "error": str(error), "findings": []})
            raise
        if self.json:
            print_json(report.to_json())
        if report.is_trainable is False:
            return 2
        return int(self.strict and bool(report.of("warning")))

    def _write(self, report: CheckReport) -> list[str]:
        """Write the files that were asked for, and return a line about each."""
        from carnet import files

        said = []
        if self.write_ignore is not None:
            text = report.ignore_list()
            files.write_text(self.write_ignore, text)
            number = sum(bool(line) and not line.startswith("#") for line in text.splitlines())
            said.append(f"{self.write_ignore} leaves out {counted(number, 'image')}; others are in it as comments.")
        if self.report is not None:
            from carnet.report.check import check_html

            files.write_text(self.report, check_html(report))
            said.append(f"The page is {self.report}.")
        return said


def lines_of(report: CheckReport) -> list[str]:
    """Return a report as lines for a terminal."""
    from carnet.checks.check import sizes_of

    number = counted(report.num_classes, "class", "classes")
    lines = [f"{report.name}: {number}, {sizes_of(report)}; checked in {duration(report.seconds)}."]
    for severity, heading in _HEADINGS.items():
        found = [finding for finding in report.findings if finding.kind.severity == severity]
        if found:
            lines += ["", f"{heading}:"]
            for finding in found:
                lines += _lines_of_finding(finding)
    if not report.findings:
        lines.append("Nothing was found.")
    if report.skipped:
        lines.append("")
    return lines + [f"Not checked: {what} ({why})." for what, why in report.skipped.items()]


def _lines_of_finding(finding: Finding) -> list[str]:
    lines = [f"  {finding.id}: {finding.number}: {finding.kind.what}"]
    lines += [f"    ({finding.rule})"] if finding.rule else []
    lines += [f"    {example}" for example in finding.examples[:_SHOWN]]
    if finding.count > _SHOWN:
        left = finding.count - min(_SHOWN, len(finding.examples))
        lines += [f"    and {left:,} more (--report shows them)"] if len(finding.examples) > _SHOWN else []
    return [*lines, f"    -> {finding.kind.advice}"]
