"""Give CARNet thousands of hostile inputs, kill it a hundred times, and count the failures.

- forged: model files and files of runs with valid checksums (`forged_files.py`);
- images: damaged images of many kinds, decoded as predict does (`mutated_files.py`);
- archives: damaged archives of a small data set, each with its own cache, beside which nothing may be written;
- kills: commands killed at random moments, half of them inside the writer of files, and repeated. The result must equal
  that of an undisturbed command, except for times, and nothing may be left behind. Unfinished folders of the cache are
  removed after a day, as documented: they are made older, and must disappear.

An input fails with any exception but ours, which have one line, beyond the time limit, or beyond bounded memory. Input
N of a seed is always the same. The result is written after each kind.

Example:
  python benchmarks/hostile_input.py
  python benchmarks/hostile_input.py --only images --images 100
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutated_files import ESCAPED, drawn_images, mutated, mutated_archive

from carnet.data.find import find_images
from carnet.data.synthetic import CLASSES
from carnet.errors import CarnetError
from carnet.preprocess import load_image
from carnet.spec import ModelSpec
from carnet.training.memory import peak_resident_bytes

NUMBERS = {"forged": 2000, "images": 3000, "archives": 300, "kills": 100}
SECONDS = 60
"""Seconds within which an input has to be read or refused, as for forged files."""
GROUP = 250
"""Number of inputs that one process tries."""
SPEC = ModelSpec(model="carnet_n", classes=CLASSES, image_size=64)
SCRATCH = ".carnet-"
"""Beginning of the names of unfinished folders of the cache."""


def try_image(number: int, rng: random.Random) -> str:
    """Decode a damaged image, and return the outcome."""
    originals = drawn_images()
    load_image(mutated(originals[number % len(originals)], rng), SPEC)
    return "read"


def try_archive(number: int, rng: random.Random) -> str:
    """List the images of a damaged archive, in a folder several levels deep, and return the outcome."""
    name, content = mutated_archive(number, rng)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        here = root / "a" / "b" / "c"
        here.mkdir(parents=True)
        (here / name).write_bytes(content)
        os.environ["CARNET_CACHE"] = str(here / "cache")
        os.chdir(here)
        outcome = "read"
        try:
            find_images(name)
        except CarnetError as error:
            outcome = _refused(error)
        finally:
            os.chdir(root.anchor)
        for path in root.rglob("*"):
            is_inside = here / "cache" in path.parents
            if path.is_symlink() or ESCAPED.exists() or (path.is_file() and not is_inside and path != here / name):
                return f"written outside: {path}"
            if is_inside and path.name.startswith(SCRATCH):
                return f"left behind: {path.name}"
    return outcome


def try_forged(number: int, seed: int, log: Path) -> None:
    """Forge and open files in a process of its own, and write the outcomes to a file."""
    from forged_files import forge_and_open

    with tempfile.TemporaryDirectory() as folder:
        log.write_text(json.dumps(forge_and_open(Path(folder), number, seed)), encoding="utf-8")


def _refused(error: CarnetError) -> str:
    return "refused" if "\n" not in str(error) else f"refused in several lines: {error}"


TRIED: dict[str, Callable[[int, random.Random], str]] = {"images": try_image, "archives": try_archive}


def _try_some(kind: str, seed: int, numbers: range, log: Path, noise: Path) -> None:
    """Try some inputs in a process of its own, and write a line about each."""
    with noise.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with log.open("w", encoding="utf-8") as file:
        for number in numbers:
            started = time.monotonic()
            try:
                outcome = TRIED[kind](number, random.Random(f"{seed} {kind} {number}"))
            except CarnetError as error:
                outcome = _refused(error)
            except Exception:
                outcome = f"exception: {traceback.format_exc()}"
            print(json.dumps([outcome, time.monotonic() - started, peak_resident_bytes()]), file=file, flush=True)


def try_all(kind: str, number: int, seed: int, root: Path) -> dict[str, Any]:
    """Try inputs of a kind, in processes that may crash or hang without affecting the others."""
    counts, found, slowest, peak = Counter[str](), [], 0.0, 0
    log, noise = root / "log", root / "noise"
    done = 0
    while done < number:
        numbers = range(done, min(number, done + GROUP))
        log.write_text("")
        process = multiprocessing.get_context("spawn").Process(target=_try_some, args=(kind, seed, numbers, log, noise))
        process.start()
        while process.is_alive() and time.time() - log.stat().st_mtime < SECONDS:
            process.join(0.5)
        is_hanging = process.is_alive()
        process.kill()
        process.join()
        outcomes = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if len(outcomes) < len(numbers):
            outcomes.append(["hang" if is_hanging else f"crash: exit code {process.exitcode}", 0.0, 0])
        for place, (outcome, seconds, num_bytes) in enumerate(outcomes):
            name, _, more = outcome.partition(": ")
            counts[name] += 1
            slowest, peak = max(slowest, seconds), max(peak, num_bytes)
            if name not in ("read", "refused"):
                found.append(f"input {done + place}: {name} {more}".strip())
        done += len(outcomes)
    return {
        "num_inputs": done,
        "num_exceptions": counts["exception"] + counts["crash"] + counts["refused in several lines"],
        "num_hangs": counts["hang"],
        "counts": dict(counts),
        "bytes_on_standard_error": noise.stat().st_size,
        "slowest_seconds": round(slowest, 2),
        "peak_bytes": peak,
        "found": found,
    }


def forge_all(number: int, seed: int, root: Path) -> dict[str, Any]:
    """Try forged files in a separate process."""
    log = root / "log"
    process = multiprocessing.get_context("spawn").Process(target=try_forged, args=(number, seed, log))
    process.start()
    process.join(number * SECONDS)
    is_hanging = process.is_alive()
    process.kill()
    process.join()
    if not log.exists():
        return {"num_inputs": 0, "num_exceptions": int(not is_hanging), "num_hangs": int(is_hanging)}
    numbers: dict[str, Any] = json.loads(log.read_text(encoding="utf-8"))
    return {
        "num_inputs": numbers.pop("num_files"),
        "num_exceptions": numbers.pop("num_other_exceptions"),
        "peak_bytes": numbers.pop("peak_bytes")["after all files"],
        **numbers,
    }


def main() -> None:
    from environment import write_result
    from killed_commands import kill_all

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, number in NUMBERS.items():
        parser.add_argument(f"--{kind}", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=NUMBERS)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    kinds: dict[str, Any] = {}
    command, name = "python benchmarks/hostile_input.py", "hostile-input"
    if arguments.only:
        command, name = f"{command} --only {arguments.only}", f"{name}-{arguments.only}"
    for kind in [arguments.only] if arguments.only else NUMBERS:
        number, started = getattr(arguments, kind), time.monotonic()
        command += f" --{kind} {number}"
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder).resolve()
            match kind:
                case "forged":
                    numbers = forge_all(number, arguments.seed, root)
                case "kills":
                    numbers = kill_all(number, arguments.seed, root)
                case _:
                    numbers = try_all(kind, number, arguments.seed, root)
        kinds[kind] = {"seconds": round(time.monotonic() - started, 1)} | numbers
        print(kind, {key: value for key, value in kinds[kind].items() if key not in ("kills", "kinds")}, flush=True)
        print(write_result(name, f"{command} --seed {arguments.seed}", {"kinds": kinds}), flush=True)


if __name__ == "__main__":
    main()
