"""Export a run in float32 and int8, for both runtimes, and record the evaluation of each file.

The script needs the extras train, export and openvino.

Example:
  python benchmarks/export.py runs/sports100-carnet_s --data DATA/sports100
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import write_result

from carnet import export_model
from carnet.errors import GateError
from carnet.report.console import Console


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--data", type=Path, help="images of the run, if they have moved")
    parser.add_argument("--name", default="export", help="name of the result file")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, Console(sys.stderr) as progress:
        for name, flags in (
            ("float32, onnxruntime", {}),
            ("float32, openvino", {"runtime": "openvino"}),
            ("int8, onnxruntime", {"int8": True}),
        ):
            progress.say(f"\n{name}")
            output = Path(folder) / "model.onnx"
            try:
                result = export_model(options.run, output, data=options.data, progress=progress, **flags)
            except GateError as error:
                found[name] = {"refused": str(error).replace(folder, "")}
                progress.say(str(error))
                continue
            found[name] = result.gate_report.to_json()
            if result.quantized is not None:
                found[name]["variant"] = str(result.quantized.chosen.variant)
                found[name]["latency_of_float32_ms"] = result.quantized.float_latency_ms
                found[name]["latency_of_chosen_ms"] = result.quantized.chosen.latency_ms
    command = f"python benchmarks/export.py {options.run.name}"
    print(write_result(options.name, command, {"exports": found}))


if __name__ == "__main__":
    main()
