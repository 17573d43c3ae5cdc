"""Which columns of a data set hold the image and its label, and what a label says."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from carnet.data.hub import Source
from carnet.data.opening import import_datasets
from carnet.data.shards import LABEL_MEMBERS
from carnet.errors import DataError
from carnet.progress import first_few

_IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixel_values")
_IMAGE_KINDS = ("binary", "large_binary", "List", "LargeList", "Array2D", "Array3D")
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
"""Names of columns, in the order in which they are preferred."""


@dataclass(frozen=True)
class Columns:
    """Where in a row the image and its label stand."""

    image: str
    label: str
    member: str | None
    """Of a label that is a JSON document."""
    names: tuple[str, ...]
    """What the labels' numbers stand for; empty: themselves."""

    @classmethod
    def find(cls, table: Any, loader: str, source: Source) -> Columns:
        """By kind, and by name where the kind leaves a choice."""
        datasets = import_datasets()
        # CSV and JSON say what their columns are only as they are read.
        features = table.features or dict.fromkeys(next(iter(table), {}))
        images = [
            name
            for name, feature in features.items()
            if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)
        ]
        plain = [name for name in _IMAGE_COLUMNS if _kind(features.get(name)) in _IMAGE_KINDS]
        image = _choose("image", images or plain[:1], _IMAGE_COLUMNS, features, source)
        known = (*_LABEL_COLUMNS, *(LABEL_MEMBERS if loader == "webdataset" else ()))
        named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        plain = [name for name in known if name != image and _label_member(features.get(name)) is not None]
        label = _choose("label", named or plain[:1], known, features, source)
        return cls(image, label, _label_member(features[label]) or None, tuple(getattr(features[label], "names", ())))

    def text(self, value: Any) -> str | None:
        """What a label says; None where there is none."""
        if self.member is not None and value is not None:
            value = value[self.member]
        if value is None or value == -1 or (isinstance(value, float) and math.isnan(value)):
            return None
        if self.names:
            if not 0 <= value < len(self.names):
                raise ValueError(f"label {value} where there are {len(self.names)} classes")
            value = self.names[value]
        elif isinstance(value, float):
            value = f"{value:g}"
        # As `carnet.data.table` reads names.
        return unicodedata.normalize("NFC", str(value).strip()) or None


def _choose(what: str, found: list[str], known: Iterable[str], features: Mapping[str, Any], source: Source) -> str:
    chosen = source.chosen.get(what)
    if chosen in features:
        return str(chosen)
    candidates = found if len(found) == 1 else [name for name in known if name in found]
    if candidates and chosen is None:
        return candidates[0]
    columns = first_few([f"{name} ({_kind(feature)})" for name, feature in features.items()], 12)
    problem = f"no column {chosen}" if chosen else f"several {what} columns" if found else f"no {what} column"
    raise DataError(
        f"{source.data} has {problem}; say ?{what}=COLUMN after hf:NAME or hf:./FOLDER, or rename it {what}; "
        f"it has {columns}"
    )


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else {"dict": "members", "NoneType": "unknown"}.get(name, name)


def _label_member(feature: Any) -> str | None:
    """The member of a JSON label that holds the class; empty for a plain label; None for what is none."""
    if isinstance(feature, dict):
        return next((name for name in (*_LABEL_COLUMNS, "cls") if _label_member(feature.get(name)) == ""), None)
    return "" if _kind(feature).startswith(("int", "uint", "string", "large_string", "bool", "float")) else None
