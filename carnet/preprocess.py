"""The evaluation transform: image file -> square uint8 pixels.

There is only this one. Training augments what it returns; evaluation and prediction use it as it is, so a model runs
with the transform that was evaluated.

The format is told by content, not by extension: JPEG (also with several images, as phones write it), PNG, WebP, GIF,
BMP, TIFF, or PPM/PGM/PBM (these only with such an extension, because any text could begin like them). Every image
becomes 8-bit RGB (or grey, or RGBA, if the model takes that) by the same rules:

- the orientation tag (EXIF) is applied;
- of several frames or pages, the first is used;
- transparent parts are put on white, unless the model takes RGBA;
- grey becomes three equal channels; palette and CMYK are converted; colour profiles are not applied;
- 16 bits per channel are reduced to the upper 8; floating-point and 32-bit pixels are refused;
- an image of more than `MAX_PIXELS` is refused before it is decoded (a decompression bomb);
- metadata (`carnet.image_files`) are ignored, so damage in them does no harm;
- a path that is not a regular file, or one larger than `carnet.files.MAX_IMAGE_BYTES`, is refused before it is read.

A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size, but at no less than twice the model's input
size on either side. This is several times faster, and the same on every machine.
"""

from __future__ import annotations

import ctypes
import io
import logging
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol, assert_never

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from carnet.errors import ImageError, ImageTooLargeError
from carnet.files import MAX_IMAGE_BYTES, open_file, read_file
from carnet.image_files import essence, signature_of
from carnet.spec import Interpolation, ModelSpec, ResizeRule
from carnet.text import show_bytes

Images = NDArray[np.uint8]
ImageSource = Path | str | bytes | bytearray | memoryview | Image.Image | Images

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pnm", ".pbm", ".heic", ".heif", ".avif", ".jxl", ".jp2"),
    )
)
"""A file with one of these extensions that cannot be decoded is an error; any other file is not an image."""
MAX_PIXELS = 178_956_970
"""The limit at which Pillow itself refuses an image, twice that of its warning."""
WHITE = (255, 255, 255, 255)
_PART_PIXELS = 2**18
"""Size of the parts in which a large image is converted."""
MAX_ASPECT = 8
"""Longer images are centre-cropped to this aspect ratio first; resizing them could take any amount of memory."""

# Pillow warns at half of the limit above.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow warns of damaged metadata, which are ignored; damaged pixels are errors.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Pillow logs errors that it raises as well; without a handler, Python prints them on standard error.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)

_ORIENTATION_TAG, _BITS_PER_SAMPLE_TAG = 0x0112, 0x0102
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError),
    *(struct.error, MemoryError),
)
"""Exceptions that Pillow raises for damaged files."""
_REASONS: dict[type[BaseException], str] = {
    FileNotFoundError: "no such file",
    PermissionError: "no permission to read it",
    IsADirectoryError: "a folder, not an image",
    MemoryError: "not enough memory to decode it",
}
_MAX_GREY = {"L": 255, "L;2": 3, "L;4": 15}
"""Pillow's name of how a grey PNG is stored -> its highest value."""


def looks_like_image(path: Path) -> bool:
    """Return whether a file has an image's extension or first bytes."""
    if path.suffix.lower() in EXTENSIONS:
        return True
    try:
        with open_file(path) as file:
            start = file.read(16)
    except OSError:
        return False
    return signature_of(start) is not None


def load_image(source: ImageSource, spec: ModelSpec, *, max_pixels: int = MAX_PIXELS) -> Images:
    """Decode an image and resize it as `spec` says.

    Args:
        source: a path, the bytes of a file, a Pillow image, or a uint8 array (H, W, 1), (H, W, 3), (H, W, 4) or (H, W).
        spec: gives the input size, the resize rule and the channels.
        max_pixels: larger images are refused.

    Returns:
        uint8 array (image_size, image_size, in_channels), in the order red, green, blue.

    Raises:
        ImageError: if it cannot be decoded, or is refused by one of the rules above.
    """
    with open_image(source, max_pixels) as image:
        return to_square(image, name_of(source), spec)


class Square(Protocol):
    """The square that an image becomes; a `ModelSpec` is one."""

    @property
    def image_size(self) -> int:
        """Side, in pixels."""

    @property
    def resize(self) -> ResizeRule:
        """How an image becomes a square, see `resize`."""

    @property
    def interpolation(self) -> Interpolation:
        """Filter that resizes it."""

    @property
    def in_channels(self) -> int:
        """1 for grey, 3 for RGB, 4 for RGBA."""


def to_square(image: Image.Image, name: Path | str, square: Square) -> Images:
    """Decode an opened image and resize it, as `decode` and `resize` do; return uint8 (S, S, in_channels).

    Raises:
        ImageError: as `decode`.
    """
    size, channels = square.image_size, square.in_channels
    pixels = decode(image, name, min_side=2 * size, in_channels=channels)
    return np.array(resize(pixels, size, square.resize, square.interpolation)).reshape(size, size, channels)


def to_pillow(pixels: Images) -> Image.Image:
    """Return pixels, uint8 (H, W, C), as a Pillow image."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header of an image, without decoding it.

    Raises:
        ImageError: for an unknown or refused format, too many pixels, or an array of another shape or type.
    """
    name = name_of(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    content = b""
    try:
        if isinstance(source, Image.Image):
            if 0 in source.size:
                raise ImageError(name, f"it has no pixels ({source.width} x {source.height})")
            _check_header(source, name, max_pixels)
            # This decodes it, and it may be damaged.
            return source.copy()
        content = read_file(source, MAX_IMAGE_BYTES) if isinstance(source, Path | str) else bytes(source)
        if not content:
            raise ImageError(name, "the file is empty")
        if len(content) > MAX_IMAGE_BYTES:
            raise ImageTooLargeError(name, f"larger than {show_bytes(MAX_IMAGE_BYTES)}")
        given = essence(content)
        image = Image.open(io.BytesIO(given), formats=FORMATS)
        _check_header(image, name, max_pixels)
        if image.format == "PNG" and "transparency" in image.info:
            _correct_opacity(image, given)
        return image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(name, _why_unknown(content)) from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError(name, f"more than {max_pixels:,} pixels") from None
    except DECODER_ERRORS as error:
        raise ImageError(name, reason_of(error)) from error


def decode(
    image: Image.Image, name: Path | str = "image", *, min_side: int | None = None, in_channels: int = 3
) -> Image.Image:
    """Decode an opened image into 8 bits per channel, with its orientation applied.

    It takes at most 6 bytes of memory per pixel besides what Pillow decodes the image to.

    Args:
        image: the result of `open_image`; it is closed or returned, to free its memory.
        name: its name in errors.
        min_side: decode a JPEG at reduced scale, to no less than this on either side; None: at full scale.
        in_channels: 1 for grey, 3 for RGB, 4 for RGBA.

    Raises:
        ImageError: if it is damaged, or its pixels have no defined range.
    """
    try:
        if min_side is not None and image.format == "JPEG":
            image.draft(None, (min_side, min_side))
        image.load()
        orientation = None
        # The pixels may be fine if the EXIF block is damaged.
        with suppress(*DECODER_ERRORS):
            orientation = image.getexif().get(_ORIENTATION_TAG)
        if isinstance(orientation, int) and orientation in _ORIENTATIONS:
            stored = image
            image = stored.transpose(_ORIENTATIONS[orientation])
            stored.close()
        return _to_channels(image, name, in_channels)
    except ImageError:
        raise
    except DECODER_ERRORS as error:
        raise ImageError(name, reason_of(error)) from error


def resize(image: Image.Image, size: int, rule: ResizeRule, interpolation: Interpolation = "bilinear") -> Image.Image:
    """Make an image square, with a filter that averages over the pixels it removes.

    - `crop`: the short side becomes `size`, then the centre is cropped (the published rule);
    - `pad`: the long side becomes `size`, then black bars fill the square;
    - `stretch`: both sides become `size`.
    """
    resample = Image.Resampling[interpolation.upper()]
    match rule:
        case "crop":
            short = min(image.size)
            if max(image.size) > MAX_ASPECT * short:
                image = _centre(image, min(image.width, MAX_ASPECT * short), min(image.height, MAX_ASPECT * short))
            width, height = (max(size, int(size * side / short)) for side in image.size)
            return _centre(image.resize((width, height), resample), size, size)
        case "pad":
            width, height = (max(1, round(size * side / max(image.size))) for side in image.size)
            square = Image.new(image.mode, (size, size))
            small = image.resize((width, height), resample)
            square.paste(small, ((size - width) // 2, (size - height) // 2))
            return square
        case "stretch":
            return image.resize((size, size), resample)
        case _:
            assert_never(rule)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _why_unknown(content: bytes) -> str:
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    if brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "a HEIC image; convert it to JPEG (phones can be set to take JPEG, and computers can export it)"
    if brand in (b"avif", b"avis"):
        return "an AVIF image; convert it to JPEG or PNG"
    if (kind := signature_of(content[:16])) is not None:
        return f"damaged, or a kind of {kind} that is not supported"
    return f"not an image in a supported format ({', '.join(FORMATS)})"


def _check_header(image: Image.Image, name: Path | str, max_pixels: int) -> None:
    """Raise an ImageError for too many pixels, or pixels without a defined range."""
    if image.width * image.height > max_pixels:
        raise ImageTooLargeError(name, f"more than {max_pixels:,} pixels")
    if image.mode == "F":
        raise ImageError(name, "floating-point pixels have no defined range; save it with 8 or 16 bits")
    if image.mode == "I" and image.format != "PPM":
        # Pillow uses this mode for 16 bits as well, those of a PPM and signed ones of a TIFF.
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE_TAG)
        if (bits[0] if isinstance(bits, tuple) else bits) != 16:
            raise ImageError(name, "32-bit pixels have no defined range; save it with 8 or 16 bits")
    if image.format == "TIFF":
        _silence_libtiff()


def _correct_opacity(image: Image.Image, content: bytes) -> None:
    """Correct the one grey or colour that a PNG declares transparent, which has the bit depth of the file.

    Only an image with 16 bits per colour is decoded here, because Pillow keeps only the upper 8.
    """
    transparent = image.info["transparency"]
    raw = image.tile[0][3]  # type: ignore[attr-defined]
    if raw in _MAX_GREY:
        image.info["transparency"] = (transparent & _MAX_GREY[raw]) * 255 // _MAX_GREY[raw]
    elif raw == "RGB":
        image.info["transparency"] = tuple(value & 255 for value in transparent)
    elif raw == "RGB;16B":
        colour = np.array(image.info.pop("transparency"))
        lower = Image.open(io.BytesIO(content), formats=("PNG",))
        # The lower byte of each value.
        lower.tile = [image.tile[0]._replace(args="RGB;16L")]  # type: ignore[attr-defined]
        image.load()
        lower.load()

        def opacity(part: Image.Image, box: _Box) -> Image.Image:
            is_colour = (np.asarray(part) == colour >> 8) & (np.asarray(lower.crop(box)) == colour & 255)
            return Image.fromarray(np.where(is_colour.all(axis=2), 0, 255).astype(np.uint8))

        image.putalpha(_by_parts(image, "L", opacity))


@cache
def _silence_libtiff() -> None:
    """Keep libtiff from printing errors, which Pillow raises; Pillow silences only its warnings."""
    with suppress(AttributeError, OSError):
        # Pillow's own module gives access to the library that it uses.
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)  # type: ignore[attr-defined]


def name_of(source: ImageSource) -> Path | str:
    """Return the path of an image, or the type of a source without a path."""
    return source if isinstance(source, Path | str) else f"<{type(source).__name__}>"


def _to_channels(image: Image.Image, name: Path | str, in_channels: int) -> Image.Image:
    has_opacity = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info

    def to_rgba(part: Image.Image, _: _Box) -> Image.Image:
        if not image.mode.startswith("I"):
            return (part if has_opacity else part.convert("RGB")).convert("RGBA")
        values = np.asarray(part)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError(name, "16-bit pixels below 0 have no defined range; save it with 8 or unsigned 16 bits")
        rgba = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGBA")
        if has_opacity:
            opacity = np.where(values == image.info["transparency"], 0, 255)
            rgba.putalpha(Image.fromarray(opacity.astype(np.uint8)))
        return rgba

    def on_white(part: Image.Image, box: _Box) -> Image.Image:
        return Image.alpha_composite(Image.new("RGBA", part.size, WHITE), to_rgba(part, box)).convert("RGB")

    if in_channels == 4:
        return image if image.mode == "RGBA" else _by_parts(image, "RGBA", to_rgba)
    if has_opacity or image.mode.startswith("I"):
        image = _by_parts(image, "RGB", on_white)
    elif image.mode != "RGB" and not (in_channels == 1 and image.mode == "L"):
        image = image.convert("RGB")
    return image.convert("L") if in_channels == 1 else image


_Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of an image, in pixels."""


def _by_parts(image: Image.Image, mode: str, convert: Callable[[Image.Image, _Box], Image.Image]) -> Image.Image:
    """Convert an image to another mode in parts, so that intermediate steps take little memory."""
    width, height = min(image.width, _PART_PIXELS), max(1, _PART_PIXELS // image.width)
    if width * height >= image.width * image.height:
        return convert(image, (0, 0, *image.size))
    converted = Image.new(mode, image.size)
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            box = (left, top, min(left + width, image.width), min(top + height, image.height))
            converted.paste(convert(image.crop(box), box), box)
    return converted


def _from_array(array: NDArray[Any], name: Path | str) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(name, f"arrays must be uint8, got {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or 0 in array.shape:
        raise ImageError(name, f"arrays must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}")
    return Image.fromarray(array)


def reason_of(error: BaseException) -> str:
    """Return what a decoder's exception means to the owner of the file."""
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    text = str(error).strip().splitlines()
    return f"damaged ({text[0] if text else type(error).__name__})"
