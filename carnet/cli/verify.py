"""`carnet verify`: does this installation compute what an exported model is meant to?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from carnet.cli.main import print_json
from carnet.text import printable


@dataclass(frozen=True)
class Command:
    """Check an exported model on this machine: its checksum, and its answers for the two pictures inside it.

    One picture tests the arithmetic, the other the decoding of JPEG as well. Exit code 1 says that this installation
    does not reproduce the model, and by how much.

    Example:  carnet verify model.onnx
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The .onnx file that carnet export has written."""
    threads: int = 0
    """Threads of the arithmetic; 0 leaves it to the runtime."""
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """What computes."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        from carnet.edge.selftest import verify

        result = verify(self.model, threads=self.threads, runtime=self.runtime)
        if self.json:
            print_json(result.to_json())
            return 0 if result.passed else 1
        for check in result.checks:
            found = (
                check.problem or f"probabilities differ by up to {check.difference:.2g} (allowed {check.tolerance:g})"
            )
            line = f"{check.picture} picture: {'as recorded' if check.passed else 'NOT as recorded'}; {found}"
            print(printable(line))
        reproduces = "reproduces" if result.passed else "does not reproduce"
        print(printable(f"This installation {reproduces} {self.model}."))
        return 0 if result.passed else 1
