"""Time parts of a step of `carnet_s` (64 images of 128 px, float32), computed in other ways than PyTorch does.

The ways alternate, and the fastest time of each counts. All ways of a part give the same results up to rounding, which
is checked. The fastest ones are used in `carnet/training/depthwise.py` and `carnet/training/batch_norm.py`.

Example:
  python benchmarks/step_parts.py --held-to-avx2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch._dynamo
import torch.nn.functional as F
from environment import HELD_TO_AVX2, write_result
from torch import Tensor

from carnet.models.registry import create_model
from carnet.training.batch_norm import sum_batch_norms
from carnet.training.depthwise import (
    _gradient_in_tiles,
    _gradient_of_input,
    _gradient_of_weight,
    _gradients,
    speed_up_depthwise,
)
from carnet.training.memory import keep_freed_memory

IMAGES = 64
DEPTHWISE = [(64, 32, 3, 1), (64, 32, 3, 2), (128, 16, 3, 1), (128, 16, 5, 2), (256, 8, 5, 1), (512, 4, 5, 1)]
"""Channels, side, kernel, stride."""
POINTWISE = [(64, 64, 32), (128, 128, 16), (256, 256, 8), (512, 512, 4)]
"""Channels in and out, side."""
Ways = dict[str, Callable[[], Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--held-to-avx2", action="store_true", help="restrict PyTorch's kernels to AVX2")
    options = parser.parse_args()
    if options.held_to_avx2 and not HELD_TO_AVX2.items() <= os.environ.items():
        # This has to come before the import of PyTorch.
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | HELD_TO_AVX2, check=False).returncode)
    keep_freed_memory()
    # One function is compiled for many shapes; beyond this limit, PyTorch silently stops compiling it.
    torch._dynamo.config.recompile_limit = 64
    torch.manual_seed(0)
    parts: dict[str, Ways] = {}
    for channels, side, kernel, stride in DEPTHWISE:
        parts |= depthwise(channels, side, kernel, stride)
    for inputs, outputs, side in POINTWISE:
        parts |= pointwise(inputs, outputs, side)
    parts |= stem() | networks()
    milliseconds = {}
    for part, ways in parts.items():
        milliseconds[part] = in_turns(part, ways, options.rounds)
        print(part, milliseconds[part], flush=True)
    command = " ".join(["python benchmarks/step_parts.py", *sys.argv[1:]])
    print(write_result("step-parts" + "-avx2" * options.held_to_avx2, command, {"milliseconds": milliseconds}))


def in_turns(part: str, ways: Ways, rounds: int) -> dict[str, float]:
    """Return the milliseconds of each way, the fastest of all rounds, each after a call that is not timed."""
    first, *others = (way() for way in ways.values())
    for other in others:
        assert (other - first).norm() <= 1e-3 * first.norm(), f"{part}: the ways differ"
    fastest = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            way()
            started = time.perf_counter()
            way()
            fastest[name] = min(fastest[name], 1000 * (time.perf_counter() - started))
    return {name: round(value, 2) for name, value in fastest.items()}


def random(*shape: int) -> Tensor:
    """Return (N, C, H, W) in channels-last layout."""
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def depthwise(channels: int, side: int, kernel: int, stride: int) -> dict[str, Ways]:
    """Time the gradients of a depthwise convolution for its input and its weights."""
    around = kernel // 2
    steps, padding = (stride, stride), (around, around)
    x, weight = random(IMAGES, channels, side, side), torch.randn(channels, 1, kernel, kernel)
    grad = random(IMAGES, channels, side // stride, side // stride)

    def spread(turned: bool) -> Tensor:
        full = grad
        if stride > 1:
            full = torch.zeros_like(x)
            full[:, :, ::stride, ::stride] = grad
        if turned:
            return F.conv2d(full, weight.flip(2, 3), None, 1, kernel - 1 - around, groups=channels)
        return _gradients(full, x, weight, ((1, 1), padding), [True, False, False])[0]

    def in_pieces() -> Tensor:
        return _gradient_in_tiles(grad, F.pad(x, (around,) * 4), weight, steps)

    generated = torch.compile(products, dynamic=False)
    of = f"{channels} channels, {side} px, {kernel}x{kernel}, stride {stride}"
    return {
        f"input of depthwise, {of}": {
            "as chosen": lambda: _gradient_of_input(grad, x, weight, steps, padding),
            "library": lambda: _gradients(grad, x, weight, (steps, padding), [True, False, False])[0],
            "stride of one": lambda: spread(turned=False),
            "stride of one, weights turned": lambda: spread(turned=True),
        },
        f"weights of depthwise, {of}": {
            "as chosen": lambda: _gradient_of_weight(grad, x, weight, steps, padding),
            "library": lambda: _gradients(grad, x, weight, (steps, padding), [False, True, False])[1],
            "3x3 pieces": in_pieces,
            "generated, all at once": lambda: generated(grad, x, kernel, stride, ((0, 2, 3),)).view(weight.shape),
            "generated, image by image": lambda: generated(grad, x, kernel, stride, ((2, 3), 0)).view(weight.shape),
            "generated, row by row": lambda: generated(grad, x, kernel, stride, (3, (0, 2))).view(weight.shape),
        },
    }


def products(grad: Tensor, x: Tensor, kernel: int, stride: int, order: tuple[int | tuple[int, ...], ...]) -> Tensor:
    """Return the gradient of depthwise weights, summed over the dimensions in this order."""
    padded, (height, width) = F.pad(x, (kernel // 2,) * 4), grad.shape[2:]
    sums = []
    for i in range(kernel):
        for j in range(kernel):
            seen = padded[:, :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
            total = seen * grad
            for dimensions in order:
                total = total.sum(dimensions)
            sums.append(total)
    return torch.stack(sums, dim=1)


def pointwise(inputs: int, outputs: int, side: int) -> dict[str, Ways]:
    """Time a 1x1 convolution and its gradients, as convolutions and as matrix products."""
    x, grad, weight = (
        random(IMAGES, inputs, side, side),
        random(IMAGES, outputs, side, side),
        random(outputs, inputs, 1, 1),
    )
    pixels, gradients, matrix = rows(x), rows(grad), weight.view(outputs, inputs)

    def backward(*wanted: bool) -> tuple[Tensor, ...]:
        geometry = (1, 1), (0, 0), (1, 1), False, (0, 0), 1
        answer: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, wanted)
        return answer

    of = f"1x1, {inputs} to {outputs} channels, {side} px"
    return {
        f"forward of {of}": {"convolution": lambda: rows(F.conv2d(x, weight)), "product": lambda: pixels @ matrix.T},
        f"input of {of}": {
            "convolution": lambda: rows(backward(True, False, False)[0]),
            "product": lambda: gradients @ matrix,
        },
        f"weights of {of}": {
            "convolution": lambda: backward(False, True, False)[1].view(outputs, inputs),
            "product": lambda: gradients.T @ pixels,
        },
    }


def rows(x: Tensor) -> Tensor:
    """Reshape (N, C, H, W) -> (N x H x W, C), without a copy if channels are last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def stem() -> dict[str, Ways]:
    """Time the first layer as a convolution, and as a product with patches."""
    x, weight = random(IMAGES, 3, 128, 128), random(64, 3, 4, 4)

    def patches() -> Tensor:
        lines = x.permute(0, 2, 3, 1).reshape(IMAGES, 32, 4, 32, 12)
        return lines.permute(0, 1, 3, 2, 4).reshape(-1, 48) @ rows(weight).reshape(64, 48).T

    return {"forward of the stem": {"convolution": lambda: rows(F.conv2d(x, weight, None, 4)), "product": patches}}


def networks() -> dict[str, Ways]:
    """Compute a forward and a backward pass of the whole network, and return the gradient of its last layer."""
    images, labels = random(IMAGES, 3, 128, 128), torch.randint(0, 100, (IMAGES,))

    def gradient(compiled: bool, sums: bool) -> Callable[[], Tensor]:
        torch.manual_seed(0)
        network = create_model("carnet_s", num_classes=100).to(memory_format=torch.channels_last).train()
        speed_up_depthwise(network)
        sum_batch_norms(network, compiled=sums)
        forward = torch.compile(network.forward, dynamic=False) if compiled else network.forward
        weights = list(network.parameters())
        return lambda: torch.autograd.grad(F.cross_entropy(forward(images), labels), weights)[-2]

    ways = {
        "not compiled": gradient(compiled=False, sums=False),
        "compiled": gradient(compiled=True, sums=False),
        "compiled, batch norm as sums": gradient(compiled=True, sums=True),
    }
    return {"the whole network, forward and backward": ways}


if __name__ == "__main__":
    main()
