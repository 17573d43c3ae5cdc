"""`carnet verify`: check that an exported model gives the same results on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from carnet.cli.main import print_json
from carnet.text import printable


@dataclass(frozen=True)
class Command:
    """Check an exported model on this machine: its checksum, and its predictions for the two test images inside it.

    One image tests the arithmetic, the other also the JPEG decoder. Exit code 1 means that this installation does not
    reproduce the recorded predictions.

    Examples:
      carnet verify model.onnx
      carnet verify model.onnx --runtime openvino
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The .onnx file written by carnet export."""
    threads: int = 0
    """Number of compute threads; 0 lets the runtime choose."""
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """Runtime that computes."""
    json: bool = False
    """Print the results as one JSON document."""

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
            line = f"{check.picture} image: {'as recorded' if check.passed else 'NOT as recorded'}; {found}"
            print(printable(line))
        reproduces = "reproduces" if result.passed else "does not reproduce"
        print(printable(f"This installation {reproduces} {self.model}."))
        return 0 if result.passed else 1
