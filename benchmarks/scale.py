"""Simulate many classes and images: train one epoch on files and on shards, and weigh what it leaves.

Images are drawn: a colour for the class, random blobs for the image. For each number of images, `carnet train` runs on
a folder of files and streams the same images from WebDataset shards, each in a process of its own, for one epoch at 32
px; noted are seconds, the peak memory of the largest process, and the size of every file of the run. Then both
pipelines alone, with an empty disk cache where the system lets it be emptied: images/s without a network.

Example:
  python benchmarks/scale.py --images 50000 200000 --classes 1000
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from environment import write_result
from PIL import Image

from carnet.data.find import find_images
from carnet.data.samples import Sample
from carnet.data.stream import ImageStream
from carnet.machine import loading_threads
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation
from carnet.training.pipeline import ImageFiles, Pipeline, StreamedImages, pixel_loader
from carnet.training.schedule import View

SIDE, VALID_PER_CLASS, PER_SHARD = 64, 5, 5000
TRAIN = ["--model", "carnet_n", "--image-size", "32", "--epochs", "1", "--batch-size", "128", "--compile", "off"]
MEASURED = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(json.dumps([code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""
"""Run in a small process, because Linux counts the memory of the starting process for the started one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 200_000], help="training images")
    parser.add_argument("--classes", type=int, default=1000)
    options = parser.parse_args()
    for number in options.images:
        with tempfile.TemporaryDirectory() as folder:
            runs = list(measured(Path(folder), number // options.classes, options.classes))
        command = f"python benchmarks/scale.py --images {number} --classes {options.classes}"
        print(write_result(f"scale-{number}", command, {"image_side": SIDE, "runs": runs}))


def measured(folder: Path, per_class: int, classes: int) -> Iterator[dict[str, Any]]:
    """Draw the images and yield what each form of them costs."""
    files, shards = folder / "files", folder / "shards"
    draw(files, per_class, classes)
    shard(files, shards)
    for form, data, more in (("files", files, []), ("shards", shards, ["--stream"])):
        run = folder / f"run-{form}"
        command = [sys.executable, "-m", "carnet", "train", str(data), *TRAIN, *more, "--output", str(run)]
        variables = os.environ | {"CARNET_CACHE": str(folder / f"cache-{form}")}
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *command], env=variables, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - started
        code, kibibytes = json.loads(done.stdout)
        if code:
            sys.exit(f"scale.py: training failed:\n{done.stderr}")
        with (run / "metrics.csv").open(encoding="utf-8") as file:
            (epoch,) = csv.DictReader(file)
        found = {
            "form": form,
            "classes": classes,
            "train_images": per_class * classes,
            "seconds": round(seconds, 1),
            "epoch_seconds": round(float(epoch["seconds"]), 1),
            "epoch_images_per_second": round(float(epoch["images_per_second"])),
            "peak_memory_mb": round(kibibytes * 1024 / 1e6),
            "bytes": {file.name: file.stat().st_size for file in sorted(run.iterdir())},
            **pipeline_speed(data, form, classes),
        }
        print(found, file=sys.stderr, flush=True)
        yield found


def draw(folder: Path, per_class: int, classes: int) -> None:
    """Write folder/{train,valid}/CLASS/NUMBER.jpg."""
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(draw_class, folder, per_class), range(classes), chunksize=8))


def draw_class(folder: Path, per_class: int, label: int) -> None:
    colour = np.random.default_rng(label).integers(40, 216, 3)
    for split, count in (("train", per_class), ("valid", VALID_PER_CLASS)):
        place = folder / split / f"class_{label:04}"
        place.mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng([label, split == "valid", number])
            blobs = np.clip(colour + rng.normal(0, 60, (8, 8, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(blobs).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            image.save(place / f"{number:05}.jpg", quality=85)


def shard(files: Path, shards: Path) -> None:
    """Write the same images as WebDataset shards, in a random order."""
    shards.mkdir()
    for split in ("train", "valid"):
        paths = sorted((files / split).rglob("*.jpg"))
        np.random.default_rng(0).shuffle(paths)
        for part, chosen in enumerate(parts(paths)):
            with tarfile.open(shards / f"{split}-{part:04}.tar", "w") as tar:
                for number, path in enumerate(chosen):
                    add(tar, f"{part:04}{number:05}.txt", path.parent.name.encode())
                    add(tar, f"{part:04}{number:05}.jpg", path.read_bytes())


def parts(paths: list[Path]) -> Iterator[list[Path]]:
    for first in range(0, len(paths), PER_SHARD):
        yield paths[first : first + PER_SHARD]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def pipeline_speed(data: Path, form: str, classes: int, limit: int = 30_000) -> dict[str, Any]:
    """Return the images per second that a pipeline prepares, without a network, from a disk that is not cached."""
    names = tuple(f"class_{label:04}" for label in range(classes))
    spec = ModelSpec(model="carnet_n", classes=names, image_size=32)
    images: ImageFiles | StreamedImages
    if form == "files":
        images = ImageFiles(find_images(data).splits["train"], seed=0)
    else:
        stream = ImageStream(str(data))
        count = sum(1 for _ in stream.read("train", order=None))
        samples = [Sample(Path(f"images/train/{number:07}.jpg"), 0) for number in range(count)]
        images = StreamedImages(stream.source, samples, stream.classes, seed=0)
    pipeline = Pipeline(images, pixel_loader(None, spec), Augmentation(0.35, 0.5, 0), 0, 128)
    os.sync()
    is_empty = False
    # Only root may; elsewhere the disk's cache stays warm.
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        is_empty = True
    started, done = time.perf_counter(), 0
    for batch in pipeline.batches(0, 0, lambda _: View(32), threads=loading_threads()):
        done += len(batch)
        if done >= limit:
            break
    speed = round(done / (time.perf_counter() - started))
    return {"pipeline_images_per_second": speed, "disk_cache_was_emptied": is_empty}


if __name__ == "__main__":
    main()
