"""Where a command's words go: with --json one document on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from carnet.files import to_json
from carnet.progress import is_command, printable
from carnet.report.console import Console, silence


def open_closed_streams() -> None:
    """Let standard output and standard error that whoever called has closed (`>&-`) lead nowhere.

    Python has no stream then, and the first file that is opened would take the number that libraries write their
    messages to.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Open for as long as the process lives, as these streams are.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115


def complain(text: str) -> None:
    """Write a line of its own, or several, on standard error; that nobody reads it is no reason to end."""
    try:
        print(f"carnet: {printable(text, keep=chr(10))}", file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def is_first_process() -> bool:
    """Whether this process speaks: of several that torchrun has started, the first one alone."""
    return os.environ.get("RANK", "0") == "0" or "LOCAL_RANK" not in os.environ


def console(as_json: bool) -> Console:
    """For progress and findings."""
    return Console(sys.stderr if as_json else sys.stdout)


def print_json(document: Any) -> None:
    """The one document."""
    # A Windows pipe has an encoding of its own, which whoever reads JSON does not expect.
    text = to_json(document, ascii_only=(sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8"))
    # Names come out of JSON as they are, and yet command no terminal.
    print("".join(json.dumps(c)[1:-1] if is_command(c) and c != "\n" else c for c in text))


def words(text: str) -> list[str]:
    """The parts of a flag that takes several, separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
