"""Run `carnet train` up to the first backward pass, and record which functions of the package were entered.

Python's profiler sees every call in all threads. Every named function, method and generator of the package counts once.
The bodies of modules and classes, lambdas, comprehensions, and functions that `dataclass` generates do not count. The
first call of PyTorch's `backward` may belong to a trial step that measures the machine. The functions are therefore
counted again at the first call after the run has its first checkpoint, where the program ends.

Example:
  python benchmarks/entered_functions.py entered.json photos run --epochs 1
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys
import threading
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

NO_BACKWARD = 3
"""Exit code if the command ended before."""


def main() -> None:
    out, data, run, *arguments = sys.argv[1:]
    found = importlib.util.find_spec("carnet")
    if found is None or found.origin is None:
        sys.exit("there is no carnet to be run; set PYTHONPATH")
    package = Path(found.origin).parent
    # The command must not find the modules of this folder.
    sys.path[0] = str(package.parent)
    sys.argv = ["carnet", "train", data, "--output", run, *arguments]
    seen = Seen(package, Path(out).absolute(), Path(run).absolute())
    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        runpy.run_module("carnet", run_name="__main__", alter_sys=True)
    finally:
        sys.setprofile(None)
    sys.exit(NO_BACKWARD)


class Seen:
    """Return a profiler, which ends the program at the first backward pass of the training."""

    def __init__(self, package: Path, out: Path, run: Path) -> None:
        self.inside, self.out, self.run = f"{package}{os.sep}", out, run
        self.found: dict[str, list[str]] = {}
        self.codes: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code.co_filename.startswith(self.inside):
            self.codes.add(code)
        elif code.co_name == "backward" and code.co_filename.endswith(os.path.join("torch", "_tensor.py")):  # noqa: PTH118
            self.found.setdefault("first gradient", self.functions())
            if next(self.run.glob("*.ckpt"), None):
                self.found["first gradient of training"] = self.functions()
                self.out.write_text(json.dumps(self.found), encoding="utf-8")
                os._exit(0)

    def functions(self) -> list[str]:
        """Return each function as `file:line name`, in the order of the files."""
        places = {
            (code.co_filename.removeprefix(self.inside).replace(os.sep, "/"), code.co_firstlineno, code.co_qualname)
            for code in self.codes
            if is_named_function(code)
        }
        return [f"{file}:{line} {name}" for file, line, name in sorted(places)]


def is_named_function(code: CodeType) -> bool:
    """Return whether a code object is a named function and not the body of a module or class."""
    return bool(code.co_flags & CO_OPTIMIZED) and not code.co_name.startswith("<") and code.co_name != "__annotate__"


if __name__ == "__main__":
    main()
