"""The parts of an image file: which of them the decoder gets, and whether its image data are complete.

A file holds much besides its image: text, colour profiles, previews, further images, notes of the camera. A decoder
that reads all of it refuses a complete image because of a damaged or huge note, and can be made to unpack gigabytes of
text. So it gets only the parts that decide the pixels, which it checks as usual:

- PNG: the chunks in `PNG_CHUNKS`;
- JPEG: the segments of the codec, and those in `JPEG_SEGMENTS`;
- WebP: the chunks in `WEBP_CHUNKS`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    # Without the line ends that follow, which change if a file is transferred as text.
    b"\x89PNG": "PNG",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}
_MAX_TEXT = 2**20
"""Largest size in bytes of a text with an orientation; Pillow unpacks no more."""
_ORIENTATION_KEYWORDS = frozenset({b"Raw profile type exif", b"XML:com.adobe.xmp", b"exif"})
"""Keywords of PNG texts in which Pillow looks for an orientation."""


def signature_of(start: bytes) -> str | None:
    """Return Pillow's name of the format that begins with these 16 bytes, or None if no format is certain."""
    for signature, name in _SIGNATURES.items():
        if start.startswith(signature):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if start[:2] == b"BM" and start[6:10] == b"\0\0\0\0" else None


def essence(content: bytes) -> bytes:
    """Return a file without the parts that do not affect its pixels; the same object if there are none.

    Nothing is removed after the point where the structure ends, nor from formats without a table: the decoder reports
    what is wrong.
    """
    notes: Iterable[tuple[int, int]]
    match signature_of(content[:16]):
        case "PNG":
            notes = _png_notes(content)
        case "JPEG":
            notes = (
                (start, end)
                for marker, start, end in _jpeg_segments(content)
                if marker in JPEG_SEGMENTS and not JPEG_SEGMENTS[marker](content[start + 4 : end])
            )
        case "WEBP":
            return _webp_essence(content)
        case _:
            return content
    kept, begin = [], 0
    for start, end in notes:
        kept.append(content[begin:start])
        begin = end
    return b"".join((*kept, content[begin:])) if begin else content


def _has_orientation(name: bytes, data: bytes) -> bool:
    """Return whether Pillow looks for an orientation in a PNG text, and can unpack it.

    tEXt: keyword, 0, text. zTXt: keyword, 0, method, packed text. iTXt: keyword, 0, whether it is packed, method,
    language, 0, translated keyword, 0, text.
    """
    keyword, _, text = data.partition(b"\0")
    if len(data) > _MAX_TEXT or keyword not in _ORIENTATION_KEYWORDS:
        return False
    if name == b"tEXt" or (name == b"iTXt" and text[:1] == b"\0"):
        return True
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(text[1:] if name == b"zTXt" else text[2:].split(b"\0", 2)[-1], _MAX_TEXT)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail


PNG_CHUNKS: Mapping[bytes, Callable[[bytes], bool] | None] = {
    # Pixels, palette, transparency: damage in these is an error.
    **dict.fromkeys((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")),
    # Animation: the number of frames. The first frame is in IDAT, so the others (fcTL, fdAT) can be removed.
    b"acTL": lambda data: len(data) == 8 and data[:4] > b"\0\0\0\1",
    # Orientation.
    b"eXIf": lambda data: True,
    **{name: partial(_has_orientation, name) for name in (b"tEXt", b"zTXt", b"iTXt")},
    # Gamma, which is not applied.
    b"gAMA": lambda data: len(data) == 4,
}
"""Chunk -> which content of it the decoder gets, if its checksum is right; None: any, and the decoder checks it.

All other chunks are removed, such as text, a profile (iCCP), a resolution (pHYs) or a date.
"""
_PNG_COLOUR, _PNG_PALETTE = 25, 3
"""Position of the colour type in a PNG, and its value for a palette."""


def _png_notes(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each chunk to remove."""
    start = 8
    while start + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if not name.isalpha():
            return
        # A palette in an image with full colours is a suggestion for displays with few colours.
        if name not in PNG_CHUNKS or (name == b"PLTE" and content[_PNG_COLOUR] != _PNG_PALETTE):
            yield start, min(end, len(content))
        elif (is_needed := PNG_CHUNKS[name]) is not None:
            data = content[start + 8 : end - 4]
            checksum = struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
            if content[end - 4 : end] != checksum or not is_needed(data):
                yield start, min(end, len(content))
        if name == b"IEND":
            return
        start = end


JPEG_SEGMENTS: Mapping[int, Callable[[bytes], bool]] = {
    # APP0: JFIF means that colours are YCbCr. Decoders need 14 bytes to recognize it.
    0xE0: lambda data: len(data) >= 14 and data.startswith(b"JFIF\0"),
    # APP1: orientation, as EXIF or XMP.
    0xE1: lambda data: data.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")),
    # APP14: the colour space. Decoders need 12 bytes to recognize it.
    0xEE: lambda data: len(data) >= 12 and data.startswith(b"Adobe"),
    # All other APP segments and comments: profiles and further images (APP2), Photoshop's notes (APP13).
    **dict.fromkeys((*range(0xE2, 0xEE), 0xEF, 0xFE), lambda data: False),
}
"""Marker of a segment that does not belong to the codec -> which content of it the decoder gets."""

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_END_OF_DATA = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The end of the entropy-coded data of a JPEG: a marker other than a restart."""
_NO_MARKERS, _BARE_MARKERS = frozenset((0x00, 0xFF)), frozenset((0x01, *range(0xD0, 0xDA)))
"""Bytes that do not form a marker after 0xFF, and markers without a length."""
_SOS, _EOI, _DHT, _PROGRESSIVE = 0xDA, 0xD9, 0xC4, (0xC2, 0xCA)
_ENDS = frozenset((_SOS, _EOI))


def _jpeg_segments(content: bytes, position: int = 2) -> list[tuple[int, int, int]]:
    """Return marker, start and end of each segment from a position to the next scan or the end of the image."""
    segments: list[tuple[int, int, int]] = []
    size = len(content)
    # Every JPEG is parsed here, so this is written for speed.
    try:
        while True:
            marker = content[position + 1]
            if content[position] != 0xFF or marker in _NO_MARKERS:
                found = _MARKER.search(content, position)
                if found is None:
                    return segments
                position = found.start()
                continue
            start = position
            position += 2
            if marker not in _BARE_MARKERS:
                length = content[position] << 8 | content[position + 1]
                position += length
                if length < 2 or position > size:
                    return segments
            segments.append((marker, start, position))
            if marker in _ENDS:
                return segments
    except IndexError:
        return segments


WEBP_CHUNKS = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"XMP "))
"""Pixels, transparency, animation, orientation. The decoder gets no other chunk, and no incomplete EXIF or XMP."""


def _webp_chunks(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start of the data and end of each chunk; the end may be beyond that of the file."""
    while start + 8 <= end:
        name, size = struct.unpack_from("<4sI", content, start)
        yield name, start + 8, start + 8 + size
        start += 8 + size + size % 2


def _webp_essence(content: bytes) -> bytes:
    stated = 8 + int.from_bytes(content[4:8], "little")
    kept, is_essence = [], stated <= len(content)
    for name, start, end in _webp_chunks(content, 12, min(stated, len(content))):
        is_cut = end > len(content)
        if name not in WEBP_CHUNKS or (is_cut and name in (b"EXIF", b"XMP ")):
            is_essence = False
        elif is_cut:
            # Pixels are missing, which the decoder reports.
            return content
        else:
            kept.append(content[start - 8 : end] + bytes((end - start) % 2))
    body = b"WEBP" + b"".join(kept)
    return content if is_essence else b"RIFF" + struct.pack("<I", len(body)) + body


_FILLER = b"\xfe" * 16
"""Data for hardly one block, because decoders read some bytes ahead."""
_ZEROS = bytes(256)
"""Encoders write so many zeros in a row only where zeros mean that nothing changes."""


def find_losses(content: bytes) -> tuple[bool, bytes | None]:
    """Find out whether a JPEG or WebP file has lost image data for which a decoder may fill in.

    The signs are a JPEG without an end marker after its last scan, a progressive JPEG without all of its scans, and
    many zeros in a row in the data. What follows the image does not matter.

    Returns:
        Whether data are certainly missing (False for other formats), and for a JPEG with one scan, otherwise None, the
        file with a few bytes in place of everything after the scan. The decoder makes the same image of it if the scan
        is complete. If not, it asks for more data, while an end marker would make it fill the rest with grey.
    """
    kind = signature_of(content[:16])
    if kind == "WEBP":
        return any(content.find(_ZEROS, start, end) >= 0 for start, end in _webp_pixels(content)), None
    if kind != "JPEG":
        return False, None
    scans, is_closed = _jpeg_scans(content)
    # Every coefficient of every component must be refined to its last bit.
    components = {component for scan in scans for component in scan.components}
    lowest_bits = {(c, k): scan.lowest_bit for scan in scans for c in scan.components for k in scan.coefficients}
    is_complete = bool(scans) and list(lowest_bits.values()).count(0) == 64 * len(components)
    has_hole = any(not s.may_have_zeros and content.find(_ZEROS, s.start, s.end) >= 0 for s in scans)
    without_end = content[: scans[0].end] + _FILLER if len(scans) == 1 and is_closed else None
    return not is_closed or not is_complete or has_hole, without_end


def _webp_pixels(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the pixels of the first frame are."""
    for name, start, end in _webp_chunks(content, 12, len(content)):
        if name in (b"VP8 ", b"VP8L"):
            yield start, end
        elif name == b"ANMF":
            # A frame has a position and a duration, then chunks of its own.
            inside = _webp_chunks(content, start + 16, min(end, len(content)))
            yield from ((start, end) for name, start, end in inside if name in (b"VP8 ", b"VP8L"))
            return


@dataclass
class _Scan:
    """One scan of a JPEG, which holds some coefficients of some components down to a bit.

    Attributes:
        may_have_zeros: whether the data of a uniform area can be zeros only.
        start: start of the entropy-coded data in the file.
        end: end of these data.
    """

    components: tuple[int, ...]
    coefficients: range
    lowest_bit: int
    may_have_zeros: bool
    start: int
    end: int


def _jpeg_scans(content: bytes) -> tuple[list[_Scan], bool]:
    """Return the scans of the first image, and whether an end marker follows them."""
    scans: list[_Scan] = []
    # Class and number of each Huffman table -> the symbol whose code is zeros: the first one, with the shortest code.
    codes: dict[int, int] = {}
    is_progressive = False
    segments = _jpeg_segments(content)
    while segments and segments[-1][0] == _SOS:
        for marker, start, end in segments:
            is_progressive |= marker in _PROGRESSIVE
            table = start + 4
            while marker == _DHT and table + 17 < end:
                codes[content[table]] = content[table + 17]
                table += 17 + sum(content[table + 1 : table + 17])
        found = _END_OF_DATA.search(content, end)
        after = len(content) if found is None else found.start()
        header = content[start + 4 : end]
        # A damaged header describes no scan.
        if header and len(header) == 4 + 2 * header[0]:
            scans.append(_scan(header, codes, is_progressive, end, after))
        segments = _jpeg_segments(content, after)
    return scans, bool(segments) and segments[-1][0] == _EOI


def _scan(header: bytes, codes: Mapping[int, int], is_progressive: bool, start: int, end: int) -> _Scan:
    """Return the scan that a header describes."""
    components, tables = tuple(header[1:-3:2]), header[2:-3:2]
    first, last, bits = header[-3:]
    # In a uniform area, the means do not change and nothing else follows: symbol 0 of the tables for both.
    may_have_zeros = not any(codes.get(table >> 4, 0) for table in tables)
    if not is_progressive:
        may_have_zeros &= not any(codes.get(0x10 | table & 15, 0) for table in tables)
        return _Scan(components, range(64), 0, may_have_zeros, start, end)
    # A later scan of the means has one bit for each. Blocks in which nothing follows are counted, in few bits.
    may_have_zeros = first == 0 and (may_have_zeros or bits > 15)
    return _Scan(components, range(first, min(last, 63) + 1), bits & 15, may_have_zeros, start, end)
