"""The page's script makes images square exactly as Pillow does: bit for bit, without a browser."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import carnet
from carnet.preprocess import decode, resize

SCRIPT = Path(carnet.__file__).parent / "web" / "static" / "resize.js"
RUN = """
import fs from "fs";
import {toSquare} from "./resize.mjs";
const out = [];
for (const {file, width, height, size, rule, interpolation, channels} of JSON.parse(fs.readFileSync(0))) {
  const rgba = fs.readFileSync(file);
  const read = (left, top, wide, tall) => {
    const part = new Uint8Array(4 * wide * tall);
    for (let y = 0; y < tall; y++) {
      const start = 4 * ((top + y) * width + left);
      part.set(rgba.subarray(start, start + 4 * wide), 4 * y * wide);
    }
    return part;
  };
  out.push(Buffer.from(toSquare({width, height, read}, size, rule, interpolation, channels)).toString("base64"));
}
console.log(JSON.stringify(out));
"""
SIZES = [(64, 64), (97, 64), (64, 97), (31, 200), (500, 333), (7, 5), (1, 1), (1, 40), (3, 90), (1300, 900), (65, 64)]
# Others, also where the order of the two axes changes.
SIZES += [(int(w), int(h)) for w, h in np.random.default_rng(1).integers(1, 400, (40, 2))] + [
    (60 + k, 80) for k in range(9)
]


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js found to run the page's script with")
@pytest.mark.parametrize("rule", ["crop", "pad", "stretch"])
def test_it_is_pillow_bit_for_bit(rule: str, tmp_path: Path) -> None:
    shutil.copy(SCRIPT, tmp_path / "resize.mjs")
    (tmp_path / "run.mjs").write_text(RUN)
    random = np.random.default_rng(0)
    cases, expected = [], []
    for number, (width, height) in enumerate(SIZES):
        # Noise has every edge, and blocks the full range of values beside each other.
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[: height // 2] = 255 * (pixels[: height // 2] > 127)
        rgba = np.concatenate([pixels, np.full((height, width, 1), 255, np.uint8)], axis=2)
        (tmp_path / f"{number}.rgba").write_bytes(rgba.tobytes())
        for size, interpolation, channels in ((64, "bilinear", 3), (64, "bicubic", 3), (48, "bicubic", 1)):
            cases.append(
                {
                    **{"file": str(tmp_path / f"{number}.rgba"), "width": width, "height": height, "size": size},
                    **{"rule": rule, "interpolation": interpolation, "channels": channels},
                }
            )
            image = decode(Image.fromarray(pixels), in_channels=channels)
            expected.append(np.array(resize(image, size, rule, interpolation)))  # type: ignore[arg-type]
    ran = subprocess.run(
        ["node", tmp_path / "run.mjs"], input=json.dumps(cases), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    for case, text, wanted in zip(cases, json.loads(ran.stdout), expected, strict=True):
        found = np.frombuffer(base64.b64decode(text), np.uint8).reshape(wanted.shape)
        assert np.array_equal(found, wanted), case
