"""The recipe. The command line takes its flags from this file; there is no second list.

Imports no torch, so that `carnet train --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from carnet.data.cache import CacheWish
from carnet.data.samples import Layout
from carnet.documents import DocumentError, build
from carnet.errors import ConfigError, RunError
from carnet.spec import CHANNELS, MAX_IMAGE_SIZE, ResizeRule
from carnet.text import first_few, parse_bytes, parse_seconds

Precision = Literal["auto", "fp32", "bf16", "fp16"]
MuonPrecision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Logger = Literal["none", "tensorboard"]
Choice = Literal["auto", "on", "off"]
Optimizer = Literal["adam", "muon"]
Schedule = Literal["constant", "linear"]
MemoryFormat = Literal["auto", "channels_last", "contiguous"]
MAX_THREADS = 1024
"""Threads, or processes, of one kind; systems refuse to start very many."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a network is trained. The defaults are what we recommend; `published` is the published recipe.

    Raises:
        ConfigError: if a field is out of range.
    """

    model: str = "carnet_s"
    """Network: one of ours (`carnet summary --help` lists them), or timm/NAME."""
    pretrained: bool = False
    """Start from timm's published weights (timm/ models only; needs a network). The recipe's learning rate is meant for
    random weights; a lower --lr keeps more of what they know."""
    image_size: int = 0
    """Side of the square input, in pixels; 0 takes the network's own."""
    start_share: float = 0.5
    """Side at the beginning of training, as a share of --image-size, to which it grows; 1 is off."""
    resize: ResizeRule = "crop"
    """How an image becomes a square: crop (short side to size, centre cut out), pad (black bars), stretch."""
    in_channels: int = 3
    """What the network sees of an image: 1 grey, 3 colour, 4 colour and opacity."""
    epochs: int = 0
    """Passes over the training images, with --budget at most so many; 0: chosen from their number, or the budget."""
    batch_size: int = 0
    """Images per optimizer step; the last, smaller batch of an epoch is kept. 0: chosen from the number of images."""
    optimizer: Optimizer = "muon"
    """Muon (AdamW for what is no hidden matrix) or Adam."""
    lr: float = 0.08
    """Learning rate, at its highest."""
    adam_share: float = 0.1
    """With muon: learning rate of what AdamW trains, as a share of --lr."""
    weight_decay: float = 0.05
    """Taken off the weights at each step, times the learning rate; with adam an L2 penalty in the gradient."""
    schedule: Schedule = "linear"
    """Learning rate over the run: constant; or up in a line, and down to zero in another."""
    warmup: float = 0.08
    """Share of the run in which a linear schedule goes up."""
    label_smoothing: float = 0.1
    """Share of every label that is spread over all classes, so that nothing is learned to be certain."""
    cutmix: float = -1.0
    """Share of batches in which a piece of every image comes from another one; -1: chosen from the number of epochs."""
    ema: float = 0.998
    """Judge and keep a moving average of the weights, with this decay at each step; 0 is off."""
    min_crop: float = 0.0
    """Training images are shown in pieces, of at least this share of their area, at last nearly whole; 1 is off.
    0: chosen from the number of epochs."""
    brightness: float = 0.2
    """Brightness jitter: each training image is multiplied by 1 +- this; 0 is off."""
    color: float = 0.0
    """Jitter of contrast and of saturation, by factors of 1 +- this, for light that changes; 0 is off."""
    flip: float = 0.5
    """Share of training images mirrored left to right; 0 where left and right matter (digits, road signs)."""
    rotation: float = 0.0
    """Training images are turned by up to this many degrees either way; 0 is off."""
    layout: Layout = "auto"
    """What the folders in DATA are: classes, or splits (train, valid, test) with the classes inside; auto tells by
    their names and contents, and asks where both could be."""
    valid_fraction: float = 0.2
    """Share of each class held back for validation where the data has no valid folder."""
    valid_seed: int = -1
    """Of that division; -1 takes --seed. Runs with one number and other seeds are judged by the same images."""
    patience: int = 0
    """Stop after this many epochs without a better validation accuracy, and keep the best epoch (the most accurate; of
    several, the one with the lowest loss); 0 is off."""
    seed: int = 0
    """Of everything random: initial weights, order, augmentation, held-back images."""
    skip_unreadable: bool = False
    """Leave out, and count, images that cannot be decoded, instead of stopping before the first step."""
    stream: bool = False
    """Read training images while training, for a data set (hf:, Parquet, shards) larger than the disk."""
    device: Device = "auto"
    """Where to train; auto takes a GPU where there is one."""
    devices: int = 1
    """Processes to train with, one GPU or one part of the processor's cores each; they share every batch."""
    precision: Precision = "auto"
    """Arithmetic of training (evaluation is fp32): auto takes what a GPU does well, and on a processor bf16 where it is
    measured to be faster."""
    muon_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """With muon: arithmetic in which it makes matrices orthogonal; auto measures which is faster here."""
    compile: Choice = "auto"
    """Compile the network (torch.compile): auto does where the run is long enough to repay it."""
    memory_format: MemoryFormat = "auto"
    """How images lie in memory: auto puts all channels of a pixel side by side, unless contiguous is faster here."""
    fast_depthwise: Choice = "auto"
    """Compute the gradient of depthwise convolutions our way; auto measures which is faster."""
    keep_memory: Choice = "auto"
    """Keep freed memory for the next step (glibc): much faster, but takes more; auto does without --max-memory."""
    cache: CacheWish = "auto"
    """Where decoded images are kept: on the disk for later runs too, in memory, or nowhere; auto by what is free."""
    threads: int = 0
    """Threads of the arithmetic in each process; 0 takes one for each logical core, or what is measured faster."""
    workers: int = -1
    """Threads that prepare images ahead; -1 chooses, 0 prepares each batch when it is due."""
    micro_batch: int = 0
    """Images that go through the network at a time; gradients add up to those of the batch. 0: as memory allows."""
    max_memory: str = ""
    """Memory that training may take, such as 2GB; empty: what is free."""
    budget: str = ""
    """Time to train in, such as 10m or 1h30m, looking at the images included; it decides how many epochs there are."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints inside an epoch; every epoch ends with one as well."""
    checkpoint_steps: int = 0
    """Optimizer steps between checkpoints, besides those by time; 0 is off."""
    logger: Logger = "none"
    """Write the curves for TensorBoard as well."""

    def __post_init__(self) -> None:
        self._require(
            0 <= self.image_size <= MAX_IMAGE_SIZE,
            "image_size",
            f"0 (the network's own) or more pixels, up to {MAX_IMAGE_SIZE:,}",
        )
        self._require(0 < self.start_share <= 1, "start_share", "above 0, up to 1 (off)")
        self._require(self.resize in get_args(ResizeRule), "resize", f"one of {', '.join(get_args(ResizeRule))}")
        self._require(self.in_channels in CHANNELS, "in_channels", f"one of {', '.join(map(str, CHANNELS))}")
        self._require(self.epochs >= 0, "epochs", "0 (chosen) or more")
        self._require(self.batch_size >= 0, "batch_size", "0 (chosen) or more")
        self._require(0 < self.lr < float("inf"), "lr", "above 0")
        self._require(0 <= self.weight_decay < float("inf"), "weight_decay", "0 or more")
        self._require(self.optimizer in get_args(Optimizer), "optimizer", f"one of {', '.join(get_args(Optimizer))}")
        self._require(0 < self.adam_share < float("inf"), "adam_share", "above 0")
        self._require(self.schedule in get_args(Schedule), "schedule", f"one of {', '.join(get_args(Schedule))}")
        self._require(0 <= self.warmup < 1, "warmup", "0 or more, and below 1")
        self._require(0 <= self.label_smoothing < 1, "label_smoothing", "0 or more, and below 1")
        self._require(self.cutmix == -1 or 0 <= self.cutmix <= 1, "cutmix", "-1 (chosen), or between 0 and 1")
        self._require(0 <= self.ema < 1, "ema", "0 (off) or more, and below 1")
        self._require(0 <= self.min_crop <= 1, "min_crop", "0 (chosen), or up to 1 (off)")
        self._require(0 <= self.brightness <= 1, "brightness", "between 0 and 1")
        self._require(0 <= self.color <= 1, "color", "between 0 and 1")
        self._require(0 <= self.flip <= 1, "flip", "between 0 and 1")
        self._require(0 <= self.rotation <= 180, "rotation", "between 0 and 180 degrees")
        self._require(self.layout in get_args(Layout), "layout", f"one of {', '.join(get_args(Layout))}")
        self._require(0 < self.valid_fraction < 1, "valid_fraction", "between 0 and 1")
        self._require(-1 <= self.valid_seed < 2**63, "valid_seed", "-1 (--seed), or up to 2**63 - 1")
        self._require(self.patience >= 0, "patience", "0 (off) or more epochs")
        self._require(0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1")
        self._require(self.device in get_args(Device), "device", f"one of {', '.join(get_args(Device))}")
        self._require(self.precision in get_args(Precision), "precision", f"one of {', '.join(get_args(Precision))}")
        precisions = ("auto", *get_args(MuonPrecision))
        self._require(self.muon_precision in precisions, "muon_precision", f"one of {', '.join(precisions)}")
        self._require(1 <= self.devices <= MAX_THREADS, "devices", f"between 1 and {MAX_THREADS:,}")
        self._require(
            self.batch_size >= 2 * self.devices or self.devices == 1 or not self.batch_size,
            "batch_size",
            f"at least 2 images for each of the {self.devices} devices",
        )
        for name, kind in (
            ("compile", Choice),
            ("fast_depthwise", Choice),
            ("keep_memory", Choice),
            ("cache", CacheWish),
        ):
            self._require(getattr(self, name) in get_args(kind), name, f"one of {', '.join(get_args(kind))}")
        formats = get_args(MemoryFormat)
        self._require(self.memory_format in formats, "memory_format", f"one of {', '.join(formats)}")
        self._require(self.micro_batch >= 0, "micro_batch", "0 (chosen) or more images")
        # Each says itself what is wrong.
        if self.max_memory:
            parse_bytes(self.max_memory)
        if self.budget:
            parse_seconds(self.budget)
        self._require(0 < self.checkpoint_minutes < float("inf"), "checkpoint_minutes", "above 0")
        self._require(self.checkpoint_steps >= 0, "checkpoint_steps", "0 (off) or more")
        self._require(0 <= self.threads <= MAX_THREADS, "threads", f"0 (all) or more, up to {MAX_THREADS:,}")
        self._require(-1 <= self.workers <= MAX_THREADS, "workers", f"-1 (chosen) or more, up to {MAX_THREADS:,}")
        self._require(self.logger in get_args(Logger), "logger", f"one of {', '.join(get_args(Logger))}")

    def _require(self, fulfilled: bool, name: str, range_: str) -> None:
        if not fulfilled:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} must be {range_}, got {getattr(self, name)!r}")

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values, the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path | None = None) -> TrainingConfig:
        """Rebuild a recipe from `to_json`'s dictionary; `path` is the file it comes from, for messages.

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

    def differences(self, other: TrainingConfig) -> list[str]:
        """Fields that decide the result and differ: `--lr 0.001 (was 0.0005)`.

        What the machine decides with is left to `Plan.differences`, which knows what `auto` came to.
        """
        free = {"workers", "logger", "checkpoint_minutes", "checkpoint_steps", "cache"}
        free |= {"device", "devices", "precision", "threads", "compile", "memory_format", "fast_depthwise"}
        free |= {"micro_batch", "keep_memory", "muon_precision"}
        found = []
        for f in fields(self):
            then, now = getattr(self, f.name), getattr(other, f.name)
            if f.name not in free and then != now:
                then, now = ("none" if value == "" else value for value in (then, now))
                found.append(f"--{f.name.replace('_', '-')} {now} (was {then})")
        return found


def published() -> TrainingConfig:
    """The published recipe: Adam at 5e-4 for 50 epochs, batches of 16, 244 px, fp32, no pretrained weights.

    Command: `carnet train DATA --model carnet18 --preset published`.
    Published result on the 100 sports classes: 81.8 % top-1, mean of five runs, under 1.7 hours each on an RTX 2080 Ti.
    `docs/recipe.md` names each difference from the published scripts.
    """
    return TrainingConfig(
        model="carnet18",
        image_size=244,
        start_share=1.0,
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
