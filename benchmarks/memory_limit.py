"""Train with memory limits, and measure from outside how much memory the command takes from its start on.

Memory is the anonymous memory of the process and of those it has started, including compilers.

Example:
  python benchmarks/memory_limit.py DATA/sports100 --limits 600MB 800MB 1.2GB 2GB
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import write_result

from carnet.text import parse_bytes
from carnet.training.memory import anonymous_bytes

WATCHED_SECONDS = 30.0
"""Seconds after the first step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="carnet18")
    parser.add_argument("--image-size", type=int, default=244)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--limits", nargs="+", default=["600MB", "800MB", "1.2GB", "2GB"])
    options = parser.parse_args()
    runs = [watch(options, limit) for limit in options.limits]
    command = f"python benchmarks/memory_limit.py {options.data.name} --model {options.model}"
    command += f" --image-size {options.image_size} --batch-size {options.batch_size} --limits "
    name = f"memory-limit-{options.model}-{options.image_size}px"
    print(write_result(name, command + " ".join(options.limits), {"runs": runs}))


def watch(options: argparse.Namespace, limit: str) -> dict[str, Any]:
    """Start a run with cold caches of compiled code, and end it some time after its first step."""
    with tempfile.TemporaryDirectory() as folder:
        log, run = Path(folder) / "log", Path(folder) / "run"
        command = [sys.executable, "-m", "carnet", "train", str(options.data), "--model", options.model]
        command += ["--image-size", str(options.image_size), "--batch-size", str(options.batch_size)]
        command += ["--preset", "published", "--precision", "auto"]
        command += ["--max-memory", limit, "--checkpoint-steps", "1", "--output", str(run)]
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor")}
        with log.open("w") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        peak, end = 0, float("inf")
        while process.poll() is None and time.monotonic() < end:
            peak = max(peak, anonymous_bytes(process.pid))
            # The checkpoint before the first step becomes the previous one after it.
            if end == float("inf") and (run / "previous.ckpt").exists():
                end = time.monotonic() + WATCHED_SECONDS
            time.sleep(0.05)
        status = process.poll()
        process.kill()
        process.wait()
        lines = log.read_text().splitlines()
    answer = {
        "limit": limit,
        "peak_bytes": peak,
        "share_of_limit": round(peak / parse_bytes(limit), 3),
        "refused": next((line for line in lines if status and line.startswith("carnet: ")), ""),
        "reasons": [line[2:] for line in lines if line.startswith("- ")],
    }
    print(f"{limit}: {peak / 1e9:.2f} GB {answer['refused']}", flush=True)
    return answer


if __name__ == "__main__":
    main()
