"""Damage images and archives in many ways: bytes, parts and headers, before and after compression."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from carnet.data.synthetic import CLASSES, draw_image

ESCAPED = Path("/tmp/escaped-from-an-archive.jpg")
"""A file that some archives try to write."""
_VALUES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1")
_NAMES = (*(b"../../../x.jpg", b"cat/../../x.jpg", bytes(ESCAPED), b"C:\\x.jpg"), *(b"cat", b"\xff\xfe.jpg", b"a" * 99))
_NUMBERS = (b"77777777777", b"-1", b"\x80" + b"\0" * 3 + b"\x7f" * 8)
_TYPES = (b"1", b"2", b"3", b"5", b"6", b"K", b"L", b"S", b"V", b"g", b"x", b"\xff")
_TAR_FIELDS = (
    *((0, 100, _NAMES), (100, 8, _NUMBERS), (124, 12, _NUMBERS), (124, 12, _NUMBERS), (136, 12, _NUMBERS)),
    *((156, 1, _TYPES), (156, 1, _TYPES), (157, 100, _NAMES), (257, 8, _VALUES), (345, 155, _NAMES)),
)
"""Place and length of name, mode, size, time, type, link, magic and prefix in a header of 512 bytes, and values."""
_ZIP_HEADERS = ((b"PK\1\2", 62), (b"PK\1\2", 62), (b"PK\3\4", 46), (b"PK\5\6", 22))
"""Magic numbers of a zip's headers, and how many bytes to change."""


@cache
def drawn_images() -> list[bytes]:
    """Return drawn images in every format that is read, and in several variants of each."""
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: tuple[tuple[str, str, dict[str, Any]], ...] = (
        *(("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {}), ("JPEG", "CMYK", {})),
        *(("JPEG", "RGB", {"exif": exif}), ("PNG", "RGB", {"exif": exif}), ("PNG", "RGBA", {}), ("PNG", "LA", {})),
        *(("PNG", "P", {"transparency": 3}), ("PNG", "L", {"transparency": 7}), ("PNG", "1", {}), ("PNG", "I;16", {})),
        *(("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("WEBP", "RGB", {"exif": exif})),
        *(("WEBP", "RGB", {"save_all": True}), ("GIF", "P", {}), ("GIF", "P", {"save_all": True})),
        *(("TIFF", "RGB", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "I;16", {})),
        *(("TIFF", "RGB", {"compression": "jpeg"}), ("TIFF", "1", {"compression": "group4"})),
        *(("BMP", "RGB", {}), ("BMP", "P", {}), ("PPM", "RGB", {})),
    )
    return [_saved(number, *kind) for number, kind in enumerate(kinds)]


def _saved(number: int, form: str, mode: str, options: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    first, second = (
        _converted(draw_image(number % len(CLASSES), np.random.default_rng(seed)), mode)
        for seed in (number, number + 100)
    )
    first.save(content, form, **options, **({"append_images": [second]} if "save_all" in options else {}))
    return content.getvalue()


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257)
    return picture.convert("RGB").convert(mode)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Change, cut off, remove, insert or zero bytes, or repeat a part; half of the time near the beginning.

    A PNG mostly gets valid checksums, so that these do not reveal the damage.
    """
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not changed:
            break
        start = rng.randrange(len(changed) if rng.random() < 0.5 else min(len(changed), 64))
        end = min(len(changed), start + rng.choice((1, 2, 4, 16, 200, 4000)))
        match rng.randrange(8):
            case 0:
                del changed[start:]
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = rng.randbytes(end - start)
            case 3:
                changed[start:end] = bytes(end - start)
            case 4:
                start, end = rng.choice(_parts(bytes(changed)))
                changed[end:end] = changed[start:end] * rng.choice((1, 1, 3, 100))
            case 5:
                value = rng.choice(_VALUES)
                changed[start : start + len(value)] = value
            case _:
                for _ in range(rng.randint(1, 12)):
                    changed[rng.randrange(start, min(len(changed), start + 200))] = rng.randrange(256)
    return _with_right_checksums(changed) if rng.random() < 0.7 else bytes(changed)


def _parts(content: bytes) -> list[tuple[int, int]]:
    """Return start and end of the segments of a JPEG, the chunks of a PNG or WebP, or some parts of other files."""
    is_png, is_webp = content.startswith(b"\x89PNG"), content.startswith(b"RIFF")
    if content.startswith(b"\xff\xd8"):
        marks = [place for place in range(len(content) - 1) if content[place] == 0xFF and content[place + 1] >= 0xC0]
        return list(itertools.pairwise(marks)) or [(0, len(content))]
    parts, start = [], 8 if is_png else 12 if is_webp else 0
    while start < len(content):
        length = 100
        if is_png:
            length = 12 + int.from_bytes(content[start : start + 4], "big")
        elif is_webp:
            length = 8 + int.from_bytes(content[start + 4 : start + 8], "little")
        parts.append((start, min(len(content), start + length)))
        start += length
    return parts or [(0, len(content))]


def _with_right_checksums(content: bytearray) -> bytes:
    if content.startswith(b"\x89PNG"):
        for start, end in _parts(bytes(content)):
            if end - start >= 12:
                struct.pack_into(">I", content, end - 4, zlib.crc32(content[start + 4 : end - 4]))
    return bytes(content)


@cache
def packed_images() -> dict[str, list[bytes]]:
    """Return a small data set as zip archives, deflated and not, and as two kinds of tar archives, by file ending."""
    pictures = drawn_images()
    files = {f"{kind}/{number}.jpg": pictures[number] for kind in ("cat", "dog") for number in range(3)}
    files["dog/" + "long" * 40 + "é.jpg"] = pictures[0]
    archives: dict[str, list[bytes]] = {"zip": [], "tar": []}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", method) as packed:
            for path, image in files.items():
                packed.writestr(zipfile.ZipInfo(path), image, method)
        archives["zip"].append(content.getvalue())
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=form) as tar:
            for path, image in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(image)
                tar.addfile(info, io.BytesIO(image))
        archives["tar"].append(content.getvalue())
    return archives


def mutated_archive(number: int, rng: random.Random) -> tuple[str, bytes]:
    """Return name and content of an archive that was damaged before or after compression."""
    ending = ("zip", "tar", "tar.gz", "tar.bz2")[number % 4]
    content = rng.choice(packed_images()[ending[:3]])
    packers: dict[str, Callable[[bytes], bytes]] = {
        "tar.gz": partial(gzip.compress, mtime=0),
        "tar.bz2": bz2.compress,
    }
    pack = packers.get(ending, bytes)
    match rng.randrange(4):
        case 0:
            content = mutated(pack(content), rng)
        case 1:
            content = pack(mutated(content, rng))
        case _:
            content = pack(_with_other_headers(content, rng))
    return f"photos.{ending}", content


def _with_other_headers(content: bytes, rng: random.Random) -> bytes:
    """Change some headers of an archive; those of a tar keep valid checksums."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        if content.startswith(b"PK"):
            magic, length = rng.choice(_ZIP_HEADERS)
            start = rng.choice([place for place in range(len(content)) if content.startswith(magic, place)])
            value = rng.choice((*_VALUES, *_VALUES, *_NAMES))
            place = start + rng.randrange(4, length)
            changed[place : place + len(value)] = value[: len(changed) - place]
        else:
            headers = [place for place in range(0, len(content), 512) if content.startswith(b"ustar", place + 257)]
            start, (place, length, values) = rng.choice(headers), rng.choice(_TAR_FIELDS)
            changed[start + place : start + place + length] = rng.choice(values)[:length].ljust(length, b"\0")
            changed[start + 148 : start + 156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return bytes(changed)
