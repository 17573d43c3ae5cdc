"""What an image file consists of: which of its parts the decoder is given, and whether its image data are all there.

A file holds much besides its image: text, colour profiles, previews, further images, what the camera noted. A decoder
that reads them all refuses a whole image for a damaged or huge note about it, and may be made to unpack gigabytes of
text. So it is given only what decides the pixels, as the tables say; what it is given, it still checks.

- PNG: chunks, `PNG_CHUNKS`;
- JPEG: segments, `JPEG_SEGMENTS`; the segments of the codec itself always stay;
- WebP: chunks, `WEBP_CHUNKS`.
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
    # Without the line ends that follow, by which a file shows that it was sent as a text.
    b"\x89PNG": "PNG",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}
_MAX_TEXT = 2**20
"""Bytes of a text that tells an orientation; Pillow unpacks no more."""
_ORIENTATION_TEXTS = frozenset({b"Raw profile type exif", b"XML:com.adobe.xmp", b"exif"})
"""Keywords of the PNG texts in which Pillow looks for an orientation."""


def signature_of(start: bytes) -> str | None:
    """The format that a file's first 16 bytes promise, by Pillow's name; None: none that is unmistakable."""
    for signature, name in _SIGNATURES.items():
        if start.startswith(signature):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if start[:2] == b"BM" and start[6:10] == b"\0\0\0\0" else None


def essence(content: bytes) -> bytes:
    """The file without the parts that say nothing about the pixels; the same object where it has none.

    Where its structure ends, and of formats without a table, everything stays: the decoder says what is wrong.
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


def _tells_orientation(name: bytes, data: bytes) -> bool:
    """Whether Pillow would look for an orientation in a PNG text of one of three kinds, and can unpack it.

    tEXt: keyword, 0, text. zTXt: keyword, 0, method, packed text. iTXt: keyword, 0, whether it is packed, method,
    language, 0, keyword in that language, 0, text.
    """
    keyword, _, text = data.partition(b"\0")
    if len(data) > _MAX_TEXT or keyword not in _ORIENTATION_TEXTS:
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
    # Pixels, palette, transparency: as they are, and what is damaged there is an error.
    **dict.fromkeys((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")),
    # Animation: whether there are several frames. The first image is in IDAT, so that the frames (fcTL, fdAT) can go.
    b"acTL": lambda data: len(data) == 8 and data[:4] > b"\0\0\0\1",
    # Orientation.
    b"eXIf": lambda data: True,
    **{name: partial(_tells_orientation, name) for name in (b"tEXt", b"zTXt", b"iTXt")},
    # Gamma: stated, not applied.
    b"gAMA": lambda data: len(data) == 4,
}
"""Chunk -> which content of it the decoder is given, if its checksum is right; None: any, and the decoder checks it.

No other chunk is given to it, be it text, a profile (iCCP), a resolution (pHYs) or a date.
"""
_PNG_COLOUR, _PNG_PALETTE = 25, 3
"""Where a PNG says how its pixels are coloured, and what it says if they are places in a palette."""


def _png_notes(content: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each chunk that the decoder is not given."""
    start = 8
    while start + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if not name.isalpha():
            return
        # A palette beside colours is advice for screens of few colours.
        if name not in PNG_CHUNKS or (name == b"PLTE" and content[_PNG_COLOUR] != _PNG_PALETTE):
            yield start, min(end, len(content))
        elif (matters := PNG_CHUNKS[name]) is not None:
            data = content[start + 8 : end - 4]
            checksum = struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
            if content[end - 4 : end] != checksum or not matters(data):
                yield start, min(end, len(content))
        if name == b"IEND":
            return
        start = end


JPEG_SEGMENTS: Mapping[int, Callable[[bytes], bool]] = {
    # APP0: with JFIF, colours are YCbCr. A decoder takes one of 14 bytes or more for it.
    0xE0: lambda data: len(data) >= 14 and data.startswith(b"JFIF\0"),
    # APP1: orientation, as EXIF or XMP.
    0xE1: lambda data: data.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")),
    # APP14: which colours they are. A decoder takes one of 12 bytes or more for it.
    0xEE: lambda data: len(data) >= 12 and data.startswith(b"Adobe"),
    # All else of this kind, and comments: profiles (APP2), further images (APP2), Photoshop's notes (APP13).
    **dict.fromkeys((*range(0xE2, 0xEE), 0xEF, 0xFE), lambda data: False),
}
"""Marker of a segment that is not the codec's -> which content of it the decoder is given."""

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_END_OF_DATA = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""What ends the entropy-coded data of a JPEG: a marker other than a restart."""
_NO_MARKERS, _BARE_MARKERS = frozenset((0x00, 0xFF)), frozenset((0x01, *range(0xD0, 0xDA)))
"""What behind 0xFF is no marker of a JPEG, and markers without a length."""
_SOS, _EOI, _DHT, _PROGRESSIVE = 0xDA, 0xD9, 0xC4, (0xC2, 0xCA)
_ENDS = frozenset((_SOS, _EOI))


def _jpeg_segments(content: bytes, position: int = 2) -> list[tuple[int, int, int]]:
    """Marker, start and end of each segment from a place on to the next scan, or to the end of the image."""
    segments: list[tuple[int, int, int]] = []
    size = len(content)
    # Every JPEG that is read comes through here, so that this is written for speed.
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
"""Pixels, transparency, animation, orientation. The decoder is given no other chunk, and no incomplete EXIF or XMP."""


def _webp_chunks(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start of the data and end of each chunk, which may be beyond the file's."""
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
            # Pixels are missing: the decoder says so.
            return content
        else:
            kept.append(content[start - 8 : end] + bytes((end - start) % 2))
    body = b"WEBP" + b"".join(kept)
    return content if is_essence else b"RIFF" + struct.pack("<I", len(body)) + body


_FILLER = b"\xfe" * 16
"""Data that are hardly enough for one block: decoders look some bytes ahead."""
_ZEROS = bytes(256)
"""More zeros in a row do not come out of an encoder, but where zeros mean that nothing changes."""


def find_losses(content: bytes) -> tuple[bool, bytes | None]:
    """Look whether a JPEG or WebP file has lost image data, though a decoder may fill in for them.

    The signs: no end marker after the last scan of a JPEG, or not all scans of a progressive one; many zeros in a row
    in the data. Where the file ends, and what lies behind the image, does not matter.

    Returns:
        Whether it shows that data are missing; False for other formats. And what may show it when it is decoded, for a
        JPEG of one scan, or else None: the file with a few bytes in place of what follows the scan. From this a decoder
        makes the same image, unless the scan breaks off early: then it waits for more data, while an end marker would
        have made it fill the rest with grey.
    """
    kind = signature_of(content[:16])
    if kind == "WEBP":
        return any(content.find(_ZEROS, start, end) >= 0 for start, end in _webp_pixels(content)), None
    if kind != "JPEG":
        return False, None
    scans, is_closed = _jpeg_scans(content)
    # Every coefficient of every component that occurs has to come down to its last bit.
    components = {component for scan in scans for component in scan.components}
    lowest_bits = {(c, k): scan.lowest_bit for scan in scans for c in scan.components for k in scan.coefficients}
    is_complete = bool(scans) and list(lowest_bits.values()).count(0) == 64 * len(components)
    has_hole = any(not s.may_have_zeros and content.find(_ZEROS, s.start, s.end) >= 0 for s in scans)
    unended = content[: scans[0].end] + _FILLER if len(scans) == 1 and is_closed else None
    return not is_closed or not is_complete or has_hole, unended


def _webp_pixels(content: bytes) -> Iterator[tuple[int, int]]:
    """Where the pixels of the first image are."""
    for name, start, end in _webp_chunks(content, 12, len(content)):
        if name in (b"VP8 ", b"VP8L"):
            yield start, end
        elif name == b"ANMF":
            # A frame: where it lies and how long it lasts, then chunks of its own. The first one counts.
            inside = _webp_chunks(content, start + 16, min(end, len(content)))
            yield from ((start, end) for name, start, end in inside if name in (b"VP8 ", b"VP8L"))
            return


@dataclass
class _Scan:
    """One scan of a JPEG: for some components some coefficients, down to a bit."""

    components: tuple[int, ...]
    coefficients: range
    lowest_bit: int
    may_have_zeros: bool
    """Whether zeros alone can be the data of an even area."""
    start: int
    """Of its entropy-coded data in the file."""
    end: int


def _jpeg_scans(content: bytes) -> tuple[list[_Scan], bool]:
    """The scans of the first image, and whether an end marker follows them."""
    scans: list[_Scan] = []
    # Class and number of each Huffman table -> the symbol whose code is zeros: the first, with the shortest code.
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
        # One that is damaged announces no scan.
        if header and len(header) == 4 + 2 * header[0]:
            scans.append(_scan(header, codes, is_progressive, end, after))
        segments = _jpeg_segments(content, after)
    return scans, bool(segments) and segments[-1][0] == _EOI


def _scan(header: bytes, codes: Mapping[int, int], is_progressive: bool, start: int, end: int) -> _Scan:
    """The scan that a header announces."""
    components, tables = tuple(header[1:-3:2]), header[2:-3:2]
    first, last, bits = header[-3:]
    # In an even area the means do not change, and nothing else follows: symbol 0 of the tables for both.
    may_have_zeros = not any(codes.get(table >> 4, 0) for table in tables)
    if not is_progressive:
        may_have_zeros &= not any(codes.get(0x10 | table & 15, 0) for table in tables)
        return _Scan(components, range(64), 0, may_have_zeros, start, end)
    # A later scan of the means is one bit for each. Blocks in which nothing follows are counted: that takes few bits.
    may_have_zeros = first == 0 and (may_have_zeros or bits > 15)
    return _Scan(components, range(first, min(last, 63) + 1), bits & 15, may_have_zeros, start, end)
