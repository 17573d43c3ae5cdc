"""Forge model files and files of runs, open each as a user would, and count the outcomes.

Every forged file gets a valid checksum, so that only the types and ranges of its values can reveal it. One value of its
JSON is changed, removed or added: another type, a number out of bounds, nested lists, text that is not JSON. A file
must open or be refused with one line of ours, without another exception, within the time limit and in bounded memory.

Example:
  python benchmarks/forged_files.py --number 2400
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import carnet
from carnet.comparison.runs import read_run
from carnet.data.synthetic import write_dataset
from carnet.documents import CHECKSUM, sealed
from carnet.edge import model_file
from carnet.edge.selftest import verify
from carnet.errors import CarnetError
from carnet.models import tensors
from carnet.text import Silent
from carnet.training.memory import peak_resident_bytes

CONFIG = carnet.TrainingConfig(
    model="carnet_n", image_size=32, epochs=2, batch_size=8, compile=False, checkpoint_steps=1, min_crop=1.0
)
SECONDS = 60
"""Seconds within which a file has to be opened or refused."""
_RAW = "\x01raw%d\x01"
"""A placeholder for text that no JSON writer writes."""
RAW = (
    "1e999",
    "-1e999",
    "NaN",
    "-Infinity",
    "7" * 5000,
    "[" * 200 + "]" * 200,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
    '"\\ud800"',
    "1.5.5",
    "",
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, -5, 2, 3, 7, 1000, 100_000, 10**18, -(10**18), 0.0, -0.5, 0.5, 1.5, 1e-300, 1e300),
    *("", "x", "1", "crop", "a" * 5000, "\x00", "../..", "carnet_s", "timm/resnet18", "nan"),
    *([], {}, [[]], [{}], {"a": 1}, ["a", "b"], ["a", "a"], [1, 2], [1.5, -2.5, 0.5], [None]),
    *([[1.0], [2.0]], [[2.0, 1.0], [2.0, 1.0]]),
)
_ADDED = ("sha257", "extra", "0")


def mutated(document: Any, rng: random.Random) -> str:
    """Return the JSON of a document with one changed value, now and then with several."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = list(_places(document))
        if not places:
            break
        holder, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1:
                holder[key] = _RAW % rng.randrange(len(RAW))
            case 2:
                holder[key] = _otherwise(holder[key])
            case 3 if isinstance(holder, dict):
                holder[rng.choice(_ADDED)] = rng.choice(VALUES)
            case 3:
                holder.append(copy.deepcopy(holder[key]))
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    if rng.randrange(50) == 0:
        document = rng.choice(VALUES)
    text = json.dumps(document)
    for number, raw in enumerate(RAW):
        text = text.replace(json.dumps(_RAW % number), raw)
    return text


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of everything inside a document."""
    # Otherwise long lists would be chosen nearly always.
    keys = list(document) if isinstance(document, dict) else range(min(3, len(document)))
    for key in keys:
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])


def _otherwise(value: Any) -> Any:
    """Return a similar value of another type."""
    match value:
        case bool() | None:
            return str(value)
        case int():
            return float(value) + 0.5
        case float():
            return str(value)
        case str():
            return list(value[:20])
        case list():
            return value[0] if value else {}
        case _:
            return list(value)


@dataclass
class Kind:
    """Forged files of one kind, and their outcomes."""

    name: str
    forge: Callable[[random.Random], Any]
    """Forges one, and returns what to open."""
    open: Callable[[Any], object]
    counts: Counter[str] = field(default_factory=Counter)
    tracebacks: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0

    def try_one(self, rng: random.Random) -> None:
        """Forge one, open it, and count the outcome."""
        forged = self.forge(rng)
        started = time.perf_counter()
        try:
            with _within(SECONDS):
                self.open(forged)
            outcome = "opened"
        except _TooLongError:
            outcome = "hangs"
        except CarnetError as error:
            outcome = "refused"
            if "\n" in str(error):
                outcome = "refused in several lines"
                self.tracebacks.append(str(error)[:300])
        except Exception as error:
            outcome = "tracebacks"
            self.tracebacks.append(f"{type(error).__name__}: {str(error)[:300]}")
        self.counts[outcome] += 1
        self.slowest_seconds = max(self.slowest_seconds, time.perf_counter() - started)


class _TooLongError(BaseException):
    """The time limit is reached; a BaseException, so that no `except Exception` catches it."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Interrupt a block that takes longer, if the system can."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _TakenError(CarnetError):
    """Not an error: the run continues."""


class _StopAfter(Silent):
    """Ends a run after some progress, when its files have been accepted."""

    def __init__(self, num_bars: int) -> None:
        self.left = num_bars

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """Count the calls."""
        if what.startswith("epoch") or what == "final validation":
            self.left -= 1
            if not self.left:
                raise _TakenError


class Forger:
    """Trains and exports once, and forges copies of the files."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root, root / "pictures"
        write_dataset(self.data, train_per_class=6, valid_per_class=2, size=40, seed=0)
        self.image = next(self.data.glob("valid/*/*"))
        self.run, self.begun = root / "run", root / "begun"
        carnet.train(self.data, CONFIG, output=self.run, progress=Silent())
        self.model = carnet.export_model(self.run, root / "model.onnx", max_drop=100).path.read_bytes()
        self.document = model_file._read_document(self.model)
        self.graph = _without_document(self.model)
        shutil.copytree(self.run, self.begun)
        for name in ("result.json", "model.json", "model.safetensors", "report.html"):
            (self.begun / name).unlink()
        with suppress(_TakenError):
            # A checkpoint in the middle of an epoch.
            (self.begun / "last.ckpt").unlink()
            (self.begun / "previous.ckpt").unlink()
            carnet.train(resume=self.begun, progress=_StopAfter(2))
        self.number = 0

    def kinds(self) -> list[tuple[Kind, int]]:
        """Return all kinds, with the share of each."""
        return [
            (Kind("model file, document", self._model, self._open_model), 50),
            (Kind("checkpoint, state", self._checkpoint("state"), self._resume), 8),
            (Kind("checkpoint, record", self._checkpoint("record"), self._resume), 8),
            (Kind("checkpoint, optimizer", self._checkpoint("optimizer"), self._resume), 3),
            (Kind("checkpoint, tensors", self._tensors(self.begun, "last.ckpt"), self._resume), 3),
            (Kind("config.json, resumed", self._json(self.begun, "config.json"), self._resume), 8),
            (Kind("config.json, compared", self._json(self.run, "config.json"), self._read), 4),
            (Kind("result.json", self._json(self.run, "result.json"), self._read), 4),
            (Kind("metrics.csv", self._table("metrics.csv"), self._read), 2),
            (Kind("data.csv", self._table("data.csv"), self._evaluate), 2),
            (Kind("model.json", self._json(self.run, "model.json"), self._load), 5),
            (Kind("model.safetensors", self._tensors(self.run, "model.safetensors"), self._load), 3),
        ]

    def _model(self, rng: random.Random) -> bytes:
        if rng.randrange(20) == 0:
            # An endless number, where the encoding has numbers.
            content = self.graph + b"\xff" * rng.choice((9, 10, 11, 100_000))
            return _resealed_model(content, json.dumps(self.document))
        return _resealed_model(self.graph, mutated(self.document, rng))

    def _open_model(self, content: bytes) -> None:
        classifier = carnet.Classifier(content, threads=1)
        classifier.predict(self.image)
        list(classifier.predict_many([self.image, self.image]))
        verify(classifier)
        if classifier.document.get("map_centres") is not None:
            classifier.explain(self.image)

    def _copy(self, run: Path) -> Path:
        self.number += 1
        path = self.root / f"forged-{self.number % 4}"
        shutil.rmtree(path, ignore_errors=True)
        return Path(shutil.copytree(run, path))

    def _json(self, run: Path, name: str) -> Callable[[random.Random], Path]:
        def forge(rng: random.Random) -> Path:
            path = self._copy(run)
            if run == self.begun:
                # It begins with the contents of config.json.
                for checkpoint in path.glob("*.ckpt"):
                    checkpoint.unlink()
            document = json.loads((path / name).read_text(encoding="utf-8"))
            document.pop(CHECKSUM, None)
            text = mutated(document, rng)
            if name == "model.json":
                with suppress(ValueError, TypeError, RecursionError):
                    text = json.dumps(sealed(json.loads(text)))
            (path / name).write_text(text, encoding="utf-8", errors="surrogatepass")
            return path

        return forge

    def _table(self, name: str) -> Callable[[random.Random], Path]:
        def forge(rng: random.Random) -> Path:
            path = self._copy(self.run)
            with (path / name).open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
            for _ in range(rng.choice((1, 1, 3))):
                row = rng.choice(rows)
                place = rng.randrange(len(row)) if row else 0
                match rng.randrange(4):
                    case 0:
                        del row[place:]
                    case 1:
                        row.append("more")
                    case _ if row:
                        row[place] = rng.choice(
                            ("", "nan", "inf", "-1", "1e999", "1e30", "x", "\x00", "7" * 5000, '"', "\n")
                        )
            with (path / name).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))).writerows(rows)
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            config["checksums"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
            (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
            return path

        return forge

    def _checkpoint(self, part: str) -> Callable[[random.Random], Path]:
        content = (self.begun / "last.ckpt").read_bytes()
        metadata = tensors.read_metadata(content)

        def forge(rng: random.Random) -> Path:
            path = self._copy(self.begun)
            (path / "previous.ckpt").unlink(missing_ok=True)
            changed = {**metadata, part: mutated(json.loads(metadata[part]), rng)}
            (path / "last.ckpt").write_bytes(tensors.pack(load_file(self.begun / "last.ckpt"), changed))
            return path

        return forge

    def _tensors(self, run: Path, name: str) -> Callable[[random.Random], Path]:
        content = (run / name).read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])

        def forge(rng: random.Random) -> Path:
            path = self._copy(run)
            (path / "previous.ckpt").unlink(missing_ok=True)
            (path / name).write_bytes(_resealed_tensors(mutated(header, rng), content[8 + length :], rng))
            return path

        return forge

    def _resume(self, path: Path) -> None:
        # To the end now and then, unless the forged run is longer.
        with suppress(_TakenError):
            carnet.train(resume=path, progress=_StopAfter(1 if self.number % 16 else 60))

    @staticmethod
    def _read(path: Path) -> None:
        read_run(path, Silent())

    @staticmethod
    def _evaluate(path: Path) -> None:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        carnet.evaluate(path, config["data"]["path"])

    def _load(self, path: Path) -> None:
        carnet.load(path).predict(self.image)


def _without_document(model: bytes) -> bytes:
    """Return a model without its last two entries, which are ours."""
    described = model[: -model_file._SEAL_BYTES]
    text = described[described.rindex(b'{"format":') :].decode()
    entry = model_file._metadata_entry("carnet", text)
    assert described.endswith(entry)
    return described[: -len(entry)]


def _resealed_model(graph: bytes, text: str) -> bytes:
    described = graph + model_file._metadata_entry("carnet", text)
    return described + model_file._metadata_entry("carnet.sha256", hashlib.sha256(described).hexdigest())


def _resealed_tensors(header: str, rest: bytes, rng: random.Random) -> bytes:
    """Return a file of tensors with this header; if it has a checksum, it is valid."""
    text = header.encode(errors="surrogatepass")
    zeros = tensors._DIGEST % tensors._NO_DIGEST
    place = text.find(b'"sha256": "')
    if place >= 0:
        text = text[:place] + zeros + text[place + len(zeros) + 1 :]
    length = len(text) if rng.randrange(20) else rng.choice((0, 1, 2**40, 2**63))
    content = length.to_bytes(8, "little") + text + rest
    return content.replace(zeros, tensors._DIGEST % hashlib.sha256(content).hexdigest().encode(), 1)


def forge_and_open(root: Path, number: int, seed: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Forge about `number` files of all kinds in an empty folder, open each, and return the counts."""
    rng = random.Random(seed)
    os.environ["CARNET_CACHE"] = str(root / "cache")
    before = _peak_bytes()
    forger = Forger(root)
    prepared = _peak_bytes()
    kinds = forger.kinds()
    total = sum(share for _, share in kinds)
    for kind, share in kinds:
        for _ in range(max(1, round(number * share / total))):
            kind.try_one(rng)
        say(f"{kind.name}: {dict(kind.counts)}, slowest {kind.slowest_seconds:.1f} s")
        for traceback in kind.tracebacks:
            say(f"  {traceback}")
    counts = sum((kind.counts for kind, _ in kinds), Counter[str]())
    return {
        "num_files": counts.total(),
        "num_opened": counts["opened"],
        "num_refused_with_one_line": counts["refused"],
        "num_other_exceptions": counts["tracebacks"] + counts["refused in several lines"],
        "num_hangs": counts["hangs"],
        "slowest_seconds": round(max(kind.slowest_seconds for kind, _ in kinds), 2),
        "peak_bytes": {"before": before, "after training and export": prepared, "after all files": _peak_bytes()},
        "kinds": {
            kind.name: {**kind.counts, "slowest_seconds": round(kind.slowest_seconds, 2), "exceptions": kind.tracebacks}
            for kind, _ in kinds
        },
    }


def _peak_bytes() -> int:
    return peak_resident_bytes()


def main() -> None:
    from environment import write_result

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers = forge_and_open(Path(folder), arguments.number, arguments.seed)
    command = f"python benchmarks/forged_files.py --number {arguments.number} --seed {arguments.seed}"
    print(write_result("forged-files", command, {"seconds_allowed": SECONDS, **numbers}))


if __name__ == "__main__":
    main()
