"""`carnet export`: one file that runs without PyTorch, judged before it gets its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from carnet.cli.main import console, print_json


@dataclass(frozen=True)
class Command:
    """Write a run's model as one .onnx file that needs no PyTorch, and judge it on images held back from training.

    The file takes the pixels of an image as they are, and holds the class names and everything else that is needed. It
    is written only if it does what the trained model does; exit code 1 says that it does not. Beside it comes a page
    that says how it was judged.

    Examples:
      carnet export runs/photos-carnet_s
      carnet export runs/photos-carnet_s --int8 --output photos.onnx
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="ONNX")] = None
    """The file (default: model.onnx in the run's folder, or model-int8.onnx)."""
    int8: bool = False
    """Compute in eight bits where that holds accuracy: a third of the size, and faster on some processors."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """The run's images, if they are no longer where they were."""
    max_drop: float = 1.0
    """Points of top-1 accuracy that may be lost; beyond, nothing is written."""
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """Through which the file is judged."""
    json: bool = False
    """Print the numbers as one JSON document."""

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
                end = f"The model is {result.path}, the report {result.report}."
                progress.say("\n".join([*sentences(result), end]))
        if self.json:
            numbers = result.gate_report.to_json()
            print_json({"model": str(result.path), "report": str(result.report), **numbers})
        return 0
