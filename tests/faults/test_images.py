"""Images as they are on disks: with damaged metadata, any transparency, half of their data lost, or huge."""

import csv
import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import finished
from PIL import Image

import carnet
from carnet.cli.main import run
from carnet.errors import ConfigError, ImageError
from carnet.preprocess import load_image

SIDE = 24
MEGABYTE = bytes(2**20)


def spec(in_channels: int = 3) -> carnet.ModelSpec:
    numbers = (0.5,) * in_channels
    return carnet.ModelSpec(
        model="carnet18", classes=("a", "b"), image_size=SIDE, in_channels=in_channels, mean=numbers, std=numbers
    )


def loaded(content: bytes, in_channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return load_image(content, spec(in_channels))


def photo(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """An image with edges and noise, like a photo."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(-30, 30, (height, width, 3))
    colours = np.stack([9 * x, 7 * y, 5 * (x + y)], axis=2) % 200 + 25 + noise
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes = b"", *, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def png(
    rows: Iterable[bytes],
    *,
    bits: int = 8,
    colour: int = 2,
    before: bytes = b"",
    after: bytes = b"",
    size: tuple[int, int] = (SIDE, SIDE),
) -> bytes:
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 1)
    chunks = (chunk(b"IHDR", header), before, chunk(b"IDAT", data), after, chunk(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def photo_png(before: bytes = b"", after: bytes = b"") -> bytes:
    return png((row.tobytes() for row in np.asarray(photo())), before=before, after=after)


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def photo_jpeg(*segments: bytes, keep_first: bool = True) -> bytes:
    """A JPEG with these segments after its first one, or in its place."""
    content = encoded(photo(), "JPEG", quality=90)
    first_end = 4 + int.from_bytes(content[4:6], "big")
    return content[: first_end if keep_first else 2] + b"".join(segments) + content[first_end:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


PACKED_TEXT = b"Comment\0\0" + zlib.compress(3 * MEGABYTE)
NOTES = {
    "zTXt of 3 MB": chunk(b"zTXt", PACKED_TEXT),
    "zTXt that claims an orientation": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(3 * MEGABYTE)),
    "iTXt of 3 MB": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(3 * MEGABYTE)),
    "XMP of 3 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(3 * MEGABYTE)),
    "iCCP of 3 MB": chunk(b"iCCP", b"profile\0\0" + zlib.compress(3 * MEGABYTE)),
    "iCCP without a method": chunk(b"iCCP", b"profile"),
    "iCCP packed in another way": chunk(b"iCCP", b"profile\0\7x"),
    "65 MB of text": chunk(b"tEXt", b"Comment\0" + MEGABYTE) * 65,
    "short pHYs": chunk(b"pHYs", b"\0\0\1"),
    "short gAMA": chunk(b"gAMA", b"\0"),
    "short cHRM": chunk(b"cHRM", b"\0"),
    "empty sRGB": chunk(b"sRGB"),
    "short eXIf": chunk(b"eXIf", b"MM"),
    "text with a wrong checksum": chunk(b"tEXt", b"Comment\0hello", crc=7),
    "eXIf with a wrong checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", crc=7),
    "text that pretends to be transparency": chunk(b"tEXt", b"transparency\0yes"),
    "text that pretends to be interlaced": chunk(b"tEXt", b"interlace\0yes"),
    "short acTL": chunk(b"acTL", b"\0\0\0\2"),
    "short fcTL": chunk(b"fcTL", b"\0"),
    "frame beyond the image": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 99, 99, 5, 5, 1, 1, 0, 0)),
    "frames out of order": chunk(b"fdAT", b"\0\0\0\7xxxx"),
    "a private chunk": chunk(b"prVt", MEGABYTE),
    "palette beside colours, with a wrong checksum": chunk(b"PLTE", b"\1\2\3", crc=7),
}


@pytest.mark.parametrize("notes", NOTES.values(), ids=NOTES)
@pytest.mark.parametrize("place", ["before", "after"])
def test_damaged_png_metadata_do_no_harm(notes: bytes, place: str) -> None:
    assert np.array_equal(loaded(photo_png(**{place: notes})), np.asarray(photo()))


def test_a_png_cut_in_metadata_after_its_pixels_is_complete() -> None:
    whole = photo_png(after=chunk(b"tEXt", b"Comment\0" + 500 * b"x"))
    assert np.array_equal(loaded(whole[:-300]), np.asarray(photo()))


PHOTOSHOP = b"Photoshop 3.0\0"
JPEG_NOTES = {
    "short JFIF": (segment(0xE0, b"JFIF\0\1"), False),
    "JFIF with nothing else": (segment(0xE0, b"JFIF"), True),
    "short Adobe": (segment(0xEE, b"Adobe\0"), True),
    "short profile": (segment(0xE2, b"ICC_PROFILE\0"), True),
    "profile of which parts are missing": (segment(0xE2, b"ICC_PROFILE\0\2\7abc"), True),
    "Photoshop's notes cut short": (segment(0xED, PHOTOSHOP + b"8BIM\4\4"), True),
    "Photoshop's resolution cut short": (segment(0xED, PHOTOSHOP + b"8BIM\3\xed\0\0\0\0\0\2xx"), True),
    "further pictures that are not there": (segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0"), True),
    "further pictures, damaged": (segment(0xE2, b"MPF\0II*\0\xff\xff\xff\x7f"), True),
    "EXIF without content": (segment(0xE1, b"Exif\0\0"), True),
    "EXIF cut short": (segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\3\1"), True),
    "EXIF of noise": (segment(0xE1, b"Exif\0\0" + bytes(range(256))), True),
    "XMP of noise": (segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(range(256))), True),
    "a comment of 64 kB": (segment(0xFE, bytes(65_000)), True),
}


@pytest.mark.parametrize(("notes", "keep_first"), JPEG_NOTES.values(), ids=JPEG_NOTES)
def test_damaged_jpeg_metadata_do_no_harm(notes: bytes, keep_first: bool) -> None:
    plain = encoded(photo(), "JPEG", quality=90)
    assert np.array_equal(loaded(photo_jpeg(notes, keep_first=keep_first)), loaded(plain))


def test_mutated_exif_only_changes_the_orientation() -> None:
    exif = Image.Exif()
    exif[0x011A], exif[0x011B], exif[0x0128], exif[0x010F] = 72.0, 72.0, 2, "a camera"
    plain = encoded(photo(), "JPEG", exif=exif, quality=90)
    start, rng = plain.index(b"Exif") + 6, np.random.default_rng(1)
    length = int.from_bytes(plain[start - 8 : start - 6], "big") - 8
    expected = loaded(plain)
    turned = {np.rot90(expected, k).tobytes() for k in range(4)} | {
        np.rot90(expected[::-1], k).tobytes() for k in range(4)
    }
    for _ in range(400):
        mutated = bytearray(plain)
        for place in rng.integers(start, start + length, 4):
            mutated[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
        assert loaded(bytes(mutated)).tobytes() in turned


WEBP = encoded(photo(), "WEBP", lossless=True, exact=True)
WEBP_PIXELS = (b"VP8L", WEBP[20 : 20 + int.from_bytes(WEBP[16:20], "little")])
EXTENDED = (b"VP8X", bytes((0x2C, 0, 0, 0)) + struct.pack("<I", SIDE - 1)[:3] * 2)
"""Header that declares a profile, EXIF and XMP."""


@pytest.mark.parametrize(
    "content",
    [
        riff(EXTENDED, (b"ICCP", b"xyz"), WEBP_PIXELS, (b"EXIF", b"MM"), (b"XMP ", b"<")),
        riff(EXTENDED, WEBP_PIXELS),
        riff(EXTENDED, WEBP_PIXELS, (b"EXIF", bytes(5000)))[:-4000],
        riff(EXTENDED, WEBP_PIXELS, (b"what", bytes(5000)))[:-4000],
        riff(WEBP_PIXELS) + bytes(5000),
        WEBP[:4] + struct.pack("<I", len(WEBP) + 900) + WEBP[8:],
    ],
    ids=["all notes damaged", "notes missing", "EXIF cut", "unknown cut", "more behind", "size too large"],
)
def test_damaged_webp_metadata_do_no_harm(content: bytes) -> None:
    assert np.array_equal(loaded(content), np.asarray(photo()))


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
EXIF = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
HEX_EXIF = b"\nexif\n%d\n" % (len(EXIF) + 6) + (b"Exif\0\0" + EXIF).hex().encode()


@pytest.mark.parametrize(
    "content",
    [
        photo_png(before=chunk(b"eXIf", EXIF)),
        photo_png(after=chunk(b"eXIf", EXIF)),
        photo_png(before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        photo_png(before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
        photo_png(before=chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(HEX_EXIF))),
        photo_png(before=chunk(b"tEXt", b"Raw profile type exif\0" + HEX_EXIF)),
        riff(EXTENDED, WEBP_PIXELS, (b"EXIF", EXIF)),
        riff(EXTENDED, WEBP_PIXELS, (b"XMP ", XMP)),
    ],
)
def test_every_kind_of_orientation_is_applied(content: bytes) -> None:
    assert np.array_equal(loaded(content), np.rot90(np.asarray(photo()), 3))


def test_jpeg_orientation_is_applied() -> None:
    expected = np.rot90(loaded(photo_jpeg()), 3)
    for notes in (b"Exif\0\0" + EXIF, b"http://ns.adobe.com/xap/1.0/\0" + XMP):
        assert np.array_equal(loaded(photo_jpeg(segment(0xE1, notes))), expected)


@pytest.mark.parametrize(
    "content",
    [
        photo_png()[:8] + chunk(b"IHDR", b"short"),
        photo_png().replace(b"IHDR\0\0\0", b"IHDR\0\0\1"),
        photo_png(before=chunk(b"tRNS", b"\0\1\0\2\0\3", crc=5)),
        photo_png()[:200],
        photo_jpeg()[:100],
        b"\xff\xd8\xff\xe0" + bytes(40),
        b"GIF89a" + bytes(3),
        b"II*\0" + bytes(40),
        b"RIFF\x40\0\0\0WEBPVP8 " + bytes(60),
        b"BM" + bytes(60),
    ],
)
def test_a_file_with_a_signature_is_damaged_not_unsupported(content: bytes) -> None:
    with pytest.raises(ImageError, match="damaged"):
        load_image(content, spec())


def test_bombs_stay_refused() -> None:
    """A header may claim many pixels without any data, in a PNG or a WebP."""
    large = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", large) + chunk(b"IDAT", b"x") + chunk(b"IEND")
    with pytest.raises(ImageError, match="178,956,970"):
        load_image(content, spec())
    with pytest.raises(ImageError, match="178,956,970"):
        load_image(riff((b"VP8X", bytes(4) + b"\xff\x3f\0\xff\x3f\0"), WEBP_PIXELS), spec())


def packed_rows(values: np.ndarray[Any, Any], bits: int) -> list[bytes]:
    """Rows of a PNG from grey (H, W) or colours (H, W, 3), with so many bits per value (8 or 16 for colours)."""
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in values]
    if bits == 8:
        return [row.astype(np.uint8).tobytes() for row in values]
    places = 8 // bits
    weights = 2 ** (bits * np.arange(places)[::-1])
    return [(row.reshape(-1, places) * weights).sum(axis=1).astype(np.uint8).tobytes() for row in values]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_of_any_depth_is_put_on_white(bits: int) -> None:
    most = 2**bits - 1
    values = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * (4099 if bits == 16 else 1) % (most + 1)
    transparent = int(values[3, 5])
    grey = values >> 8 if bits == 16 else values * 255 // most
    content = png(packed_rows(values, bits), bits=bits, colour=0, before=chunk(b"tRNS", struct.pack(">H", transparent)))
    expected = np.where(values == transparent, 255, grey)
    assert np.array_equal(loaded(content), np.repeat(expected[:, :, None], 3, axis=2))
    assert np.array_equal(loaded(content, 1)[:, :, 0], expected)
    four = loaded(content, 4)
    assert np.array_equal(four[:, :, 3], np.where(values == transparent, 0, 255))
    assert np.array_equal(four[:, :, 0], grey)


@pytest.mark.parametrize("bits", [8, 16])
def test_transparent_colour_of_any_depth_is_put_on_white(bits: int) -> None:
    """At 16 bits, colours that differ only in their lower bytes are different colours."""
    values = np.random.default_rng(2).integers(0, 2, (SIDE, SIDE, 3)) + (0x4080 if bits == 16 else 0x40)
    transparent = values[3, 5]
    is_transparent = (values == transparent).all(axis=2)
    assert 0 < is_transparent.sum() < SIDE * SIDE / 4
    content = png(packed_rows(values, bits), bits=bits, before=chunk(b"tRNS", struct.pack(">3H", *transparent)))
    colours = values >> 8 if bits == 16 else values
    assert np.array_equal(loaded(content), np.where(is_transparent[:, :, None], 255, colours))
    four = loaded(content, 4)
    assert np.array_equal(four[:, :, 3], np.where(is_transparent, 0, 255))
    assert np.array_equal(four[:, :, :3], colours)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
@pytest.mark.parametrize("highest", [200, 60_000, 2_000_000_000])
def test_tiffs_of_32_bit_integers_are_refused(dtype: type, highest: int) -> None:
    values = np.linspace(0, highest, SIDE * SIDE).astype(dtype).reshape(SIDE, SIDE)
    signed = Image.fromarray(values.astype(np.int32))
    content = encoded(signed, "TIFF")
    if dtype is np.uint32:
        # SampleFormat, which is 2 for signed values.
        entry = struct.pack("<HHI", 339, 3, 1)
        assert entry in content
        content = content.replace(entry + b"\2\0", entry + b"\1\0")
    for source in (content, signed, Image.open(io.BytesIO(content))):
        with pytest.raises(ImageError, match="8 or 16 bits"):
            load_image(source, spec())


def test_16_bits_in_other_files_are_read() -> None:
    values = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 100
    expected = np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    pgm = b"P5 %d %d 65535\n" % (SIDE, SIDE) + values.astype(">u2").tobytes()
    for content in (pgm, encoded(Image.fromarray(values), "TIFF"), png(packed_rows(values, 16), bits=16, colour=0)):
        assert np.array_equal(loaded(content), expected)


JPEG = encoded(photo(160, 120), "JPEG", quality=95, subsampling=0)
PROGRESSIVE = encoded(photo(160, 120), "JPEG", quality=90, progressive=True)
LOSSY_WEBP = encoded(photo(160, 120), "WEBP", quality=90)
ANIMATED_WEBP = encoded(photo(160, 120), "WEBP", quality=90, save_all=True, append_images=[photo(160, 120).rotate(90)])
HALF = len(JPEG) // 2


def zeroed(content: bytes, start: float, end: float) -> bytes:
    first, last = int(start * len(content)), int(end * len(content))
    return content[:first] + bytes(last - first) + content[last:]


def grey_page(colour: int) -> Image.Image:
    page = Image.new("RGB", (320, 240), (colour,) * 3)
    page.paste(photo(), (20, 20))
    return page


LOSSES = {
    "zeros.jpg": zeroed(JPEG, 0.25, 1),
    "hole.jpg": zeroed(JPEG, 0.4, 0.5),
    "closed.jpg": JPEG[:HALF] + b"\xff\xd9",
    "nearly.jpg": JPEG[: 9 * len(JPEG) // 10] + b"\xff\xd9",
    "closed-progressive.jpg": PROGRESSIVE[: len(PROGRESSIVE) // 2] + b"\xff\xd9",
    "hole-progressive.jpg": zeroed(PROGRESSIVE, 0.5, 0.58),
    "zeros.webp": zeroed(LOSSY_WEBP, 0.25, 1),
    "hole.webp": zeroed(LOSSY_WEBP, 0.4, 0.5),
    "zeros-animated.webp": zeroed(ANIMATED_WEBP, 0.25, 1),
}
WHOLE = {
    "whole.jpg": JPEG,
    "whole-progressive.jpg": PROGRESSIVE,
    "whole.webp": LOSSY_WEBP,
    "whole-animated.webp": ANIMATED_WEBP,
    "zeros-behind.jpg": JPEG + bytes(9000),
    "preview-behind.jpg": JPEG + JPEG[:HALF],
    "preview-inside.jpg": JPEG[:2] + segment(0xE1, b"Exif\0\0" + JPEG[:HALF]) + JPEG[2:],
    **{
        f"page-{colour}-{number}.jpg": encoded(grey_page(colour), "JPEG", **options)
        for colour in (0, 127, 128, 255)
        for number, options in enumerate([{}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}])
    },
    "black.jpg": encoded(Image.new("L", (1200, 800)), "JPEG", optimize=True, quality=10),
    "black.webp": encoded(Image.new("RGB", (1200, 800)), "WEBP", method=0),
}


def test_images_with_lost_data_are_reported_and_complete_ones_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "valid"):
        for label, files in (("lost", LOSSES), ("whole", WHOLE)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number, (name, content) in enumerate(files.items()):
                (folder / f"{name}").write_bytes(content + bytes((split == "valid", number)))
    common = ["--model", "carnet_n", "--image-size", "32", "--epochs", "1", "--compile", "off", "--output"]
    assert run(["train", str(tmp_path / "data"), *common, str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if " lost" in line and str(2 * len(LOSSES)) in line)
    assert "train/lost/closed.jpg" in line
    with (tmp_path / "run" / "data.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["filepath"]: "lost" in row["notes"] for row in rows} == {
        row["filepath"]: "/lost/" in row["filepath"] for row in rows
    }
    assert len(rows) == 2 * (len(LOSSES) + len(WHOLE))


@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF"])
def test_images_that_cannot_be_decoded_are_refused_before_training(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a decoder that returns half of the image when it is called a second time."""
    options = {"compression": "tiff_lzw"} if form == "TIFF" else {}
    whole = encoded(photo(160, 120), form, **options)
    for number, name in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/hole.png")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        hole = zeroed(whole, 0.4, 0.6) if "hole" in name else whole
        (tmp_path / "data" / name).write_bytes(hole + bytes([number]))
    with pytest.raises(ImageError):
        loaded((tmp_path / "data" / "b" / "hole.png").read_bytes())
    common = ["--model", "carnet_n", "--image-size", "32", "--epochs", "1", "--compile", "off", "--output"]
    assert run(["train", str(tmp_path / "data"), *common, str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("1 of 5", "b/hole.png", "--skip-unreadable"))


TIFFS = {
    f"{compression}-{damage}": (compression, place)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4")
    for damage, place in (("early", 0.2), ("middle", 0.5), ("late", 0.8))
}


def test_damaged_images_print_nothing_on_standard_error(tmp_path: Path) -> None:
    """C libraries print there without Python, which would fill the log of a server."""
    rng = np.random.default_rng(3)
    for name, (compression, place) in TIFFS.items():
        image = photo(120, 90).convert("1") if compression == "group4" else photo(120, 90)
        content = bytearray(encoded(image, "TIFF", compression=compression))
        start = int(place * len(content))
        content[start : start + 30] = rng.integers(0, 256, 30, np.uint8).tobytes()
        (tmp_path / f"{name}.tif").write_bytes(content)
    for name, content in LOSSES.items():
        (tmp_path / name).write_bytes(content)
    script = (
        "import sys\nfrom pathlib import Path\nfrom carnet.errors import ImageError\n"
        "from carnet.preprocess import load_image\nfrom carnet.spec import ModelSpec\n"
        "refused, spec = 0, ModelSpec(model='carnet18', classes=('a', 'b'), image_size=24)\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        load_image(path, spec)\n    except ImageError:\n        refused += 1\nprint(refused)\n"
    )
    done = finished([sys.executable, "-c", script, tmp_path], check=True)
    assert int(done.stdout) >= 5
    assert done.stderr == ""


def rows_of_zeros(width: int, height: int, bits: int, samples: int) -> list[bytes]:
    return [bytes(width * bits * samples // 8)] * height


LARGE = (3200, 2500)
PEAKS: dict[str, tuple[Callable[[], bytes], int, int]] = {
    "RGB": (lambda: png(rows_of_zeros(*LARGE, 8, 3), size=LARGE), 3, 4),
    "RGBA": (lambda: png(rows_of_zeros(*LARGE, 8, 4), size=LARGE, colour=6), 3, 4),
    "RGBA kept": (lambda: png(rows_of_zeros(*LARGE, 8, 4), size=LARGE, colour=6), 4, 4),
    "RGBA turned": (
        lambda: png(rows_of_zeros(*LARGE, 8, 4), size=LARGE, colour=6, before=chunk(b"eXIf", EXIF)),
        3,
        4,
    ),
    "grey of 16 bits": (lambda: png(rows_of_zeros(*LARGE, 16, 1), size=LARGE, bits=16, colour=0), 3, 2),
    "transparent grey of 16 bits": (
        lambda: png(rows_of_zeros(*LARGE, 16, 1), size=LARGE, bits=16, colour=0, before=chunk(b"tRNS", b"\0\0")),
        3,
        2,
    ),
    "transparent colour of 16 bits": (
        lambda: png(rows_of_zeros(*LARGE, 16, 3), size=LARGE, bits=16, before=chunk(b"tRNS", bytes(6))),
        3,
        4,
    ),
    "a strip": (lambda: png(rows_of_zeros(8_000_000, 1, 16, 1), size=(8_000_000, 1), bits=16, colour=0), 3, 2),
}
"""Name -> the file, the channels of the model, and bytes per pixel that Pillow decodes it to."""
PEAK_OF_A_PROCESS = """
import re, sys
from pathlib import Path
from carnet.preprocess import load_image
from carnet.spec import ModelSpec
channels = int(sys.argv[2])
numbers = (0.5,) * channels
spec = ModelSpec(model="carnet18", classes=("a", "b"), image_size=24, in_channels=channels, mean=numbers, std=numbers)
content = Path(sys.argv[1]).read_bytes()
load_image(Path(sys.argv[3]).read_bytes(), spec)
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
load_image(content, spec)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory is read from /proc")
@pytest.mark.parametrize(("content", "channels", "decoded"), PEAKS.values(), ids=PEAKS)
def test_a_large_image_takes_six_bytes_per_pixel_besides_itself(
    content: Callable[[], bytes], channels: int, decoded: int, tmp_path: Path
) -> None:
    (tmp_path / "large.png").write_bytes(content())
    (tmp_path / "small.png").write_bytes(photo_png())
    command = [sys.executable, "-c", PEAK_OF_A_PROCESS, tmp_path / "large.png", channels, tmp_path / "small.png"]
    done = finished(command, check=True)
    # Besides, two megabytes for a part, and what the allocator keeps.
    assert int(done.stdout) <= (decoded + 6) * LARGE[0] * LARGE[1] + 12e6


def test_a_server_sets_its_own_limit(exported: Path, tmp_path: Path) -> None:
    small, large = encoded(photo(40, 25), "PNG"), encoded(photo(40, 26), "PNG")
    (tmp_path / "large.png").write_bytes(large)
    classifier = carnet.Classifier(exported, max_pixels=1000)
    expected = carnet.Classifier(exported).predict(small)
    assert classifier.predict(small) == expected
    for refused in (large, tmp_path / "large.png", Image.open(io.BytesIO(large))):
        with pytest.raises(ImageError, match="1,000 pixels"):
            classifier.predict(refused)
        with pytest.raises(ImageError, match="1,000 pixels"):
            classifier.explain(refused)
    answers = list(classifier.predict_many([small, large, small]))
    assert [isinstance(answer, ImageError) for answer in answers] == [False, True, False]
    for wrong in (0, -1, 10**12):
        with pytest.raises(ConfigError, match="max_pixels"):
            carnet.Classifier(exported, max_pixels=wrong)
