"""Time our networks beside a mobile network of equal size in ONNX Runtime, one image at a time, one after the other.

All are exported the same way with random weights, which do not change what there is to compute, and take turns, so that
other work on the machine slows all of them down alike. Needs the extras train, timm and export.

Example:
  python benchmarks/latency.py
  python benchmarks/latency.py --threads 2 --rounds 300 carnet_s@128 carnet18@244
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from environment import write_result
from torch import nn

from carnet.models.registry import create_model, default_image_size
from carnet.models.summary import summarize

PEER = "timm/mobilenetv3_small_050"
IN_A_ROW = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["carnet_n", "carnet_s", "carnet_m"], help="NAME or NAME@SIZE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200, help=f"turns of {IN_A_ROW} images each")
    options = parser.parse_args()
    models: dict[str, dict[str, float]] = {}
    sessions: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for word in (PEER, *options.models):
            name, _, size = word.partition("@")
            side = int(size or default_image_size(name))
            network = create_model(name, num_classes=100)
            summary = summarize(network, name, num_classes=100, image_size=side)
            models[word] = {"image_size": side, "parameters": summary.params, "macs": summary.macs}
            sessions[word] = runner(network, side, options.threads, Path(folder) / f"{len(sessions)}.onnx")
        seconds = take_turns(sessions, options.rounds)
    for word, model in models.items():
        milliseconds = [1000 * value for value in seconds[word]]
        model["median_ms"] = round(statistics.median(milliseconds), 4)
        model["p95_ms"] = round(float(np.percentile(milliseconds, 95)), 4)
        model["times_the_peer"] = round(model["median_ms"] / models[PEER]["median_ms"], 3)
        print(f"{word:28} {model['image_size']} px: {model['median_ms']:.3f} ms, {model['times_the_peer']:.2f} x")
    command = f"python benchmarks/latency.py --threads {options.threads} --rounds {options.rounds}"
    command += "".join(f" {word}" for word in options.models)
    runtime = onnxruntime.__version__
    print(write_result("latency", command, {"onnxruntime": runtime, "peer": PEER, "models": models}))


def runner(network: nn.Module, size: int, threads: int, path: Path) -> Callable[[], object]:
    """Export a network, batch norm folded as for use, and return what runs it on an image once."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            # Our blocks begin with a factor of zero, behind which an optimizer of graphs may find nothing to do.
            nn.init.ones_(module.weight)
    image = torch.zeros(1, 3, size, size)
    torch.onnx.export(network.eval(), (image,), path, dynamo=True, external_data=False, verbose=False)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.random.default_rng(0).random((1, 3, size, size), np.float32)}
    return lambda: session.run(None, feed)


def take_turns(runners: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run; the first one of each turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            run()
            for _ in range(IN_A_ROW):
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
