"""Resolve a config: choose everything that was left open, once, before the first step.

`choose_size` comes first, before any image is decoded. `resolve` then makes a complete first guess from the data and
the device, and the choices that need measuring (`carnet.training.autotune`). Nothing after it changes a setting.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch

from carnet.config import LITE0, Device, Precision, ResolvedConfig, TrainingConfig, steps_per_epoch
from carnet.data.samples import LabeledImages
from carnet.errors import CarnetError, ConfigError, DataError
from carnet.machine import SPINS, available_cores, is_waiting_chosen, loading_threads
from carnet.models.registry import RESIZABLE, create_model, default_image_size, preprocessing_of
from carnet.models.weights import choose_device, device_name
from carnet.preprocess import load_image
from carnet.spec import Interpolation, ModelSpec
from carnet.text import Progress, counted, duration, parse_seconds
from carnet.training.augment import Augmentation
from carnet.training.autotune import augmentation_for, choose_matrix_precision, choose_step, circumstances, tune
from carnet.training.distributed import num_launched
from carnet.training.features import SMALLEST_CROP, FeatureExtractor
from carnet.training.measure import Measure
from carnet.training.memory import keep_freed_memory
from carnet.training.step import explaining_out_of_memory

LR, FINE_TUNING_LR = 0.08, 3e-4
"""Highest learning rate from random weights, by Muon, and from trained ones, by AdamW."""
INITIAL_SIZE_RATIO = 0.5
FROZEN_SHARE = 0.65
"""Share of the multiply-adds whose weights stay when trained weights are fine-tuned: what they have learned from many
images is general, and not changing it takes less than half of the time (`benchmarks/LOG.md`)."""
IMAGES_TO_SEE, FINE_TUNING_IMAGES = 400_000, 50_000
"""Training images of a whole run, each as often as it comes up."""
FEWEST_EPOCHS, MOST_EPOCHS, MOST_FINE_TUNING_EPOCHS = 5, 200, 30
STEPS_PER_EPOCH = 16
"""Fewest, unless that takes batches below `SMALLEST_BATCH`."""
SMALLEST_BATCH, LARGEST_BATCH = 8, 64
SIDES_BY_STEPS = ((500, 64), (1300, 96), (8500, 128), (math.inf, 160))
"""Number of steps that a budget leaves time for at the network's own side, and the best side up to that number.
`docs/recipe.md` has the experiments."""
SIDES_OF_FEATURES, MOST_OF_BUDGET = (224, 192, 160, 128), 0.4
"""Sides of a pretrained network, and the share of a budget that features of all images may take."""
TEACHER_SHARE = 0.1
"""Share of the rest of a budget that a teacher may take, unless one look at each image takes more: answers for crops
gain nothing that more steps would not, see `benchmarks/LOG.md`."""
_DECODED_TO_TIME = 32
"""Images."""


@dataclass(frozen=True)
class Start:
    """Where the initial weights come from.

    Attributes:
        is_trained: from pretrained weights or another run, instead of being random.
        interpolation: filter that resizes their images.
        mean: of each channel that they expect; None: the network's own.
        std: likewise.
    """

    is_trained: bool = False
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, spec: ModelSpec, *, is_trained: bool) -> Start:
        """Return the start of a network whose images are as `spec` says."""
        return cls(is_trained, spec.interpolation, spec.mean, spec.std)


class Images(Protocol):
    """What resolving needs to know of the data."""

    @property
    def num_train(self) -> int:
        """Training images."""

    @property
    def num_valid(self) -> int:
        """Validation images."""

    @property
    def image_size(self) -> int:
        """Side of the decoded images, in pixels."""


def resolve(requested: TrainingConfig, scan: Images, measure: Measure, *, start: Start = Start()) -> ResolvedConfig:
    """Choose everything that was left open, and give the reasons.

    Args:
        requested: the config as it was requested.
        scan: of the data.
        measure: of this machine.
        start: where the initial weights come from.

    Raises:
        ConfigError: if this machine lacks the devices or the precision that were requested, the memory allowed is too
            little, or compiling was requested and fails.
        DataError: if there are too few images for the number of devices.
    """
    guess = first_guess(requested, num_train=scan.num_train, image_size=scan.image_size, start=start)
    return tune(guess, requested, scan.num_valid, measure)


def first_guess(
    requested: TrainingConfig, *, num_train: int, image_size: int, start: Start = Start()
) -> ResolvedConfig:
    """Choose what follows from the data and the device without measuring, and guess the rest.

    Args:
        requested: the config as it was requested.
        num_train: training images.
        image_size: side of the images, in pixels.
        start: where the initial weights come from.

    Raises:
        ConfigError: if this machine lacks the devices or the precision that were requested.
        DataError: if there are too few images for the number of devices.
    """
    device, devices = device_and_number(requested)
    if devices > 1 and num_train < 2 * devices:
        raise DataError(
            f"{counted(num_train, 'training image')} are too few for --devices {devices}; use fewer devices"
        )
    batch_size = requested.batch_size or _batch_size(num_train, devices)
    epochs = 1 if requested.freeze else requested.epochs or 1
    if requested.epochs is None and requested.budget is None and not requested.freeze:
        most, images_to_see = (MOST_EPOCHS, IMAGES_TO_SEE)
        if start.is_trained:
            most, images_to_see = (MOST_FINE_TUNING_EPOCHS, FINE_TUNING_IMAGES)
        epochs = min(most, max(FEWEST_EPOCHS, round(images_to_see / num_train)))
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", devices)) if num_launched() > 1 else devices
    cores = max(1, available_cores() // local_processes)
    on_cpu, whole = device == "cpu", -(-batch_size // devices)
    chosen = {
        "image_size": image_size,
        "initial_size_ratio": requested.initial_size_ratio or (1.0 if start.is_trained else INITIAL_SIZE_RATIO),
        "frozen_share": _frozen_share(requested, start),
        "optimizer": requested.optimizer or ("adamw" if start.is_trained else "muon"),
        "lr": requested.lr or (FINE_TUNING_LR if start.is_trained else LR),
        "epochs": epochs,
        "batch_size": batch_size,
        "valid_seed": requested.seed if requested.valid_seed is None else requested.valid_seed,
        "device": device,
        "devices": devices,
        "precision": requested.precision or _native_precision(device),
        "muon_precision": requested.muon_precision or "fp32",
        "compile": False,
        "memory_format": "contiguous" if device == "mps" else requested.memory_format or "channels_last",
        "fast_depthwise": on_cpu if requested.fast_depthwise is None else requested.fast_depthwise,
        "keep_memory": keeps_memory(requested, device),
        "threads": requested.threads or cores,
        "workers": min(loading_threads(), cores) if requested.workers is None else requested.workers,
        "micro_batch": min(requested.micro_batch or whole, whole),
    }
    guess = ResolvedConfig(
        **{field.name: getattr(requested, field.name) for field in fields(TrainingConfig)}
        | chosen
        | augmentation_for(requested, 0 if requested.epochs is None and requested.budget else epochs),
        device_name=device_name(device),
        interpolation=start.interpolation,
        mean=start.mean,
        std=start.std,
        is_fine_tuning=start.is_trained,
        num_steps=1 if requested.freeze else epochs * steps_per_epoch(num_train, batch_size, devices),
    )
    if requested.freeze:
        # Features are computed as images are evaluated, and the head is fitted to them before the first step.
        return replace(guess, precision="fp32", min_crop=SMALLEST_CROP, cutmix=0.0)
    return replace(guess, reasons=tuple(_first_reasons(guess, requested)))


def keeps_memory(requested: TrainingConfig, device: Device) -> bool:
    """Return whether freed memory is kept for the next step."""
    wanted = requested.max_memory is None if requested.keep_memory is None else requested.keep_memory
    return device == "cpu" and wanted


def _frozen_share(requested: TrainingConfig, start: Start) -> float:
    """Return the share of the multiply-adds whose weights stay as they are."""
    if requested.frozen_share is not None:
        return requested.frozen_share
    # With --freeze no step is taken.
    return FROZEN_SHARE if start.is_trained and not requested.freeze else 0.0


def _batch_size(num_train: int, devices: int) -> int:
    """Return a power of two, smaller where there are few images, so that an epoch still has some steps."""
    fitting = max(SMALLEST_BATCH, min(LARGEST_BATCH, num_train // STEPS_PER_EPOCH))
    size: int = 2 ** (fitting.bit_length() - 1)
    while size < 2 * devices:
        size *= 2
    return size


def _native_precision(device: Device) -> Precision:
    """Return the precision that a device computes well, as far as no measuring is needed."""
    if device == "cuda":
        # Before compute capability 8 bf16 is emulated.
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    return "fp32"


def _first_reasons(guess: ResolvedConfig, requested: TrainingConfig) -> Iterator[str]:
    """Yield the reasons for a first guess, a phrase each."""
    if guess.is_fine_tuning and not guess.freeze:
        yield (
            f"fine-tuning at a learning rate of {guess.lr:g}: the first layers, {100 * guess.frozen_share:.0f}% of the "
            "multiply-adds, and the statistics of batch norms stay as they are"
        )
    if guess.devices > 1:
        statistics = "shared by all" if guess.device == "cuda" else "of each process"
        yield f"{guess.devices} processes, batch-norm statistics {statistics}"
    if requested.precision is not None:
        yield f"{guess.precision} as requested"
    elif guess.device == "cuda":
        others = "" if guess.precision == "bf16" else ", unlike bf16"
        yield f"{guess.precision} because this GPU computes it natively{others}"
    if guess.device == "mps":
        # https://github.com/pytorch/pytorch/issues/175189 and 175190
        yield "contiguous layout, because PyTorch's gradients with channels last are wrong on Apple's GPUs"
    if guess.device == "cpu" and guess.threads > 1 and not is_waiting_chosen():
        yield (
            "waiting compute threads keep their cores busy, which slows training down beside other programs; set "
            f"GOMP_SPINCOUNT={SPINS} before Python starts (the carnet command does)"
        )


def device_and_number(requested: TrainingConfig) -> tuple[Device, int]:
    """Return the device to compute on, and the number of processes.

    Raises:
        ConfigError: if this machine lacks them, or they contradict what torchrun has started.
    """
    device = choose_device(requested.device)
    if requested.precision == "fp16" and device == "cpu":
        raise ConfigError("--precision fp16 needs a GPU; take bf16 or fp32 on a CPU")
    launched = num_launched()
    if launched > 1:
        if requested.devices not in (1, launched):
            raise ConfigError(
                f"--devices {requested.devices} contradicts the {launched} processes of torchrun; leave it out"
            )
        if requested.batch_size is not None and requested.batch_size < 2 * launched:
            raise ConfigError(f"--batch-size must be at least 2 images for each of the {launched} processes")
        return device, launched
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, requested.devices)
    if requested.devices > there:
        raise ConfigError(f"--devices {requested.devices} is more than the {there} {device} devices of this machine")
    return device, requested.devices


def budget_chooses_size(requested: TrainingConfig) -> bool:
    """Return whether a budget alone decides the side of the images, for networks that take any side."""
    is_open = requested.image_size is None and requested.epochs is None and not requested.stream
    return requested.budget is not None and is_open and requested.model in RESIZABLE


def size_for(num_steps: float) -> int:
    """Return the best side, in pixels, where there is time for so many steps at the network's own side."""
    return next(side for most, side in SIDES_BY_STEPS if num_steps <= most)


def choose_size(
    requested: TrainingConfig,
    images: LabeledImages,
    progress: Progress,
    *,
    started: float,
    num_unlabeled: int = 0,
    measure: Callable[[ResolvedConfig, ModelSpec], Measure] | None = None,
    decoding_seconds: float | None = None,
) -> int:
    """Choose the side of the images, in pixels: as requested, the network's own, or what makes the most of a budget.

    A smaller side lets the network see each image more often.

    Args:
        requested: the config as it was requested.
        images: as they were found.
        progress: told the choice where a budget makes it.
        started: when the command began, by `time.monotonic`.
        num_unlabeled: images without labels, besides the others.
        measure: returns the measure of this machine; None: one that takes trial steps on random pixels.
        decoding_seconds: time to decode all images; None: some of them are decoded.
    """
    usual = default_image_size(requested.model)
    if requested.model == LITE0 and requested.budget is not None and requested.image_size is None:
        return _size_for_features(requested, images, progress, started=started)
    if not budget_chooses_size(requested) or requested.budget is None:
        return requested.image_size or usual
    num_train = len(images.splits.get("train", images.samples))
    if "valid" not in images.splits:
        num_train = max(1, round((1 - requested.valid_fraction) * num_train))
    num_train += num_unlabeled
    spec = ModelSpec(
        model=requested.model,
        classes=images.classes,
        image_size=usual,
        resize=requested.resize,
        in_channels=requested.in_channels,
    )
    guess = first_guess(requested, num_train=num_train, image_size=usual)
    machine = measure(guess, spec) if measure else Measure.on_random_pixels(spec, guess.micro_batch, started=started)
    seconds = _seconds_of_step(guess, requested, machine)
    steps = steps_per_epoch(num_train, guess.batch_size, guess.devices)
    decoding = _seconds_to_decode(images, spec) if decoding_seconds is None else decoding_seconds
    decoding *= 1 + num_unlabeled / len(images.samples)
    # Without a cache images are decoded in every epoch.
    epoch, once = (seconds * steps + decoding, 0.0) if requested.cache == "off" else (seconds * steps, decoding)
    left = max(0.0, parse_seconds(requested.budget) - machine.elapsed() - once)
    epochs = left * (1 if requested.teacher is None else 1 - TEACHER_SHARE) / epoch
    fitting = round(epochs * steps)
    side = size_for(fitting)
    progress.say(
        f"Trains on images of {side} px, because --budget {requested.budget} leaves time for about {fitting:,} "
        f"steps at {usual} px ({epochs:.2g} passes over {counted(num_train, 'training image')}, at "
        f"{guess.batch_size / seconds:,.0f} images/s); --image-size chooses another side."
    )
    return side


def _size_for_features(requested: TrainingConfig, images: LabeledImages, progress: Progress, *, started: float) -> int:
    """Return the largest side at which the features of all images take a small part of a budget."""
    usual = default_image_size(requested.model)
    network = create_model(requested.model, num_classes=2, in_channels=requested.in_channels)
    how = preprocessing_of(requested.model, requested.in_channels)
    spec = how.spec(model=requested.model, classes=images.classes, image_size=usual, in_channels=requested.in_channels)
    assert requested.budget is not None
    left = parse_seconds(requested.budget) - (time.monotonic() - started) - _seconds_to_decode(images, spec)
    if keeps_memory(requested, "cpu"):
        # Features are computed so, several times as fast.
        keep_freed_memory()
    extractor = FeatureExtractor.of_network(network, spec, Augmentation.from_config(requested))
    seconds = extractor.seconds_per_image() * len(images.samples)
    fitting = (side for side in SIDES_OF_FEATURES if seconds * (side / usual) ** 2 <= MOST_OF_BUDGET * left)
    side = next(fitting, SIDES_OF_FEATURES[-1])
    if side < usual:
        progress.say(
            f"Trains on images of {side} px, because features of all images at {usual} px take about "
            f"{duration(seconds)} of --budget {requested.budget}; --image-size chooses another side."
        )
    return side


def _seconds_of_step(guess: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> float:
    """Return the time of a step once precision, layout, gradients and threads are chosen."""
    what = f"a step of {requested.model} at {guess.image_size} px, asked for {requested.precision}, "
    what += f"{requested.memory_format}, {requested.fast_depthwise}, {requested.max_memory or 'any'} memory: "
    what += circumstances(guess)

    def chosen() -> dict[str, float]:
        with explaining_out_of_memory(guess.image_size, guess.micro_batch):
            config = choose_step(choose_matrix_precision(guess, requested, measure), requested, measure)
        return {"seconds": config.step_seconds}

    return measure.once(what, ("seconds",), chosen)["seconds"]


def _seconds_to_decode(images: LabeledImages, spec: ModelSpec) -> float:
    """Estimate the time to decode all images by decoding some of them."""
    samples = images.samples[:: max(1, len(images.samples) // _DECODED_TO_TIME)]
    started = time.perf_counter()
    for sample in samples:
        # The scan of all images reports those that cannot be decoded.
        with suppress(CarnetError):
            load_image(sample.path, spec)
    return (time.perf_counter() - started) / len(samples) * len(images.samples) / loading_threads()
