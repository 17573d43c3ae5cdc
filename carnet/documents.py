"""Parse JSON documents of ours within limits, and check them against the types they should have.

Whoever changes a file on purpose can compute its checksum anew, so a document is trusted only as far as its types and
ranges go. The types are those of the dataclasses and typed dictionaries that the code works with; a `Range` in their
annotations adds which numbers are allowed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, TypeVar, Union, cast, get_args, get_origin, get_type_hints
from typing import is_typeddict as is_typed_dict

MAX_BYTES = 32 * 2**20
"""Limit of a document; reading it takes up to 20 times as much memory."""
MAX_DEPTH = 32
"""Limit of lists and objects inside each other; ours have six."""
_MAX_DIGITS = 20
"""Limit of a whole number; a seed has up to 19 digits."""
CHECKSUM = "sha256"
"""The entry of a sealed document that holds its checksum."""
_MAX_SHOWN = 40
"""Characters of a wrong value or name that messages show."""
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}

T = TypeVar("T")


class DocumentError(ValueError):
    """A document cannot be read, or has a wrong entry. Internal: the caller, who knows the file, adds its name."""


@dataclass(frozen=True)
class Range:
    """The finite numbers that are allowed, for `Annotated`; for a list or text, its allowed numbers of entries."""

    low: float
    high: float = math.inf
    above: bool = False
    """Excludes `low` itself."""
    below: bool = False
    """Excludes `high` itself."""
    unit: str = ""
    """Follows the numbers in messages."""

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.above else self.low <= value
        return above and (value < self.high if self.below or self.high == math.inf else value <= self.high)

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        words = f"above {low}" if self.above else f"{low} or more"
        if self.high < math.inf:
            words += f" and below {high}" if self.below else f" and up to {high}"
            if not (self.above or self.below):
                words = f"between {low} and {high}"
        return f"{words} {self.unit}".strip()


Count = Annotated[int, Range(0, 2**62)]
Share = Annotated[float, Range(0, 1)]
Seconds = Annotated[float, Range(0, 1e10)]
"""Up to three hundred years."""


def parse(content: bytes | str, *, max_bytes: int = MAX_BYTES) -> Any:
    """Parse a JSON document of ours; undecodable bytes of file names stay what they were.

    Raises:
        DocumentError: if it is not JSON, is larger or nested deeper than any of ours, or holds a number that is not
            finite or has very many digits.
    """
    if len(content) > max_bytes:
        raise DocumentError(f"it has more than {max_bytes / 2**20:.0f} MiB")
    text = content if isinstance(content, str) else content.decode("utf-8", "surrogateescape")
    try:
        document = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_short)
    except RecursionError:
        raise DocumentError("its lists are nested too deeply") from None
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(f"it is not JSON: {error}") from error
    level, depth = [document], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise DocumentError("its lists are nested too deeply")
        level = [item for part in level for item in (part.values() if isinstance(part, dict) else part)]
    return document


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise DocumentError(f"it holds {_shortened(text)}, which is not a finite number")
    return number


def _short(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise DocumentError(f"it holds a number of {len(text):,} digits")
    return int(text)


def _shortened(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def phrase(kind: Any) -> str:
    """Describe the values of a type, for messages: "above 0", "one of crop, pad, stretch"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next((str(allowed) for allowed in arguments[1:] if isinstance(allowed, Range)), phrase(arguments[0]))
    if origin in (Union, UnionType):
        return " or ".join(phrase(option) for option in arguments if option is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    return "a list" if origin in (list, tuple, Sequence) else _NAMES.get(kind, "an object")


def conform(value: Any, kind: Any, where: str = "") -> Any:
    """Check that a value is of a type, within its ranges, and return it.

    Args:
        value: as `parse` gives it.
        kind: a type, as annotations write it: numbers, text, None, `Any`, `Literal`, unions, lists, tuples, mappings
            from text, typed dictionaries and dataclasses; `Annotated` with a `Range`.
        where: name of the value for messages; empty: it.

    Raises:
        DocumentError: naming the first entry that is not.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    fits = True
    if origin in (Annotated, NotRequired):
        conform(value, arguments[0], where)
        _require_in_range(value, arguments[1:], where)
    elif origin in (Union, UnionType):
        _conform_to_one(value, arguments, where)
    elif origin is Literal:
        fits = any(type(value) is type(option) and value == option for option in arguments)
    elif origin in (list, tuple, Sequence):
        if fits := isinstance(value, list | tuple):
            for number, item in enumerate(value):
                conform(item, arguments[0], f"{where}[{number}]")
    elif origin in (dict, Mapping) or is_typed_dict(kind) or dataclasses.is_dataclass(kind):
        if fits := isinstance(value, Mapping):
            hints, required = (dict.fromkeys(value, arguments[1]), ()) if arguments else _fields(kind)
            _conform_entries(value, hints, required, where)
    elif kind is not Any:
        fits = isinstance(value, int | float if kind is float else kind)
        fits = fits and not (kind in (int, float) and isinstance(value, bool))
    if not fits:
        raise _wrong(where, phrase(kind), value)
    return value


def _conform_entries(value: Mapping[str, Any], hints: Mapping[str, Any], required: Sequence[str], where: str) -> None:
    if missing := [name for name in required if name not in value]:
        raise DocumentError(f"{where or 'it'} lacks {', '.join(missing)}")
    for name, hint in hints.items():
        # Entries of any kind are many in large documents.
        if name in value and hint is not Any:
            conform(value[name], hint, f"{where}.{_shortened(name)}".removeprefix("."))


def _conform_to_one(value: Any, kinds: Sequence[Any], where: str) -> None:
    if value is None and NoneType in kinds:
        return
    *others, last = [kind for kind in kinds if kind is not NoneType]
    for kind in others:
        with contextlib.suppress(DocumentError):
            conform(value, kind, where)
            return
    conform(value, last, where)


def _require_in_range(value: Any, conditions: Sequence[Any], where: str) -> None:
    for allowed in conditions:
        if value is None or not isinstance(allowed, Range):
            continue
        if isinstance(value, list | tuple | str):
            if len(value) not in allowed:
                raise DocumentError(f"{where} has {len(value):,} entries, but should have {allowed}")
        elif value not in allowed:
            raise _wrong(where, str(allowed), value)


def _wrong(where: str, wanted: str, value: Any) -> DocumentError:
    if isinstance(value, dict | list):
        found = "an object" if isinstance(value, dict) else "a list"
    else:
        found = _shortened(json.dumps(value, default=repr))
    return DocumentError(f"{where or 'it'} should be {wanted}, but is {found}")


@functools.cache
def _fields(kind: Hashable) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the types of the fields by name, and the names of the required ones."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typed_dict(kind):
        # The class's own __required_keys__ is wrong where annotations are text.
        return hints, tuple(name for name, hint in hints.items() if get_origin(hint) is not NotRequired)
    fields = dataclasses.fields(cast(Any, kind))
    required = tuple(field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING)
    return {field.name: hints[field.name] for field in fields}, required


def build(kind: type[T], values: Any, *, needed: Sequence[str] = ()) -> T:
    """Rebuild a dataclass from its `dataclasses.asdict` dictionary; unknown keys are ignored.

    Args:
        kind: the dataclass.
        values: the dictionary, as `parse` gives it.
        needed: fields that are required in spite of their default.

    Raises:
        DocumentError: if a field is missing or is not what it should be.
    """
    conform(values, kind)
    if missing := [name for name in needed if name not in values]:
        raise DocumentError(f"it lacks {', '.join(missing)}")
    hints, _ = _fields(cast(Hashable, kind))
    return kind(
        **{
            name: tuple(values[name]) if get_origin(hint) is tuple else values[name]
            for name, hint in hints.items()
            if name in values
        }
    )


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document, of plain, finite values, with its own checksum as the last entry."""
    return {**document, CHECKSUM: _digest(document)}


def unsealed(document: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the document without its checksum, and whether there was one.

    Raises:
        DocumentError: if the checksum is wrong.
    """
    content = {name: value for name, value in document.items() if name != CHECKSUM}
    if CHECKSUM in document and document[CHECKSUM] != _digest(content):
        raise DocumentError("its checksum is wrong")
    return content, CHECKSUM in document


def _digest(document: Mapping[str, Any]) -> str:
    # The digest of the values, not of the text: the order of entries and blanks do not matter.
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
