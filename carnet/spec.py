"""What a trained model expects and answers: the part of a run that has to travel with the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from carnet.errors import ConfigError, RunError

ResizeRule = Literal["crop", "pad", "stretch"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from the red, green and blue values, which lie between 0 and 1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """What the values are divided by after that."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ConfigError(f"a classifier needs at least two classes, got {len(self.classes)}")
        if len(set(self.classes)) != len(self.classes):
            raise ConfigError("class names must differ from each other")
        if self.image_size < 1:
            raise ConfigError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.resize not in get_args(ResizeRule):
            raise ConfigError(f"resize must be one of {', '.join(get_args(ResizeRule))}, got {self.resize!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(math.isfinite(m) for m in self.mean):
            raise ConfigError("mean and std need three finite numbers each")
        if not all(math.isfinite(s) and s > 0 for s in self.std):
            raise ConfigError(f"every std must be above 0, got {self.std}")

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
            RunError: if a field is missing or has another type than it should.
        """
        try:
            return cls(
                model=str(values["model"]),
                classes=tuple(str(name) for name in values["classes"]),
                image_size=int(values["image_size"]),
                resize=values["resize"],
                mean=three_floats(values["mean"]),
                std=three_floats(values["std"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"not a model description: {type(error).__name__}: {error}") from error


def three_floats(values: Iterable[Any]) -> tuple[float, float, float]:
    """One number for each colour.

    Raises:
        ValueError: if there are not exactly three.
    """
    first, second, third = (float(value) for value in values)
    return first, second, third
