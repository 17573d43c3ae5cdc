"""What was asked for becomes what is done here: chosen once, before the first step, and recorded with the run.

`resolve` makes a complete first guess, from the data and the device, and then one choice after the other that only
measuring can make (`carnet.training.autotune`). Nothing after it changes a setting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace

import torch

from carnet.config import Device, Precision, ResolvedConfig, TrainingConfig, steps_per_epoch
from carnet.errors import ConfigError, DataError
from carnet.machine import SPINS, available_cores, is_waiting_chosen, loading_threads
from carnet.models.weights import choose_device, device_name
from carnet.text import counted
from carnet.training.autotune import CHOICES, augmentation_for, whole_micro_batch
from carnet.training.distributed import num_launched
from carnet.training.measurements import Images, Measure

IMAGES_TO_SEE = 400_000
"""Training images, each as often as it comes up."""
FEWEST_EPOCHS, MOST_EPOCHS = 5, 200
STEPS_PER_EPOCH = 16
"""At least, as far as batches of `SMALLEST_BATCH` make them."""
SMALLEST_BATCH, LARGEST_BATCH = 8, 64


def resolve(asked: TrainingConfig, scan: Images, measure: Measure) -> ResolvedConfig:
    """Fill in everything that was left open, each choice with its reason.

    Args:
        asked: the config as it was asked for.
        scan: of the data.
        measure: tells how fast this machine is, and what it has.

    Raises:
        ConfigError: if a device, a number of them or a precision asked for is not there, the memory allowed is too
            little, or compiling was asked for and fails.
        DataError: if there are too few images for so many devices.
    """
    config = first_guess(asked, num_train=scan.num_train, image_size=scan.image_size)
    for choose in CHOICES:
        config = choose(config, asked, scan, measure)
    return config


def first_guess(asked: TrainingConfig, *, num_train: int, image_size: int) -> ResolvedConfig:
    """What follows from the data and the device, without measuring; a guess at the rest.

    Args:
        asked: the config as it was asked for.
        num_train: training images.
        image_size: side of the images, in pixels.

    Raises:
        ConfigError: if a device, a number of them or a precision asked for is not there.
        DataError: if there are too few images for so many devices.
    """
    device, devices = device_and_number(asked)
    if devices > 1 and num_train < 2 * devices:
        raise DataError(f"{counted(num_train, 'training image')} cannot be shared by {devices} devices; use fewer")
    batch_size = asked.batch_size or batch_size_for(num_train, devices)
    epochs = asked.epochs or (1 if asked.budget else epochs_for(num_train))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", devices)) if num_launched() > 1 else devices
    share = max(1, available_cores() // here)
    threads = asked.threads or share
    chosen = {
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "valid_seed": asked.seed if asked.valid_seed is None else asked.valid_seed,
        "device": device,
        "devices": devices,
        "precision": _precision(asked, device),
        "muon_precision": asked.muon_precision or "fp32",
        "compile": False,
        "memory_format": "contiguous" if device == "mps" else asked.memory_format or "channels_last",
        "fast_depthwise": device == "cpu" if asked.fast_depthwise is None else asked.fast_depthwise,
        "keep_memory": device == "cpu" and (not asked.max_memory if asked.keep_memory is None else asked.keep_memory),
        "threads": threads,
        "workers": min(loading_threads(), share) if asked.workers is None else asked.workers,
        "micro_batch": whole_micro_batch(batch_size, devices, asked.micro_batch),
    }
    guess = ResolvedConfig(
        **{field.name: getattr(asked, field.name) for field in fields(TrainingConfig)}
        | chosen
        | augmentation_for(asked, 0 if asked.epochs is None and asked.budget else epochs),
        device_name=device_name(device),
        num_steps=epochs * steps_per_epoch(num_train, batch_size, devices),
    )
    return replace(guess, reasons=tuple(_first_reasons(guess, asked)))


def _first_reasons(guess: ResolvedConfig, asked: TrainingConfig) -> Iterator[str]:
    """Why, as far as no measuring is needed: a phrase each."""
    if guess.devices > 1:
        statistics = "common to all" if guess.device == "cuda" else "each process's own"
        yield f"{guess.devices} processes, batch-norm statistics {statistics}"
    if asked.precision is not None:
        yield f"{guess.precision} as asked"
    elif guess.device == "cuda":
        others = "" if guess.precision == "bf16" else ", and bf16 not"
        yield f"{guess.precision} because this GPU computes it natively{others}"
    if guess.device == "mps":
        # https://github.com/pytorch/pytorch/issues/175189 and 175190
        yield "contiguous layout, because PyTorch's gradients are wrong with the other one on Apple's GPUs"
    if guess.device == "cpu" and guess.threads > 1 and not is_waiting_chosen():
        yield (
            "threads wait for each other with their cores kept busy, which slows training beside other programs; set "
            f"GOMP_SPINCOUNT={SPINS} before Python starts (the carnet command does)"
        )


def device_and_number(asked: TrainingConfig) -> tuple[Device, int]:
    """Where to compute, and with how many processes.

    Raises:
        ConfigError: if they are not there, or contradict what torchrun has started.
    """
    device = choose_device(asked.device)
    if asked.precision == "fp16" and device == "cpu":
        raise ConfigError("--precision fp16 needs a GPU; take bf16 or fp32 on a CPU")
    launched = num_launched()
    if launched > 1:
        if asked.devices not in (1, launched):
            raise ConfigError(
                f"--devices {asked.devices} contradicts the {launched} processes of torchrun; leave it out"
            )
        if asked.batch_size is not None and asked.batch_size < 2 * launched:
            raise ConfigError(f"--batch-size must be at least 2 images for each of the {launched} processes")
        return device, launched
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, asked.devices)
    if asked.devices > there:
        raise ConfigError(f"--devices {asked.devices}: there are {there} {device} devices here")
    return device, asked.devices


def batch_size_for(num_train: int, devices: int = 1) -> int:
    """Images of a batch: a power of two, smaller where there are few images, so that they still make some steps."""
    fitting = max(SMALLEST_BATCH, min(LARGEST_BATCH, num_train // STEPS_PER_EPOCH))
    size: int = 2 ** (fitting.bit_length() - 1)
    while size < 2 * devices:
        size *= 2
    return size


def epochs_for(num_train: int) -> int:
    """Epochs where no budget chooses them: many for few images, few for many."""
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(IMAGES_TO_SEE / num_train)))


def _precision(asked: TrainingConfig, device: Device) -> Precision:
    """Arithmetic of training, as far as no measuring is needed."""
    if asked.precision is not None:
        return asked.precision
    if device == "cuda":
        # Before compute capability 8 bf16 is emulated.
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    return "fp32"
