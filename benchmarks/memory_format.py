"""Compare training steps of carnet18 with contiguous and channels-last tensors on this machine.

Example:
  python benchmarks/memory_format.py
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from environment import write_result
from torch import nn

from carnet import create_model

BATCH_SIZE, ROUNDS = 16, 7
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    numbers = {f"{size}_px": compare(size) for size in (64, 128, 244)}
    print(write_result("memory-format", "python benchmarks/memory_format.py", numbers))


def compare(size: int) -> dict[str, float]:
    """Return the median seconds of a step in each layout, and the ratio of alternating pairs."""
    networks = {name: create_model("carnet18", num_classes=100) for name in FORMATS}
    seconds: dict[str, list[float]] = {name: [] for name in FORMATS}
    for _ in range(ROUNDS):
        for name, layout in FORMATS.items():
            seconds[name].append(step(networks[name].to(memory_format=layout), size, layout))
    medians = {name: round(float(np.median(values[1:])), 4) for name, values in seconds.items()}
    ratios = np.divide(seconds["contiguous"], seconds["channels_last"])[1:]
    return {**medians, "median_speedup": round(float(np.median(ratios)), 2)}


def step(network: nn.Module, size: int, layout: torch.memory_format) -> float:
    """Return the seconds of one forward and backward pass in float32."""
    images = torch.randn(BATCH_SIZE, 3, size, size).to(memory_format=layout)
    labels = torch.randint(0, 100, (BATCH_SIZE,))
    started = time.perf_counter()
    F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    network.zero_grad()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
