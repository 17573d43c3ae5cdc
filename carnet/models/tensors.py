"""Files of tensors: safetensors with a checksum of everything else in the header.

Loading such a file executes nothing from it, unlike a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from carnet.documents import CHECKSUM, DocumentError, conform, parse

_DIGEST = f'"{CHECKSUM}":"%s"'.encode()
_NO_DIGEST = b"0" * 64
"""Stands in the header while the checksum is computed."""
_LENGTH_BYTES = 8
"""A file begins with the length of its header, a number of this many bytes."""


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a file with these tensors, text and a checksum; the tensors' layout is lost."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(contiguous, metadata={**metadata, CHECKSUM: _NO_DIGEST.decode()})
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    document = json.loads(content[_LENGTH_BYTES:end])
    # The library writes these in any order. In one order, equal tensors give equal files.
    document["__metadata__"] = dict(sorted(document["__metadata__"].items()))
    header = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    # Padded as the library does it, so that the tensors are aligned.
    header += b" " * (-len(header) % 8)
    data = memoryview(content)[end:]
    sealed = header.replace(_DIGEST % _NO_DIGEST, _DIGEST % _digest(header, data).encode(), 1)
    return b"".join((len(header).to_bytes(_LENGTH_BYTES, "little"), sealed, data))


def read_metadata(content: bytes) -> dict[str, str]:
    """Return the text in the header of a file of tensors, and check its checksum if there is one.

    Raises:
        DocumentError: if it is no such file, or its checksum is wrong.
    """
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if len(content) < end:
        raise DocumentError("it is cut off or not a file of tensors")
    header = content[_LENGTH_BYTES:end]
    document: dict[str, Any] = conform(parse(header), dict[str, Any])
    metadata: dict[str, str] = conform(document.get("__metadata__", {}), dict[str, str], "its metadata")
    if (recorded := metadata.get(CHECKSUM)) is not None:
        unsealed_header = header.replace(_DIGEST % recorded.encode(errors="backslashreplace"), _DIGEST % _NO_DIGEST, 1)
        if _digest(unsealed_header, memoryview(content)[end:]) != recorded:
            raise DocumentError("its checksum is wrong")
    return metadata


def _digest(header: bytes, data: memoryview) -> str:
    digest = hashlib.sha256(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
    digest.update(data)
    return digest.hexdigest()


def unpack(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file.

    Raises:
        DocumentError: if they cannot be read.
    """
    try:
        return dict(safetensors.torch.load(content))
    except (SafetensorError, AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise DocumentError(f"its tensors cannot be read: {error}") from error
