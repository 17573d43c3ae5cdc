"""Measure what `carnet check` costs beyond decoding the images, how fast a second look is, and its memory.

Each round decodes all images with Pillow in a pool of as many threads, then checks them with an empty cache, then
checks them again; figures are medians over the rounds. With --files, so many small images are drawn, and the peak
memory of a check of them is measured in a process of its own.

Examples:
  python benchmarks/check_speed.py sports100 trashnet150 weather_messy --rounds 3
  python benchmarks/check_speed.py --files 200000
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from environment import write_result
from PIL import Image

import carnet
from carnet.data.find import find_images
from carnet.machine import each_on_threads, loading_threads
from carnet.text import quoted

_CHECK = """
import sys
from carnet.cli.main import run
run(["check", sys.argv[1], "--skip", "labels"])
print(open("/proc/self/status").read())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="*", help="folders of images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=0, help="small images to draw, and check in little memory")
    parser.add_argument("--name", default="check-speed", help="of the result's file")
    options = parser.parse_args()
    rows: dict[str, Any] = {data.name: speed(data, options.rounds) for data in options.data}
    if options.files:
        rows["memory"] = memory(options.files)
    print(rows, file=sys.stderr)
    shown = [quoted(word) for word in sys.argv[1:] if word not in map(str, options.data)]
    names = [data.name for data in options.data]
    print(write_result(options.name, " ".join(["python benchmarks/check_speed.py", *names, *shown]), rows))


def speed(data: Path, rounds: int) -> dict[str, Any]:
    """Return seconds of decoding, of a first and of a second look."""
    paths = [sample.path for sample in find_images(data).samples]
    seconds: dict[str, list[float]] = {"decoding": [], "first": [], "second": []}
    decode_all(paths)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["CARNET_CACHE"] = cache
            seconds["decoding"].append(timed(lambda: decode_all(paths)))
            for look in ("first", "second"):
                seconds[look].append(timed(lambda: carnet.check(data, skip=("labels",))))
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    return {
        "images": len(paths),
        "seconds": medians,
        "of_each_round": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "first_over_decoding": round(medians["first"] / medians["decoding"], 3),
        "second_over_first": round(medians["second"] / medians["first"], 3),
    }


def decode_all(paths: list[Path]) -> None:
    """Decode every image at full size, as Pillow does it."""

    def decode(path: Path) -> None:
        try:
            with Image.open(path) as image:
                image.convert("RGB")
        except OSError:
            # A broken file is one of the things that a check finds.
            return

    with ThreadPoolExecutor(loading_threads()) as pool:
        list(pool.map(decode, paths))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory(number: int) -> dict[str, Any]:
    """Return seconds and peak memory of a check of so many small images."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        for label in range(100):
            (data / f"class {label:02}").mkdir(parents=True)
        list(each_on_threads(lambda index: draw(data, index), range(number)))
        os.environ["CARNET_CACHE"] = str(Path(scratch) / "cache")
        command = [sys.executable, "-c", _CHECK, str(data)]
        started = time.perf_counter()
        said = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
        seconds = time.perf_counter() - started
    # The system's own figure for this process alone: that of its parent's children counts the parent's memory as well.
    (peak,) = (line.split()[1] for line in said.splitlines() if line.startswith("VmHWM"))
    return {"images": number, "seconds": round(seconds, 1), "peak_memory_mb": round(int(peak) / 1024, 1)}


def draw(data: Path, index: int) -> None:
    """Draw an image of 48 x 48 pixels whose frequencies are as strong as those of photos: 1/f."""
    noise = np.fft.rfft2(np.random.default_rng(index).normal(size=(48, 48, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(48)[:, None], np.fft.rfftfreq(48)) + 1 / 48
    pixels = np.fft.irfft2(noise / frequency[:, :, None], axes=(0, 1))
    pixels = 128 + 48 * pixels / pixels.std()
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(data / f"class {index % 100:02}" / f"{index:06}.jpg", quality=70)


if __name__ == "__main__":
    main()
