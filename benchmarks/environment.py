"""Describe the machine of a benchmark, and write its dated result."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from carnet import files
from carnet.machine import available_cores, processor_name, versions
from carnet.training.measure import measure_matrix_rates, processor_features

RESULTS = Path(__file__).parent / "results"
HELD_TO_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    # PyTorch 2.15 compiles code of its usual cache, generated for longer vectors, for these, and leaves half
    # of each result unwritten, without an error.
    "TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir()) / "torchinductor-held-to-avx2"),
}
"""Environment variables that restrict PyTorch's kernels to AVX2; ONNX Runtime obeys none."""


def describe_machine() -> dict[str, Any]:
    """Return processor, matrix rates, cores, memory, versions and the measured commit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": processor_name(),
        "cores": available_cores(),
        "instruction_set": processor_features(),
        "matrix_gflops": measure_matrix_rates(side=512),
        "memory_bytes": memory,
        "gpu": describe_gpu(),
        "versions": versions("onnx", "onnxruntime"),
        "commit": _commit(),
    }


def _commit() -> str:
    """Return the measured commit; an empty string without git."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def describe_gpu() -> dict[str, Any] | None:
    """Return name, memory and CUDA version of the GPU; None if there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    return {
        "name": about.name,
        "memory_bytes": about.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def write_result(name: str, command: str, numbers: dict[str, Any]) -> Path:
    """Write `results/DATE-NAME.json` with machine, versions and command, and return its path.

    Raises:
        OutputError: if it cannot be written.
    """
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    path = RESULTS / f"{today}-{name}.json"
    document = {"date": today, "name": name, "command": command, "machine": describe_machine(), **numbers}
    files.make_folder(RESULTS)
    files.write_text(path, json.dumps(document, indent=2) + "\n")
    return path


def mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation over runs; one run has no spread."""
    spread = round(statistics.stdev(values), 2) if len(values) > 1 else None
    return {"mean": round(statistics.fmean(values), 2), "spread": spread}


def parse_flags(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; words after -- become `flags`, for another command."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:end], argparse.Namespace(flags=words[end + 1 :]))


def write_as_they_come(
    name: str,
    command: str,
    data: str,
    runs: Iterable[dict[str, Any]],
    means: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> None:
    """Write the results again after each run, because the next one may take an hour; print where they are."""
    done: list[dict[str, Any]] = []
    for run in runs:
        done.append(run)
        print(json.dumps(run), file=sys.stderr, flush=True)
        path = write_result(name, command, {"data": data, "runs": done, "means": means(done)})
    print(path)
