"""`carnet card`: write a run as a folder in timm's layout, with a model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from carnet.cli.main import console, print_json


@dataclass(frozen=True)
class Command:
    """Write a run as a folder that timm and the Hugging Face Hub understand: weights, config.json, model.onnx, and a
    README.md that says how good the model is, with its interval, and where it is wrong.

    The model passes the gate of carnet export first. No path and no image goes into the folder.

    Examples:
      carnet card runs/photos-carnet_s my-classifier
      carnet card runs/photos-carnet_s my-classifier --license cc-by-4.0
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A new folder, or an earlier one of this command."""
    name: str = ""
    """Heading of the card (default: that of the folder)."""
    license: str = ""
    """Licence of the weights, as the Hub names it; it is yours to choose."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Images of the run, if they have moved."""
    json: bool = False
    """Print the results as one JSON document."""

    def run(self) -> int:
        from carnet.export.card import write_card

        with console(self.json) as progress:
            result = write_card(
                self.run_folder,
                self.folder,
                name=self.name,
                license_name=self.license,
                data=self.data,
                progress=progress,
            )
            if not self.json:
                progress.say(f"The folder is {self.folder}; its card is {self.folder / 'README.md'}.")
        if self.json:
            print_json({"folder": str(self.folder), **result.gate_report.to_json()})
        return 0
