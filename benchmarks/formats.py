"""Convert a run to every format, each in an environment of its own, and compare with the exported .onnx file.

Environments are made in --environments and kept. What computes on this machine is evaluated on the run's held-out
images; latencies are those of one image on one thread, in turns with ONNX Runtime. Exit code 1 means that a conversion
failed, or that a class differs for more than one image in a hundred. `make test-formats` runs it on the demo's run.

Example:
  python benchmarks/formats.py runs/sports100-carnet_s --data DATA/sports100 --write
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import write_result

ROOT = Path(__file__).parent.parent
BIN, EXE = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")


@dataclass(frozen=True)
class Way:
    """How a format is made.

    Attributes:
        packages: what the environment gets besides carnet, in the versions that were tried.
        example: the script in examples/convert; empty: `carnet export --format`.
        ending: of the result's name.
    """

    packages: Sequence[str]
    example: str = ""
    ending: str = ""


WAYS = {
    "openvino": Way(["openvino==2026.4.1"]),
    "ncnn": Way(["ncnn==1.0.20261020", "pnnx==20261020"]),
    "litert": Way(["litert-torch==0.10.0", "ai-edge-litert==2.3.0"], "to_litert.py", ".tflite"),
    "executorch": Way(["executorch==1.5.1"], "to_executorch.py", ".pte"),
    "coreml": Way(["coremltools==9.0"], "to_coreml.py", ".mlpackage"),
}
TIMED = """
import json, statistics, sys
from functools import partial
import numpy as np
from carnet import Classifier
from carnet.export.formats import format_named
from carnet.machine import take_turns
onnx = Classifier(sys.argv[1], threads=1)
other = format_named(sys.argv[2], "onnxruntime").open(onnx.content)
shape = (1, onnx.spec.image_size, onnx.spec.image_size, onnx.spec.in_channels)
image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
times = take_turns({"latency_ms_onnx": partial(onnx.logits, image), "latency_ms": partial(other.logits, image)}, 200)
print(json.dumps({name: statistics.median(values) for name, values in times.items()}))
"""
"""A program for the environment of a format that the gate evaluates."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--data", type=Path, help="images of the run, if they have moved")
    parser.add_argument("--formats", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--environments", type=Path, default=ROOT / ".formats")
    parser.add_argument("--torch-backend", default="", help="of uv, such as cpu")
    parser.add_argument("--write", action="store_true", help="write a dated result")
    options = parser.parse_args()
    data = ["--data", str(options.data.resolve())] if options.data else []
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.onnx"
        command = [sys.executable, "-m", "carnet", "export", str(options.run), "--output", str(exported), *data]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name in options.formats:
            try:
                python = made(options.environments / name, WAYS[name].packages, options.torch_backend)
                found[name] = tried(name, python, options.run, exported, data)
            except subprocess.CalledProcessError as error:
                found[name] = {"error": f"{error.cmd[:4]} ended with exit code {error.returncode}"}
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    if options.write:
        words = f"python benchmarks/formats.py RUN --data DATA/{options.data.name if options.data else ''} --write"
        print(write_result("formats", words, {"formats": found}))
    wrong = [name for name, numbers in found.items() if numbers.get("top1_agreement", 1) < 0.99 or "error" in numbers]
    if wrong:
        sys.exit(f"formats.py: {', '.join(wrong)} failed")


def made(environment: Path, packages: Sequence[str], backend: str) -> Path:
    """Make an environment with carnet and a converter, and return its Python."""
    python = environment / BIN / f"python{EXE}"
    uv = Path(sys.executable).parent / f"uv{EXE}"
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    torch = [f"--torch-backend={backend}"] if backend else []
    install = [str(uv), "pip", "install", "--quiet", "--reinstall-package", "carnet", "--python", str(python), *torch]
    # No constraint: converters ask for versions of their own. One after the other, because xdsl, which comes with that
    # of LiteRT, pins an older typing-extensions than tyro needs, and works with the newer one all the same.
    subprocess.run([*install, *packages], check=True)
    subprocess.run([*install, f"{ROOT}[export]"], check=True)
    return python


def tried(name: str, python: Path, run: Path, exported: Path, data: Sequence[str]) -> dict[str, Any]:
    """Convert a run, and return how the result compares."""
    way = WAYS[name]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"model{way.ending}"
        if way.example:
            # The example takes the file in the run's folder.
            copy = Path(shutil.copytree(run, Path(folder) / "run", ignore=shutil.ignore_patterns("*.ckpt")))
            shutil.copy(exported, copy / "model.onnx")
            words = [str(ROOT / "examples" / "convert" / way.example), str(copy), str(output), *data]
        else:
            words = ["-m", "carnet", "export", str(run), "--format", name, "--output", str(output), "--json", *data]
        done = subprocess.run([python, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            said = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()]
            return {"versions": versions(python, way), "error": said[-1]}
        size = sum(file.stat().st_size for file in [output, *output.rglob("*")] if file.is_file())
        numbers: dict[str, Any] = {"versions": versions(python, way), "size_bytes": size}
        if way.example:
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            numbers |= json.loads(lines[-1]) if lines else {"computes_here": False}
            return numbers
        kept = ("num_images", "top1", "top1_agreement", "largest_probability_difference")
        numbers |= {key: value for key, value in json.loads(done.stdout).items() if key in kept}
        timed = subprocess.run(
            [python, "-c", TIMED, str(exported), name], capture_output=True, text=True, check=True
        ).stdout
        numbers |= json.loads(timed)
        return numbers


def versions(python: Path, way: Way) -> dict[str, str]:
    """Return the versions of the converter's packages, and of PyTorch."""
    names = [*(package.partition("==")[0] for package in way.packages), "torch"]
    program = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    found = subprocess.run([python, "-c", program, *names], capture_output=True, text=True, check=True).stdout
    answer: dict[str, str] = json.loads(found)
    return answer


if __name__ == "__main__":
    main()
