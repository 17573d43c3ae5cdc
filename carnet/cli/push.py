"""`carnet push`: upload a run to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from carnet.cli.main import console, print_json


@dataclass(frozen=True)
class Command:
    """Upload a run as a model of the Hugging Face Hub: what carnet card writes. Then hf:OWNER/NAME names it.

    The token is that of the Hub's own tools (hf auth login, or HF_TOKEN). The model passes the gate of carnet export
    first. No path and no image is uploaded.

    Examples:
      carnet push runs/photos-carnet_s owner/name --license cc-by-4.0
      carnet predict hf:owner/name photo.jpg
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """Name on the Hub."""
    private: bool = False
    """Make it private if it is new."""
    license: str = ""
    """Licence of the weights, as the Hub names it; it is yours to choose."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Images of the run, if they have moved."""
    json: bool = False
    """Print the results as one JSON document."""

    def run(self) -> int:
        from carnet.export.card import write_card
        from carnet.hub_models import parse_name, push

        # Before long work.
        parse_name(self.repo)
        with console(self.json) as progress, tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            name = self.repo.rpartition("/")[2]
            result = write_card(
                self.run_folder, folder, name=name, license_name=self.license, data=self.data, progress=progress
            )
            progress.say(f"Uploads {self.repo} …")
            address = push(folder, self.repo, private=self.private)
            if not self.json:
                progress.say(f"The model is {address}; carnet predict hf:{self.repo} uses it.")
        if self.json:
            print_json({"address": address, **result.gate_report.to_json()})
        return 0
