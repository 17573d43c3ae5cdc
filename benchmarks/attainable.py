"""Estimate how fast a training step could be, from the multiply-adds and bytes of every kind of layer.

Memory traffic is counted by operation, as PyTorch reads and writes it, forward and backward. Measured rates of matrix
products and of copying give a lower bound for the arithmetic and for the traffic of each kind of layer; a step
that overlaps both perfectly takes the larger sum. The measured step is shown beside them.

Example:
  python benchmarks/attainable.py
  python benchmarks/attainable.py --held-to-avx2
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from environment import HELD_TO_AVX2, write_result
from torch import Tensor, nn

from carnet.models.blocks import ChannelAttention
from carnet.models.registry import create_model
from carnet.models.residual_carnet import ResidualBlock
from carnet.training.depthwise import speed_up_depthwise
from carnet.training.measure import measure_matrix_rates
from carnet.training.memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="carnet_s")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--held-to-avx2", action="store_true", help="restrict PyTorch's kernels to AVX2")
    options = parser.parse_args()
    if options.held_to_avx2 and not HELD_TO_AVX2.items() <= os.environ.items():
        # This has to come before the import of PyTorch.
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | HELD_TO_AVX2, check=False).returncode)
    keep_freed_memory()
    torch.manual_seed(0)
    network = create_model(options.model, num_classes=100).to(memory_format=torch.channels_last).train()
    speed_up_depthwise(network)
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 100, (options.batch_size,))
    gflops = measure_matrix_rates(side=1024)["fp32"]
    gbytes = copy_rate()
    kinds = count(network, images)
    for line in kinds.values():
        line["least_arithmetic_ms"] = round(2 * line["gmacs"] / gflops * 1000, 1)
        line["least_traffic_ms"] = round(line["gbytes"] / gbytes * 1000, 1)
        line["gmacs"], line["gbytes"] = round(line["gmacs"], 2), round(line["gbytes"], 2)

    def forward_and_backward() -> None:
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]

    total = {name: round(sum(line[name] for line in kinds.values()), 2) for name in next(iter(kinds.values()))}
    numbers: dict[str, Any] = {
        "matrix_gflops_fp32": round(gflops, 1),
        "copy_gbytes_per_second": round(gbytes, 1),
        "kinds": kinds,
        "total": total,
        "forward_and_backward_ms": round(1000 * median_seconds(forward_and_backward), 1),
    }
    numbers["share_of_matrix_rate"] = round(total["least_arithmetic_ms"] / numbers["forward_and_backward_ms"], 3)
    for kind, line in {**kinds, "total": total}.items():
        print(f"{kind:24}" + "".join(f"{name} {value:8.2f}   " for name, value in line.items()))
    print(f"a step takes {numbers['forward_and_backward_ms']} ms, {100 * numbers['share_of_matrix_rate']:.0f}% of it "
          "is the least arithmetic")  # fmt: skip
    suffix = "-avx2" if options.held_to_avx2 else ""
    command = " ".join(["python benchmarks/attainable.py", *sys.argv[1:]])
    print(write_result(f"attainable-{options.model}-{options.image_size}px{suffix}", command, numbers))


def count(network: nn.Module, images: Tensor) -> dict[str, dict[str, float]]:
    """Return the multiply-adds and bytes, in 10^9, of a forward and a backward pass, by kind of layer."""
    kinds: dict[str, dict[str, float]] = {}

    def add(kind: str, macs: float, values: float) -> None:
        numbers = kinds.setdefault(kind, {"gmacs": 0.0, "gbytes": 0.0})
        numbers["gmacs"] += macs / 1e9
        numbers["gbytes"] += 4 * values / 1e9

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        taken, given = inputs[0].numel(), output.numel()
        match module:
            case nn.Conv2d():
                kind = "depthwise convolutions" if module.groups > 1 else "matrix convolutions"
                macs = given * module.weight[0].numel()
                # Forward: in, out. For the input: gradient, in's gradient. For the weights: in, gradient.
                add(kind, 3 * macs, 3 * (taken + given))
            case nn.BatchNorm2d():
                # Statistics: in. Then in, out. Backward, sums: in, gradient. Then in, gradient, in's gradient.
                add("batch norm", 0, 8 * taken)
            case ChannelAttention():
                # Mean: in. Then in, out. Backward: gradient, in, in's gradient, and gradient and in for the weights.
                add("channel attention", 0, 8 * taken)
            case ResidualBlock():
                middle = inputs[0].numel() // module.stride**2
                # ReLU in place: in, out; backward: gradient, out, in's gradient.
                add("ReLU", 0, 5 * middle)
                # The sum: two in, one out; backward the gradients of two ways are added: two in, one out.
                add("shortcuts", 0, 3 * given + 3 * taken + (2 * taken + 2 * given if module.stride > 1 else 0))

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    network(images)
    for hook in hooks:
        hook.remove()
    return kinds


def copy_rate() -> float:
    """Measure the gigabytes per second that are read and written, for far more data than a cache holds."""
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / 1e9 / median_seconds(lambda: target.copy_(source))


def median_seconds(call: Callable[[], object], rounds: int = 15) -> float:
    """Measure the seconds of one call, after warm-up calls."""
    for _ in range(5):
        call()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
