"""What a trained model expects and answers: the part of a run that has to travel with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from carnet.documents import DocumentError, build
from carnet.errors import ConfigError, RunError

ResizeRule = Literal["crop", "pad", "stretch"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS = (1, 3, 4)
"""What an image file can be turned into: grey, colour, colour with opacity."""
MAX_IMAGE_SIZE = 8192
"""Pixels; one image of this side takes 200 MB before it is computed."""
MAX_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything needed to turn an image file into a named class with a given set of weights.

    Raises:
        ConfigError: if a field cannot be meant.
    """

    model: str
    """Name of the network, as `carnet.create_model` takes it."""
    classes: tuple[str, ...]
    """Class names; a class's number is its place here."""
    image_size: int
    """Side of the square input, in pixels."""
    resize: ResizeRule = "crop"
    """How an image becomes a square; `carnet.preprocess` says what each rule does."""
    in_channels: int = 3
    """Channels of the input: 1 grey, 3 red, green and blue, 4 with opacity."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from each channel's values, which lie between 0 and 1."""
    std: tuple[float, ...] = IMAGENET_STD
    """What the values are divided by after that."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ConfigError(f"a classifier needs at least two classes, got {len(self.classes)}")
        if len(self.classes) > MAX_CLASSES:
            raise ConfigError(f"a classifier knows at most {MAX_CLASSES:,} classes, got {len(self.classes):,}")
        if len(set(self.classes)) != len(self.classes):
            raise ConfigError("class names must differ from each other")
        if self.image_size < 1:
            raise ConfigError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.image_size > MAX_IMAGE_SIZE:
            raise ConfigError(f"image_size must be at most {MAX_IMAGE_SIZE:,} pixels, got {self.image_size}")
        if self.resize not in get_args(ResizeRule):
            raise ConfigError(f"resize must be one of {', '.join(get_args(ResizeRule))}, got {self.resize!r}")
        if self.in_channels not in CHANNELS:
            raise ConfigError(f"in_channels must be {', '.join(map(str, CHANNELS))}, got {self.in_channels}")
        # Beyond these ranges float32 cannot hold what images become.
        if {len(self.mean), len(self.std)} != {self.in_channels} or not all(-1e6 <= m <= 1e6 for m in self.mean):
            raise ConfigError(f"mean and std need {self.in_channels} finite numbers each, of ordinary size")
        if not all(1e-6 <= s <= 1e6 for s in self.std):
            raise ConfigError(f"every std must be above 0, and of ordinary size, got {self.std}")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values, the inverse of `from_json`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Rebuild a spec from `to_json`'s dictionary; keys it does not know are left alone.

        Raises:
            RunError: if a field is missing, has another type than it should, or cannot be meant.
        """
        try:
            return build(cls, values, needed=("resize", "mean", "std"))
        except (DocumentError, ConfigError) as error:
            raise RunError(f"not a model description: {error}") from error
