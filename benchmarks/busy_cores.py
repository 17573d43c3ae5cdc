"""Measure training beside other work: images/s with and without a busy loop of normal priority on each core.

Threads wait as PyTorch does by default, and briefly as the `carnet` command does (`carnet/machine.py`); both alternate,
each in its own process. The network is trained on random pixels, and nothing is compiled.

Example:
  python benchmarks/busy_cores.py
  python benchmarks/busy_cores.py --held-to-avx2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from environment import HELD_TO_AVX2, write_result

from carnet.machine import SPINS, available_cores

WAITING: dict[str, dict[str, str]] = {"default": {}, "brief": {"GOMP_SPINCOUNT": str(SPINS)}}
LOOP = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, [int(sys.argv[1])])
while True:
    pass
"""
ALONE, BESIDE = "nothing else", "a busy loop on each core"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="carnet_s")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of each measurement")
    parser.add_argument("--held-to-avx2", action="store_true", help="restrict PyTorch's kernels to AVX2")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options)))
        return
    if options.held_to_avx2 and not HELD_TO_AVX2.items() <= os.environ.items():
        # This has to come before the import of PyTorch, which also describes the machine in the result.
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | HELD_TO_AVX2, check=False).returncode)
    rates: dict[str, dict[str, list[float]]] = {name: {ALONE: [], BESIDE: []} for name in WAITING}
    for _ in range(options.rounds):
        for name, variables in WAITING.items():
            environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"} | variables
            child = subprocess.run(
                [sys.executable, *sys.argv, "--child"], env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            for situation, rate in json.loads(child.stdout).items():
                rates[name][situation].append(rate)
    medians = {
        name: {key: round(statistics.median(values), 1) for key, values in of.items()} for name, of in rates.items()
    }
    ratios = {key: round(medians["brief"][key] / medians["default"][key], 3) for key in (ALONE, BESIDE)}
    kept = {name: round(of[BESIDE] / of[ALONE], 3) for name, of in medians.items()}
    numbers: dict[str, Any] = {
        "images_per_second": medians,
        "brief_over_default": ratios,
        "share_kept_beside_busy_loops": kept,
        "rounds": rates,
    }
    name = f"busy-cores-{options.model}" + ("-avx2" if options.held_to_avx2 else "")
    path = write_result(name, " ".join(["python benchmarks/busy_cores.py", *sys.argv[1:]]), numbers)
    print(json.dumps(medians | {"brief over default": ratios, "kept": kept}, indent=2))
    print(path)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return images per second of the training step, alone and beside busy loops."""
    import torch

    from carnet import TrainingConfig
    from carnet.models.registry import create_model
    from carnet.spec import ModelSpec
    from carnet.training.memory import keep_freed_memory
    from carnet.training.pipeline import Batch
    from carnet.training.resolve import first_guess
    from carnet.training.step import TrainingStep

    keep_freed_memory()
    torch.manual_seed(0)
    size, number = options.image_size, options.batch_size
    asked = TrainingConfig(
        model=options.model, image_size=size, batch_size=number, epochs=1, device="cpu", cutmix=0.0, compile=False
    )
    spec = ModelSpec(model=options.model, classes=tuple(f"class {k}" for k in range(100)), image_size=size)
    config = first_guess(asked, num_train=number, image_size=size)
    network = create_model(options.model, num_classes=100)
    step = TrainingStep(network, spec, config)
    network.train()
    batch = Batch(torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8), torch.randint(0, 100, (number,)))

    def rate() -> float:
        steps = 0
        for _ in range(3):
            step(batch, 0, lambda _: None)
        started = time.perf_counter()
        while time.perf_counter() - started < options.seconds:
            step(batch, 0, lambda _: None)
            steps += 1
        return float(round(number * steps / (time.perf_counter() - started), 1))

    alone = rate()
    with busy_loops():
        return {ALONE: alone, BESIDE: rate()}


@contextmanager
def busy_loops() -> Iterator[None]:
    """Run a busy loop on each core that this process may use."""
    loops = []
    try:
        for core in sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(available_cores()):
            loops.append(subprocess.Popen([sys.executable, "-c", LOOP, str(core)]))
        time.sleep(0.5)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
