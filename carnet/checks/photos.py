"""Checks of what photos show: blank, dark, bright, blurred, of little information, extreme in shape or size.

An image is found if its number is beyond a limit at which hardly any photo is useful, or if it is beyond a milder limit
and also far from the rest of the data: beyond three quartile ranges from the quartiles (Tukey, "Exploratory data
analysis", 1977). So a set of night photos has no dark ones, but for those that are black.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet.checks.data import CheckedData
from carnet.checks.findings import Example, Finding

BLANK_CONTRAST = 4
"""Range of brightness, of 255, up to which an image is blank."""
_QUARTILE_RANGES = 3


@dataclass(frozen=True)
class Limits:
    """When a number is found.

    Attributes:
        what: the number, in words.
        useless: beyond this an image is found, whatever the others are.
        doubtful: beyond this it is found if it is far from the others as well.
        unit: of the number, after a blank; may be empty.
        is_lower: whether numbers below are found, not those above.
        decimals: shown of the number.
    """

    what: str
    useless: float
    doubtful: float
    unit: str = ""
    is_lower: bool = True
    decimals: int = 0

    def beyond(self, values: NDArray[Any]) -> tuple[NDArray[np.bool_], float]:
        """Return which values are found, and the limit that this data has."""
        low, high = np.quantile(values, [0.25, 0.75])
        reach = _QUARTILE_RANGES * (high - low)
        if self.is_lower:
            limit = max(self.useless, min(self.doubtful, low - reach))
            return values < limit, limit
        limit = min(self.useless, max(self.doubtful, high + reach))
        return values > limit, limit

    def rule(self, limit: float) -> str:
        """Return the rule in words."""
        return f"{self.what} {'below' if self.is_lower else 'above'} {self.text(limit)}"

    def text(self, value: float) -> str:
        """Return a number with its unit."""
        return f"{value:.{self.decimals}f}{self.unit}"


LIMITS = {
    "dark": Limits("the brightest 1% of the pixels are", 24, 90, " of 255"),
    "bright": Limits("the darkest 1% of the pixels are", 240, 170, " of 255", is_lower=False),
    "blurred": Limits("the strongest 1% of the edges, as a share of the contrast, are", 0.1, 0.3, decimals=2),
    "low-information": Limits("the entropy of the brightness is", 0.5, 1.5, " bits per pixel", decimals=2),
    "aspect-ratio": Limits(
        "the long side is, as a multiple of the short one,", 8, 3, " times", is_lower=False, decimals=1
    ),
    "tiny": Limits("the short side is", 16, 64, " px"),
}
"""Id of a finding -> its limits."""


def check_photos(data: CheckedData) -> Iterator[Finding]:
    """Find photos that show little."""
    appearance = data.appearance
    if appearance is None or not appearance.digests:
        return
    statistics, facts = appearance.statistics, data.facts
    of_content = {one.sha256: one for one in facts.values() if one.error is None}
    sides = np.array([(of_content[digest].width, of_content[digest].height) for digest in appearance.digests])
    is_blank = statistics.contrast <= BLANK_CONTRAST
    numbers = {
        "dark": statistics.bright,
        "bright": statistics.dark,
        "blurred": statistics.sharpness,
        "low-information": statistics.bits,
        "aspect-ratio": sides.max(axis=1) / sides.min(axis=1),
        "tiny": sides.min(axis=1),
    }
    if is_blank.any():
        rule = f"all but 2% of the pixels are within {BLANK_CONTRAST} of 255 levels of brightness"
        yield Finding.of("blank", _examples(data, is_blank, statistics.contrast), rule=rule)
    for kind, values in numbers.items():
        limits = LIMITS[kind]
        found, limit = limits.beyond(values)
        # What a blank image lacks has been said.
        found &= ~is_blank | (kind in ("aspect-ratio", "tiny"))
        if found.any():
            order = values if limits.is_lower else -values
            examples = _examples(data, found, order, [limits.text(value) for value in values])
            yield Finding.of(kind, examples, rule=limits.rule(limit))


def _examples(
    data: CheckedData, found: NDArray[np.bool_], order: NDArray[Any], texts: Sequence[str] | None = None
) -> list[Example]:
    """Return the files of the contents that were found, in ascending order of a number."""
    assert data.appearance is not None
    indices = np.argsort(order, kind="stable")
    return [
        Example(texts[index] if texts else "", (data.place(split, sample),))
        for index in indices[found[indices]].tolist()
        for sample, split in data.files_of[data.appearance.digests[index]]
    ]
