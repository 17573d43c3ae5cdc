"""Measure the base installation as a small board gets it: size, cold start, memory, and answers on emulated 64-bit ARM.

A wheel of this checkout is installed without extras, once for this machine and once for 64-bit ARM, with the pinned
versions. Size, cold start and memory are measured on this machine. On ARM, emulated by qemu as a Cortex-A72 (Raspberry
Pi 4) and a Cortex-A76 (Raspberry Pi 5), `carnet verify`, `predict` and `benchmark` run with a Python of Debian, and the
predictions are compared with this machine's. Times under emulation say nothing about a board and are not written.

Needs Debian's packages qemu-user-static and mmdebstrap, and uv.

Example:
  python benchmarks/small_board.py DATA/valid runs/sports100-carnet_s/model.onnx --photos 200
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge import LAUNCHER, photo_of
from environment import write_result

from carnet.data.folder import images_in

ROOT = Path(__file__).parent.parent
BOARDS = {
    "cortex-a72": ("Raspberry Pi 4", "0xd08", "fp asimd evtstrm crc32 cpuid"),
    "cortex-a76": (
        "Raspberry Pi 5",
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}
"""Processors that qemu emulates -> boards that have them, and part number and features in their /proc/cpuinfo."""
DEBIAN, PYTHON = "bookworm", "3.11"
PYTHON_HERE = [sys.executable, "-s", "-S"]
"""Without the packages of its own environment."""
STARTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of photos")
    parser.add_argument("models", type=Path, nargs="+", help="exported models")
    parser.add_argument("--photos", type=int, default=200, help="number of photos that are classified")
    options = parser.parse_args()
    missing = [name for name in ("qemu-aarch64-static", "mmdebstrap", "uv") if shutil.which(name) is None]
    if missing:
        sys.exit(f"small_board.py: not installed: {', '.join(missing)} (apt install qemu-user-static mmdebstrap)")
    found = images_in(options.images)
    photos = [str(path) for path in found[:: max(1, len(found) // options.photos)][: options.photos]]
    with tempfile.TemporaryDirectory() as folder:
        numbers = measure(Path(folder), [model.resolve() for model in options.models], photos)
    words = " ".join(model.name for model in options.models)
    command = f"python benchmarks/small_board.py DATA/valid {words} --photos {options.photos}"
    print(write_result("small-board", command, {"num_photos": len(photos), **numbers}))


def measure(folder: Path, models: Sequence[Path], photos: Sequence[str]) -> dict[str, Any]:
    here, arm = folder / "here", folder / "arm64"
    run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)])
    (wheel,) = folder.glob("carnet-*.whl")
    install(wheel, here, [])
    install(wheel, arm, ["--python-platform", "aarch64-manylinux_2_28"])
    system = folder / "debian"
    # libstdc++6 is on every board's system, and not among what Python itself needs.
    packages = "--include=python3,libstdc++6"
    run(["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", packages, DEBIAN, str(system)])
    small = folder / "small.jpg"
    small.write_bytes(photo_of(224, 224))
    return {
        "installed": {"x86-64": sizes(here), "arm64": sizes(arm)},
        "cold_start": cold_start(here, models[0], small),
        "emulated": [
            compared(model, photos, (here, arm), system, processor) for processor in BOARDS for model in models
        ],
    }


def install(wheel: Path, target: Path, platform: Sequence[str]) -> None:
    constraint = ["--constraint", str(ROOT / "requirements.txt")]
    words = ["uv", "pip", "install", "--quiet", "--python-version", PYTHON, "--compile-bytecode"]
    run([*words, *platform, *constraint, "--target", str(target), str(wheel)])


def sizes(site: Path) -> dict[str, Any]:
    """Return megabytes on disk of the whole, as pip installs it, and of what is at least one megabyte."""
    parts = {path.name: megabytes(path) for path in site.iterdir()}
    large = {name: size for name, size in sorted(parts.items(), key=lambda part: -part[1]) if size >= 1}
    bytecode = sum(megabytes(folder) for folder in site.rglob("__pycache__"))
    return {"total_mb": round(sum(parts.values()), 1), "of_it_bytecode_mb": round(bytecode, 1), "parts_mb": large}


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    # Blocks, as on disk.
    return round(sum(file.stat().st_blocks * 512 for file in files) / 1e6, 2)


def cold_start(site: Path, model: Path, photo: Path) -> dict[str, float]:
    """Return median seconds and peak memory of `carnet predict` in a new process of this machine."""
    command = [sys.executable, "-c", LAUNCHER, *PYTHON_HERE, "-m", "carnet", "predict", str(model), str(photo)]
    found = []
    for turn in range(STARTS + 1):
        seconds, kibibytes = map(float, run(command, finding(site)).split())
        # The first start fills the caches of the disk.
        if turn:
            found.append((seconds, kibibytes / 1024))
    middle = len(found) // 2
    median_s, peak_mib = (sorted(values)[middle] for values in zip(*found, strict=True))
    return {"median_s": round(median_s, 3), "peak_mib": round(peak_mib, 1)}


def write_cpuinfo(system: Path, processor: str) -> None:
    """Write the file in which ONNX Runtime looks for ARM's features, and crashes if it finds another processor's."""
    _, part, features = BOARDS[processor]
    core = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n\n"
    path = system / "proc" / "cpuinfo"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"processor\t: {number}\n{core}" for number in range(4)), encoding="utf-8")


def compared(model: Path, photos: Sequence[str], sites: tuple[Path, Path], system: Path, processor: str) -> Any:
    """Return how a model's answers on an emulated processor compare with this machine's."""
    here, arm = sites
    write_cpuinfo(system, processor)
    emulated = ["qemu-aarch64-static", "-cpu", processor, "-L", str(system), str(system / f"usr/bin/python{PYTHON}")]
    predict = ["predict", str(model), *photos, "--top-k", "1000"]
    verification, timings, answers = (
        carnet([*emulated, "-s"], arm, words)
        for words in (["verify", str(model)], ["benchmark", str(model), "--rounds", "2"], predict)
    )
    pairs = list(zip(answers, carnet(PYTHON_HERE, here, predict), strict=True))
    result = {
        "model": model.name,
        "model_bytes": model.stat().st_size,
        "processor": f"{processor}, emulated",
        "board": BOARDS[processor][0],
        "versions": timings["machine"]["versions"],
        "verify": {check["picture"]: check["difference"] for check in verification["checks"]},
        "verify_passed": verification["passed"],
        "benchmark_ran": len(timings["timings"]) == 1,
        "num_photos": len(pairs),
        "same_class": sum(
            ours["predictions"][0]["class"] == theirs["predictions"][0]["class"] for ours, theirs in pairs
        ),
        "largest_probability_difference": max(difference(*pair) for pair in pairs),
    }
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Return the largest difference of the probability of any class."""
    mine, other = ({one["class"]: one["probability"] for one in answer["predictions"]} for answer in (ours, theirs))
    return float(max(abs(mine[label] - other[label]) for label in mine))


def carnet(python: Sequence[str], site: Path, words: Sequence[str]) -> Any:
    """Return the JSON document of a command."""
    return json.loads(run([*python, "-m", "carnet", *words, "--json"], finding(site)))


def finding(site: Path) -> dict[str, str]:
    """Return the variables with which a Python finds the packages of this folder."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"PYTHONPATH": str(site)}


def run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        sys.exit(f"small_board.py: {' '.join(command[:12])} … failed:\n{done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
