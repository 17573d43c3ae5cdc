"""Time the parts of training that docs/speed.md explains, each beside what it replaces, on this machine.

Example:
  python benchmarks/kernels.py
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from environment import write_result
from torch import Tensor

from carnet import ModelSpec, TrainingConfig, create_model
from carnet.data.samples import Sample
from carnet.training.augment import Augmentation
from carnet.training.depthwise import _gradient_of_input, _gradient_of_weight, _gradients
from carnet.training.memory import keep_freed_memory
from carnet.training.pipeline import ImageFiles, Pipeline
from carnet.training.resolve import first_guess
from carnet.training.schedule import View
from carnet.training.step import TrainingStep

ROUNDS = 9
SHAPE = (16, 64, 244, 244)


def main() -> None:
    numbers = {"plain_step": plain_steps(), **depthwise_gradients(), **augmentation(), **preparation()}
    print(write_result("kernels", "python benchmarks/kernels.py", numbers))


def in_turn(**works: Callable[[], Any]) -> dict[str, float]:
    """Return the median milliseconds of each call; the calls alternate."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(ROUNDS):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - started))
    return {f"{name}_ms": round(float(np.median(values)), 1) for name, values in times.items()}


def depthwise_gradients() -> dict[str, dict[str, float]]:
    """Time depthwise convolutions in bf16: 3x3 without padding, and 5x5."""
    keep_freed_memory()
    x = laid_out(torch.randn(SHAPE))
    weight = torch.randn(SHAPE[1], 1, 3, 3)
    compiled = torch.compile(_gradient_of_weight, dynamic=False)
    answer = {}
    for stride in (1, 2):
        steps, padding = (stride, stride), (0, 0)
        grad = laid_out(torch.randn(*SHAPE[:2], *[(size - 3) // stride + 1 for size in SHAPE[2:]]))
        geometry = steps, padding
        answer[f"depthwise_stride_{stride}"] = in_turn(
            library_input=lambda: _gradients(grad, x, weight, geometry, [True, False, False]),  # noqa: B023
            ours_input=lambda: _gradient_of_input(grad, x, weight, steps, padding),  # noqa: B023
            library_weight=lambda: _gradients(grad, x, weight, geometry, [False, True, False]),  # noqa: B023
            ours_weight_compiled=lambda: compiled(grad, x, weight, steps, padding),  # noqa: B023
        )
    # A larger kernel, as in the last stage of carnet_s at 128 px.
    x, weight = laid_out(torch.randn(64, 512, 4, 4)), torch.randn(512, 1, 5, 5)
    geometry = (1, 1), (2, 2)
    answer["depthwise_5x5"] = in_turn(
        library_weight=lambda: _gradients(x, x, weight, geometry, [False, True, False]),
        ours_weight=lambda: _gradient_of_weight(x, x, weight, *geometry),
    )
    return answer


def laid_out(x: Tensor) -> Tensor:
    return x.bfloat16().to(memory_format=torch.channels_last)


def augmentation() -> dict[str, dict[str, float]]:
    """Time the augmentation of 64 images of 128 px on one thread: single images in Pillow, and a batch in PyTorch."""
    images = np.random.default_rng(0).integers(0, 256, (64, 128, 128, 3), dtype=np.uint8)
    augmentation = Augmentation(0.2, 0.5, 15)
    changes = [augmentation.draw(np.random.default_rng(number)) for number in range(64)]
    batch, table = torch.from_numpy(images), torch.tensor(changes, dtype=torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    answer = in_turn(
        pillow=lambda: [augmentation.apply(*pair, 128) for pair in zip(images, changes, strict=True)],
        batch=lambda: augmentation.apply_to_batch(batch, table, 128),
    )
    torch.set_num_threads(threads)
    return {"augmentation_64_images_128_px": answer}


def preparation() -> dict[str, dict[str, float]]:
    """Time ten steps of `carnet_s` on 64 decoded images each, augmented between the steps or by one or two threads."""
    asked = TrainingConfig(image_size=128, epochs=1, batch_size=64, min_crop=0.35, cutmix=0.0)
    spec = ModelSpec(model="carnet_s", classes=tuple(map(str, range(100))), image_size=128)
    config = first_guess(asked, num_train=640, image_size=128)
    network = create_model("carnet_s", num_classes=100)
    step = TrainingStep(network, spec, config)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    samples = [Sample(Path(str(number)), number % 100) for number in range(640)]
    pipeline = Pipeline(ImageFiles(samples, 0), lambda _: pixels, Augmentation.from_config(config), 0, batch_size=64)
    network.train()

    def steps(side: int, threads: int) -> None:
        for batch in pipeline.batches(0, 0, lambda _: View(side, 0.35), threads=threads):
            step(batch, 0, lambda _: None)

    return {
        f"ten_steps_{side}_px": in_turn(
            **{f"{threads}_threads": partial(steps, side, threads) for threads in (0, 1, 2)},
        )
        for side in (64, 128)
    }


def plain_steps() -> dict[str, dict[str, float]]:
    """Time steps of a plain loop (fp32, contiguous, eager) with freed memory returned and kept, each in a process."""
    answer = {}
    for name in ("given_back", "kept"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            answer[name] = pool.apply(plain_step, (name == "kept",))
    return answer


def plain_step(keep: bool) -> dict[str, float]:
    """Return the seconds and page faults of the fastest of three steps, after a warm-up step."""
    if keep:
        keep_freed_memory()
    network = create_model("carnet18", num_classes=100)
    images, labels = torch.randn(16, 3, 244, 244), torch.randint(0, 100, (16,))
    steps = []
    for _ in range(4):
        faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        network.zero_grad()
        steps.append((time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))
    seconds, page_faults = min(steps[1:])
    return {"seconds": round(seconds, 2), "page_faults": page_faults}


if __name__ == "__main__":
    main()
