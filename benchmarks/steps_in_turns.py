"""Compare the training steps of this code with those of another commit on the same pixels.

Each version trains the same network in a long-lived process and takes a few steps while the others wait. A step is
CutMix, forward and backward pass, and optimizer. The other version comes from a git worktree, removed afterwards.
`--plain` adds the loop of the published scripts: eager, fp32, contiguous, Adam, freed memory returned to the system.

Example:
  python benchmarks/steps_in_turns.py --held-to-avx2
  python benchmarks/steps_in_turns.py --model carnet18 --image-size 244 --batch-size 16 --rounds 3 --plain
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

TREE = Path(__file__).resolve().parents[1]
BEFORE = "3f2ed14"
"""The first commit that trains fast on processors without bf16 instructions."""
PRESENT, OTHER, COMPILED, PLAIN = "present", "other", "present, compiled", "published loop"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default=BEFORE, help="commit of the other version")
    parser.add_argument("--model", default="carnet_s")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=3, help="number of steps that each takes in its turn")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="precision of our steps (default: the faster one)"
    )
    parser.add_argument("--compiled", action="store_true", help="also measure compiled steps of this version")
    parser.add_argument("--plain", action="store_true", help="also measure the published loop")
    parser.add_argument("--held-to-avx2", action="store_true", help="restrict PyTorch's kernels to AVX2")
    parser.add_argument("--child", choices=[PRESENT, OTHER, COMPILED, PLAIN], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work(options.child, options)
        return
    # Not in a child, whose version may be older.
    from environment import HELD_TO_AVX2, write_result

    if options.held_to_avx2 and not HELD_TO_AVX2.items() <= os.environ.items():
        # This has to come before the import of PyTorch, which also describes the machine in the result.
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | HELD_TO_AVX2, check=False).returncode)
    from carnet.training.measure import faster_precision, measure_matrix_rates

    rates = measure_matrix_rates(side=1024)
    options.precision = options.precision or faster_precision(rates)
    numbers: dict[str, Any] = {
        "other_commit": options.commit,
        "precision": options.precision,
        "matrix_gflops_of_1024": rates,
        **compare(options, gflops=rates[options.precision]),
    }
    print(json.dumps({key: value for key, value in numbers.items() if key != "seconds"}, indent=2))
    name = f"steps-in-turns-{options.model}-{options.image_size}px" + ("-avx2" if options.held_to_avx2 else "")
    print(write_result(name, " ".join(["python benchmarks/steps_in_turns.py", *sys.argv[1:]]), numbers))


def compare(options: argparse.Namespace, *, gflops: float) -> dict[str, Any]:
    """Return the seconds of every step, their medians, images per second, and ratios to the other version."""
    names = [PRESENT, OTHER, *[COMPILED] * options.compiled, *[PLAIN] * options.plain]
    with ExitStack() as stack:
        other = stack.enter_context(checked_out(options.commit))
        ask = {name: stack.enter_context(child(name, other if name == OTHER else TREE, options)) for name in names}
        losses = {name: [step["loss"] for step in call()] for name, call in ask.items()}
        take = {name: partial(seconds_of, call) for name, call in ask.items()}
        seconds = in_turns(take, options.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    operations = 6 * macs(options) * options.batch_size
    return {
        "milliseconds": {name: round(1000 * median, 1) for name, median in medians.items()},
        "images_per_second": {name: round(options.batch_size / median, 1) for name, median in medians.items()},
        "present_is_times_as_fast_as": {
            name: round(medians[name] / medians[PRESENT], 3) for name in names if name != PRESENT
        },
        # A multiply-add is two operations, and the backward pass takes twice those of the forward pass.
        "share_of_matrix_rate": {
            name: float(f"{operations / (1e9 * gflops * median):.3g}") for name, median in medians.items()
        },
        "first_losses": losses,
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }


def seconds_of(ask: Callable[[], list[dict[str, float]]]) -> list[float]:
    """Results of the steps that a child takes at one call."""
    return [step["seconds"] for step in ask()]


def in_turns(calls: Mapping[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[float]]:
    """Return the results of each call in every round; the order is reversed from round to round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            found[name] += calls[name]()
    return found


def macs(options: argparse.Namespace) -> int:
    """Return the multiply-adds of one image, forward."""
    from carnet.models.registry import create_model
    from carnet.models.summary import summarize

    network = create_model(options.model, num_classes=100)
    return summarize(network, options.model, num_classes=100, image_size=options.image_size).macs


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Check out a commit into a git worktree that exists while the block runs."""
    git = ["git", "-C", str(TREE), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run([*git, "add", "--detach", str(tree), commit], check=True, capture_output=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True, capture_output=True)


@contextmanager
def child(name: str, tree: Path, options: argparse.Namespace) -> Iterator[Callable[[], list[dict[str, float]]]]:
    """Start a process, and yield a function that lets it take some steps and returns their seconds and losses."""
    arguments = ["--child", name, "--model", options.model, "--precision", options.precision]
    for option in ("image_size", "batch_size", "steps"):
        arguments += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    command = [sys.executable, __file__, *arguments]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        stdin: IO[str] = process.stdin
        stdout: IO[str] = process.stdout

        def ask() -> list[dict[str, float]]:
            stdin.write("\n")
            stdin.flush()
            answer: list[dict[str, float]] = json.loads(stdout.readline())
            return answer

        # Leaving the block closes the input of the child, which ends it.
        yield ask


def work(name: str, options: argparse.Namespace) -> None:
    """Take steps for every line of standard input; the first steps are warm-up."""
    take = (published_step if name == PLAIN else our_step)(options, compiled=name == COMPILED)
    number = 0
    for _ in sys.stdin:
        steps = []
        for _ in range(options.steps):
            started = time.perf_counter()
            loss = take(number)
            steps.append({"seconds": time.perf_counter() - started, "loss": round(loss, 5)})
            number += 1
        print(json.dumps(steps), flush=True)


def our_step(options: argparse.Namespace, *, compiled: bool) -> Callable[[int], float]:
    """Return a function that takes a step of the imported `carnet`, given its number."""
    import torch

    from carnet import TrainingConfig
    from carnet.models.registry import create_model
    from carnet.spec import ModelSpec
    from carnet.training.memory import keep_freed_memory

    keep_freed_memory()
    images, labels = pixels(options)
    wishes: dict[str, Any] = {
        "model": options.model,
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "epochs": 1,
        "device": "cpu",
        "precision": options.precision,
        "muon_precision": options.precision,
    }
    spec = ModelSpec(model=options.model, classes=tuple(map(str, range(100))), image_size=options.image_size)
    torch.manual_seed(0)
    network = create_model(options.model, num_classes=100)
    if find_spec("carnet.training.plan"):
        make_batch, step = step_of_version_0_1(network, spec, TrainingConfig(**wishes), compiled=compiled)
    else:
        from carnet.training.pipeline import Batch
        from carnet.training.resolve import first_guess
        from carnet.training.step import TrainingStep

        asked = TrainingConfig(**wishes)
        guess = first_guess(asked, num_train=options.batch_size, image_size=options.image_size)
        config = replace(guess, compile=compiled)
        make_batch = Batch
        step = TrainingStep(network, spec, config)
    network.train()
    batch = make_batch(torch.from_numpy(images), torch.from_numpy(labels), size=options.image_size)
    return lambda number: float(step(batch, number, lambda _: None).loss)


def step_of_version_0_1(network: Any, spec: Any, config: Any, *, compiled: bool) -> tuple[Any, Any]:
    """Return the class of batches and a step of versions before ResolvedConfig."""
    modules = [import_module(f"carnet.training.{name}") for name in ("dataset", "plan", "processes", "step")]
    dataset, plans, processes, steps = modules
    plan = replace(plans.resolve(config), compile=compiled, muon_precision=config.muon_precision)
    alone = processes.Processes()
    step = steps.TrainingStep(network, spec, config, plan=plan, processes=alone, fabric=alone.fabric(plan, []))
    return dataset.Batch, step


def published_step(options: argparse.Namespace, *, compiled: bool) -> Callable[[int], float]:
    """Return a step of the published scripts on decoded pixels."""
    import torch
    import torch.nn.functional as F

    from carnet.models.registry import create_model

    assert not compiled
    images, labels = (torch.from_numpy(values) for values in pixels(options))
    inputs = (images.permute(0, 3, 1, 2).contiguous().float() / 255 - 0.45) / 0.225
    torch.manual_seed(0)
    network = create_model(options.model, num_classes=100)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)

    def take(_: int) -> float:
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return take


def pixels(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return uint8 images (N, S, S, 3) and labels (N,), the same for all."""
    import numpy as np

    rng, size, number = np.random.default_rng(0), options.image_size, options.batch_size
    return rng.integers(0, 256, (number, size, size, 3), np.uint8), rng.integers(0, 100, number)


if __name__ == "__main__":
    main()
