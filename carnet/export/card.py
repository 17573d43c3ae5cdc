"""A run as a folder in timm's layout, with its exported model and a card that says how good it is, and where not.

    README.md           the card, from the numbers of the export's gate: with intervals, leaks and limits
    config.json         the network, its classes and its input, as timm reads them
    model.safetensors   the weights, as the run has them
    model.onnx          the exported model

No path and no image goes into it. The layout is that of timm's models on the Hugging Face Hub.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import carnet
from carnet import files
from carnet.config import LITE0
from carnet.errors import ConfigError
from carnet.export.exporter import ExportResult, export_model
from carnet.files import check_replaceable, replace_folder, to_json
from carnet.models.weights import MAX_WEIGHTS_BYTES, TrainedModel, load
from carnet.report.findings import displayable, findings, percent
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.text import Progress, Silent, counted, first_few

_SHOWN_CLASSES = 40
_NAMES = ("README.md", "config.json", "model.safetensors", "model.onnx")
"""Every file of such a folder."""


def write_card(
    run: Path | str,
    folder: Path,
    *,
    name: str = "",
    license_name: str = "",
    data: Path | str | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a run through the gate, and write the folder; files of an earlier one are replaced.

    Args:
        run: the run's folder.
        folder: a new or empty folder, or an earlier one of ours.
        name: the heading; empty: that of the folder.
        license_name: the licence of the weights, which is yours to choose, as the Hub names it; empty: none is named.
        data: the run's images, if they are no longer where they were.
        progress: shows what happens; None: nothing is shown.

    Raises:
        OutputError: if the folder is neither new, nor empty, nor an earlier one of ours, or cannot be written.
        ConfigError: if the licence is no name.
        Exception: whatever `carnet.export_model` raises; then the folder is left as it was.
    """
    check_replaceable(folder, _NAMES, ("config.json", b'"carnet": {'), "FOLDER")
    if any(sign in license_name for sign in ' \n\r\t:"'):
        raise ConfigError(f"--license must be a name such as apache-2.0 or cc-by-4.0, got {license_name!r}")
    source = RunFolder.open(run)
    trained = load(source.path)
    with tempfile.TemporaryDirectory() as scratch:
        result = export_model(source.path, Path(scratch) / "model.onnx", data=data, progress=progress or Silent())
        onnx = result.path.read_bytes()
    card = Card(name or folder.absolute().name, license_name, trained, result, source.read_config())
    config, text = to_json(card.config(), ascii_only=True) + "\n", card.text()
    weights = files.read_whole(source.weights, MAX_WEIGHTS_BYTES)
    content = {"model.safetensors": weights, "model.onnx": onnx}
    replace_folder(folder, content | {"config.json": config.encode(), "README.md": text.encode()})
    return result


def architecture_of(model: str) -> str:
    """Return timm's name of a network: `carnet.timm` registers ours; empty where timm has other names of weights."""
    if model == LITE0:
        return ""
    return f"carnet_{model}" if model.startswith("resnet") else model.removeprefix("timm/")


@dataclass(frozen=True)
class Card:
    """What the folder says about a run."""

    name: str
    license_name: str
    trained: TrainedModel
    result: ExportResult
    record: Mapping[str, Any]

    @property
    def spec(self) -> ModelSpec:
        """The classes and the input."""
        return self.trained.spec

    def config(self) -> dict[str, Any]:
        """Return the content of `config.json`."""
        spec, network = self.spec, self.trained.network
        own = getattr(network, "default_cfg", None) or {}
        side, channels = spec.image_size, spec.in_channels
        pretrained = {
            **{"custom_load": False, "input_size": [channels, side, side], "fixed_input_size": False},
            **{"interpolation": spec.interpolation, "crop_pct": 1.0, "crop_mode": _CROP_MODES[spec.resize]},
            **{"mean": list(spec.mean), "std": list(spec.std), "num_classes": spec.num_classes},
            "classifier": own.get("classifier", "linear"),
            "first_conv": own.get("first_conv", "stem.0" if hasattr(network, "stem") else "conv1"),
        }
        return {
            **({"architecture": architecture_of(spec.model)} if architecture_of(spec.model) else {}),
            "num_classes": spec.num_classes,
            "in_chans": channels,
            "label_names": [displayable(label) for label in spec.classes],
            "model_args": {"in_chans": channels},
            "pretrained_cfg": pretrained | ({"license": self.license_name} if self.license_name else {}),
            "carnet": {**spec.to_json(), "version": carnet.__version__},
        }

    def text(self) -> str:
        """Return the content of `README.md`."""
        gate = self.result.gate_report
        parts = [
            self._front(),
            f"# {_markdown(self.name)}",
            f"An image classifier with {counted(self.spec.num_classes, 'class', 'classes')}, trained with "
            f"CARNet {carnet.__version__}: `{self.spec.model}`, {gate.to_json()['size_bytes'] / 1e6:.2f} MB, "
            f"images of {self.spec.image_size} px.",
            f"Classes: {_markdown(first_few(self.spec.classes, _SHOWN_CLASSES))}.",
            "## How good it is",
            self._results(),
            "## Where it is wrong",
            self._limits(),
            "## How it was trained",
            self._training(),
            "## How to use it",
            self._use(),
        ]
        return "\n\n".join(parts) + "\n"

    def _front(self) -> str:
        """Return what the Hub reads."""
        top1 = self.result.gate_report.edge.top1
        library = "timm" if architecture_of(self.spec.model) else "carnet"
        lines = [
            "---",
            *([f"license: {self.license_name}"] if self.license_name else []),
            f"library_name: {library}",
            "pipeline_tag: image-classification",
            "tags:",
            *(f"- {tag}" for tag in dict.fromkeys(("image-classification", library, "carnet", "onnx"))),
            "model-index:",
            f"- name: {json.dumps(displayable(self.name))}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            "      type: imagefolder",
            f"      name: {counted(self.result.gate_report.edge.num_images, 'held-out image')}",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {top1:.4f}",
            "---",
        ]
        return "\n".join(lines)

    def _results(self) -> str:
        gate, crossed = self.result.gate_report, self.result.gate_report.crossed
        numbers, (low, high) = gate.to_json(), gate.edge.top1_ci95
        rows = [
            ("top-1", f"**{percent(gate.edge.top1)}** (95% interval {percent(low)} to {percent(high)})"),
            ("images", f"{gate.edge.num_images:,}, held out from training"),
            ("macro recall", percent(gate.edge.macro_recall)),
            ("top-5", percent(gate.edge.top5)),
            ("calibration error", f"{100 * crossed.error:.1f} points"),
            ("one thread, without decoding", f"{numbers['latency_ms']:.2f} ms where it was exported"),
        ]
        if crossed.confident_accuracy is not None:
            threshold, right = percent(self.result.calibration.threshold), percent(crossed.confident_accuracy)
            confident = f"{percent(crossed.coverage)} of the predictions, of which {right} are right"
            rows.append((f"confident (from {threshold} on)", confident))
        lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        leaked = (
            f"{counted(gate.leaked, 'held-out image')} left out: byte for byte among the training images."
            if gate.leaked
            else "None of these images is byte for byte a training image."
        )
        return "\n".join([*lines, "", leaked])

    def _limits(self) -> str:
        report = self.result.gate_report.edge
        lines = [f"- {_markdown(sentence)}" for sentence in findings(report)[1:]]
        lines += [
            "- It names one of its classes for every image, also for one that shows none of them.",
            "- It was evaluated on images of the kind that it was trained on; on others it may be worse.",
        ]
        return "\n".join(lines)

    def _training(self) -> str:
        data, resolved = self.record["data"], self.record["resolved"]
        images = ", ".join(f"{number:,} {split}" for split, number in data["num_images"].items())
        lines = [
            f"- Images: {images} (hash {data['content_hash'][:16]}).",
            f"- Epoch {self.trained.info.get('epoch')}, batches of {resolved.get('batch_size')}, "
            f"{resolved.get('optimizer')}, seed {resolved['seed']}.",
        ]
        if teacher := self.record.get("teacher"):
            lines.append(f"- Taught by {_markdown(teacher['name'])}.")
        return "\n".join(lines)

    def _use(self) -> str:
        side = self.spec.image_size
        timm = (
            """```python
import carnet.timm, timm

network = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
```

"""
            if architecture_of(self.spec.model)
            else ""
        )
        return f"""```sh
carnet predict model.onnx photo.jpg    # decodes and resizes as it was evaluated; no PyTorch needed
carnet serve model.onnx                # a service, and a page for photos
```

{timm}An image becomes a square of {side} px by the rule `{self.spec.resize}` ({self.spec.interpolation}).
The graph of `model.onnx` takes uint8 pixels (N, {side}, {side}, {self.spec.in_channels})."""


_CROP_MODES = {"crop": "center", "pad": "border", "stretch": "squash"}
"""Our rules for a square -> timm's."""


def _markdown(text: str) -> str:
    """Return a text in which no sign is markup."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#|!" else sign for sign in displayable(text))
