"""The config of training: as it was requested, and as it was resolved.

The command line takes its flags from `TrainingConfig`; there is no second list. This file imports no torch, so that
`carnet train --help` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

from carnet.documents import Count, DocumentError, Range, Seconds, Share, build, conform, phrase
from carnet.errors import ConfigError, RunError
from carnet.spec import MAX_IMAGE_SIZE, Interpolation, ResizeRule
from carnet.text import first_few, parse_bytes, parse_milliseconds, parse_seconds

Precision = Literal["fp32", "bf16", "fp16"]
MuonPrecision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda", "mps"]
Logger = Literal["none", "tensorboard"]
Optimizer = Literal["adam", "adamw", "muon"]
Schedule = Literal["constant", "linear"]
MemoryFormat = Literal["channels_last", "contiguous"]
Cache = Literal["disk", "ram", "off"]
Layout = Literal["classes", "splits"]
Balance = Literal["none", "sampler", "loss"]
LITE0 = "efficientnet_lite0"
"""The network that always starts from pretrained weights."""
LIMITS = ("budget", "max_memory", "max_latency", "max_size", "weights", "teacher", "unlabeled")
"""Fields in which None means that there is none."""
FREE = frozenset({"workers", "logger", "checkpoint_minutes", "checkpoint_steps", "cache", "unlabeled"})
"""Fields that do not change the result, or name a place whose content is compared."""
MAX_THREADS = 1024
"""Threads, or processes, of one kind; systems refuse to start very many."""
_MAX_SEED = 2**63 - 1

Positive = Annotated[float, Range(0, above=True)]
Pixels = Annotated[int, Range(1, MAX_IMAGE_SIZE, unit="pixels")]
NumEpochs = Annotated[int, Range(1, unit="epochs")]
NumImages = Annotated[int, Range(1, unit="images")]
NumThreads = Annotated[int, Range(1, MAX_THREADS)]
NumWorkers = Annotated[int, Range(0, MAX_THREADS)]
Seed = Annotated[int, Range(0, _MAX_SEED)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images are trained on, and which are held out."""

    layout: Layout | None = None
    """What the folders in DATA are: classes, or splits (train, valid, test) with class folders inside; auto: by their
    names and contents, with an error where both are possible."""
    valid_fraction: Annotated[float, Range(0, 1, above=True, below=True)] = 0.2
    """Share of each class that is held out for validation where the data has no valid folder."""
    valid_seed: Seed | None = None
    """Seed of that split; auto: --seed. Runs with the same --valid-seed are evaluated on the same images."""
    skip_unreadable: bool = False
    """Leave out, and count, images that cannot be decoded, instead of stopping before the first step."""
    stream: bool = False
    """Read training images while training, for a data set (hf:, Parquet, shards) larger than the disk."""
    unlabeled: str | None = None
    """Folder of images without labels, which the --teacher names; they are trained on, and never evaluated."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network and its input."""

    model: str = "carnet_s"
    """Network: one of ours (`carnet summary --help` lists them), efficientnet_lite0, which starts from pretrained
    weights, timm/NAME, or auto: the most accurate one within the limits."""
    pretrained: bool = False
    """Start from timm's published weights (timm/ models only), from its cache or downloaded."""
    weights: str | None = None
    """Start from the pretrained weights in this file (efficientnet_lite0 and timm/ models): safetensors, or a state
    dict of PyTorch."""
    max_latency: str | None = None
    """Limit of the time for one image, such as 5ms: by the exported file, on one thread of this machine."""
    max_size: str | None = None
    """Limit of the exported file in float32, such as 3MB (with --int8 it has about a third)."""
    image_size: Pixels | None = None
    """Side of the square input, in pixels; auto: the network's own, or what a --budget is best spent on."""
    initial_size_ratio: PositiveShare | None = None
    """Progressive resizing: side of the images at the beginning, as a share of --image-size; 1 is off; auto: 0.5 from
    random weights, 1 from trained ones."""
    resize: ResizeRule = "crop"
    """How an image becomes square: crop (resize the short side, crop the centre), pad (black bars), stretch."""
    in_channels: Literal[1, 3, 4] = 3
    """Channels that the network sees: 1 grey, 3 colour, 4 colour and opacity."""


@dataclass(frozen=True, kw_only=True)
class OptimizationOptions:
    """How the weights are learned."""

    freeze: bool = False
    """Keep the initial weights, of --init or pretrained ones, and fit a new head to their features: takes seconds to
    minutes."""
    teacher: str | None = None
    """Learn from the answers of a larger model instead of the labels: efficientnet_lite0, whose head is fitted to the
    labelled images first, a finished run, or an exported file."""
    epochs: NumEpochs | None = None
    """Passes over the training images, with --budget at most so many; auto: by their number, or by the budget."""
    batch_size: NumImages | None = None
    """Images per optimizer step; the last, smaller batch of an epoch is kept; auto: by the number of images."""
    frozen_share: Share | None = None
    """Share of the network's multiply-adds, from the input on, whose weights stay as they are; auto: 0.65 from trained
    weights, 0 from random ones."""
    optimizer: Optimizer | None = None
    """muon (Muon for hidden matrices, AdamW for the rest), adamw or adam; auto: muon from random weights, adamw from
    trained ones."""
    lr: Positive | None = None
    """Highest learning rate; auto: 0.08 from random weights, less from trained ones."""
    adamw_lr_ratio: Positive = 0.1
    """With muon: learning rate of what AdamW trains, as a share of --lr."""
    weight_decay: Annotated[float, Range(0)] = 0.05
    """Decay of the weights at each step, times the learning rate; with adam an L2 penalty in the gradient."""
    schedule: Schedule = "linear"
    """Learning rate over the run: constant, or linear (a linear warmup, then a linear decay to zero)."""
    warmup: ShareBelowOne = 0.08
    """Share of the run that is warmup in a linear schedule."""
    balance: Balance = "none"
    """For classes of unequal size: draw images of small classes more often (sampler), or let them weigh more (loss)."""
    label_smoothing: ShareBelowOne = 0.1
    """Share of every label that is spread over all classes, against overconfidence; 0 is off."""
    ema: ShareBelowOne = 0.998
    """Decay, at each step, of the moving average (EMA) of the weights that is evaluated and kept; 0 is off."""


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions:
    """How training images are changed at random."""

    min_crop: PositiveShare | None = None
    """RandomResizedCrop: smallest share of the area, larger in the last steps; 1 is off; auto: by the epochs."""
    cutmix: Share | None = None
    """Share of batches with CutMix (a box of every image comes from another); 0 is off; auto: by the epochs."""
    brightness: Share = 0.2
    """Brightness jitter: pixels are multiplied by a factor between 1 - this and 1 + this; 0 is off."""
    color: Share = 0.0
    """Contrast and saturation jitter by factors between 1 - this and 1 + this, for light that changes; 0 is off."""
    flip: Share = 0.5
    """Share of images mirrored left to right; 0 where left and right matter (digits, road signs)."""
    rotation: Annotated[float, Range(0, 180, unit="degrees")] = 0.0
    """Largest angle by which images are rotated either way, in degrees; 0 is off."""


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """How this machine computes; auto is chosen by measuring where speed decides."""

    device: Device | None = None
    """Device to train on; auto: a GPU if there is one."""
    devices: NumThreads = 1
    """Processes to train with, each on a GPU or on a part of the processor's cores; they share every batch."""
    precision: Precision | None = None
    """Precision of training (evaluation is always fp32); auto: what a GPU computes natively, on a processor bf16 if it
    is faster."""
    muon_precision: MuonPrecision | None = None
    """With muon: precision of its matrix products; auto: the faster one."""
    compile: bool | None = None
    """Compile the network (torch.compile); auto: if the run is long enough to repay it."""
    memory_format: MemoryFormat | None = None
    """Memory layout of images and weights; auto: channels_last unless contiguous is faster."""
    fast_depthwise: bool | None = None
    """Take our gradient of depthwise convolutions instead of PyTorch's; auto: the faster one."""
    keep_memory: bool | None = None
    """Keep freed memory for the next step (glibc): much faster, but takes more; auto: on without --max-memory."""
    max_memory: str | None = None
    """Limit of the memory that training may take, such as 2GB; none: what is free."""
    micro_batch: NumImages | None = None
    """Images that go through the network at a time; gradients accumulate over the batch; auto: as memory allows."""
    threads: NumThreads | None = None
    """Compute threads of each process; auto: one for each logical core, or fewer if that is faster."""
    workers: NumWorkers | None = None
    """Threads that prepare images ahead; 0 prepares each batch when it is due; auto: as many as keep up."""
    cache: Cache | None = None
    """Where decoded images are cached: on the disk, for later runs too, in memory (ram), or nowhere (off); auto: by
    what is free."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How long a run takes, and what it writes."""

    budget: str | None = None
    """Time for the whole run, such as 10m or 1h30m, including the scan of the images; it decides the epochs."""
    patience: Annotated[int, Range(0, unit="epochs")] = 0
    """Early stopping after this many epochs without a better validation accuracy; the best epoch is kept (the most
    accurate; of several, the one with the lowest loss); 0 is off."""
    seed: Seed = 0
    """Seed of everything random: initial weights, order, augmentation, held-out images."""
    checkpoint_minutes: Positive = 5.0
    """Minutes between checkpoints inside an epoch; every epoch also ends with one."""
    checkpoint_steps: Count = 0
    """Optimizer steps between checkpoints, besides those by time; 0 is off."""
    logger: Logger = "none"
    """Write the curves for TensorBoard as well."""


GROUPS = {
    "data": DataOptions,
    "model": ModelOptions,
    "optimization": OptimizationOptions,
    "augmentation": AugmentationOptions,
    "machine": MachineOptions,
    "run": RunOptions,
}
"""The flags of a command that trains, as its help groups them."""
OF_MACHINE = frozenset(field.name for field in fields(MachineOptions)) - FREE - {"max_memory"}
"""Fields that name how the machine computes; all but `keep_memory` change at least the last digits."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunOptions, MachineOptions, AugmentationOptions, OptimizationOptions, ModelOptions, DataOptions):
    """How a network is trained, as it was requested. None ("auto") leaves a choice to `carnet.training.resolve`.

    The defaults are what we recommend; `published` is the published recipe.

    Raises:
        ConfigError: if a field is out of range.
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            try:
                conform(value, kind)
            except DocumentError:
                flag = f"--{name.replace('_', '-')}"
                is_open = type(self) is TrainingConfig and getattr(TrainingConfig, name) is None
                way_out = "; leave it out to have it chosen" if is_open else ""
                raise ConfigError(f"{flag} must be {phrase(kind)}, got {value!r}{way_out}") from None
        if self.devices > 1 and self.batch_size is not None and self.batch_size < 2 * self.devices:
            raise ConfigError(
                f"--batch-size must be at least 2 images for each of the {self.devices} devices, got {self.batch_size}"
            )
        if empty := [name for name in ("weights", "teacher", "unlabeled") if getattr(self, name) == ""]:
            raise ConfigError(f"--{empty[0]} names nothing; leave it out, or name what is meant")
        # Each raises an error that names its flag.
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if self.budget is not None:
            parse_seconds(self.budget)
        if self.max_latency is not None:
            parse_milliseconds(self.max_latency)
        if self.max_size is not None:
            parse_bytes(self.max_size, "--max-size")

    @property
    def is_pretrained(self) -> bool:
        """Whether the initial weights are pretrained ones."""
        return self.pretrained or self.weights is not None or self.model == LITE0

    def with_full_paths(self) -> Self:
        """Return the config with paths that are valid from any folder."""
        names = [name for name in ("weights", "teacher", "unlabeled") if getattr(self, name) not in (None, LITE0)]
        # Links stay as they are, so that what they lead to may move.
        paths: dict[str, Any] = {name: os.path.abspath(os.path.expanduser(getattr(self, name))) for name in names}  # noqa: PTH100, PTH111
        return replace(self, **paths)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain values, the inverse of `from_json`."""
        return asdict(self)

    def differences(self, other: TrainingConfig) -> list[str]:
        """Return the changed fields that decide the result, as `--lr 0.001 (was 0.0005)`; not those of the machine."""
        return [
            change(name, getattr(self, name), getattr(other, name))
            for name in (field.name for field in fields(TrainingConfig))
            if name not in FREE | OF_MACHINE and getattr(self, name) != getattr(other, name)
        ]

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path | None = None) -> Self:
        """Rebuild a config from the dictionary of `to_json`; `path` is its file, for messages.

        Raises:
            RunError: if it has a field that this version does not know, or a value of another type or out of range.
        """
        where = "" if path is None else f" in {path}"
        if unknown := set(values) - {field.name for field in fields(cls)}:
            raise RunError(f"the recipe{where} has unknown fields: {first_few(sorted(unknown))}; update carnet")
        try:
            return build(cls, values)
        except (DocumentError, ConfigError) as error:
            raise RunError(f"the recipe{where} cannot be read: {error}") from error


def change(name: str, then: object, now: object) -> str:
    """Return how a field was changed, as a flag: `--lr 0.001 (was 0.0005)`."""
    words = {True: "on", False: "off", None: "none" if name in LIMITS else "auto"}
    then, now = (words[value] if value is None or isinstance(value, bool) else value for value in (then, now))
    return f"--{name.replace('_', '-')} {now} (was {then})"


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainingConfig):
    """How a network is trained here: `TrainingConfig` with every choice made, and with what was measured.

    It is complete before the first step and recorded with the run: on one machine the same one gives the same weights.
    `field()` removes the default that a field would inherit.
    """

    image_size: Pixels = field()
    initial_size_ratio: PositiveShare = field()
    frozen_share: Share = 0.0
    optimizer: Optimizer = field()
    lr: Positive = field()
    epochs: NumEpochs = field()
    batch_size: NumImages = field()
    cutmix: Share = field()
    min_crop: PositiveShare = field()
    valid_seed: Seed = field()
    device: Device = field()
    precision: Precision = field()
    muon_precision: MuonPrecision = field()
    compile: bool = field()
    memory_format: MemoryFormat = field()
    fast_depthwise: bool = field()
    keep_memory: bool = field()
    threads: NumThreads = field()
    workers: NumWorkers = field()
    micro_batch: NumImages = field()
    device_name: str
    interpolation: Interpolation = "bilinear"
    """Filter that resizes images: that of the pretrained weights."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that the initial weights expect; None in records of older versions: the network's own."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the loss; None: all count alike."""
    is_fine_tuning: bool = False
    """Whether the run starts from trained weights: then batch norms keep their statistics."""
    recompute: Share = 1.0
    """Share of activations that compiled code keeps for the backward pass; the rest is recomputed there."""
    initial_step_cost: Annotated[float, Range(0.001, 1)] = 1.0
    """Time of a step with images of the initial side, as a share of one with images of full side."""
    step_seconds: Seconds = 0.0
    """Measured time of a step with images of full side."""
    matrix_gflops: Mapping[str, float] | None = None
    """Measured GFLOP/s of matrix products, by precision."""
    num_steps: Annotated[int, Range(1)]
    """Optimizer steps of the whole run; with a budget, as many as there is expected to be time for."""
    max_steps: Annotated[int, Range(1)] | None = None
    """Optimizer steps of the requested epochs, which a budget never exceeds; None: no number was requested."""
    training_seconds: Seconds | None = None
    """Time after which training ends at the next step; None: there is no limit."""
    reasons: tuple[str, ...] = ()
    """Why these choices were made, a phrase each."""

    def because(self, reason: str, **choices: Any) -> Self:
        """Return a config with other choices, and the reason for them: a phrase."""
        return replace(self, **choices, reasons=(*self.reasons, reason))

    @property
    def evaluation_batch(self) -> int:
        """Images to evaluate at a time, which without gradients take less memory than as many in training."""
        return min(32, self.micro_batch)


def steps_per_epoch(num_images: int, batch_size: int, num_processes: int) -> int:
    """Return the number of batches of an epoch; images too few for another batch join the one before it."""
    full, left = divmod(num_images, batch_size)
    return max(1, full + (left >= 2 * num_processes))


def published() -> TrainingConfig:
    """The published recipe: Adam at 5e-4 for 50 epochs, batches of 16, 244 px, fp32, no pretrained weights.

    Command: `carnet train DATA --model carnet18 --preset published`.
    Published result on the 100 sports classes: 81.8% top-1, mean of five runs, under 1.7 hours each on an RTX 2080 Ti.
    `docs/recipe.md` names each difference from the published scripts.
    """
    return TrainingConfig(
        model="carnet18",
        image_size=244,
        initial_size_ratio=1.0,
        epochs=50,
        batch_size=16,
        frozen_share=0.0,
        optimizer="adam",
        lr=5e-4,
        weight_decay=0.0,
        schedule="constant",
        label_smoothing=0.0,
        cutmix=0.0,
        ema=0.0,
        min_crop=1.0,
        rotation=15.0,
        precision="fp32",
    )


def default() -> TrainingConfig:
    """The recommended recipe; `docs/carnet_s.md` tells how it was found and what it reaches.

    Command: `carnet train DATA` (the same as `--preset default`); with `--budget 10m` the time decides the epochs.
    """
    return TrainingConfig()


PRESETS: dict[str, Callable[[], TrainingConfig]] = {"default": default, "published": published}


FORMAT = 2
"""Format of `config.json` and of the record in checkpoints."""
