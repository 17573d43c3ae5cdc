"""What tests do to whole runs: stop them, and compare what they end with."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import torch
from safetensors.torch import load_file

from carnet.text import Silent


class StopAt(Silent):
    """A progress that presses Ctrl-C at one moment."""

    def __init__(self, what: str, done: int) -> None:
        self.moment = (what, done)

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        if (what, done) == self.moment:
            signal.raise_signal(signal.SIGINT)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs end with the same weights, bit for bit."""
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def write_table(run: Path, text: str) -> None:
    """Write another `data.csv` into a run, with the checksum that it would have had."""
    (run / "data.csv").write_text(text)
    config = json.loads((run / "config.json").read_text())
    config["checksums"]["data.csv"] = hashlib.sha256((run / "data.csv").read_bytes()).hexdigest()
    (run / "config.json").write_text(json.dumps(config))
