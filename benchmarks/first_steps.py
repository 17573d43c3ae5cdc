"""Time the two commands of the README as a new user would run them, and with PyTorch's kernels restricted to AVX2.

The environment already exists, so installation is not counted. On a processor that has only AVX2, both are the same,
and one of them is run.

Example:
  python benchmarks/first_steps.py
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environment import HELD_TO_AVX2, write_result

from carnet.machine import instruction_set

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native-only", action="store_true", help="only with the native instructions of the processor")
    options = parser.parse_args()
    kinds: dict[str, dict[str, str]] = {"native": {}}
    if instruction_set() != "AVX2" and not options.native_only:
        kinds["held to AVX2"] = HELD_TO_AVX2
    numbers = {kind: {"demo": time_demo(held), "test": time_test(held)} for kind, held in kinds.items()}
    print(write_result("first-steps", "make demo; make test", numbers))


def time_demo(held: dict[str, str]) -> dict[str, Any]:
    """Run `make demo`; return its seconds, those of training, and the accuracy."""
    before = set(ROOT.glob("carnet-demo*"))
    seconds, _ = make("demo", held)
    (folder,) = set(ROOT.glob("carnet-demo*")) - before
    result = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
    resolved = json.loads((folder / "run" / "config.json").read_text(encoding="utf-8"))["resolved"]
    shutil.rmtree(folder)
    return {
        "seconds": seconds,
        "training_seconds": result["seconds"],
        "epochs": result["epochs"],
        "top1": result["valid"]["top1"],
        "notes": result["notes"],
        "resolved": resolved,
    }


def time_test(held: dict[str, str]) -> dict[str, Any]:
    """Run `make test`; return its seconds, those of pytest, and the number of tests passed."""
    seconds, output = make("test", held)
    passed, others, of_pytest = re.findall(r"=+ (\d+) passed(.*) in ([\d.]+)s", output)[-1]
    return {"seconds": seconds, "pytest_seconds": float(of_pytest), "passed": int(passed), "others": others.strip(", ")}


def make(target: str, held: dict[str, str]) -> tuple[float, str]:
    """Run a make target; return its seconds and its output."""
    started = time.monotonic()
    done = subprocess.run(
        ["make", target], cwd=ROOT, env=os.environ | held, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nmake {target} failed; there is no result")
    return round(time.monotonic() - started, 1), done.stdout


if __name__ == "__main__":
    main()
