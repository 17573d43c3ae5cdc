"""`carnet summary`: show the layers, parameters and costs of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from carnet.cli.main import print_json, table

if TYPE_CHECKING:
    from carnet.models.summary import ModelSummary


@dataclass(frozen=True)
class Command:
    """Show the layers, parameters, multiply-adds and memory of a network.

    Our own networks are carnet_n, carnet_s, carnet_m, carnet18, resnet18, resnet34, resnet50, resnet101 and resnet152.
    Any network of timm is named timm/NAME.

    Examples:
      carnet summary carnet_s
      carnet summary carnet18 --image-size 244 --num-classes 10 --json
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Name of the network."""
    num_classes: int = 100
    """Number of classes."""
    image_size: int = 0
    """Side of the square input, in pixels; 0 is the default of the network."""
    in_channels: int = 3
    """Number of input channels."""
    json: bool = False
    """Print the summary as one JSON document."""

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
            print(_text(summary))
        return 0


def _text(summary: ModelSummary) -> str:
    rows = [("layer", "type", "output", "parameters", "MACs")]
    for layer in summary.layers:
        name = "  " * layer.depth + (layer.name.rpartition(".")[2] or summary.model)
        params, macs = (f"{number:,}" if number else "" for number in (layer.params, layer.macs))
        rows.append((name, layer.type, " x ".join(map(str, layer.output_shape[1:])), params, macs))
    totals = {
        "input": " x ".join(map(str, summary.input_shape[1:])),
        "parameters": f"{summary.params:,}",
        "multiply-adds (MACs)": f"{summary.macs:,}  (convolutions and linear layers only)",
        "published mult-adds": f"{summary.published_mult_adds:,}  (as counted in the published tables, with biases)",
        "weights": f"{summary.weights_bytes:,} bytes in float32",
        "activations": f"{summary.activations_bytes:,} bytes per image, forward and backward (published rule)",
    }
    return "\n".join([*table(rows, left=(0, 1)), "", *table(list(totals.items()), left=(0, 1))])
