"""What an image file consists of: which of its parts the decoder is given, and whether its image data are all there.

A file holds much besides its image: text, colour profiles, previews, further pictures, what the camera noted. A decoder
that reads them all refuses a whole image for a damaged or huge note about it, and may be made to unpack gigabytes of
text. So it is given no more than what decides the pixels, as the tables say; what it is given, it still checks.

- PNG: chunks, `PNG_CHUNKS`;
- JPEG: segments, `JPEG_SEGMENTS`; the segments of the codec itself always stay;
- WebP: chunks, `WEBP_CHUNKS`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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
    match signature_of(content[:16]):
        case "PNG":
            return _join(content, _png_parts(content))
        case "JPEG":
            return _join(content, _jpeg_parts(content))
        case "WEBP":
            return _webp_essence(content)
        case _:
            return content


def _join(content: bytes, parts: Iterator[tuple[int, int, bool]]) -> bytes:
    """The content without the parts (start, end, whether it stays) that do not."""
    pieces, begin = [], 0
    for start, end, stays in parts:
        if not stays:
            pieces.append(content[begin:start])
            begin = end
    return b"".join((*pieces, content[begin:])) if begin else content


def _always(data: bytes) -> bool:
    return True


def _has_length(length: int) -> Callable[[bytes], bool]:
    return lambda data: len(data) == length


def _tells_frames(data: bytes) -> bool:
    return len(data) == 8 and data[:4] > b"\0\0\0\1"


def _tells_orientation(data: bytes) -> bool:
    return len(data) <= _MAX_TEXT and data.partition(b"\0")[0] in _ORIENTATION_TEXTS


def _tells_orientation_packed(data: bytes) -> bool:
    return _tells_orientation(data) and _unpacks(data.partition(b"\0")[2][1:])


def _tells_orientation_perhaps_packed(data: bytes) -> bool:
    """Keyword, 0, whether it is packed, method, language, 0, keyword in that language, 0, text."""
    fields = data.partition(b"\0")[2]
    text = fields[2:].split(b"\0", 2)[-1]
    return _tells_orientation(data) and (fields[:1] == b"\0" or _unpacks(text))


def _unpacks(packed: bytes) -> bool:
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, _MAX_TEXT)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail


PNG_CHUNKS: Mapping[bytes, Callable[[bytes], bool] | None] = {
    # Pixels, palette, transparency: as they are, and what is damaged there is an error.
    **dict.fromkeys((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")),
    # Animation: whether there are several frames. The first picture is in IDAT, so that the frames (fcTL, fdAT) can go.
    b"acTL": _tells_frames,
    # Orientation.
    b"eXIf": _always,
    b"tEXt": _tells_orientation,
    b"zTXt": _tells_orientation_packed,
    b"iTXt": _tells_orientation_perhaps_packed,
    # Gamma: stated, not applied.
    b"gAMA": _has_length(4),
}
"""Chunk -> which content of it the decoder is given, if its checksum is right; None: any, and the decoder checks it.

No other chunk is given to it, be it text, a profile (iCCP), a resolution (pHYs) or a date.
"""


_PNG_COLOUR, _PNG_PALETTE = 25, 3
"""Where a PNG says how its pixels are coloured, and what it says if they are places in a palette."""


def _png_parts(content: bytes) -> Iterator[tuple[int, int, bool]]:
    start = 8
    while start + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if not name.isalpha():
            return
        # A palette beside colours is advice for screens of few colours.
        if name not in PNG_CHUNKS or (name == b"PLTE" and content[_PNG_COLOUR] != _PNG_PALETTE):
            yield start, min(end, len(content)), False
        elif (matters := PNG_CHUNKS[name]) is not None:
            data = content[start + 8 : end - 4]
            is_whole = content[end - 4 : end] == struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
            yield start, min(end, len(content)), is_whole and matters(data)
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
    # All else of this kind, and comments: profiles (APP2), further pictures (APP2), Photoshop's notes (APP13).
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


def _jpeg_parts(content: bytes) -> Iterator[tuple[int, int, bool]]:
    for marker, start, end in _jpeg_segments(content):
        if marker in JPEG_SEGMENTS:  # The others are the codec's.
            yield start, end, JPEG_SEGMENTS[marker](content[start + 4 : end])


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
    pieces, is_essence = [], stated <= len(content)
    for name, start, end in _webp_chunks(content, 12, min(stated, len(content))):
        if name in WEBP_CHUNKS and (end <= len(content) or name not in (b"EXIF", b"XMP ")):
            pieces.append(content[start - 8 : end] + bytes((end - start) % 2))
        else:
            is_essence = False
        if end > len(content) and name not in (b"EXIF", b"XMP ") and name in WEBP_CHUNKS:
            # Pixels are missing: the decoder says so.
            return content
    body = b"WEBP" + b"".join(pieces)
    return content if is_essence else b"RIFF" + struct.pack("<I", len(body)) + body


_FILLER = b"\xfe" * 16
"""Data that are hardly enough for one block: decoders look some bytes ahead."""
_FEW_ZEROS = 256
"""Bytes; more zeros in a row do not come out of an encoder, but where zeros mean that nothing changes."""


def has_lost_data(content: bytes) -> bool:
    """Whether a JPEG or WebP file shows that image data are missing, though a decoder may fill in for them.

    The signs: no end marker after the last scan of a JPEG, or not all scans of a progressive one; many zeros in a row
    in the data. Where the file ends, and what lies behind the image, does not matter. False for other formats.
    """
    match signature_of(content[:16]):
        case "JPEG":
            scans, is_closed = _jpeg_scans(content)
            return not is_closed or not _is_complete(scans) or any(scan.has_hole(content) for scan in scans)
        case "WEBP":
            return any(content.find(bytes(_FEW_ZEROS), start, end) >= 0 for start, end in _webp_pixels(content))
        case _:
            return False


def _webp_pixels(content: bytes) -> Iterator[tuple[int, int]]:
    """Where the pixels of the first picture are."""
    for name, start, end in _webp_chunks(content, 12, len(content)):
        if name in (b"VP8 ", b"VP8L"):
            yield start, end
        elif name == b"ANMF":
            # A frame: where it lies and how long it lasts, then chunks of its own. The first one counts.
            inside = _webp_chunks(content, start + 16, min(end, len(content)))
            yield from ((start, end) for name, start, end in inside if name in (b"VP8 ", b"VP8L"))
            return


def without_end(content: bytes) -> bytes | None:
    """A JPEG with a few bytes in place of what follows its scan, if it has one scan only; None for others.

    From this a decoder makes the same image, unless the scan breaks off early: then it waits for more data, while an
    end marker would have made it fill the rest with grey.
    """
    if signature_of(content[:16]) != "JPEG":
        return None
    scans, is_closed = _jpeg_scans(content)
    return content[: scans[0].end] + _FILLER if len(scans) == 1 and is_closed else None


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

    def has_hole(self, content: bytes) -> bool:
        return not self.may_have_zeros and content.find(bytes(_FEW_ZEROS), self.start, self.end) >= 0


def _jpeg_scans(content: bytes) -> tuple[list[_Scan], bool]:
    """The scans of the first picture, and whether an end marker follows them."""
    scans: list[_Scan] = []
    codes: dict[int, int] = {}
    is_progressive = False
    segments = _jpeg_segments(content)
    while segments and segments[-1][0] == _SOS:
        for marker, start, end in segments:
            if marker == _DHT:
                codes |= _zero_codes(content[start + 4 : end])
            is_progressive |= marker in _PROGRESSIVE
        found = _END_OF_DATA.search(content, end)
        after = len(content) if found is None else found.start()
        scans += _scan(content[start + 4 : end], codes, is_progressive, end, after)
        segments = _jpeg_segments(content, after)
    return scans, bool(segments) and segments[-1][0] == _EOI


def _zero_codes(tables: bytes) -> dict[int, int]:
    """Class and number of each Huffman table -> the symbol whose code is zeros: the first, with the shortest code."""
    codes, start = {}, 0
    while start + 17 < len(tables):
        codes[tables[start]] = tables[start + 17]
        start += 17 + sum(tables[start + 1 : start + 17])
    return codes


def _scan(header: bytes, codes: Mapping[int, int], is_progressive: bool, start: int, end: int) -> list[_Scan]:
    """The scan that a header announces; none if it is damaged."""
    number = header[0] if header else 0
    if len(header) != 4 + 2 * number:
        return []
    components, tables = tuple(header[1:-3:2]), header[2:-3:2]
    first, last, bits = header[-3:]
    # In an even area the means do not change, and nothing else follows: symbol 0 of the tables for both.
    may_have_zeros = not any(codes.get(table >> 4, 0) for table in tables)
    if not is_progressive:
        may_have_zeros &= not any(codes.get(0x10 | table & 15, 0) for table in tables)
        return [_Scan(components, range(64), 0, may_have_zeros, start, end)]
    # A later scan of the means is one bit for each. Blocks in which nothing follows are counted: that takes few bits.
    may_have_zeros = first == 0 and (may_have_zeros or bits > 15)
    return [_Scan(components, range(first, min(last, 63) + 1), bits & 15, may_have_zeros, start, end)]


def _is_complete(scans: list[_Scan]) -> bool:
    """Whether every coefficient of every component that occurs comes down to its last bit."""
    lowest: dict[int, list[int]] = {}
    for scan in scans:
        for component in scan.components:
            bits = lowest.setdefault(component, [-1] * 64)
            for coefficient in scan.coefficients:
                bits[coefficient] = scan.lowest_bit
    return bool(scans) and not any(any(bits) for bits in lowest.values())
