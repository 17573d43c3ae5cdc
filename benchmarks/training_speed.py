"""Compare the training steps of the published script with ours on real images.

Each way of training runs in its own process, and takes five steps at a time while the others wait. All get the same
pixels in the same order. Memory is the anonymous memory of the process and of those it has started, minus that before
its first step; files mapped into memory are counted separately. On a GPU it is what PyTorch has reserved there.

Example:
  python benchmarks/training_speed.py DATA/sports100
  python benchmarks/training_speed.py DATA/sports100 --device cuda --steps 200
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from environment import write_result

TURN = 5
"""Number of steps that one way of training takes at a time."""
WAYS = {
    "published loop": "PyTorch eager, fp32, contiguous, default DataLoader and torchvision transforms",
    "ours": "as `carnet train` chooses where memory is plentiful",
    "ours, lean": "as `carnet train --max-memory` chooses: freed memory is given back, activations are recomputed",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="carnet18")
    parser.add_argument("--image-size", type=int, default=244)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-cold", action="store_true", help="do not measure decoding, compiling and starting")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CARNET_CACHE"] = str(Path(folder) / "cache")
        cold = {} if options.skip_cold else decoding(options)
        ways = compare(options)
        cold |= {} if options.skip_cold else starting(options, Path(folder))
    plain = ways["published loop"]
    for name, way in ways.items():
        way["speedup"] = round(way["images_per_second"] / plain["images_per_second"], 2)
        way["share_of_memory"] = round(way["memory_bytes"] / plain["memory_bytes"], 3)
        way["loss_difference"] = largest_difference(plain["losses"], way["losses"])
        print(f"{name:15} {way['images_per_second']:8.2f} images/s ({way['speedup']:.1f} x), ", end="")
        print(f"{way['memory_bytes'] / 1e9:.2f} GB ({100 * way['share_of_memory']:.0f}%), {way['loss_difference']}")
    command = f"python benchmarks/training_speed.py {options.data.name} --model {options.model}"
    command += f" --image-size {options.image_size} --batch-size {options.batch_size} --steps {options.steps}"
    command += f" --device {options.device}" + " --skip-cold" * options.skip_cold
    numbers = {"ways": ways, "roofline": roofline(options, ways["ours"]), "cold": cold}
    print(write_result(f"training-speed-{options.model}-{options.image_size}px-{options.device}", command, numbers))


def largest_difference(plain: list[float], other: list[float]) -> dict[str, float]:
    """Return the difference of two loss curves at the first step and over all steps."""
    differences = np.abs(np.subtract(plain, other))
    return {
        "first_step": round(float(differences[0]), 5),
        "mean": round(float(differences.mean()), 4),
        "largest": round(float(differences.max()), 4),
    }


# --- the ways of training, each in its own process ---------------------------------------------------------------


def compare(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Let all ways take their steps in turns, and return what each has measured."""
    context = multiprocessing.get_context("spawn")
    runners = {name: Runner(context, name, options) for name in WAYS}
    ways: dict[str, dict[str, Any]] = {
        name: {"what": WAYS[name], "seconds": [], "losses": [], **runner.ask("begin")}
        for name, runner in runners.items()
    }
    for done in range(0, options.steps, TURN):
        for name, runner in runners.items():
            answer = runner.ask("steps")
            ways[name]["seconds"] += answer["seconds"]
            ways[name]["losses"] += answer["losses"]
            print(f"{done + TURN} of {options.steps}, {name}: {np.median(answer['seconds']):.2f} s a step", flush=True)
    for name, runner in runners.items():
        way = ways[name]
        way |= runner.end()
        # The first steps allocate memory and warm up.
        seconds = float(np.median(way["seconds"][TURN:] or way["seconds"]))
        way["seconds_per_step"] = round(seconds, 4)
        way["images_per_second"] = round(options.batch_size / seconds, 3)
    return ways


class Runner:
    """One process; its memory is measured from outside, so that this does not slow it down."""

    def __init__(self, context: Any, name: str, options: argparse.Namespace) -> None:
        self.connection, there = context.Pipe()
        self.process = context.Process(target=work, args=(name, options, there))
        self.process.start()
        self.idle_bytes = self.peak_bytes = self.compiling_peak_bytes = self.file_bytes = 0
        self.on_gpu = options.device == "cuda"
        self._active = False
        self._processes: list[psutil.Process] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, what: str) -> dict[str, Any]:
        """Send the process a command, and return its answer."""
        if what == "begin":
            self.connection.recv()
            self.idle_bytes = self._anonymous()[0]
        self._active = True
        self.connection.send(what)
        answer: dict[str, Any] = self.connection.recv()
        self._active = False
        if what == "begin":
            self.compiling_peak_bytes, self.peak_bytes = self.peak_bytes, 0
        return answer

    def end(self) -> dict[str, Any]:
        """End the process, and return its memory."""
        last = self.ask("end")
        self.process.join()
        anonymous = max(0, self.peak_bytes - self.idle_bytes)
        return {
            "idle_bytes": self.idle_bytes,
            "memory_bytes": last["gpu_bytes"] if self.on_gpu else anonymous,
            "memory_bytes_while_starting": max(0, self.compiling_peak_bytes - self.idle_bytes),
            "file_backed_bytes": self.file_bytes,
        }

    def _watch(self) -> None:
        looks = 0
        while self.process.is_alive():
            if self._active:
                # Looking for new processes takes long; they live long enough to be found once a second.
                anonymous, files = self._anonymous(look_for_more=looks % 50 == 0)
                self.peak_bytes, self.file_bytes = max(self.peak_bytes, anonymous), max(self.file_bytes, files)
                looks += 1
            time.sleep(0.02)

    def _anonymous(self, *, look_for_more: bool = True) -> tuple[int, int]:
        total = files = 0
        if look_for_more:
            with suppress(psutil.Error):
                process = psutil.Process(self.process.pid)
                self._processes = [process, *process.children(recursive=True)]
        for process in self._processes:
            with suppress(psutil.Error):
                info = process.memory_info()
                total += info.rss - getattr(info, "shared", 0)
                files += getattr(info, "shared", 0)
        return total, files


def work(name: str, options: argparse.Namespace, connection: Connection) -> None:
    """Take steps on command."""
    if name == "ours, lean":
        from carnet.training.memory import return_freed_memory

        return_freed_memory()
    import torch

    from carnet import create_model

    torch.manual_seed(0)
    network = create_model(options.model, num_classes=len(list((options.data / "train").iterdir())))
    begin = published_steps if name == "published loop" else our_steps
    steps, about = begin(network, options, lean=name == "ours, lean")
    connection.send("ready")
    while True:
        what = connection.recv()
        if what == "begin":
            connection.send(about())
        elif what == "steps":
            seconds, losses = [], []
            for _ in range(TURN):
                started = time.perf_counter()
                losses.append(next(steps))
                seconds.append(time.perf_counter() - started)
            connection.send({"seconds": seconds, "losses": losses})
        else:
            gpu = torch.cuda.max_memory_reserved() if options.device == "cuda" else 0
            connection.send({"gpu_bytes": gpu})
            return


About = Callable[[], dict[str, Any]]


def published_steps(network: Any, options: argparse.Namespace, *, lean: bool) -> tuple[Iterator[float], About]:
    """The loop of the published scripts, without tuning; images are prepared between the steps."""
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms
    from torchvision.transforms import functional

    from carnet.models.weights import compute_exactly
    from carnet.spec import IMAGENET_MEAN, IMAGENET_STD

    config, samples, pipeline, augmentation = recipe(options)

    class Photos(Dataset[Any]):
        def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
            epoch, index = key
            change = augmentation.draw(np.random.default_rng([config.seed, epoch, index]))
            picture = functional.resize(Image.open(samples[index].path).convert("RGB"), options.image_size)
            picture = functional.center_crop(picture, [options.image_size, options.image_size])
            picture = functional.adjust_brightness(picture, change.factor)
            picture = functional.hflip(picture) if change.mirrored else picture
            picture = functional.rotate(picture, change.angle)
            tensor = functional.normalize(transforms.ToTensor()(picture), list(IMAGENET_MEAN), list(IMAGENET_STD))
            return tensor, samples[index].label

    def steps() -> Iterator[float]:
        # GPUs of that time had no TF32.
        compute_exactly()
        learner = network.to(options.device)
        optimizer = torch.optim.Adam(learner.parameters(), lr=config.lr)
        learner.train()
        for epoch in count():
            keys = [[(epoch, item.place) for item in items] for items in pipeline.items(epoch, 0)]
            for images, labels in DataLoader(Photos(), batch_sampler=keys):
                loss = F.cross_entropy(learner(images.to(options.device)), labels.to(options.device))
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                yield loss.item()

    return steps(), dict


def our_steps(network: Any, options: argparse.Namespace, *, lean: bool) -> tuple[Iterator[float], About]:
    """The loop of `carnet train`, with the choices that it makes."""
    from carnet.spec import ModelSpec
    from carnet.text import Silent
    from carnet.training.memory import forget_peak_device_bytes
    from carnet.training.pipeline import step_seed
    from carnet.training.preparation import prepare_trial_steps
    from carnet.training.resolve import first_guess, resolve
    from carnet.training.scanning import scan_data
    from carnet.training.schedule import view_at
    from carnet.training.step import TrainingStep

    asked, _, _, _ = recipe(options, max_memory=options_memory(options) if lean else None, cache="disk")
    scan = scan_data(options.data, asked, (), Silent())
    spec = ModelSpec(model=options.model, classes=scan.images.data.classes, image_size=options.image_size)
    guess = first_guess(asked, num_train=scan.num_train, image_size=scan.image_size)
    pipeline = scan.pipeline(guess, spec)
    resolved: list[Any] = []

    def begin() -> dict[str, Any]:
        started = time.perf_counter()
        measure, _ = prepare_trial_steps(guess, network, spec, pipeline, started=time.monotonic())
        resolved.append(resolve(asked, scan, measure))
        measure.undo()
        forget_peak_device_bytes(guess.device)
        return {"reasons": resolved[0].reasons, "seconds_to_choose": round(time.perf_counter() - started, 2)}

    def steps() -> Iterator[float]:
        (config,) = resolved
        step = TrainingStep(network, spec, config)
        number = epoch = 0
        network.train()
        view, augment = view_at(0, config, config.num_steps), config.device != "cuda"
        while True:
            for batch in pipeline.batches(epoch, 0, lambda _: view, threads=config.workers, augment=augment):
                yield step(batch, step_seed(config.seed, epoch, number, 0), lambda _: None).loss
                number += 1
            epoch += 1

    return steps(), begin


def options_memory(options: argparse.Namespace) -> str:
    """Memory for the whole batch, so that batch norm gets the same images."""
    return "20GB" if options.device == "cuda" else f"{psutil.virtual_memory().total}"


def recipe(options: argparse.Namespace, **changes: Any) -> tuple[Any, Any, Any, Any]:
    """Return the published recipe, with the precision and the images that both sides share."""
    from carnet.config import published
    from carnet.data.find import find_images
    from carnet.preprocess import Images, load_image
    from carnet.spec import ModelSpec
    from carnet.training.augment import Augmentation
    from carnet.training.pipeline import ImageFiles, Pipeline

    config = replace(
        published(),
        precision=None,
        model=options.model,
        image_size=options.image_size,
        batch_size=options.batch_size,
        device=options.device,
        **changes,
    )
    samples = find_images(options.data).splits["train"]
    augmentation = Augmentation.from_config(config)
    spec = ModelSpec(model=options.model, classes=("any",), image_size=options.image_size)

    def load(source: Any) -> Images:
        return load_image(source, spec)

    pipeline = Pipeline(ImageFiles(samples, config.seed), load, augmentation, config.seed, options.batch_size)
    return config, samples, pipeline, augmentation


# --- upper bounds of the machine ---------------------------------------------------------------------------------


def roofline(options: argparse.Namespace, ours: dict[str, Any]) -> dict[str, Any]:
    """Return the shares of the measured matrix rate and memory bandwidth that our way of training reaches."""
    import torch

    from carnet.models.registry import create_model
    from carnet.models.summary import summarize

    device = torch.device(options.device)
    # Large enough that a GPU computes longer than it takes to launch.
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    matrix_rate = 2 * side**3 / fastest(lambda: a @ b, device)
    block = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(block)
    bandwidth = 2 * block.numel() * 4 / fastest(lambda: target.copy_(block), device)
    network = create_model(options.model, num_classes=100)
    summary = summarize(network, options.model, num_classes=100, image_size=options.image_size)
    # Forward once, backward twice; a multiply-add is two operations.
    operations = 6 * summary.macs * ours["images_per_second"]
    activations = 2 * num_activations(network, options.image_size)
    return {
        "matrix_rate_flops": matrix_rate,
        "memory_bandwidth_bytes_per_second": bandwidth,
        "share_of_matrix_rate": round(operations / matrix_rate, 4),
        "activation_bytes_per_image_bf16": activations,
        "passes_over_activations_at_full_bandwidth": round(bandwidth / (activations * ours["images_per_second"]), 1),
    }


def num_activations(network: Any, image_size: int) -> int:
    """Return the number of output values of all layers of a network for one image."""
    import torch

    numbers: list[int] = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, output: numbers.append(output.numel()))
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    return sum(numbers)


def fastest(work: Callable[[], Any], device: Any) -> float:
    import torch

    times = []
    for _ in range(9):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


# --- one-time costs ----------------------------------------------------------------------------------------------


def decoding(options: argparse.Namespace) -> dict[str, Any]:
    """Time decoding all images into the cache, and with plain Pillow on as many threads, in alternating halves."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    from carnet.data.decoded import Target, inspect_and_cache
    from carnet.data.find import find_images
    from carnet.machine import loading_threads
    from carnet.training.memory import free_bytes

    paths = [sample.path for sample in find_images(options.data).samples]
    for path in paths:
        path.read_bytes()  # so that neither side reads them from the disk first

    def plainly(path: Path) -> None:
        size = options.image_size
        np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    seconds = {"ours": 0.0, "plain": 0.0}
    half = len(paths) // 2
    for part in (paths[:half], paths[half:]):
        started = time.perf_counter()
        inspect_and_cache(part, Target(options.image_size), "disk", free_memory=free_bytes())
        seconds["ours"] += time.perf_counter() - started
        started = time.perf_counter()
        with ThreadPoolExecutor(loading_threads()) as pool:
            list(pool.map(plainly, part))
        seconds["plain"] += time.perf_counter() - started
    started = time.perf_counter()
    inspect_and_cache(paths[:half], Target(options.image_size), "disk", free_memory=free_bytes())
    return {
        "num_images": len(paths),
        "decoding_into_the_cache_images_per_second": round(len(paths) / seconds["ours"], 1),
        "plain_pillow_images_per_second": round(len(paths) / seconds["plain"], 1),
        "finding_them_decoded_images_per_second": round(half / (time.perf_counter() - started), 1),
    }


def starting(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the seconds from the start of the command to the end of the first step, with cold and with warm caches."""
    answer: dict[str, Any] = {}
    for name, recipe_flags in (("cold", ["--compile", "on"]), ("warm", ["--compile", "on"]), ("plain", [])):
        run = folder / f"run-{name}"
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        environment |= {"CARNET_CACHE": str(folder / ("cache-cold" if name != "plain" else "cache-plain"))}
        command = [sys.executable, "-m", "carnet", "train", str(options.data), "--model", options.model]
        command += ["--image-size", str(options.image_size), "--batch-size", str(options.batch_size)]
        command += ["--preset", "published", "--precision", "auto"]
        command += ["--epochs", "1", "--checkpoint-steps", "1", "--device", options.device, "--output", str(run)]
        started = time.perf_counter()
        with (folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen([*command, *recipe_flags], env=environment, stderr=log, stdout=log)
            # The one written before the first step becomes the previous one after it.
            while not (run / "previous.ckpt").exists() and process.poll() is None:
                time.sleep(0.05)
            answer[f"seconds_to_first_step_{name}"] = round(time.perf_counter() - started, 1)
            process.kill()
            process.wait()
        lines = (folder / f"{name}.log").read_text().splitlines()
        answer[f"reasons_{name}"] = [line[2:] for line in lines if line.startswith("- ")]
    return answer


if __name__ == "__main__":
    main()
