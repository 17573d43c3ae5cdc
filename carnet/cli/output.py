"""Where a command's words go: with --json one document on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from typing import Any

from carnet.files import to_json
from carnet.report.console import Console


def console(as_json: bool) -> Console:
    """For progress and findings."""
    return Console(sys.stderr if as_json else sys.stdout)


def print_json(document: Any) -> None:
    """The one document."""
    print(to_json(document))
