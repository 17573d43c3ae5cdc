"""Time our networks beside a mobile network of equal size in ONNX Runtime, one image at a time, one after the other.

All are exported as `carnet export` does, from pixels to probabilities, with random weights, which do not change what
there is to compute; and take turns, so that other work on the machine slows all of them down alike. Needs the extras
train, timm and export.

Example:
  python benchmarks/latency.py
  python benchmarks/latency.py --threads 2 --rounds 300 carnet_s@128 carnet18@244
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import onnxruntime
from environment import write_result
from torch import nn

from carnet.edge.model_file import ModelFile, seal
from carnet.edge.runtimes import open_runtime
from carnet.export.graph import serialized, to_graph
from carnet.models.registry import create_model, default_image_size
from carnet.models.summary import summarize
from carnet.models.trained import TrainedModel
from carnet.spec import ModelSpec
from carnet.timing import take_turns

PEER = "timm/mobilenetv3_small_050"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["carnet_n", "carnet_s", "carnet_m"], help="NAME or NAME@SIZE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1000, help="turns of each")
    options = parser.parse_args()
    models: dict[str, dict[str, float]] = {}
    sessions: dict[str, Callable[[], object]] = {}
    for word in (PEER, *options.models):
        name, _, size = word.partition("@")
        side = int(size or default_image_size(name))
        network = create_model(name, num_classes=100)
        summary = summarize(network, name, num_classes=100, image_size=side)
        models[word] = {"image_size": side, "parameters": summary.params, "macs": summary.macs}
        sessions[word] = runner(network, name, side, options.threads)
    milliseconds = take_turns(sessions, options.rounds)
    for word, model in models.items():
        model["median_ms"] = round(statistics.median(milliseconds[word]), 4)
        model["p95_ms"] = round(float(np.percentile(milliseconds[word], 95)), 4)
        model["times_the_peer"] = round(model["median_ms"] / models[PEER]["median_ms"], 3)
        print(f"{word:28} {model['image_size']} px: {model['median_ms']:.3f} ms, {model['times_the_peer']:.2f} x")
    command = f"python benchmarks/latency.py --threads {options.threads} --rounds {options.rounds}"
    command += "".join(f" {word}" for word in options.models)
    runtime = onnxruntime.__version__
    print(write_result("latency", command, {"onnxruntime": runtime, "peer": PEER, "models": models}))


def runner(network: nn.Module, name: str, size: int, threads: int) -> Callable[[], object]:
    """Export a network as for use, from pixels to probabilities, and return what runs it on an image once."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            # Our blocks begin with a factor of zero, behind which an optimizer of graphs may find nothing to do.
            nn.init.ones_(module.weight)
    spec = ModelSpec(model=name, classes=tuple(map(str, range(100))), image_size=size)
    file = ModelFile.from_bytes(seal(serialized(to_graph(TrainedModel(network, spec)).model), spec.to_json()))
    run = open_runtime(file, "onnxruntime", threads)
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    return lambda: run(image)


if __name__ == "__main__":
    main()
