"""Read JSON of ours within limits, and hold it against the types it should have.

Whoever changes a file on purpose can compute its checksum anew, so that what a document says is believed only as far as
its types and ranges go. The types are those of the dataclasses and typed dictionaries that the code works with; `Range`
in their annotations adds what a number may be.
"""

from __future__ import annotations

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
"""Of a document; what is read of it takes up to 20 times as much memory."""
MAX_DEPTH = 32
"""Of lists and objects inside each other; ours have six."""
_MAX_DIGITS = 20
"""Of a whole number; a seed has up to 19."""
CHECKSUM = "sha256"
"""The entry of a sealed document that holds its checksum."""
_SHOWN = 40
"""Characters of a wrong value that are told."""

T = TypeVar("T")


class DocumentError(ValueError):
    """A document cannot be read, or says what cannot be meant. Internal: whoever knows the file names it."""


@dataclass(frozen=True)
class Range:
    """What a finite number may be; of a list or text, how many entries it may have. Stands in `Annotated`."""

    low: float
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is left out."""
    below: bool = False
    """Whether `high` itself is left out."""
    unit: str = ""
    """Follows the numbers in messages."""

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.above else self.low <= value
        return above and (value < self.high if self.below or self.high == math.inf else value <= self.high)

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.high == math.inf:
            words = f"above {low}" if self.above else f"{low} or more"
        elif self.above or self.below:
            words = f"above {low}" if self.above else f"{low} or more"
            words += f" and below {high}" if self.below else f" and up to {high}"
        else:
            words = f"between {low} and {high}"
        return f"{words} {self.unit}".strip()


Count = Annotated[int, Range(0, 2**62)]
Share = Annotated[float, Range(0, 1)]
Seconds = Annotated[float, Range(0, 1e10)]
"""Up to three hundred years."""


def parse(content: bytes | str, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON document of ours; undecodable bytes of file names stay what they were.

    Raises:
        DocumentError: if it is none, is larger or nested deeper than any of ours, or holds a number that no number of
            ours can be: one that is not finite, or one of very many digits.
    """
    if len(content) > max_bytes:
        raise DocumentError(f"it has more than {max_bytes / 2**20:.0f} MiB")
    text = content if isinstance(content, str) else content.decode("utf-8", "surrogateescape")
    try:
        document = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_short)
    except RecursionError:
        raise DocumentError("its lists are nested too deeply") from None
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(f"it is no JSON: {error}") from error
    _require_flat(document)
    return document


def _refuse(word: str) -> float:
    raise DocumentError(f"it holds {word}, which is no number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise DocumentError(f"it holds {_shortened(text)}, which is too large for a number")
    return number


def _short(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise DocumentError(f"it holds a number of {len(text):,} digits")
    return int(text)


def phrase(kind: Any) -> str:
    """What a value of a type may be, for messages: "above 0", "one of crop, pad, stretch"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next((str(allowed) for allowed in arguments[1:] if isinstance(allowed, Range)), phrase(arguments[0]))
    if origin in (Union, UnionType):
        return " or ".join(phrase(option) for option in arguments if option is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    return "a list" if origin in (list, tuple) else "an object" if origin is not None else _NAMES[kind]


def _require_flat(document: Any) -> None:
    level, depth = [document], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise DocumentError("its lists are nested too deeply")
        level = [item for part in level for item in (part.values() if isinstance(part, dict) else part)]


def conform(value: Any, kind: Any, where: str = "") -> Any:
    """Return a value that is of a type, with its ranges.

    Args:
        value: as `parse` gives it.
        kind: a type, as annotations write it: numbers, text, None, `Any`, `Literal`, unions, lists, tuples, mappings
            from text, typed dictionaries and dataclasses; `Annotated` with a `Range`.
        where: what to call the value; empty: it.

    Raises:
        DocumentError: naming the first entry that is not.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Annotated, NotRequired):
        conform(value, arguments[0], where)
        _require_in_range(value, arguments[1:], where)
    elif origin in (Union, UnionType):
        _conform_to_one(value, arguments, where)
    elif origin is Literal:
        if not any(type(value) is type(option) and value == option for option in arguments):
            raise _wrong(where, f"one of {', '.join(map(str, arguments))}", value)
    elif origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise _wrong(where, "a list", value)
        for number, item in enumerate(value):
            conform(item, arguments[0], f"{where}[{number}]")
    elif origin in (dict, Mapping):
        for name, item in _object(value, where).items():
            conform(item, arguments[1], _join(where, _shortened(name)))
    elif is_typed_dict(kind) or dataclasses.is_dataclass(kind):
        _conform_to_fields(_object(value, where), kind, where)
    elif kind is not Any and not _is_plain(value, kind):
        raise _wrong(where, _NAMES[kind], value)
    return value


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


def _is_plain(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    return value


def _conform_to_one(value: Any, kinds: Sequence[Any], where: str) -> None:
    *others, last = [kind for kind in kinds if kind is not NoneType]
    if value is None and NoneType in kinds:
        return
    for kind in others:
        try:
            conform(value, kind, where)
        except DocumentError:
            continue
        return
    conform(value, last, where)


def _conform_to_fields(value: Mapping[str, Any], kind: Any, where: str) -> None:
    hints, required = _fields(kind)
    if missing := [name for name in required if name not in value]:
        raise DocumentError(f"{where or 'it'} lacks {', '.join(missing)}")
    for name, hint in hints.items():
        if name in value:
            conform(value[name], hint, _join(where, name))


@functools.cache
def _fields(kind: Hashable) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Types by name, and the names without which it is not whole."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typed_dict(kind):
        # What the class itself says of them is wrong where annotations are text.
        return hints, tuple(name for name, hint in hints.items() if get_origin(hint) is not NotRequired)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, kind))}
    required = tuple(
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    return {name: hints[name] for name in fields}, required


def _require_in_range(value: Any, conditions: Sequence[Any], where: str) -> None:
    for allowed in conditions:
        if value is None or not isinstance(allowed, Range):
            continue
        if isinstance(value, list | tuple | str):
            if len(value) not in allowed:
                raise DocumentError(f"{where} has {len(value):,} entries and should have {allowed}")
        elif value not in allowed:
            raise _wrong(where, str(allowed), value)


def _wrong(where: str, wanted: str, value: Any) -> DocumentError:
    if isinstance(value, dict | list):
        found = "an object" if isinstance(value, dict) else "a list"
    else:
        found = _shortened(json.dumps(value, default=repr))
    return DocumentError(f"{where or 'it'} should be {wanted}, and is {found}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shortened(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def build(kind: type[T], values: Any, *, needed: Sequence[str] = ()) -> T:
    """Make a dataclass of the dictionary that `dataclasses.asdict` made of it; what it does not know is left out.

    Args:
        kind: the dataclass.
        values: the dictionary, as `parse` gives it.
        needed: fields that have a default, and were nevertheless always written.

    Raises:
        DocumentError: if a field is missing or is not what it should be.
    """
    conform(values, kind)
    if missing := [name for name in needed if name not in values]:
        raise DocumentError(f"it lacks {', '.join(missing)}")
    hints, _ = _fields(cast(Hashable, kind))
    return kind(**{name: _as_hinted(values[name], hint) for name, hint in hints.items() if name in values})


def _as_hinted(value: Any, hint: Any) -> Any:
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return tuple(value) if get_origin(plain) is tuple else value


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same document of plain, finite values with its own checksum as the last entry."""
    return {**document, CHECKSUM: _digest(document)}


def unsealed(document: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """A document without its checksum, and whether there was one.

    Raises:
        DocumentError: if the checksum is wrong.
    """
    content = {name: value for name, value in document.items() if name != CHECKSUM}
    if CHECKSUM in document and document[CHECKSUM] != _digest(content):
        raise DocumentError("its checksum is wrong")
    return content, CHECKSUM in document


def _digest(document: Mapping[str, Any]) -> str:
    # Of what it says, so that another order of its entries and other blanks change nothing.
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
