"""What a check has found: cases of a kind, with examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carnet.checks.kinds import KINDS, Kind
from carnet.text import counted

MAX_EXAMPLES = 10_000
"""Examples that a finding keeps; its count is that of all."""


@dataclass(frozen=True)
class Place:
    """Where an image is.

    Attributes:
        path: the file.
        name: its path below DATA, with forward slashes.
        label: its class.
        split: train, valid, test, or all for data without splits.
    """

    path: Path
    name: str
    label: str
    split: str


@dataclass(frozen=True)
class Example:
    """One case: an image, a pair, or a sentence about classes.

    Attributes:
        about: what was found, in a few words; may be empty.
        images: the images that it is about.
        proposed: the class that a suspect label should perhaps be; otherwise empty.
    """

    about: str = ""
    images: tuple[Place, ...] = ()
    proposed: str = ""

    def __str__(self) -> str:
        names = " = ".join(place.name for place in self.images)
        return f"{names}: {self.about}" if names and self.about else names or self.about

    def to_json(self) -> dict[str, Any]:
        """Return names, classes and splits."""
        images = [{"path": one.name, "class": one.label, "split": one.split} for one in self.images]
        return {"about": self.about, "images": images} | ({"proposed": self.proposed} if self.proposed else {})


@dataclass(frozen=True)
class Finding:
    """What was found of one kind.

    Attributes:
        id: its kind.
        count: how many cases there are.
        examples: the first of them.
        dropped: names of the images that an ignore list leaves out, or proposes to.
        undecided: those of them that it only proposes, because a class would lose too many images.
        rule: the rule by which they were found, with its thresholds; may be empty.
    """

    id: str
    count: int
    examples: tuple[Example, ...]
    dropped: tuple[str, ...] = ()
    undecided: frozenset[str] = frozenset()
    rule: str = ""

    @classmethod
    def of(cls, kind: str, examples: Sequence[Example], rule: str = "") -> Finding:
        """Return a finding of these cases, of which an ignore list names all images, if any."""
        names = dict.fromkeys(place.name for example in examples for place in example.images)
        dropped = () if KINDS[kind].treatment == "keep" else tuple(names)
        return cls(kind, len(examples), tuple(examples[:MAX_EXAMPLES]), dropped, rule=rule)

    @property
    def kind(self) -> Kind:
        """The kind of finding."""
        return KINDS[self.id]

    @property
    def number(self) -> str:
        """The count with its unit: 3 images."""
        unit = self.kind.unit
        return counted(self.count, unit, "classes" if unit == "class" else None)

    def to_json(self) -> dict[str, Any]:
        """Return a document of it."""
        kind = self.kind
        return {
            "id": self.id,
            "group": kind.group,
            "severity": kind.severity,
            "count": self.count,
            "unit": kind.unit,
            "what": kind.what,
            "rule": self.rule,
            "advice": kind.advice,
            "examples": [example.to_json() for example in self.examples],
        }
