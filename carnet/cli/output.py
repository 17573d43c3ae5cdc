"""Where a command's words go: with --json one document on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

from carnet.report.console import Console


def console(as_json: bool) -> Console:
    """For progress and findings."""
    return Console(sys.stderr if as_json else sys.stdout)


def print_json(document: Any) -> None:
    """The one document."""
    print(json.dumps(document, indent=2, ensure_ascii=False))
