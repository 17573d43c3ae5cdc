"""`carnet export`: export a model to one file that runs without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from carnet.cli.main import console, print_json
from carnet.errors import ConfigError
from carnet.text import Progress, quoted, show_bytes


@dataclass(frozen=True)
class Command:
    """Export the model of a run to one .onnx file that needs no PyTorch, and evaluate it on held-out images.

    The file takes the pixels of an image as they are, and holds the class names and all other metadata. It is written
    only if its predictions agree with those of the trained model; exit code 1 means that they do not. A page beside it
    shows the results. With --format, the model becomes a folder for another runtime, which evaluates it.

    Examples:
      carnet export runs/photos-carnet_s
      carnet export runs/photos-carnet_s --int8 --output photos.onnx
      carnet export runs/photos-carnet_s --web my-app
      carnet export runs/photos-carnet_s --format ncnn
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Output file or folder (default: model.onnx, model-int8.onnx or model-FORMAT in the folder of the run)."""
    format: Literal["onnx", "openvino", "ncnn"] = "onnx"
    """One .onnx file, or a folder for OpenVINO (the extra openvino) or ncnn (pip install pnnx ncnn)."""
    int8: bool = False
    """Quantize layers to int8 where accuracy allows it: a third of the size, and faster on some processors."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Images of the run, if they have moved."""
    max_drop: float = 1.0
    """Largest loss of top-1 accuracy, in percentage points; if it is larger, no file is written."""
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """Runtime in which an .onnx file is evaluated."""
    web: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Write a page into this folder as well, for any web host: the model runs in the visitor's browser."""
    ort_dist: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of onnxruntime-web, for --web on a machine without npm; its files are taken as they are."""
    json: bool = False
    """Print the results as one JSON document."""

    def run(self) -> int:
        from carnet.export.exporter import export_model, sentences

        if self.ort_dist is not None and self.web is None:
            raise ConfigError("--ort-dist is for --web; name the folder for the page with --web")
        if self.web is not None and self.format != "onnx":
            raise ConfigError("--web takes a model of the format onnx; leave --format out")
        if self.web is not None:
            from carnet.web.folder import check_web_folder
            from carnet.web.runtime import runtime_files

            check_web_folder(self.web)
        with console(self.json) as progress:
            # Before long work, since it may fail.
            runtime = {} if self.web is None else runtime_files(self.ort_dist, progress)
            result = export_model(
                self.run_folder,
                self.output,
                format=self.format,
                int8=self.int8,
                data=self.data,
                max_drop=self.max_drop,
                runtime=self.runtime,
                progress=progress,
            )
            if not self.json:
                end = f"The model is {result.path}, its report {result.report}."
                progress.say("\n".join([*sentences(result), end]))
            if self.web is not None:
                self._write_page(result.path, runtime, progress)
        if self.json:
            numbers = result.gate_report.to_json()
            page = {} if self.web is None else {"web": str(self.web)}
            print_json({"model": str(result.path), "report": str(result.report), **page, **numbers})
        return 0

    def _write_page(self, model: Path, runtime: Mapping[str, bytes], progress: Progress) -> None:
        """Write the folder for a web host."""
        from carnet.edge.classifier import Classifier
        from carnet.web.folder import write_web_folder

        assert self.web is not None, "--web is given"
        write_web_folder(Classifier(model, threads=1), self.web, runtime)
        size = sum(path.stat().st_size for path in self.web.rglob("*") if path.is_file())
        progress.say(
            f"The page is in {self.web} ({show_bytes(size)}). To try it: python -m http.server --bind 127.0.0.1 "
            f"--directory {quoted(self.web)} 8080, then http://localhost:8080. Any host with HTTPS takes the folder."
        )
