"""Kill commands at random moments, half of the time inside the writer of files, and repeat them.

The result must equal that of an undisturbed command, except for times, and nothing may be left behind. Unfinished
folders of the cache are removed after a day, as documented: they are made older, and must disappear. `hostile_input.py`
writes the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from forged_files import _without_document
from killed_runs import (
    CONFIGS,
    STAGES,
    _context,
    _in_a_process,
    _resume_or_begin,
    count_writes,
    die_in_write,
    end_of,
)
from killed_runs import _train as _train_run

from carnet.cli.main import run
from carnet.data.decoded import Target, inspect_and_cache
from carnet.data.find import find_images
from carnet.data.synthetic import write_dataset
from carnet.edge import model_file
from carnet.training.memory import peak_resident_bytes

COMMAND_SECONDS = 600
"""Seconds within which a command has to end."""
SCRATCH = ".carnet-"
"""Beginning of the names of unfinished folders of the cache."""
CLOCK = ("latency", "seconds", "gflops", "memory_bytes", "speed")
"""Parts of the names of numbers that depend on the clock or the process."""
DRAWN_FROM_CLOCK = (
    "measurements.json",
    "comparison.html",
    "comparison.png",
    "comparison.svg",
    "table.md",
    "table.csv",
    "model.export.html",
)
"""Files with such numbers, which must exist."""


def _train(folder: Path, shared: Path) -> None:
    _resume_or_begin(folder / "run", shared / "pictures", CONFIGS["fp32"])


def _evaluate(folder: Path, shared: Path) -> None:
    _command("evaluate", folder / "run", "--json")


def _export(folder: Path, shared: Path) -> None:
    _command("export", folder / "run", "--max-drop", 100, "--json")


def _compare(folder: Path, shared: Path) -> None:
    _command("compare", folder / "run", folder / "other", "--output", folder / "comparison", "--json")


def _unpack(folder: Path, shared: Path) -> None:
    find_images(shared / "pictures.zip")


def _decode(folder: Path, shared: Path) -> None:
    inspect_and_cache(sorted(shared.glob("pictures/*/*/*")), Target(96), "disk", free_memory=2**30)


def _command(*arguments: object) -> None:
    if code := run([str(argument) for argument in arguments]):
        sys.exit(code)


WORKS = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "compare": _compare,
    "unpack": _unpack,
    "decode": _decode,
}


@dataclass(frozen=True)
class Told:
    """Shared numbers with which a process reports on its work."""

    seconds: Any
    begun: Any
    peak_bytes: Any
    num_writes: Any


def _work(name: str, folder: Path, shared: Path, told: Told, death: tuple[int, str] | None) -> None:
    """Do a piece of work in a process of its own, until it is killed if `death` is given."""
    torch.set_num_threads(1)
    os.environ["CARNET_CACHE"] = str(folder / "cache")
    with (folder.parent / "noise").open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if death is None:
        count_writes(told.num_writes)
    else:
        die_in_write(*death)
    told.begun.value = 1
    started = time.monotonic()
    WORKS[name](folder, shared)
    told.seconds.value = time.monotonic() - started
    told.peak_bytes.value = peak_resident_bytes()


class Killer:
    """Does each piece of work once undisturbed, and then with kills."""

    def __init__(self, root: Path) -> None:
        self.root, self.shared, self.noise = root, root / "shared", root / "noise"
        self.peaceful: dict[str, tuple[Told, dict[str, Any]]] = {}
        self.peak_bytes = 0
        data = self.shared / "pictures"
        write_dataset(data, train_per_class=6, valid_per_class=2, size=64)
        shutil.make_archive(str(data), "zip", data)
        for seed, name in enumerate(("run", "other")):
            config = replace(CONFIGS["fp32"], seed=seed)
            assert _in_a_process(_train_run, self.shared / name, data, config) == 0
        for name in WORKS:
            folder = self._folder(name, name)
            code, told = self._do(name, folder)
            assert code == 0, f"{name} in peace: {self._said()}"
            self.peaceful[name] = told, _state(name, folder)

    def kill(self, name: str, rng: random.Random, *, by_time: bool) -> dict[str, Any]:
        """Kill a piece of work, repeat it, and return the outcome."""
        told, wanted = self.peaceful[name]
        code: int | None = 0
        while code != -signal.SIGKILL:
            # It may have been faster than before, and done before the kill.
            folder = self._folder("killed", name)
            if by_time:
                after = rng.uniform(0, told.seconds.value)
                moment = f"after {after:.3f} s"
                code, _ = self._do(name, folder, kill_after=after)
            else:
                death = rng.randint(1, told.num_writes.value), rng.choice(STAGES)
                moment = f"in write {death[0]} of {told.num_writes.value}, {death[1]}"
                code, _ = self._do(name, folder, death)
        left = sorted(path.name for path in folder.rglob(".*") if path.name.endswith(".tmp") or _is_scratch(path))
        self.noise.write_bytes(b"")
        code, _ = self._do(name, folder)
        state = _state(name, folder)
        wrong = sorted(key for key in {*wanted, *state} if wanted.get(key) != state.get(key))
        scratch = [path for path in folder.rglob(f"{SCRATCH}*") if path.is_dir()]
        if scratch and name in ("unpack", "decode"):
            for path in (*scratch, *(inside for one in scratch for inside in one.rglob("*"))):
                os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
            self._do(name, folder)
            wrong += [f"{path.name} after a day" for path in scratch if path.exists()]
        return {"work": name, "moment": moment, "left_by_kill": left, "exit_code": code, "wrong": wrong} | (
            {"said": self._said()} if code else {}
        )

    def _folder(self, name: str, work: str) -> Path:
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for trained in ("run", "other") if work in ("evaluate", "export", "compare") else ():
            shutil.copytree(self.shared / trained, folder / trained)
        return folder

    def _said(self) -> str:
        return self.noise.read_text(encoding="utf-8", errors="replace")[-2000:]

    def _do(
        self, name: str, folder: Path, death: tuple[int, str] | None = None, kill_after: float | None = None
    ) -> tuple[int | None, Told]:
        """Return the exit code, None for a process that hangs, and what it reported."""
        context = _context()
        told = Told(*(context.Value(kind, 0) for kind in "diqi"))
        process = context.Process(target=_work, args=(name, folder, self.shared, told, death))
        process.start()
        while process.is_alive() and not told.begun.value:
            time.sleep(0.001)
        process.join(COMMAND_SECONDS if kill_after is None else kill_after)
        is_hanging = kill_after is None and process.is_alive()
        process.kill()
        process.join()
        self.peak_bytes = max(self.peak_bytes, told.peak_bytes.value)
        return None if is_hanging else process.exitcode, told


def _is_scratch(path: Path) -> bool:
    return path.name.startswith(SCRATCH) and path.is_dir()


def _state(name: str, folder: Path) -> dict[str, Any]:
    """Return the contents of every file without times, except for unfinished folders of the cache."""
    state: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        key = path.relative_to(folder).as_posix()
        if path.is_file() and f"/{SCRATCH}" not in key.replace("/.carnet.json", ""):
            state[key] = None if name == "train" and key.startswith("run/") else _content(path)
    if name == "train" and (folder / "run" / "result.json").exists():
        state["end of the run"] = end_of(folder / "run")
    return state


def _content(path: Path) -> Any:
    content = path.read_bytes()
    if path.name in DRAWN_FROM_CLOCK:
        return len(content) > 0
    if path.suffix == ".json":
        return _without_clock(json.loads(content))
    if path.suffix == ".onnx":
        return _without_clock(model_file._read_document(content)), _without_document(content)
    return hashlib.sha256(content).hexdigest()


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clock(one) for key, one in value.items() if not any(word in key for word in CLOCK)}
    return [_without_clock(one) for one in value] if isinstance(value, list) else value


def kill_all(number: int, seed: int, root: Path) -> dict[str, Any]:
    """Kill all kinds of work in turns."""
    killer = Killer(root)
    kills = []
    for index in range(number):
        name = list(WORKS)[index % len(WORKS)]
        rng = random.Random(f"{seed} kills {index}")
        kills.append(killer.kill(name, rng, by_time=index // len(WORKS) % 2 == 0))
        print(f"{index + 1}/{number} {kills[-1]}", flush=True)
    return {
        "num_inputs": len(kills),
        "num_exceptions": sum(kill["exit_code"] not in (0, None) for kill in kills),
        "num_hangs": sum(kill["exit_code"] is None for kill in kills),
        "num_wrong_or_left_behind": sum(bool(kill["wrong"]) for kill in kills),
        "peak_bytes": killer.peak_bytes,
        "seconds_in_peace": {name: round(told.seconds.value, 2) for name, (told, _) in killer.peaceful.items()},
        "kills": kills,
    }
