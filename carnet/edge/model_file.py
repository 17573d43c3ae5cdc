"""The file between bench and edge: an ONNX model that describes itself, with a checksum against damage.

A model file is an ordinary ONNX file. Its last two metadata entries are ours: `carnet`, a JSON document with all that
is needed to use the model, and `carnet.sha256`, a checksum of everything before it. Both are appended to the finished
model, which stays valid, because Protocol Buffers concatenate repeated fields; and both are read before any runtime
sees a byte. The checksum detects damage. It is no signature: whoever changes a file on purpose can compute a new one.

Source of the encoding: Protocol Buffers, "Encoding"; field numbers from ONNX's `onnx.proto`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from carnet.calibration import NEVER_CONFIDENT
from carnet.documents import DocumentError, Range, conform, parse
from carnet.errors import ModelFileError
from carnet.files import MAX_MODEL_BYTES, read_file
from carnet.spec import FORMAT, ModelSpec

PRODUCER = "carnet"
_HEAD_BYTES = 256
"""Each of our files names `PRODUCER` within its first bytes."""

_DOCUMENT, _CHECKSUM = "carnet", "carnet.sha256"
_SEAL_BYTES = 83
"""Length of the entry with the checksum."""

# Fields of ModelProto, GraphProto, TensorProto and StringStringEntryProto.
_GRAPH, _METADATA = 7, 14
_INITIALIZER, _DATA_LOCATION, _EXTERNAL = 5, 14, 1
_KEY, _VALUE = 1, 2


class SelfTest(TypedDict):
    """A test image inside a model file, and the model's probabilities for it."""

    picture: str
    file: str
    """The image file in base64."""
    probabilities: list[Annotated[float, Range(0, 1.001)]]
    tolerance: Annotated[float, Range(0, 0.1)]
    """Largest difference of a probability; a higher limit would let everything pass."""


SelfTests = Annotated[list[SelfTest], Range(1, 16)]
_Pixels = Annotated[list[Annotated[float, Range(-1e6, 1e6)]], Range(1)]


class _Document(TypedDict):
    """The part of a document that the code uses besides the spec; the rest is for people."""

    format: Annotated[int, Range(1)]
    temperature: NotRequired[Annotated[float, Range(0.01, 100)]]
    threshold: NotRequired[Annotated[float, Range(0, NEVER_CONFIDENT)] | None]
    map_centres: NotRequired[Annotated[list[_Pixels], Range(2, 2)] | None]
    tests: NotRequired[SelfTests]


def is_model_file(path: Path) -> bool:
    """Return whether a path names an exported model, and not the folder of a run."""
    return path.suffix == ".onnx" or path.is_file()


@dataclass(frozen=True)
class ModelFile:
    """A model file that has been checked.

    Attributes:
        name: what messages call it.
        content: the whole file.
        document: what it says about itself.
        spec: classes, image size, and what else turns an image into an input.
    """

    name: str
    content: bytes
    document: Mapping[str, Any]
    spec: ModelSpec

    @classmethod
    def read(cls, path: Path | str) -> ModelFile:
        """Read a file and check it.

        Raises:
            ModelFileError: if it is missing, damaged, none of ours, or one of a newer version.
        """
        path = Path(path)
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder; name the .onnx file that carnet export has written")
        try:
            content = read_file(path, MAX_MODEL_BYTES)
        except OSError as error:
            raise ModelFileError(f"cannot read {path}: {error.strerror or error}") from error
        return cls.from_bytes(content, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "the model") -> ModelFile:
        """Check the content of a file.

        Raises:
            ModelFileError: as `read`.
        """
        _check_seal(content, name)
        try:
            document = _read_document(content)
            if isinstance(found := document.get("format"), int) and found > FORMAT:
                raise ModelFileError(
                    f"{name} was written by a newer version of carnet (format {found}, this one knows {FORMAT}); "
                    "update carnet"
                )
            conform(document, _Document)
            spec = ModelSpec.from_json(document)
            _check_details(document, spec)
            if _has_external_data(content):
                raise ModelFileError(f"{name} keeps weights in other files, without a checksum; export it again")
        except ModelFileError:
            raise
        except (ValueError, IndexError) as error:
            raise ModelFileError(f"{name} is not a valid carnet model: {error}; export it again") from error
        return cls(name, content, document, spec)


def seal(model: bytes, document: Mapping[str, Any]) -> bytes:
    """Append a document of plain values, to which `format` is added, and the checksum to a serialized ONNX model."""
    text = json.dumps({"format": FORMAT} | dict(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    described = model + _metadata_entry(_DOCUMENT, text)
    return described + _metadata_entry(_CHECKSUM, hashlib.sha256(described).hexdigest())


def _check_seal(content: bytes, name: str) -> None:
    described, entry = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    expected = _metadata_entry(_CHECKSUM, hashlib.sha256(described).hexdigest())
    if entry == expected:
        return
    if not content:
        raise ModelFileError(f"{name} is empty")
    if entry[:-64] == expected[:-64] or PRODUCER.encode() in content[:_HEAD_BYTES]:
        raise ModelFileError(f"{name} is damaged: its checksum is wrong; copy it again, or export it again")
    raise ModelFileError(f"{name} is not a carnet model; carnet export RUN writes one")


def _read_document(content: bytes) -> dict[str, Any]:
    found = None
    for entry in _messages(memoryview(content), _METADATA):
        pair = {key: bytes(value) for key, value in _fields(entry) if isinstance(value, memoryview)}
        if pair.get(_KEY) == _DOCUMENT.encode():
            found = pair.get(_VALUE, b"")
    if found is None:
        raise ValueError(f"it has no {_DOCUMENT} entry")
    document: dict[str, Any] = conform(parse(found), dict[str, Any])
    return document


def _check_details(document: Mapping[str, Any], spec: ModelSpec) -> None:
    """Check what the types of a document do not say."""
    for places in document.get("map_centres") or ():
        if places != sorted(places):
            raise DocumentError("map_centres are not sorted")
    for test in document.get("tests", ()):
        if len(test["probabilities"]) != spec.num_classes:
            raise DocumentError(
                f"a test has {len(test['probabilities']):,} probabilities for {spec.num_classes:,} classes"
            )


def _has_external_data(content: bytes) -> bool:
    return any(
        (_DATA_LOCATION, _EXTERNAL) in _fields(tensor)
        for graph in _messages(memoryview(content), _GRAPH)
        for tensor in _messages(graph, _INITIALIZER)
    )


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the values of one field of a message that are messages themselves."""
    return (value for field, value in _fields(message) if field == number and isinstance(value, memoryview))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the field numbers and values of an encoded message, in order.

    Raises:
        ValueError, IndexError: if it is no encoded message.
    """
    place = 0
    while place < len(message):
        tag, place = _read_varint(message, place)
        match tag & 7:
            case 0:
                value, place = _read_varint(message, place)
                yield tag >> 3, value
                continue
            case 2:
                length, place = _read_varint(message, place)
            case 1:
                length = 8
            case 5:
                length = 4
            case kind:
                raise ValueError(f"it has a field of kind {kind}")
        if place + length > len(message):
            raise ValueError("it ends in the middle of a field")
        yield tag >> 3, message[place : place + length]
        place += length


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    # 64 bits take at most ten bytes.
    for shift in range(0, 70, 7):
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
    raise ValueError("it has a number of more than ten bytes")


def _metadata_entry(key: str, value: str) -> bytes:
    # Bytes of a name that are not UTF-8 become \\udce9 and the like, which JSON restores.
    pair = _encode(_KEY, key.encode()) + _encode(_VALUE, value.encode("utf-8", "backslashreplace"))
    return _encode(_METADATA, pair)


def _encode(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
