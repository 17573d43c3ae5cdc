"""How a network is trained: what was asked for, and what that was resolved to.

The command line takes its flags from `TrainingConfig`; there is no second list. This file imports no torch, so that
`carnet train --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

from carnet.documents import Count, DocumentError, Range, Seconds, Share, build, conform, phrase
from carnet.errors import ConfigError, RunError
from carnet.spec import MAX_IMAGE_SIZE, ResizeRule
from carnet.text import first_few, parse_bytes, parse_seconds

Precision = Literal["fp32", "bf16", "fp16"]
MuonPrecision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda", "mps"]
Logger = Literal["none", "tensorboard"]
Optimizer = Literal["adam", "muon"]
Schedule = Literal["constant", "linear"]
MemoryFormat = Literal["channels_last", "contiguous"]
Cache = Literal["disk", "ram", "off"]
Layout = Literal["classes", "splits"]
FREE = frozenset({"workers", "logger", "checkpoint_minutes", "checkpoint_steps", "cache"})
"""Fields that do not change the result."""
OF_MACHINE = frozenset(
    {"device", "devices", "precision", "threads", "compile", "memory_format", "fast_depthwise"}
    | {"micro_batch", "keep_memory", "muon_precision"}
)
"""Fields that say how it is computed; all but `keep_memory` change at least the last digits."""
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
SomeShare = Annotated[float, Range(0, 1, above=True)]
"""A share of more than nothing."""
Fraction = Annotated[float, Range(0, 1, below=True)]
"""A share of less than everything."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a network is trained, as it was asked for. None leaves a choice to `carnet.training.resolve`.

    The defaults are what we recommend; `published` is the published recipe.

    Raises:
        ConfigError: if a field is out of range.
    """

    model: str = "carnet_s"
    """Network: one of ours (`carnet summary --help` lists them), or timm/NAME."""
    pretrained: bool = False
    """Start from timm's published weights (timm/ models only; needs a network). The recipe's learning rate is meant for
    random weights; a lower --lr keeps more of what they know."""
    image_size: Pixels | None = None
    """Side of the square input, in pixels; left out: the network's own, or what a budget is best spent on."""
    initial_size_ratio: SomeShare = 0.5
    """Side at the beginning of training, as a share of --image-size, to which it grows; 1 is off."""
    resize: ResizeRule = "crop"
    """How an image becomes a square: crop (short side to size, centre cut out), pad (black bars), stretch."""
    in_channels: Literal[1, 3, 4] = 3
    """What the network sees of an image: 1 grey, 3 colour, 4 colour and opacity."""
    epochs: NumEpochs | None = None
    """Passes over the training images, with --budget at most so many; left out: by their number, or the budget."""
    batch_size: NumImages | None = None
    """Images per optimizer step; the last, smaller batch of an epoch is kept; left out: by the number of images."""
    optimizer: Optimizer = "muon"
    """Muon (AdamW for what is no hidden matrix) or Adam."""
    lr: Positive = 0.08
    """Learning rate, at its highest."""
    adamw_lr_ratio: Positive = 0.1
    """With muon: learning rate of what AdamW trains, as a share of --lr."""
    weight_decay: Annotated[float, Range(0)] = 0.05
    """Taken off the weights at each step, times the learning rate; with adam an L2 penalty in the gradient."""
    schedule: Schedule = "linear"
    """Learning rate over the run: constant; or up in a line, and down to zero in another."""
    warmup: Fraction = 0.08
    """Share of the run in which a linear schedule goes up."""
    label_smoothing: Fraction = 0.1
    """Share of every label that is spread over all classes, so that nothing is learned to be certain."""
    cutmix: Share | None = None
    """Share of batches in which a piece of every image comes from another one; 0 is off; left out: by the epochs."""
    ema: Fraction = 0.998
    """Judge and keep a moving average of the weights, with this decay at each step; 0 is off."""
    min_crop: SomeShare | None = None
    """Training images are shown in pieces, of at least this share of their area, at last nearly whole; 1 is off; left
    out: by the epochs."""
    brightness: Share = 0.2
    """Brightness jitter: each training image is multiplied by 1 +- this; 0 is off."""
    color: Share = 0.0
    """Jitter of contrast and of saturation, by factors of 1 +- this, for light that changes; 0 is off."""
    flip: Share = 0.5
    """Share of training images mirrored left to right; 0 where left and right matter (digits, road signs)."""
    rotation: Annotated[float, Range(0, 180, unit="degrees")] = 0.0
    """Training images are turned by up to this many degrees either way; 0 is off."""
    layout: Layout | None = None
    """What the folders in DATA are: classes, or splits (train, valid, test) with the classes inside; left out: told by
    their names and contents; asks where both could be."""
    valid_fraction: Annotated[float, Range(0, 1, above=True, below=True)] = 0.2
    """Share of each class held back for validation where the data has no valid folder."""
    valid_seed: Seed | None = None
    """Of that division; left out: --seed. Runs with one number and other seeds are judged by the same images."""
    patience: Annotated[int, Range(0, unit="epochs")] = 0
    """Stop after this many epochs without a better validation accuracy, and keep the best epoch (the most accurate; of
    several, the one with the lowest loss); 0 is off."""
    seed: Seed = 0
    """Of everything random: initial weights, order, augmentation, held-back images."""
    skip_unreadable: bool = False
    """Leave out, and count, images that cannot be decoded, instead of stopping before the first step."""
    stream: bool = False
    """Read training images while training, for a data set (hf:, Parquet, shards) larger than the disk."""
    device: Device | None = None
    """Where to train; left out: a GPU where there is one."""
    devices: NumThreads = 1
    """Processes to train with, one GPU or one part of the processor's cores each; they share every batch."""
    precision: Precision | None = None
    """Arithmetic of training; evaluation is fp32; left out: what a GPU does well, and on a processor bf16 where it is
    measured to be faster."""
    muon_precision: MuonPrecision | None = None
    """With muon: arithmetic in which it makes matrices orthogonal; left out: measured which is faster here."""
    compile: bool | None = None
    """Compile the network (torch.compile); left out: where the run is long enough to repay it."""
    memory_format: MemoryFormat | None = None
    """How images lie in memory; left out: all channels of a pixel side by side, unless contiguous is faster here."""
    fast_depthwise: bool | None = None
    """Compute the gradient of depthwise convolutions our way; left out: measured which is faster."""
    keep_memory: bool | None = None
    """Keep freed memory for the next step (glibc): much faster, but takes more; left out: without --max-memory."""
    cache: Cache | None = None
    """Where decoded images are kept: on the disk for later runs too, in memory, or nowhere; left out: by what is
    free."""
    threads: NumThreads | None = None
    """Threads of the arithmetic in each process; left out: one for each logical core, or what is measured faster."""
    workers: NumWorkers | None = None
    """Threads that prepare images ahead; 0 prepares each batch when it is due; left out: as many as keep up."""
    micro_batch: NumImages | None = None
    """Images that go through the network at a time; gradients add up to those of the batch; left out: as memory
    allows."""
    max_memory: str | None = None
    """Memory that training may take, such as 2GB; left out: what is free."""
    budget: str | None = None
    """Time to train in, such as 10m or 1h30m, looking at the images included; it decides how many epochs there are."""
    checkpoint_minutes: Positive = 5.0
    """Time between checkpoints inside an epoch; every epoch ends with one as well."""
    checkpoint_steps: Count = 0
    """Optimizer steps between checkpoints, besides those by time; 0 is off."""
    logger: Logger = "none"
    """Write the curves for TensorBoard as well."""

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
        # Each says itself what is wrong.
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if self.budget is not None:
            parse_seconds(self.budget)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values, the inverse of `from_json`."""
        return asdict(self)

    def differences(self, other: TrainingConfig) -> list[str]:
        """Fields that decide the result and differ: `--lr 0.001 (was 0.0005)`; how it is computed is left out."""
        return [
            change(name, getattr(self, name), getattr(other, name))
            for name in (field.name for field in fields(TrainingConfig))
            if name not in FREE | OF_MACHINE and getattr(self, name) != getattr(other, name)
        ]

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path | None = None) -> Self:
        """Rebuild a config from `to_json`'s dictionary; `path` is the file it comes from, for messages.

        Raises:
            RunError: if it has a field this version does not know, or a value of another type or out of range.
        """
        where = "" if path is None else f" in {path}"
        if unknown := set(values) - {field.name for field in fields(cls)}:
            raise RunError(
                f"the recipe{where} has fields this version does not know: {first_few(sorted(unknown))}; update carnet"
            )
        try:
            return build(cls, values)
        except (DocumentError, ConfigError) as error:
            raise RunError(f"the recipe{where} cannot be read: {error}") from error


def change(name: str, then: object, now: object) -> str:
    """A field that is not what it was, as flags: `--lr 0.001 (was 0.0005)`."""
    words = {True: "on", False: "off", None: "none" if name in ("budget", "max_memory") else "auto"}
    then, now = (words[value] if value is None or isinstance(value, bool) else value for value in (then, now))
    return f"--{name.replace('_', '-')} {now} (was {then})"


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainingConfig):
    """How a network is trained here: nothing of `TrainingConfig` is left open, and what the machine decides is added.

    Frozen before the first step and recorded with the run: the same one gives the same weights on one machine.
    `field()` takes away the default that a field would inherit.
    """

    image_size: Pixels = field()
    epochs: NumEpochs = field()
    batch_size: NumImages = field()
    cutmix: Share = field()
    min_crop: SomeShare = field()
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
    recompute: Share = 1.0
    """Share of what the compiler would keep for the backward pass; the rest is computed again there."""
    initial_step_cost: Annotated[float, Range(0.001, 1)] = 1.0
    """What a step of the smallest images takes, as a share of one of the largest."""
    step_seconds: Seconds = 0.0
    """What a step with images of full side took when it was measured."""
    matrix_gflops: Mapping[str, float] | None = None
    """Measured rates of matrix products, by precision."""
    num_steps: Annotated[int, Range(1)]
    """Optimizer steps of the whole run, or as many as a budget is expected to leave time for."""
    max_steps: Annotated[int, Range(1)] | None = None
    """Optimizer steps of the epochs asked for, which a budget may shorten and never exceeds; None: none were."""
    training_seconds: Seconds | None = None
    """When this much time has been spent training, the run ends at the next step; None: it does not."""
    reasons: tuple[str, ...] = ()
    """Why, a phrase each."""

    def because(self, reason: str, **choices: Any) -> Self:
        """The same with some choices made otherwise, and the reason for them: a phrase."""
        return replace(self, **choices, reasons=(*self.reasons, reason))

    @property
    def evaluation_batch(self) -> int:
        """Images to evaluate at a time: without gradients they take less memory than so many in training."""
        return min(32, self.micro_batch)


def steps_per_epoch(num_images: int, batch_size: int, num_processes: int) -> int:
    """Number of batches of an epoch: too few images left over for every process join the batch before them."""
    full, left = divmod(num_images, batch_size)
    return max(1, full + (left >= 2 * num_processes))


def published() -> TrainingConfig:
    """The published recipe: Adam at 5e-4 for 50 epochs, batches of 16, 244 px, fp32, no pretrained weights.

    Command: `carnet train DATA --model carnet18 --preset published`.
    Published result on the 100 sports classes: 81.8 % top-1, mean of five runs, under 1.7 hours each on an RTX 2080 Ti.
    `docs/recipe.md` names each difference from the published scripts.
    """
    return TrainingConfig(
        model="carnet18",
        image_size=244,
        initial_size_ratio=1.0,
        epochs=50,
        batch_size=16,
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
    """What we recommend; how it was found, and what it gives: `docs/design-of-carnet-s.md`.

    Command: `carnet train DATA` (the same as `--preset default`); with `--budget 10m` the time decides the epochs.
    """
    return TrainingConfig()


PRESETS: dict[str, Callable[[], TrainingConfig]] = {"default": default, "published": published}


FORMAT = 2
"""Of what `config.json` and checkpoints say of a run."""
_OPEN_IN_FORMAT_1: dict[str, Any] = {
    **dict.fromkeys(("image_size", "epochs", "batch_size", "min_crop", "threads", "micro_batch"), 0),
    **dict.fromkeys(("cutmix", "workers", "valid_seed"), -1),
    **dict.fromkeys(("max_memory", "budget"), ""),
    **dict.fromkeys(
        ("layout", "device", "precision", "muon_precision", "compile", "memory_format", "fast_depthwise"), "auto"
    ),
    **dict.fromkeys(("keep_memory", "cache"), "auto"),
}
_RENAMED = {
    "start_share": "initial_size_ratio",
    "adam_share": "adamw_lr_ratio",
    "first_cost": "initial_step_cost",
    "most_steps": "max_steps",
    "training_steps": "num_steps",
}
_PLAN_IN_FORMAT_1: dict[str, Any] = {
    **{"devices": 1, "memory_format": "channels_last", "compile": False, "fast_depthwise": False},
    **{"muon_precision": "bf16", "keep_memory": False, "training_steps": 0, "most_steps": 0, "training_seconds": 0.0},
}
"""What plans of the first versions meant where they lack an entry."""


def from_format_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """Translate what versions before 0.2 recorded of a run: recipe, asked and plan become requested and resolved.

    Types are checked by whoever reads the translation.

    Raises:
        KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError: if the record is damaged.
    """
    recipe, plan = record["recipe"], _PLAN_IN_FORMAT_1 | dict(record["plan"])
    num_train = record["data"]["num_images"]["train"]
    steps_of_epoch = steps_per_epoch(num_train, recipe["batch_size"], plan["devices"])
    if _is_zero(plan["training_steps"]):
        plan["training_steps"] = recipe["epochs"] * steps_of_epoch
    for name in ("most_steps", "training_seconds"):
        if _is_zero(plan[name]):
            plan[name] = None
    resolved = _settings_of_format_1(recipe)
    resolved |= {_RENAMED.get(name, name): value for name, value in plan.items()}
    if resolved["valid_seed"] is None:
        resolved["valid_seed"] = resolved["seed"]
    rest = {name: value for name, value in record.items() if name not in ("recipe", "asked", "plan")}
    requested = _settings_of_format_1(record.get("asked", recipe))
    return {"format": FORMAT, "requested": requested, "resolved": resolved, **rest}


def _is_zero(value: object) -> bool:
    """Whether a number is zero; what is no number is left to whoever reads the translation."""
    return type(value) in (int, float) and value == 0


def _settings_of_format_1(recipe: Mapping[str, Any]) -> dict[str, Any]:
    words = {"on": True, "off": False}
    settings = {field.name: field.default for field in fields(TrainingConfig)}
    for name, value in recipe.items():
        is_open = name in _OPEN_IN_FORMAT_1 and value == _OPEN_IN_FORMAT_1[name]
        is_switch = name in ("compile", "fast_depthwise", "keep_memory")
        settings[_RENAMED.get(name, name)] = None if is_open else words.get(value, value) if is_switch else value
    return settings
