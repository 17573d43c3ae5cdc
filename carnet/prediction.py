"""What a classifier answers for one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """Classes and their probabilities, most probable first."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[0]

    @property
    def probability(self) -> float:
        """Of the most probable class."""
        return self.probabilities[0]

    def to_json(self) -> list[dict[str, Any]]:
        """A list of {"class", "probability"}, most probable first."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        return [{"class": name, "probability": probability} for name, probability in pairs]

    def __str__(self) -> str:
        pairs = zip(self.classes, self.probabilities, strict=True)
        return ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in pairs)


def most_probable(probabilities: NDArray[np.float64], classes: Sequence[str], top_k: int) -> Prediction:
    """The `top_k` most probable of all classes: (classes,) -> Prediction; all of them if there are fewer."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return Prediction(tuple(classes[k] for k in order), tuple(float(probabilities[k]) for k in order))
