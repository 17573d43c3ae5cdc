"""`carnet export`: export a model to one file that runs without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from carnet.cli.main import console, print_json


@dataclass(frozen=True)
class Command:
    """Export the model of a run to one .onnx file that needs no PyTorch, and evaluate it on held-out images.

    The file takes the pixels of an image as they are, and holds the class names and all other metadata. It is written
    only if its predictions agree with those of the trained model; exit code 1 means that they do not. A page beside it
    shows the results.

    Examples:
      carnet export runs/photos-carnet_s
      carnet export runs/photos-carnet_s --int8 --output photos.onnx
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="ONNX")] = None
    """Output file (default: model.onnx or model-int8.onnx in the folder of the run)."""
    int8: bool = False
    """Quantize layers to int8 where accuracy allows it: a third of the size, and faster on some processors."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Images of the run, if they have moved."""
    max_drop: float = 1.0
    """Largest loss of top-1 accuracy, in percentage points; if it is larger, no file is written."""
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """Runtime in which the file is evaluated."""
    json: bool = False
    """Print the results as one JSON document."""

    def run(self) -> int:
        from carnet.export.exporter import export_model, sentences

        with console(self.json) as progress:
            result = export_model(
                self.run_folder,
                self.output,
                int8=self.int8,
                data=self.data,
                max_drop=self.max_drop,
                runtime=self.runtime,
                progress=progress,
            )
            if not self.json:
                end = f"The model is {result.path}, its report {result.report}."
                progress.say("\n".join([*sentences(result), end]))
        if self.json:
            numbers = result.gate_report.to_json()
            print_json({"model": str(result.path), "report": str(result.report), **numbers})
        return 0
