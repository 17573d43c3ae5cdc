"""`carnet train`: train an image classifier."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from carnet.cli.main import console, is_first_process, print_json
from carnet.config import PRESETS, TrainingConfig
from carnet.errors import ConfigError
from carnet.text import quoted


@dataclass(frozen=True)
class Command:
    """Train an image classifier.

    DATA is a folder with one folder of images per class, directly or inside train, valid and test folders; a zip or
    tar archive of such a folder; a table (CSV or TSV) with the columns filepath, label and optionally split; or a data
    set for Hugging Face datasets: Parquet files, WebDataset shards, or hf:NAME on the hub. Ctrl-C stops with a
    checkpoint, from which --resume continues.

    Examples:
      carnet train photos
      carnet train photos --epochs 100 --flip 0
      carnet train photos --budget 10m --max-memory 2GB
      carnet train photos --model efficientnet_lite0 --freeze
      carnet train photos --model auto --max-latency 5ms --max-size 3MB
      carnet train photos --model resnet18 --preset published --output runs/old
      carnet train photos --teacher efficientnet_lite0 --unlabeled more-photos
      carnet train photos --init runs/photos-carnet_s
      carnet train --resume runs/photos-carnet_s
      carnet train photos.zip --ignore bad.txt --devices 2
      torchrun --nnodes 2 --nproc-per-node 4 … -m carnet train photos
    """

    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
    """Folder, archive, table or data set of images."""
    ignore: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Skip the images listed in this text file, one path per line, as in data.csv of a run."""
    preset: Literal["default", "published"] = "default"
    """Recipe to start from; the flags below override it."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder of the new run (default: runs/DATA-MODEL, numbered if it exists); with --resume, continue in a copy."""
    init: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Start from the weights of this run, with a new head if the classes differ."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Continue this run from its last checkpoint, with its own recipe."""
    json: bool = False
    """Print the result as one JSON document; progress goes to standard error."""
    recipe: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)

    def initial_recipe(self) -> TrainingConfig:
        """Return the recipe that the flags override: that of the preset, or of the run to resume."""
        if self.resume is None:
            return PRESETS[self.preset]()
        if self.preset != "default":
            raise ConfigError("--preset cannot change the recipe of a run that --resume continues; leave it out")
        from carnet.run_folder import RunFolder

        run = RunFolder.open(self.resume)
        return TrainingConfig.from_json(run.read_config()["requested"], run.config)

    def run(self) -> int:
        from carnet.data.samples import read_ignore_file
        from carnet.export.choice import within_limits
        from carnet.training.run import train

        started = time.monotonic()
        with console(self.json) as progress:
            ignore = () if self.ignore is None else read_ignore_file(self.ignore)
            recipe = self.recipe
            if self.data is not None and self.resume is None:
                recipe = within_limits(
                    recipe, self.data, init=self.init, output=self.output, ignore=ignore, progress=progress
                )
            result = train(
                self.data,
                recipe,
                output=self.output,
                init=self.init,
                resume=self.resume,
                ignore=ignore,
                progress=progress,
                started=started,
            )
            if not self.json and is_first_process():
                progress.say(
                    f"Try it:  carnet predict {quoted(result.run)} IMAGE\n"
                    f"Export it to run without PyTorch:  carnet export {quoted(result.run)}"
                )
        if self.json and is_first_process():
            print_json(result.document)
        return 0
