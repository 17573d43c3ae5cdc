"""Where a command's words go: with --json one document on standard output, everything else on standard error."""

from __future__ import annotations

import os
import sys
from typing import Any

from carnet.files import to_json
from carnet.report.console import Console


def is_first_process() -> bool:
    """Whether this process speaks: of several that torchrun has started, the first one alone."""
    return os.environ.get("RANK", "0") == "0" or "LOCAL_RANK" not in os.environ


def console(as_json: bool) -> Console:
    """For progress and findings."""
    return Console(sys.stderr if as_json else sys.stdout)


def print_json(document: Any) -> None:
    """The one document."""
    # A Windows pipe has an encoding of its own, which whoever reads JSON does not expect.
    print(to_json(document, ascii_only=(sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")))


def words(text: str) -> list[str]:
    """The parts of a flag that takes several, separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
