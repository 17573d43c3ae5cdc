"""Measure the costs of an exported model in use, beside PyTorch and beside a mobile network of equal size.

Cold start and memory are those of `carnet predict MODEL PHOTO`, each in a new process; everything else is measured in
this process, with the candidates alternating. The mobile network (timm's mobilenetv3_small_050 at 224 px, random
weights) is exported like ours and uses the same decoder. The script needs the extras train, timm and export.

Example:
  python benchmarks/edge.py runs/sports100-carnet_s runs/sports100-carnet_s/model.onnx DATA/sports100/valid
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
from environment import write_result
from PIL import Image

import carnet
from carnet.data.folder import images_in
from carnet.edge.model_file import ModelFile
from carnet.edge.runtimes import open_runtime
from carnet.export import graph
from carnet.machine import take_turns
from carnet.models.class_maps import mean_and_linear_head
from carnet.models.weights import TrainedModel, load
from carnet.prediction import Predictor
from carnet.spec import ModelSpec

PEER = "timm/mobilenetv3_small_050"
LAUNCHER = """
import resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Run in a small process, because Linux counts the memory of the starting process for the started one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("model", type=Path, help="exported model of the run")
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--starts", type=int, default=10, help="number of cold starts of each")
    parser.add_argument("--rounds", type=int, default=50, help="number of measurements of each latency")
    options = parser.parse_args()
    photos = [str(path) for path in images_in(options.photos)]
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.jpg"
        large.write_bytes(photo_of(4000, 3000))
        small = Path(folder) / "small.jpg"
        small.write_bytes(photo_of(224, 224))
        peer = Path(folder) / "peer.onnx"
        peer.write_bytes(peer_model())
        numbers = {
            "cold_start": cold_starts([options.model, options.run], small, options.starts),
            "predict_ms": latencies(
                options.model, options.run, peer, {"224 px": small, "12 MP": large}, options.rounds
            ),
            "images_per_second": throughput(options.model, options.run, photos),
            "class_maps": cost_of_class_maps(load(options.run), options.rounds),
        }
    command = f"python benchmarks/edge.py RUN {options.model.name} {options.photos.parent.name}/{options.photos.name}"
    print(write_result("edge", command, {"onnxruntime": onnxruntime.__version__, "num_photos": len(photos), **numbers}))


def cold_starts(models: list[Path], photo: Path, rounds: int) -> dict[str, Any]:
    """Return the seconds and the peak memory of new processes that classify one photo."""
    seconds: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    # Python keeps its bytecode, as on a user's machine; the first start writes it and is not counted.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for turn in range(rounds + 1):
        for model in models:
            name = "onnx" if model.suffix == ".onnx" else "pytorch"
            command = [sys.executable, "-m", "carnet", "predict", str(model), str(photo)]
            answer = subprocess.run(
                [sys.executable, "-c", LAUNCHER, *command], capture_output=True, text=True, check=True, env=environment
            )
            if turn:
                taken, peak = map(float, answer.stdout.split())
                seconds.setdefault(name, []).append(taken)
                memory.setdefault(name, []).append(peak / 1024)
    found = {
        name: {"median_s": round(statistics.median(times), 3), "peak_mib": round(statistics.median(memory[name]), 1)}
        for name, times in seconds.items()
    }
    for name, numbers in found.items():
        print(f"cold start, {name}: {numbers['median_s']:.3f} s, {numbers['peak_mib']:.0f} MiB")
    return found


def latencies(model: Path, run: Path, peer: Path, photos: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Return the median milliseconds from a file to its prediction on one thread."""
    import torch

    torch.set_num_threads(1)
    predictors: dict[str, Predictor] = {
        "onnx": carnet.Classifier(model, threads=1),
        "pytorch": carnet.load(run).predictor,
        "mobilenetv3_small_050, onnx": carnet.Classifier(peer, threads=1),
    }
    found: dict[str, Any] = {}
    for size, photo in photos.items():
        calls = {name: partial(predictor.predict, photo) for name, predictor in predictors.items()}
        found[size] = {name: round(statistics.median(times), 3) for name, times in take_turns(calls, rounds).items()}
        print(f"file to prediction, {size}: {found[size]} ms")
    return found


def throughput(model: Path, run: Path, photos: list[str], rounds: int = 3) -> dict[str, float]:
    """Return the images of a folder that are classified per second on all cores; the median of some rounds."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    predictors: dict[str, Predictor] = {"onnx": carnet.Classifier(model), "pytorch": carnet.load(run).predictor}
    calls = {name: partial(answer_all, predictor, photos) for name, predictor in predictors.items()}
    found = {
        name: round(1000 * len(photos) / statistics.median(times), 1)
        for name, times in take_turns(calls, rounds).items()
    }
    print(f"a folder of {len(photos)}: {found} images/s")
    return found


def cost_of_class_maps(trained: TrainedModel, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of the network alone on one thread, with class maps and with the trained head."""
    side = trained.spec.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, trained.spec.in_channels), np.uint8)
    calls = {}
    for name in ("with", "without"):
        with mock.patch.object(
            graph, "mean_and_linear_head", (lambda *_: None) if name == "without" else mean_and_linear_head
        ):
            content = graph.to_graph(trained).sealed(trained.spec.to_json())
        calls[name] = partial(open_runtime(ModelFile.from_bytes(content), "onnxruntime", 1), image)
    found = {name: round(statistics.median(times), 4) for name, times in take_turns(calls, 10 * rounds).items()}
    print(f"network alone, class maps: {found} ms")
    return found


def answer_all(predictor: Predictor, photos: list[str]) -> int:
    return sum(1 for _ in predictor.predict_many(photos))


def photo_of(width: int, height: int) -> bytes:
    """Return a JPEG with as much detail as a photo: noise of several scales."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3), np.float32)
    for scale in (4, 16, 64):
        noise = rng.integers(0, 256, (height // scale + 1, width // scale + 1, 3), np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 3
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


def peer_model() -> bytes:
    """Export the mobile network as a model file."""
    import torch

    torch.manual_seed(0)
    spec = ModelSpec(model=PEER, classes=tuple(map(str, range(100))), image_size=224)
    network = carnet.create_model(PEER, num_classes=100)
    return graph.to_graph(TrainedModel(network, spec)).sealed(spec.to_json())


if __name__ == "__main__":
    main()
