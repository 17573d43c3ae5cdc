"""The evaluation transform: formats, orientation, transparency, bit depths, sizes and what is refused."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from carnet.errors import ImageError
from carnet.preprocess import (
    MAX_ASPECT,
    MAX_PIXELS,
    decode,
    load_image,
    looks_like_image,
    open_image,
    resize,
    to_pillow,
)
from carnet.spec import ModelSpec, ResizeRule


def spec(size: int = 32, **fields: Any) -> ModelSpec:
    return ModelSpec(model="carnet18", classes=("a", "b"), image_size=size, **fields)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth image, which lossy formats hardly change."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([5 * x, 6 * y, 3 * x + 2 * y], axis=2).astype(np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_are_told_by_content(form: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.JPG"
    path.write_bytes(encoded(photo(32, 32), form))
    loaded = load_image(path, spec())
    assert (loaded.shape, loaded.dtype) == ((32, 32, 3), np.uint8)
    tolerance = {"JPEG": 16, "WEBP": 16, "GIF": 40}.get(form, 0)
    difference = np.abs(loaded.astype(int) - np.asarray(photo(32, 32)).astype(int))
    assert difference.max() <= tolerance
    assert looks_like_image(path)
    assert looks_like_image(path.rename(tmp_path / "no_extension")) == (form != "PPM")


def test_every_orientation_tag() -> None:
    upright = photo(8, 6)
    # For each tag, a camera stores the upright image with the inverse of the transposition.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }
    for tag, image in stored.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        for form in ("PNG", "TIFF"):
            decoded = decode(open_image(encoded(image, form, exif=exif)))
            assert np.array_equal(np.asarray(decoded), np.asarray(upright)), (tag, form)


def test_transparent_parts_are_put_on_white() -> None:
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 16, 32))
    loaded = load_image(encoded(image, "PNG"), spec())
    assert loaded[5, 5].tolist() == [0, 0, 255]
    assert loaded[5, 30].tolist() == [255, 255, 255]
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([10, 200, 30, 0, 0, 0])
    assert load_image(encoded(palette, "PNG"), spec())[0, 0].tolist() == [10, 200, 30]
    assert load_image(encoded(palette, "PNG", transparency=0), spec())[0, 0].tolist() == [255, 255, 255]
    grey = Image.new("LA", (32, 32), (90, 255))
    assert load_image(encoded(grey, "PNG"), spec())[0, 0].tolist() == [90, 90, 90]


def test_other_pixel_formats() -> None:
    assert load_image(encoded(Image.new("L", (32, 32), 77), "JPEG"), spec())[0, 0].tolist() == [77] * 3
    assert load_image(encoded(Image.new("1", (32, 32), 1), "PNG"), spec())[0, 0].tolist() == [255] * 3
    cmyk = load_image(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"), spec())[0, 0]
    assert cmyk[0] > 200
    assert cmyk[1] < 60
    deep = Image.fromarray(np.full((32, 32), 0xABCD, dtype=np.uint16))
    assert load_image(encoded(deep, "PNG"), spec())[0, 0].tolist() == [0xAB] * 3
    floating = Image.fromarray(np.full((32, 32), 0.5, dtype=np.float32))
    with pytest.raises(ImageError, match="8 or 16 bits"):
        load_image(encoded(floating, "TIFF"), spec())


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(animation, spec())[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is text",
        b"\xff\xd8\xff\xe0" + bytes(30),
        encoded(photo(64, 64), "JPEG")[:700],
        encoded(photo(64, 64), "PNG")[:150],
    ],
)
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"cut\.jpg: "):
        load_image(tmp_path / "cut.jpg", spec())


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: "):
        load_image(tmp_path / "gone.jpg", spec())


def test_decompression_bomb_is_refused_before_decoding() -> None:
    small = encoded(Image.new("1", (8, 8)), "PNG")
    side = int(MAX_PIXELS**0.5) + 1
    header = side.to_bytes(4, "big") * 2
    import zlib

    chunk = b"IHDR" + header + small[24:29]
    bomb = small[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + small[33:]
    with pytest.raises(ImageError, match="178,956,970"):
        load_image(bomb, spec())


@settings(max_examples=60)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.integers(1, 64),
    rule=st.sampled_from(["crop", "pad", "stretch"]),
)
def test_any_shape_becomes_a_square(width: int, height: int, size: int, rule: Any) -> None:
    assert resize(Image.new("RGB", (width, height)), size, rule).size == (size, size)


def test_long_strips_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = Image.Image.resize

    def recording(self: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        sizes.append(size)
        return original(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", recording)
    assert resize(Image.new("RGB", (1, 60_000)), 244, "crop").size == (244, 244)
    assert max(map(max, sizes)) <= 244 * MAX_ASPECT


@pytest.mark.parametrize(("width", "height", "size"), [(60, 40, 32), (31, 77, 24), (224, 224, 244), (500, 333, 64)])
def test_crop_is_torchvisions_resize_and_centre_crop(width: int, height: int, size: int) -> None:
    """The published resize, and the centre crop that it lacks, pixel for pixel as torchvision does them."""
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    reference = transforms.CenterCrop(size)(transforms.Resize(size)(image))
    assert np.array_equal(np.asarray(resize(image, size, "crop")), np.asarray(reference))


def test_large_jpegs_are_decoded_small_never_below_twice_the_size() -> None:
    large = encoded(photo(1000, 520), "JPEG")
    # As phones write it: with a preview after the image.
    with_preview = encoded(photo(1000, 520), "MPO", save_all=True, append_images=[photo(100, 52)])
    for size, content, decoded in ((32, large, (125, 65)), (130, large, (500, 260)), (200, large, (1000, 520))):
        with open_image(content) as image:
            assert decode(image, min_side=2 * size).size == decoded
        small = open_image(content)
        small.draft(None, decoded)
        assert small.size == decoded
        assert np.array_equal(load_image(content, spec(size)), np.asarray(resize(small, size, "crop")))
    assert np.array_equal(load_image(with_preview, spec(32)), load_image(large, spec(32)))


def test_sources_agree(tmp_path: Path) -> None:
    image = photo(50, 40)
    path = tmp_path / "a.png"
    image.save(path)
    answers = [load_image(source, spec()) for source in (path, str(path), path.read_bytes(), image, np.asarray(image))]
    assert all(np.array_equal(answers[0], answer) for answer in answers)


def test_pillow_images_fail_as_files_do(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(photo(400, 300), "JPEG")[:-2000])
    with Image.open(path) as image, pytest.raises(ImageError):
        load_image(image, spec())
    with pytest.raises(ImageError, match="0 x 4"):
        load_image(photo(40, 30).crop((5, 5, 5, 9)), spec())


def test_a_path_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(photo(), "JPEG"))
    with pytest.raises(ImageError, match=r"x\.png: ") as caught:
        load_image(tmp_path / "photo.jpg" / "x.png", spec())
    assert "damaged" not in caught.value.reason


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), "uint8, got float32"),
        (np.zeros((4, 4, 2), dtype=np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"\(0, 4, 3\)"),
    ],
)
def test_wrong_arrays(array: Any, named: str) -> None:
    with pytest.raises(ImageError, match=named):
        load_image(array, spec())


def test_normalization_is_the_formula() -> None:
    torch = pytest.importorskip("torch")
    from carnet.models.weights import normalize_on

    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    on_device = normalize_on(torch.device("cpu"), torch.from_numpy(images), spec())
    expected = (images / 255 - np.array(spec().mean)) / np.array(spec().std)
    np.testing.assert_allclose(on_device.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert on_device.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("rule", ["crop", "pad", "stretch"])
def test_channels(mode: str, rule: ResizeRule) -> None:
    image = Image.new(mode, (30, 20))
    for in_channels in (1, 3, 4):
        numbers = (0.5,) * in_channels
        model = spec(16, resize=rule, in_channels=in_channels, mean=numbers, std=numbers)
        pixels = load_image(image, model)
        assert (pixels.shape, pixels.dtype) == ((16, 16, in_channels), np.uint8)
        assert np.array_equal(load_image(to_pillow(pixels), model), pixels)


def test_grey_and_opacity_are_kept() -> None:
    one = spec(8, in_channels=1, mean=(0.5,), std=(0.5,))
    assert set(load_image(Image.new("L", (8, 8), 77), one).ravel()) == {77}
    assert set(load_image(Image.new("RGB", (8, 8), (255, 0, 0)), one).ravel()) == {76}
    assert set(load_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), one).ravel()) == {255}
    four = spec(8, in_channels=4, mean=(0.5,) * 4, std=(0.5,) * 4)
    assert tuple(load_image(Image.new("RGBA", (8, 8), (9, 8, 7, 6)), four)[0, 0]) == (9, 8, 7, 6)
    assert tuple(load_image(Image.new("RGB", (8, 8), (9, 8, 7)), four)[0, 0]) == (9, 8, 7, 255)


@pytest.mark.parametrize("brand", [b"heic", b"avif"])
def test_formats_of_phones_are_named(brand: bytes) -> None:
    with pytest.raises(ImageError, match=brand.decode().upper()):
        open_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0")


def test_a_frame_with_reversed_channels() -> None:
    """OpenCV's frames are in the order blue, green, red; reversed, they are a view with negative strides."""
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[:, :, 0] = 200
    assert load_image(frame[:, :, ::-1], spec(4))[0, 0].tolist() == [0, 0, 200]


def test_bicubic_is_another_filter() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    spec = ModelSpec(model="efficientnet_lite0", classes=("a", "b"), image_size=32, interpolation="bicubic")
    expected = Image.fromarray(pixels).resize((32, 41), Image.Resampling.BICUBIC).crop((0, 4, 32, 36))
    assert (load_image(pixels, spec) == np.array(expected)).all()
    assert (load_image(pixels, replace(spec, interpolation="bilinear")) != np.array(expected)).any()
