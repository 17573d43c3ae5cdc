"""Files of tensors: safetensors with a checksum of their own in the header, over everything else in them.

Loading such a file executes nothing from it, unlike a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from carnet.documents import CHECKSUM, DocumentError, conform, parse

_DIGEST = f'"{CHECKSUM}":"%s"'.encode()
_NO_DIGEST = b"0" * 64
_LENGTH_BYTES = 8
"""Of the number with which a file begins: how long its header is."""


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a file with these tensors, whatever their device and layout, and its checksum.

    Args:
        tensors: by name.
        metadata: text by name.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(contiguous, metadata={**metadata, CHECKSUM: _NO_DIGEST.decode()})
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    document = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length])
    # The library writes these in any order. In one order, equal tensors give equal files.
    document["__metadata__"] = dict(sorted(document["__metadata__"].items()))
    header = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    # As the library does it, so that tensors begin where processors like them to.
    header += b" " * (-len(header) % 8)
    begin, rest = len(header).to_bytes(_LENGTH_BYTES, "little"), memoryview(content)[_LENGTH_BYTES + length :]
    digest = hashlib.sha256(begin + header)
    digest.update(rest)
    # The checksum counts as zeros while it is computed.
    sealed = header.replace(_DIGEST % _NO_DIGEST, _DIGEST % digest.hexdigest().encode(), 1)
    return b"".join((begin, sealed, rest))


def read_metadata(content: bytes) -> dict[str, str]:
    """The text in the header of a file of tensors; a checksum among it is right.

    Raises:
        DocumentError: if it is no such file, or its checksum is wrong.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    if len(content) < _LENGTH_BYTES + length:
        raise DocumentError("it is cut off or not a file of tensors")
    header = content[_LENGTH_BYTES : _LENGTH_BYTES + length]
    document: dict[str, Any] = conform(parse(header), dict[str, Any])
    metadata: dict[str, str] = conform(document.get("__metadata__", {}), dict[str, str], "its metadata")
    if CHECKSUM in metadata and _digest(content, header, metadata[CHECKSUM]) != metadata[CHECKSUM]:
        raise DocumentError("its checksum is wrong")
    return metadata


def _digest(content: bytes, header: bytes, recorded: str) -> str:
    digest = hashlib.sha256(content[:_LENGTH_BYTES])
    recorded_bytes = recorded.encode(errors="backslashreplace")
    digest.update(header.replace(_DIGEST % recorded_bytes, _DIGEST % _NO_DIGEST, 1))
    digest.update(memoryview(content)[_LENGTH_BYTES + len(header) :])
    return digest.hexdigest()


def unpack(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        DocumentError: if they cannot be read.
    """
    try:
        return dict(load(content))
    except (SafetensorError, AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise DocumentError(f"its tensors cannot be read: {error}") from error
