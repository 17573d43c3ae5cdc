"""What tests do with whole runs: prepare, train, stop and compare them."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from carnet import TrainingConfig
from carnet.config import LIMITS, ResolvedConfig
from carnet.models.tensors import pack, read_metadata
from carnet.run_folder import RunFolder
from carnet.text import Progress, Silent
from carnet.training.checkpoint import TrainingState
from carnet.training.distributed import Processes, catch_stop_signals
from carnet.training.hooks import built_in_callbacks
from carnet.training.loop import Callback, Training, fit
from carnet.training.preparation import Job, prepare, prepare_resumed
from carnet.training.resolve import first_guess


def resolved(asked: TrainingConfig | None = None, num_train: int = 1000, **changes: Any) -> ResolvedConfig:
    """A config resolved on a CPU without measuring, with some changes."""
    asked = asked or TrainingConfig()
    guess = first_guess(replace(asked, device="cpu"), num_train=num_train, image_size=asked.image_size or 128)
    return replace(guess, **changes)


NEVER_CHOSEN = {
    "layout",
    "cache",
    "max_memory",
    "budget",
    "max_steps",
    "training_seconds",
    "mean",
    "std",
    "class_weights",
    *LIMITS,
}
"""Fields that resolving leaves open where nothing asks for them."""
SMALL = TrainingConfig(model="carnet_n", image_size=48, epochs=2, batch_size=8)


def small(**changes: Any) -> TrainingConfig:
    """The config of a small run, with some changes."""
    return replace(SMALL, **changes)


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what depends on the clock."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


class Listening(Silent):
    """Remembers the messages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class StopAt(Listening):
    """Raises a signal, such as Ctrl-C, at one moment."""

    def __init__(self, what: str, done: int, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.moment, self.number = (what, done), number

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        if (what, done) == self.moment:
            signal.raise_signal(self.number)


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


def new_job(data: Path, asked: TrainingConfig, run: Path, **changes: Any) -> Job:
    """A new run, with some changes of its resolved config."""
    with ExitStack() as held:
        job = prepare(
            data,
            asked,
            output=run,
            init=None,
            ignore=(),
            started=time.monotonic(),
            progress=Silent(),
            held=held,
        )
    config = replace(job.config, **changes)
    return replace(job, config=config, record=dict(job.record) | {"resolved": config.to_json()})


def resumed_job(run: Path, asked: TrainingConfig | None = None) -> Job:
    """A resumed run."""
    with ExitStack() as held:
        asked = asked or TrainingConfig.from_json(RunFolder(run).read_config()["requested"])
        return prepare_resumed(run, None, asked, output=None, ignore=(), progress=Silent(), held=held)


def fit_job(
    job: Job,
    callbacks: Sequence[Callback] = (),
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> TrainingState:
    """Train in this process, with the built-in callbacks and others, by a clock; Ctrl-C works as in a command."""
    callbacks = [*built_in_callbacks(), *callbacks]
    with catch_stop_signals() as stop:
        return fit(Training(job, Processes(), progress or Silent(), callbacks), stop, clock)


def rewrite_checkpoint(checkpoint: Path, **entries: str | Callable[[Any], Any]) -> None:
    """Change entries of a checkpoint's header, such as `state` or `record`, and its checksum."""
    metadata = read_metadata(checkpoint.read_bytes())
    for name, change in entries.items():
        metadata[name] = change if isinstance(change, str) else json.dumps(change(json.loads(metadata[name])))
    checkpoint.write_bytes(pack(load_file(checkpoint), metadata))
