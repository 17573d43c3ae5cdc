"""`carnet summary`: what a network costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from carnet.cli.main import print_json

if TYPE_CHECKING:
    from carnet.models.summary import ModelSummary


@dataclass(frozen=True)
class Command:
    """Show a network's layers, parameters, multiply-adds and bytes.

    Our networks: carnet_n, carnet_s, carnet_m, carnet18, resnet18, resnet34, resnet50, resnet101, resnet152; and any of
    timm's as timm/NAME.

    Example:  carnet summary carnet18 --image-size 244
    """

    model: Annotated[str, tyro.conf.Positional]
    """Name of the network."""
    num_classes: int = 100
    """Number of classes."""
    image_size: int = 0
    """Side of the square input, in pixels; 0 takes the network's own."""
    in_channels: int = 3
    """Channels of the input."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        from carnet.models.summary import summarize

        summary = summarize(
            self.model,
            num_classes=self.num_classes,
            image_size=self.image_size or None,
            in_channels=self.in_channels,
        )
        if self.json:
            print_json(summary.to_json())
        else:
            print(_table(summary))
        return 0


def _table(summary: ModelSummary) -> str:
    names = ["  " * layer.depth + (layer.name.rpartition(".")[2] or summary.model) for layer in summary.layers]
    wide = max(map(len, names)) + 2
    kind = max(len(layer.type) for layer in summary.layers) + 2
    rows = [f"{'layer':{wide}}{'type':{kind}}{'output':>20}{'parameters':>14}{'MACs':>16}"]
    for name, layer in zip(names, summary.layers, strict=True):
        shape = " x ".join(map(str, layer.output_shape[1:]))
        params = f"{layer.params:,}" if layer.params else ""
        macs = f"{layer.macs:,}" if layer.macs else ""
        rows.append(f"{name:{wide}}{layer.type:{kind}}{shape:>20}{params:>14}{macs:>16}")
    totals = {
        "input": " x ".join(map(str, summary.input_shape[1:])),
        "parameters": f"{summary.params:,}",
        "multiply-accumulates (MACs)": f"{summary.macs:,}  (convolutions and linear layers, strictly)",
        "published mult-adds": f"{summary.published_mult_adds:,}  (the published tables' count, biases included)",
        "weights": f"{summary.weights_bytes:,} bytes in float32",
        "activations": f"{summary.activations_bytes:,} bytes for one image, forward and backward (published rule)",
    }
    rows.append("")
    rows += [f"{key:30}{value}" for key, value in totals.items()]
    return "\n".join(rows)
