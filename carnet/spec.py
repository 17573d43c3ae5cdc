"""The description of a trained model's inputs and outputs, which travels with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from carnet.documents import DocumentError, build
from carnet.errors import ConfigError, RunError

ResizeRule = Literal["crop", "pad", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]

FORMAT = 2
"""Format of a description, in `model.json` of a run and inside a model file; higher numbers are of newer versions.
Format 2 added `interpolation`; images of format 1 are resized with bilinear filtering."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS = (1, 3, 4)
"""Numbers of channels: grey, colour, colour with opacity."""
MAX_IMAGE_SIZE = 8192
"""Pixels; one image of this side takes 200 MB as input."""
MAX_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything needed to turn an image file into a named class with a given set of weights.

    Raises:
        ConfigError: if a field is out of range.
    """

    model: str
    """Name of the network, as `carnet.create_model` takes it."""
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    image_size: int
    """Side of the square input, in pixels."""
    resize: ResizeRule = "crop"
    """How an image becomes a square, see `carnet.preprocess`."""
    interpolation: Interpolation = "bilinear"
    """Filter that resizes it, as the initial weights were trained with."""
    in_channels: int = 3
    """Channels of the input: 1 grey, 3 red, green and blue, 4 with opacity."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, subtracted from values between 0 and 1."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, by which the difference is divided."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise ConfigError(f"a classifier needs between 2 and {MAX_CLASSES:,} classes, got {len(self.classes):,}")
        if len(set(self.classes)) != len(self.classes):
            raise ConfigError("class names must be unique")
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ConfigError(f"image_size must be between 1 and {MAX_IMAGE_SIZE:,} pixels, got {self.image_size}")
        if self.resize not in get_args(ResizeRule):
            raise ConfigError(f"resize must be one of {', '.join(get_args(ResizeRule))}, got {self.resize!r}")
        if self.interpolation not in get_args(Interpolation):
            raise ConfigError(
                f"interpolation must be one of {', '.join(get_args(Interpolation))}, got {self.interpolation!r}"
            )
        if self.in_channels not in CHANNELS:
            raise ConfigError(f"in_channels must be {', '.join(map(str, CHANNELS))}, got {self.in_channels}")
        # Beyond these ranges float32 cannot hold normalized images.
        for name, values, low in (("mean", self.mean, -1e6), ("std", self.std, 1e-6)):
            if len(values) != self.in_channels or not all(low <= value <= 1e6 for value in values):
                raise ConfigError(f"{name} needs {self.in_channels} numbers between {low:g} and 1e6, got {values}")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain values, the inverse of `from_json`."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"format": FORMAT, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Rebuild a spec from `to_json`'s dictionary; unknown keys are ignored.

        Raises:
            RunError: if a field is missing, has another type than it should, or is out of range, or the description is
                that of a newer version.
        """
        found = values.get("format", 1)
        if isinstance(found, int) and found > FORMAT:
            raise RunError(
                f"the model was described by a newer version of carnet (format {found}, this one knows {FORMAT}); "
                "update carnet"
            )
        try:
            return build(cls, values, needed=("resize", "mean", "std"))
        except (DocumentError, ConfigError) as error:
            raise RunError(f"not a model description: {error}") from error
