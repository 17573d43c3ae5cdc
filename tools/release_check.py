"""Check a release before it is uploaded: build it, read its metadata, and use the wheel in clean environments.

1. Source archive and wheel are built, the wheel from the archive; twine checks their metadata.
2. The wheel has the pages, styles and licence, and nothing else than the package; its version heads CHANGELOG.md.
3. With the extras export and serve alone: demo, evaluate, export, predict.
4. Without extras: verify, predict and benchmark of that file, without PyTorch; and the error where PyTorch is needed.

Example:
  python tools/release_check.py --write
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BIN = "Scripts" if os.name == "nt" else "bin"
NEEDED = (
    "carnet/py.typed",
    "carnet/report/templates/",
    "carnet/report/style.css",
    "carnet/web/templates/",
    "carnet/web/static/page.js",
    "licenses/LICENSE",
)
"""What the wheel must have besides Python."""


class Check:
    """The steps, with what each said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[dict[str, Any]] = []

    def step(self, what: str, command: Sequence[object], *, code: int = 0, shows: str = "") -> str:
        """Run a command that must end with this exit code and show this text; return what it printed."""
        started = time.monotonic()
        words = [str(word) for word in command]
        # Users have no variables of ours, and no packages of the checkout.
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CARNET"))}
        done = subprocess.run(words, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        text = done.stdout + done.stderr
        seconds = round(time.monotonic() - started, 1)
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        self.steps.append({"what": what, "seconds": seconds, "exit_code": done.returncode, "last_line": last})
        print(f"{what}: {seconds} s, exit code {done.returncode}. {last}", flush=True)
        if done.returncode != code or shows not in text:
            sys.exit(f"release_check.py: {what} failed:\n{text}")
        return text

    def note(self, what: str, value: Any) -> None:
        """Record something that was found."""
        self.steps.append({"what": what, "found": value})
        print(f"{what}: {value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-backend", default="", help="of uv, such as cpu")
    parser.add_argument("--write", action="store_true", help="write a dated result to benchmarks/results")
    options = parser.parse_args()
    uv = Path(sys.executable).parent / "uv"
    backend = [f"--torch-backend={options.torch_backend}"] if options.torch_backend else []
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder))
        check.step("build the source archive, and the wheel from it", [uv, "build", "--out-dir", "dist", ROOT])
        archive, wheel = next(Path(folder, "dist").glob("*.tar.gz")), next(Path(folder, "dist").glob("*.whl"))
        check.step("twine check", [uv, "tool", "run", "twine", "check", "--strict", archive, wheel])
        read(check, archive, wheel)
        full, base = (environment(check, uv, name) for name in ("full", "base"))
        pinned = ["--constraint", ROOT / "requirements.txt"]
        install = [uv, "pip", "install", "--quiet", *pinned, *backend]
        check.step("install with export and serve", [*install, "--python", full / "python", f"{wheel}[export,serve]"])
        use_all(check, full)
        check.step("install alone", [*install, "--python", base / "python", wheel])
        use_base(check, base)
    if options.write:
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        path = ROOT / "benchmarks" / "results" / f"{today}-release-check.json"
        words = {"date": today, "name": "release-check", "command": "make release-check"}
        path.write_text(json.dumps({**words, "steps": check.steps}, indent=2) + "\n", encoding="utf-8")
        print(path)
    print("The release is ready.")


def environment(check: Check, uv: Path, name: str) -> Path:
    """Make an environment, and return the folder of its programs."""
    check.step(f"make the environment {name}", [uv, "venv", "--quiet", "--python", sys.executable, name])
    return check.folder / name / BIN


def read(check: Check, archive: Path, wheel: Path) -> None:
    """Check what the files contain."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = HeaderParser().parsestr(file.read(metadata).decode("utf-8"))
    missing = [needed for needed in NEEDED if not any(needed in name for name in names)]
    strange = [name for name in names if not name.startswith("carnet")]
    heading = re.search(r"^## \[?([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if missing or strange or heading is None or heading[1] != about["Version"]:
        head = heading and heading[1]
        sys.exit(f"release_check.py: wheel {about['Version']}: missing {missing}, strange {strange}, changes of {head}")
    with tarfile.open(archive) as tar:
        sources = [name.partition("/")[2] for name in tar.getnames()]
    if outside := [name for name in sources if "shared" in name or name.startswith(("runs/", ".venv"))]:
        sys.exit(f"release_check.py: the source archive holds {outside}")
    check.note("version", about["Version"])
    check.note("files in the wheel", len(names))
    check.note("bytes of the wheel", wheel.stat().st_size)
    check.note(
        "requires without extras", [word for word in about.get_all("Requires-Dist") or () if "extra" not in word]
    )


def use_all(check: Check, bin: Path) -> None:
    """Train, evaluate, export and predict, as after a first installation."""
    carnet = bin / "carnet"
    check.step("version", [carnet, "--version"], shows="carnet ")
    check.step("demo", [carnet, "demo", "--output", "demo"])
    check.step("evaluate", [carnet, "evaluate", "demo/run"], shows="correctly")
    check.step("export", [carnet, "export", "demo/run", "--output", "model.onnx"], shows="held-out images")
    photo = next((check.folder / "demo" / "pictures" / "valid").rglob("*.jpg"))
    shutil.copy(photo, check.folder / "photo.jpg")
    check.step("predict with a run", [carnet, "predict", "demo/run", "photo.jpg"], shows="%")
    check.step("completion", [carnet, "completion", "bash"], shows="complete -o default")
    check.step("serve --help", [carnet, "serve", "--help"], shows="--port")


def use_base(check: Check, bin: Path) -> None:
    """Use the exported file where PyTorch is not installed."""
    carnet, python = bin / "carnet", bin / "python"
    check.step("no PyTorch", [python, "-c", "import torch"], code=1, shows="No module named 'torch'")
    check.step("verify", [carnet, "verify", "model.onnx"], shows="reproduces")
    check.step("predict", [carnet, "predict", "model.onnx", "photo.jpg"], shows="%")
    check.step(
        "predict in Python", [python, "-c", "import carnet; print(carnet.load('model.onnx').predict('photo.jpg'))"]
    )
    check.step("benchmark", [carnet, "benchmark", "model.onnx"], shows="ms")
    check.step("check", [carnet, "check", "demo/pictures", "--fast"])
    check.step("train without PyTorch", [carnet, "train", "demo/pictures"], code=2, shows='pip install "carnet[train]"')


if __name__ == "__main__":
    main()
