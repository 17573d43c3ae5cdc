"""What this machine makes of a recipe: chosen once, before the first step, and recorded with the run.

What a recipe leaves open and the network or the data decide; all of it is written into the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from carnet.config import MAX_THREADS, MuonPrecision, TrainingConfig
from carnet.documents import Count, DocumentError, Range, Seconds, Share, build
from carnet.errors import ConfigError, RunError
from carnet.machine import SPINS, is_waiting_chosen
from carnet.models.device import choose_device, device_name
from carnet.models.registry import RESIZABLE, default_image_size
from carnet.prefetch import available_cores, loading_threads
from carnet.text import first_few

FabricPrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
_FABRIC_PRECISIONS: dict[str, FabricPrecision] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


DECIDING = (
    *("device", "devices", "precision", "threads", "memory_format", "micro_batch", "compile", "fast_depthwise"),
    "muon_precision",
)
"""What the weights depend on."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Choices that depend on the machine. The same plan, recipe and seed give the same weights."""

    device: str
    """cpu, cuda or mps."""
    device_name: str
    precision: str
    """fp32, bf16 or fp16: the arithmetic of training; evaluation is fp32."""
    threads: Annotated[int, Range(1, MAX_THREADS)]
    """Processor threads of the arithmetic, in each process."""
    workers: Annotated[int, Range(0, MAX_THREADS)]
    """Threads that prepare images ahead; does not change the result."""
    devices: Annotated[int, Range(1, MAX_THREADS)] = 1
    """Processes that train together, one device each, on all machines."""
    memory_format: str = "channels_last"
    """channels_last: all channels of a pixel side by side; or contiguous."""
    micro_batch: Count = 0
    """Images that go through the network at a time in each process; batch-norm statistics are theirs."""
    compile: bool = False
    """Whether batches of that size go through the compiled network."""
    recompute: Share = 1.0
    """Share of what the compiler would keep for the backward pass; the rest is computed again there."""
    first_cost: Annotated[float, Range(0.001, 1)] = 1.0
    """What a step of the smallest images takes, as a share of one of the largest."""
    fast_depthwise: bool = False
    """Whether `carnet.training.depthwise` computes gradients."""
    muon_precision: MuonPrecision = "bf16"
    """In which Muon makes matrices orthogonal. Plans of runs before this was measured have none, and meant bf16."""
    matrix_gflops: Mapping[str, float] | None = None
    """Measured rates of matrix products, by precision."""
    keep_memory: bool = False
    """Whether freed memory stays with the process."""
    training_steps: Count = 0
    """Optimizer steps that a budget is foretold to leave time for; 0: all of the epochs."""
    most_steps: Count = 0
    """Optimizer steps of the epochs asked for, which a budget may shorten and never exceeds; 0: none were."""
    training_seconds: Seconds = 0.0
    """When this much time has been spent training, the run ends at the next step; 0: it does not."""
    reasons: tuple[str, ...] = ()
    """Why, a phrase each."""

    @property
    def fabric_precision(self) -> FabricPrecision:
        """The precision as Lightning Fabric names it."""
        return _FABRIC_PRECISIONS[self.precision]

    @property
    def judging_batch(self) -> int:
        """Images to judge at a time: without gradients they take less memory than so many in training."""
        return min(32, self.micro_batch)

    def differences(self, recorded: Plan) -> list[str]:
        """What decides the result and is not as recorded: `--threads 4 (was 2)`."""
        return [
            f"--{name.replace('_', '-')} {getattr(self, name)} (was {getattr(recorded, name)})"
            for name in DECIDING
            if getattr(self, name) != getattr(recorded, name)
        ]

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return asdict(self) | {"reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path | None = None) -> Plan:
        """Rebuild a plan from `to_json`'s dictionary; `path` is the file it comes from, for messages.

        Raises:
            RunError: if it is damaged, or one of another version of carnet.
        """
        try:
            if unknown := set(values) - {field.name for field in fields(cls)}:
                raise DocumentError(f"it has {first_few(sorted(unknown))}")
            plan = build(cls, values, needed=("reasons",))
            if not plan.micro_batch:
                raise DocumentError("it leaves micro_batch open")
        except DocumentError as error:
            where = "" if path is None else f" in {path}"
            raise RunError(
                f"the plan{where} is damaged or one of another version of carnet ({error}); go on with that, or start "
                "anew with --init"
            ) from error
        return plan


def resolve(config: TrainingConfig, *, num_launched: int = 1, on_this_machine: int = 1) -> Plan:
    """Choose what needs no measuring: device, precision, layout, and a first guess at the rest.

    `carnet.training.autotune` refines it, before the first step.

    Args:
        config: the recipe.
        num_launched: how many processes torchrun has started for this run; 1: we start `config.devices` ourselves.
        on_this_machine: how many of them run here.

    Raises:
        ConfigError: if a device, a number of them or a precision asked for is not to be had here.
    """
    device = choose_device(config.device)
    devices = _num_devices(config, device, num_launched)
    precision, reason = _precision(config, device)
    here = devices if num_launched == 1 else on_this_machine
    share = max(1, available_cores() // here)
    threads = config.threads or share
    workers = min(loading_threads(), share) if config.workers < 0 else config.workers
    # https://github.com/pytorch/pytorch/issues/175189 and 175190
    layout = "channels_last" if config.memory_format == "auto" else config.memory_format
    reasons = [f"{precision} {reason}"] if reason else []
    if device == "mps":
        layout = "contiguous"
        reasons.append("contiguous layout, because PyTorch's gradients are wrong with the other one on Apple's GPUs")
    if devices > 1:
        statistics = "common to all" if device == "cuda" else "each process's own"
        reasons.insert(0, f"{devices} processes, batch-norm statistics {statistics}")
    if device == "cpu" and threads > 1 and not is_waiting_chosen():
        reasons.append(
            f"threads wait for each other with their cores kept busy, which slows training beside other programs; set "
            f"GOMP_SPINCOUNT={SPINS} before Python starts (the carnet command does)"
        )
    fast_depthwise = config.fast_depthwise == "on" or (config.fast_depthwise == "auto" and device == "cpu")
    keep = config.keep_memory == "on" or (config.keep_memory == "auto" and not config.max_memory)
    return Plan(
        device=device,
        device_name=device_name(device),
        precision=precision,
        threads=threads,
        workers=workers,
        devices=devices,
        memory_format=layout,
        micro_batch=whole_micro_batch(config, devices),
        fast_depthwise=fast_depthwise,
        muon_precision="fp32" if config.muon_precision == "auto" else config.muon_precision,
        keep_memory=keep and device == "cpu",
        reasons=tuple(reasons),
    )


def whole_micro_batch(config: TrainingConfig, devices: int) -> int:
    """Images that go through the network at a time where memory does not matter; 0 while the batch is left open."""
    whole = -(-config.batch_size // devices)
    return min(config.micro_batch or whole, whole)


def _num_devices(config: TrainingConfig, device: str, num_launched: int) -> int:
    if num_launched > 1:
        if config.devices not in (1, num_launched):
            raise ConfigError(
                f"--devices {config.devices} contradicts the {num_launched} processes of torchrun; leave it out"
            )
        if 0 < config.batch_size < 2 * num_launched:
            raise ConfigError(f"--batch-size must be at least 2 images for each of the {num_launched} processes")
        return num_launched
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, config.devices)
    if config.devices > there:
        raise ConfigError(f"--devices {config.devices}: there are {there} {device} devices here")
    return config.devices


def processor_features() -> str:
    """The instruction set PyTorch's kernels use here, for example AVX512."""
    return torch.backends.cpu.get_cpu_capability()


def _precision(config: TrainingConfig, device: str) -> tuple[str, str]:
    if config.precision == "fp16" and device == "cpu":
        raise ConfigError("--precision fp16 needs a GPU; take bf16 or fp32 on a CPU")
    if config.precision != "auto":
        return config.precision, "as asked"
    if device == "cuda":
        # Before compute capability 8 bf16 is emulated.
        if torch.cuda.get_device_capability() >= (8, 0):
            return "bf16", "because this GPU computes it natively"
        return "fp16", "because this GPU computes it natively, and bf16 not"
    return "fp32", ""


def physical_cores() -> int:
    """Cores of the machine, each counted once even if it runs two threads; as many as this process may use at most."""
    import psutil

    return min(available_cores(), psutil.cpu_count(logical=False) or available_cores())


IMAGES_TO_SEE = 400_000
"""Training images, each as often as it comes up."""
FEWEST_EPOCHS, MOST_EPOCHS = 5, 200
STEPS_PER_EPOCH = 16
"""At least, as far as batches of `SMALLEST_BATCH` make them."""
SMALLEST_BATCH, LARGEST_BATCH = 8, 64
LONG_RUN = 30
"""Epochs from which a network sees enough of every image to need more variety."""


SIDES_BY_PASSES = ((2.0, 64), (7.0, 96), (40.0, 128), (math.inf, 160))
"""What a budget is best spent on: up to so many passes over the training images, if they had the network's own side,
and the side to take instead. `docs/recipe.md` has the experiments."""


def with_size(config: TrainingConfig) -> TrainingConfig:
    """Fill in the side of the images, unless a budget is left to choose it.

    Raises:
        CarnetError: if there is no such network.
    """
    if budget_chooses_size(config):
        return config
    return replace(config, image_size=config.image_size or default_image_size(config.model))


def budget_chooses_size(config: TrainingConfig) -> bool:
    """Whether measured speed decides on the side: with a budget and nothing else, for networks that take any side."""
    is_open = not (config.image_size or config.epochs or config.stream)
    return bool(config.budget) and is_open and config.model in RESIZABLE


def size_for(passes: float) -> int:
    """Side of the images, in pixels, for so many passes over the training images at the network's own side."""
    return next(side for most, side in SIDES_BY_PASSES if passes <= most)


def with_batch_size(config: TrainingConfig, num_train: int, devices: int = 1) -> TrainingConfig:
    """Fill in the batch: a power of two, smaller where there are few images, so that they still make some steps."""
    if config.batch_size:
        return config
    fitting = max(SMALLEST_BATCH, min(LARGEST_BATCH, num_train // STEPS_PER_EPOCH))
    size = 2 ** (fitting.bit_length() - 1)
    while size < 2 * devices:
        size *= 2
    return replace(config, batch_size=size)


def with_augmentation(config: TrainingConfig) -> TrainingConfig:
    """Fill in how much images are changed: more in a long run, which would learn them by heart otherwise."""
    is_long = config.epochs >= LONG_RUN
    min_crop = config.min_crop or (0.25 if is_long else 0.35)
    cutmix = config.cutmix if config.cutmix >= 0 else (0.5 if is_long else 0.0)
    return replace(config, min_crop=min_crop, cutmix=cutmix)


def recorded_recipe(values: Mapping[str, Any], path: Path) -> TrainingConfig:
    """The recipe that a run has recorded, in which nothing is left open.

    Args:
        values: as the run's config.json or checkpoint has them.
        path: that file, for messages.

    Raises:
        RunError: if it cannot be read, or leaves open what the run must have chosen.
    """
    config = TrainingConfig.from_json(values, path)
    if left_open := [name for name in ("image_size", "epochs", "batch_size") if not getattr(config, name)]:
        raise RunError(
            f"the recipe in {path} is damaged: it leaves {' and '.join(left_open)} open; start anew with --init"
        )
    return config


def filled_from(config: TrainingConfig, recorded: TrainingConfig) -> TrainingConfig:
    """Fill in what is left open with what a run has recorded."""
    return replace(
        config,
        image_size=config.image_size or recorded.image_size,
        epochs=config.epochs or recorded.epochs,
        batch_size=config.batch_size or recorded.batch_size,
        min_crop=config.min_crop or recorded.min_crop,
        cutmix=config.cutmix if config.cutmix >= 0 else recorded.cutmix,
    )


def with_epochs(config: TrainingConfig, num_train: int) -> TrainingConfig:
    """Fill in the number of epochs: many for few images, few for many; a budget chooses it later."""
    if config.epochs or config.budget:
        return config
    epochs = round(IMAGES_TO_SEE / num_train)
    return replace(config, epochs=min(MOST_EPOCHS, max(FEWEST_EPOCHS, epochs)))
