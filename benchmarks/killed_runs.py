"""Kill training at random moments, resume it, and compare the result with that of an undisturbed run.

Half of the kills come at a random time, half inside the writer of files: while a file is half written, when it is
written and not yet renamed, between the two renames of a checkpoint, and right after. A kill is SIGKILL, which no
program can catch; it leaves the same files as a crash or an out-of-memory kill.

Example:
  python benchmarks/killed_runs.py --kills 30
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from carnet import files
from carnet.config import TrainingConfig
from carnet.data.synthetic import write_dataset
from carnet.text import Silent
from carnet.training.checkpoint import DamagedCheckpointError, read_checkpoint
from carnet.training.run import train

SMALL: dict[str, Any] = {
    "model": "carnet_n",
    "image_size": 48,
    "epochs": 3,
    "batch_size": 8,
    "checkpoint_steps": 1,
    # A run that is begun anew must not choose otherwise, because its cache is another one or the machine is busy.
    "muon_precision": "fp32",
    "memory_format": "channels_last",
    "fast_depthwise": True,
}
CONFIGS = {
    "fp32": TrainingConfig(**SMALL, precision="fp32"),
    "bf16": TrainingConfig(**SMALL, precision="bf16", patience=2),
}
# Slower, and only on request: compiled, bf16, gradient accumulation.
ENGINE = replace(CONFIGS["bf16"], patience=0, compile=True, micro_batch=4, cache="disk")
STAGES = ("half filled", "filled", "first name", "last name")
OF_THE_PROCESS = ("seconds", "peak_memory_bytes", "run")
CLOCK = ("seconds", "images_per_second", "step_seconds")


@dataclass
class Kill:
    """One kill, and the outcome of the run."""

    config: str
    moment: str
    found: str = ""
    """The state that the kill had left."""
    seconds_to_end: float = 0.0
    identical: bool = False


def kill_and_resume(
    root: Path,
    number: int,
    seed: int,
    configs: Mapping[str, TrainingConfig] = CONFIGS,
    say: Callable[[str], None] = print,
) -> list[Kill]:
    """Draw a small data set, train undisturbed, then `number` times with a kill, and compare all results."""
    rng = random.Random(seed)
    data = root / "pictures"
    write_dataset(data, train_per_class=6, valid_per_class=2, size=64, seed=seed)
    peaceful = {name: _train_in_peace(root / name, data, config) for name, config in configs.items()}
    kills = []
    for index in range(number):
        name = rng.choice(list(configs))
        config = configs[name]
        run = root / f"killed-{index}"
        kill = _kill(run, data, (name, config), peaceful[name], rng, by_time=index % 2 == 0)
        kill.found = _what_is_left(run)
        started = time.monotonic()
        code = _in_a_process(_resume_or_begin, run, data, config)
        kill.seconds_to_end = round(time.monotonic() - started, 2)
        kill.identical = code == 0 and end_of(run) == end_of(root / name)
        say(f"{index + 1}/{number} {kill.config}, {kill.moment}: {kill.found}; identical: {kill.identical}")
        kills.append(kill)
        shutil.rmtree(run, ignore_errors=True)
    return kills


def end_of(run: Path) -> dict[str, Any]:
    """Return everything that a run ends with, without times and the name of its folder."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if key not in CLOCK} for row in csv.DictReader(file)]
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    last = load_file(run / "last.ckpt")
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "network and optimizer": {name: tensor.numpy().tobytes() for name, tensor in sorted(last.items())},
        "metrics": rows,
        "result": {key: value for key, value in result.items() if key not in OF_THE_PROCESS},
        "files": sorted(path.name for path in run.iterdir()),
    }


def _train_in_peace(run: Path, data: Path, config: TrainingConfig) -> tuple[float, int]:
    """Return the seconds and the number of files written."""
    context = _context()
    num_writes = context.Value("i", 0)
    started = time.monotonic()
    code = _in_a_process(_train_counting, run, data, config, num_writes)
    assert code == 0, f"training ended with exit code {code}"
    return time.monotonic() - started, num_writes.value


def _kill(
    run: Path,
    data: Path,
    named: tuple[str, TrainingConfig],
    peaceful: tuple[float, int],
    rng: random.Random,
    *,
    by_time: bool,
) -> Kill:
    seconds, num_writes = peaceful
    name, config = named
    while True:
        if by_time:
            after = rng.uniform(0, seconds)
            kill = Kill(name, f"after {after:.3f} s")
            code = _in_a_process(_train, run, data, config, kill_after=after)
        else:
            number, stage = rng.randint(1, num_writes), rng.choice(STAGES)
            kill = Kill(name, f"in write {number} of {num_writes}, {stage}")
            code = _in_a_process(_train_and_die, run, data, config, number, stage)
        if code == -signal.SIGKILL:
            return kill
        # It was faster than before, and done before the kill.
        shutil.rmtree(run, ignore_errors=True)


def _what_is_left(run: Path) -> str:
    if not (run / "config.json").exists():
        return "no run yet"
    if not list(run.glob("*.ckpt")):
        return "no checkpoint yet"
    states = []
    for path in sorted(run.glob("*.ckpt")):
        try:
            state = read_checkpoint(path).state
            states.append(f"{path.name} at epoch {state['epoch']} step {state['step']}")
        except DamagedCheckpointError as error:
            states.append(f"{path.name} damaged ({error})")
    unnamed = [path.name for path in run.glob(".*.tmp")]
    return ", ".join(states + [f"{len(unnamed)} unnamed"] * bool(unnamed))


def _context() -> Any:
    # A server that has imported PyTorch forks the processes; without one, each imports it.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["carnet.training.run", "torch._dynamo", "matplotlib.pyplot", "onnxscript", "onnxruntime"]
    )
    return context


def _in_a_process(work: Callable[..., None], *arguments: Any, kill_after: float | None = None) -> int:
    process = _context().Process(target=work, args=arguments)
    process.start()
    try:
        process.join(kill_after)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    return int(process.exitcode)


def _train(run: Path, data: Path, config: TrainingConfig) -> None:
    train(data, config, output=run, progress=Silent())


def _train_counting(run: Path, data: Path, config: TrainingConfig, num_writes: Any) -> None:
    count_writes(num_writes)
    _train(run, data, config)


def count_writes(num_writes: Any) -> None:
    """Count the files that this process writes from now on in a shared number."""
    fill = files._fill

    def counting(path: Path, content: bytes) -> None:
        num_writes.value += 1
        fill(path, content)

    files._fill = counting


def _train_and_die(run: Path, data: Path, config: TrainingConfig, number: int, stage: str) -> None:
    die_in_write(number, stage)
    _train(run, data, config)


def die_in_write(number: int, stage: str) -> None:
    """Kill this process at a certain stage of a certain write of a file."""
    fill, rename = files._fill, files.rename
    writes = names = 0

    def dying_fill(path: Path, content: bytes) -> None:
        nonlocal writes, names
        writes, names = writes + 1, 0
        if writes == number and stage == "half filled":
            path.write_bytes(content[: len(content) // 2])
            _die()
        fill(path, content)
        if writes == number and stage == "filled":
            _die()

    def dying_name(path: Path, name: Path, pauses: Sequence[float] = ()) -> None:
        nonlocal names
        rename(path, name)
        names += 1
        # A checkpoint is renamed twice: the last becomes the previous one, then the new one becomes the last.
        is_last = path.suffix == ".tmp"
        if writes == number and ((stage == "first name" and names == 1) or (stage == "last name" and is_last)):
            _die()

    files._fill, files.rename = dying_fill, dying_name


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _resume_or_begin(run: Path, data: Path, config: TrainingConfig) -> None:
    if (run / "config.json").exists():
        train(resume=run, progress=Silent())
    else:
        _train(run, data, config)


def main() -> None:
    from environment import write_result

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", action="store_true", help="compiled runs instead of plain ones")
    arguments = parser.parse_args()
    configs = {"engine": ENGINE} if arguments.engine else CONFIGS
    with tempfile.TemporaryDirectory() as folder:
        kills = kill_and_resume(Path(folder), arguments.kills, arguments.seed, configs)
    numbers = {
        "num_kills": len(kills),
        "num_identical": sum(kill.identical for kill in kills),
        "threads": torch.get_num_threads(),
        "configs": {name: config.to_json() for name, config in configs.items()},
        "kills": [asdict(kill) for kill in kills],
    }
    command = f"python benchmarks/killed_runs.py --kills {arguments.kills} --seed {arguments.seed}"
    command += " --engine" * arguments.engine
    print(write_result("killed-runs-engine" if arguments.engine else "killed-runs", command, numbers))


if __name__ == "__main__":
    main()
