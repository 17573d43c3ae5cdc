"""Measure the latency of our networks and of a mobile network of equal size in ONNX Runtime, one image at a time.

This is `carnet benchmark` with the mobile network first, and a dated result. The extras train, timm and export are
needed.

Example:
  python benchmarks/latency.py
  python benchmarks/latency.py --threads 2 --rounds 300 carnet_s@128 carnet18@244
"""

from __future__ import annotations

import argparse
import sys

from environment import write_result

from carnet.comparison.latency import benchmark
from carnet.report.console import Console

PEER = "timm/mobilenetv3_small_050"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["carnet_n", "carnet_s", "carnet_m"], help="NAME or NAME@SIZE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1000, help="number of measurements of each")
    options = parser.parse_args()
    with Console(sys.stderr) as progress:
        result = benchmark(
            [PEER, *options.models],
            runtimes=["onnxruntime"],
            threads=options.threads,
            rounds=options.rounds,
            progress=progress,
        )
    for timing in result.timings:
        times = result.times_the_first(timing)
        print(f"{timing.model:28} {timing.image_size} px: {timing.median_ms:.3f} ms, {times:.2f} x")
    command = f"python benchmarks/latency.py --threads {options.threads} --rounds {options.rounds}"
    command += "".join(f" {word}" for word in options.models)
    # The result describes the machine in more detail.
    numbers = {key: value for key, value in result.to_json().items() if key != "machine"}
    print(write_result("latency", command, {"peer": PEER, **numbers}))


if __name__ == "__main__":
    main()
