"""The page's script makes images square exactly as Pillow does: bit for bit, without a browser."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import draw_photo
from PIL import Image

import carnet
from carnet.preprocess import decode, load_image, resize
from carnet.spec import Interpolation, ModelSpec, ResizeRule

SCRIPT = Path(carnet.__file__).parent / "web" / "static" / "resize.js"
RUN = """
import fs from "fs";
import {asDecoded, toSquare} from "./resize.mjs";
const out = [];
for (const {file, width, height, size, rule, interpolation, channels, isJpeg} of JSON.parse(fs.readFileSync(0))) {
  const rgba = fs.readFileSync(file);
  const read = (left, top, wide, tall) => {
    const part = new Uint8Array(4 * wide * tall);
    for (let y = 0; y < tall; y++) {
      const start = 4 * ((top + y) * width + left);
      part.set(rgba.subarray(start, start + 4 * wide), 4 * y * wide);
    }
    return part;
  };
  const source = isJpeg ? asDecoded({width, height, read}, size) : {width, height, read};
  out.push(Buffer.from(toSquare(source, size, rule, interpolation, channels)).toString("base64"));
}
console.log(JSON.stringify(out));
"""
SIZES = [(64, 64), (97, 64), (64, 97), (31, 200), (500, 333), (7, 5), (1, 1), (1, 40), (3, 90), (1300, 900), (65, 64)]
# Others, also where the order of the two axes changes.
SIZES += [(int(w), int(h)) for w, h in np.random.default_rng(1).integers(1, 400, (40, 2))] + [
    (60 + k, 80) for k in range(9)
]


pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js found to run the page's script with")


def squares(cases: list[dict[str, Any]], folder: Path) -> list[np.ndarray[Any, Any]]:
    """What the script makes of images, (size, size, channels) each."""
    shutil.copy(SCRIPT, folder / "resize.mjs")
    (folder / "run.mjs").write_text(RUN)
    ran = subprocess.run(
        ["node", folder / "run.mjs"], input=json.dumps(cases), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    shapes = [(case["size"], case["size"], case["channels"]) for case in cases]
    found = [np.frombuffer(base64.b64decode(text), np.uint8) for text in json.loads(ran.stdout)]
    return [pixels.reshape(shape) for pixels, shape in zip(found, shapes, strict=True)]


def write_rgba(pixels: np.ndarray[Any, Any], path: Path) -> dict[str, Any]:
    """Write pixels (H, W, 3) as a browser has them; return what the script is told of them."""
    height, width, _ = pixels.shape
    path.write_bytes(np.concatenate([pixels, np.full((height, width, 1), 255, np.uint8)], axis=2).tobytes())
    return {"file": str(path), "width": width, "height": height}


@pytest.mark.parametrize("rule", ["crop", "pad", "stretch"])
def test_it_is_pillow_bit_for_bit(rule: ResizeRule, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    cases, expected = [], []
    for number, (width, height) in enumerate(SIZES):
        # Noise has every edge, and blocks the full range of values beside each other.
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[: height // 2] = 255 * (pixels[: height // 2] > 127)
        about = write_rgba(pixels, tmp_path / f"{number}.rgba")
        filters: list[tuple[int, Interpolation, int]] = [(64, "bilinear", 3), (64, "bicubic", 3), (48, "bicubic", 1)]
        for size, interpolation, channels in filters:
            cases.append({**about, "size": size, "rule": rule, "interpolation": interpolation, "channels": channels})
            image = decode(Image.fromarray(pixels), in_channels=channels)
            expected.append(np.array(resize(image, size, rule, interpolation)).reshape(size, size, channels))
    for case, found, wanted in zip(cases, squares(cases, tmp_path), expected, strict=True):
        assert np.array_equal(found, wanted), case


@pytest.mark.parametrize("size", [(131, 131), (400, 300), (301, 611), (797, 530)])
def test_a_large_jpeg_is_reduced_as_its_decoder_does(size: tuple[int, int], tmp_path: Path) -> None:
    """Grey, because a browser has no colours before they are enlarged; by 2, 4 and 8."""
    content = io.BytesIO()
    draw_photo(5).resize(size, Image.Resampling.BICUBIC).convert("L").save(content, "JPEG", quality=90)
    with Image.open(content) as opened:
        pixels = np.array(opened.convert("RGB"))
    about = write_rgba(pixels, tmp_path / "photo.rgba") | {"rule": "crop", "interpolation": "bilinear", "isJpeg": True}
    (found,) = squares([about | {"size": 32, "channels": 3}], tmp_path)
    spec = ModelSpec(model="carnet_n", classes=("a", "b"), image_size=32)
    wanted = load_image(content.getvalue(), spec)
    # One level is how a value was rounded.
    differences = [np.abs(one.astype(int) - wanted) for one in (found, load_image(pixels, spec))]
    assert differences[0].max() <= 2
    assert differences[0].mean() < differences[1].mean() / 2
