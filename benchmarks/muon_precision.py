"""Compare the accuracy with Muon in fp32 and in bf16, with the same recipe and seeds.

Both train on drawn images (`carnet/data/synthetic.py`) for a fixed number of epochs, so that speed has no effect.
Processors without bf16 instructions take minutes for what others do in seconds. With --rounded, products of bf16
matrices are computed in float32 and rounded to bf16, as the instructions do; the difference from PyTorch's own products
is measured.

Example:
  python benchmarks/muon_precision.py --model carnet_n --seeds 3 --rounded
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
from environment import mean_and_spread, write_result

from carnet import TrainingConfig
from carnet.config import MuonPrecision
from carnet.data.synthetic import write_dataset
from carnet.text import Silent
from carnet.training import optim as optimizers
from carnet.training.run import train

orthogonalized = optimizers.orthogonalized


class RoundedProducts(torch.overrides.TorchFunctionMode):
    """Multiply bf16 matrices with float32 sums, rounded once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_product = func in (torch.addmm, torch.Tensor.matmul, torch.Tensor.__matmul__)
        if is_product and args[0].dtype == torch.bfloat16:
            return func(*(matrix.float() for matrix in args), **kwargs).bfloat16()
        return func(*args, **kwargs)


def rounded(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Do the same as `orthogonalized`, at the speed of float32."""
    with RoundedProducts():
        return orthogonalized(matrix, dtype)


def distance_of_rounded() -> float:
    """Return the difference of both for a random matrix, relative to its norm."""
    matrix = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    own = orthogonalized(matrix, torch.bfloat16)
    return float((rounded(matrix, torch.bfloat16) - own).norm() / own.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="carnet_n")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounded", action="store_true", help="bf16 by rounding products of float32")
    options = parser.parse_args()
    if options.rounded:
        optimizers.orthogonalized = rounded
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        write_dataset(pictures)
        for seed in range(options.seeds):
            for precision in get_args(MuonPrecision):
                config = TrainingConfig(
                    model=options.model,
                    image_size=options.image_size,
                    epochs=options.epochs,
                    precision="fp32",
                    muon_precision=precision,
                    compile=False,
                    seed=seed,
                )
                result = train(pictures, config, output=Path(folder) / f"{precision}-{seed}", progress=Silent())
                runs.append(
                    {
                        "muon_precision": precision,
                        "seed": seed,
                        "top1": result.top1,
                        "valid_loss": result.history[-1]["valid_loss"],
                        "seconds": result.document["seconds"],
                    }
                )
                print(f"seed {seed}, {precision}: {100 * result.top1:.1f}% in {runs[-1]['seconds']} s", file=sys.stderr)
    of = {name: [run for run in runs if run["muon_precision"] == name] for name in get_args(MuonPrecision)}
    numbers: dict[str, Any] = {"distance_of_rounded": distance_of_rounded()} if options.rounded else {}
    numbers |= {
        "top1_percent": {name: mean_and_spread([100 * run["top1"] for run in some]) for name, some in of.items()},
        "valid_loss": {name: mean_and_spread([run["valid_loss"] for run in some]) for name, some in of.items()},
        "runs": runs,
    }
    command = f"python benchmarks/muon_precision.py --model {options.model} --image-size {options.image_size}"
    command += f" --epochs {options.epochs} --seeds {options.seeds}" + " --rounded" * options.rounded
    print(write_result(f"muon-precision-{options.model}", command, numbers))


if __name__ == "__main__":
    main()
