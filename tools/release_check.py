"""Check a release before it is uploaded: build it, read its metadata, and use the wheel in clean environments.

1. Source archive and wheel are built, the wheel from the archive; twine checks their metadata.
2. The wheel has every file of the package that git knows, and nothing else; its version heads CHANGELOG.md, with a date
   where --tag names a release.
3. With the extra train alone: demo, evaluate, predict, and the error where export is needed. Then with export: export.
4. Without extras: verify, predict and benchmark of that file, without PyTorch; and the error where PyTorch is needed.

Packages are installed without our pinned versions, as users get them, and CARNet's cache is empty.

Example:
  make release-check
  python tools/release_check.py --keep dist --tag v0.2.0
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
TWINE = "twine==7.0.0"


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
        variables["CARNET_CACHE"] = str(self.folder / "cache")
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
    parser.add_argument("--keep", type=Path, help="folder for the files that were checked, to upload these")
    parser.add_argument("--tag", default="", help="tag of the release, v and the version")
    parser.add_argument("--write", action="store_true", help="write a dated result to benchmarks/results")
    options = parser.parse_args()
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        sys.exit("release_check.py: uv is not installed (pip install uv)")
    backend = [f"--torch-backend={options.torch_backend}"] if options.torch_backend else []
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder))
        check.step("build the source archive, and the wheel from it", [uv, "build", "--out-dir", "dist", ROOT])
        archive, wheel = next(Path(folder, "dist").glob("*.tar.gz")), next(Path(folder, "dist").glob("*.whl"))
        check.step("twine check", [uv, "tool", "run", TWINE, "check", "--strict", archive, wheel])
        read(check, archive, wheel, options.tag)
        bench, base = (environment(check, uv, name) for name in ("bench", "base"))
        install = [uv, "pip", "install", "--quiet", *backend, "--python"]
        check.step("install with train", [*install, bench / "python", f"{wheel}[train]"])
        train(check, bench)
        check.step("install with export", [*install, bench / "python", f"{wheel}[export]"])
        check.step(
            "export", [bench / "carnet", "export", "demo/run", "--output", "model.onnx"], shows="held-out images"
        )
        check.step("install alone", [*install, base / "python", wheel])
        use_base(check, base)
        if options.keep is not None:
            shutil.copytree(Path(folder, "dist"), options.keep, ignore=shutil.ignore_patterns(".gitignore"))
    if options.write:
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        path = ROOT / "benchmarks" / "results" / f"{today}-release-check.json"
        words = {"date": today, "name": "release-check", "command": "python tools/release_check.py --write"}
        path.write_text(json.dumps({**words, "steps": check.steps}, indent=2) + "\n", encoding="utf-8")
        print(path)
    print("The release is ready.")


def environment(check: Check, uv: str, name: str) -> Path:
    """Make an environment, and return the folder of its programs."""
    check.step(f"make the environment {name}", [uv, "venv", "--quiet", "--python", sys.executable, name])
    return check.folder / name / BIN


def read(check: Check, archive: Path, wheel: Path, tag: str = "") -> None:
    """Check what the files contain."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = HeaderParser().parsestr(file.read(metadata).decode("utf-8"))
    known = subprocess.run(["git", "-C", str(ROOT), "ls-files", "carnet"], capture_output=True, text=True, check=True)
    with tarfile.open(archive) as tar:
        sources = {name.partition("/")[2] for name in tar.getnames()}
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if problems := problems_of(
        names, set(known.stdout.split()), sources, version=about["Version"], changes=changes, tag=tag
    ):
        sys.exit("release_check.py: " + "; ".join(problems))
    check.note("version", about["Version"])
    check.note("files in the wheel", len(names))
    check.note("bytes of the wheel", wheel.stat().st_size)
    check.note(
        "requires without extras", [word for word in about.get_all("Requires-Dist") or () if "extra" not in word]
    )


def problems_of(
    wheel: set[str], known: set[str], archive: set[str], *, version: str, changes: str, tag: str
) -> list[str]:
    """Return what is wrong with a release.

    Args:
        wheel: names of the files in the wheel.
        known: paths of the package that git knows.
        archive: names in the source archive.
        version: that of the metadata.
        changes: text of CHANGELOG.md.
        tag: of the release; empty: there is none yet.
    """
    packaged = {name for name in wheel if ".dist-info/" not in name}
    problems = [f"the wheel lacks {name}" for name in sorted(known - packaged)]
    problems += [f"the wheel holds {name}, which git does not know" for name in sorted(packaged - known)]
    if not any(name.endswith("licenses/LICENSE") for name in wheel):
        problems.append("the wheel lacks the licence")
    problems += [f"the source archive lacks {name}" for name in sorted(known - archive)]
    heading = next((line for line in changes.splitlines() if line.startswith("## ")), "")
    if not heading.startswith(f"## {version} "):
        problems.append(f"CHANGELOG.md begins with {heading!r}, and the version is {version}")
    if tag and tag != f"v{version}":
        problems.append(f"the tag {tag} is not v{version}")
    if tag and not re.fullmatch(rf"## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading):
        problems.append(f"{heading!r} in CHANGELOG.md has no date")
    return problems


def train(check: Check, bin: Path) -> None:
    """Train, evaluate and predict, as after a first installation."""
    carnet = bin / "carnet"
    check.step("version", [carnet, "--version"], shows="carnet ")
    check.step("demo", [carnet, "demo", "--output", "demo"])
    check.step("evaluate", [carnet, "evaluate", "demo/run"], shows="correctly")
    photo = next((check.folder / "demo" / "pictures" / "valid").rglob("*.jpg"))
    shutil.copy(photo, check.folder / "photo.jpg")
    check.step("predict with a run", [carnet, "predict", "demo/run", "photo.jpg"], shows="%")
    needed = 'pip install "carnet[export]"'
    check.step("export without its packages", [carnet, "export", "demo/run"], code=2, shows=needed)
    check.step("completion", [carnet, "completion", "bash"], shows="complete -o default")


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
