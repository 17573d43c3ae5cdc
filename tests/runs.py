"""What tests do to whole runs: stop them, and compare what they end with."""

from __future__ import annotations

import hashlib
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from carnet import TrainingConfig
from carnet.config import ResolvedConfig
from carnet.text import Silent
from carnet.training.resolve import first_guess


def resolved(asked: TrainingConfig | None = None, num_train: int = 1000, **changes: Any) -> ResolvedConfig:
    """A config with nothing left open, as it would be without measuring, on a processor; with some changes."""
    asked = asked or TrainingConfig()
    guess = first_guess(replace(asked, device="cpu"), num_train=num_train, image_size=asked.image_size or 128)
    return replace(guess, **changes)


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
