"""`carnet demo`: the whole way, on pictures drawn for it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from carnet.cli.main import console, print_json
from carnet.config import TrainingConfig
from carnet.data.synthetic import CLASSES, PICTURE_SIZE, write_dataset
from carnet.errors import OutputError
from carnet.files import make_folder
from carnet.run_folder import new_run_path
from carnet.text import quoted


def demo_config(*, seed: int = 0, skip_unreadable: bool = False) -> TrainingConfig:
    """The recommended recipe at the size of the pictures, for two minutes, or 40 epochs where those take less.

    Command: `carnet demo`.
    """
    return TrainingConfig(
        image_size=PICTURE_SIZE,
        epochs=40,
        batch_size=32,
        budget="2m",
        compile=False,
        seed=seed,
        skip_unreadable=skip_unreadable,
    )


@dataclass(frozen=True)
class Command:
    """Draw ten kinds of pictures, train carnet_s on them, judge it, and classify one.

    Takes some two minutes on two processor cores, and downloads nothing.

    Examples:
      carnet demo
      carnet demo --dirty     with unreadable, duplicate and mislabelled files among the pictures
    """

    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """New folder for pictures and run (default: carnet-demo, numbered if taken)."""
    dirty: bool = False
    """Plant unreadable, duplicate and mislabelled files, and see what becomes of them."""
    seed: int = 0
    """Of the pictures and of training."""
    json: bool = False
    """Print the result as one JSON document; progress goes to standard error."""

    def run(self) -> int:
        from carnet.models.weights import load
        from carnet.training.run import train

        config = demo_config(seed=self.seed, skip_unreadable=self.dirty)
        output = self.output or new_run_path(Path("carnet-demo"))
        pictures, run = output / "pictures", output / "run"
        if pictures.exists() or run.exists():
            raise OutputError(f"{output} holds a demo already; choose another --output")
        with console(self.json) as progress:
            make_folder(output)
            write_dataset(
                pictures,
                seed=self.seed,
                dirty=self.dirty,
                progress=lambda done, total: progress.bar("drawing pictures", done, total),
            )
            result = train(pictures, config, output=run, progress=progress)
            image = sorted((pictures / "valid" / CLASSES[0]).iterdir())[0]
            prediction = load(run).predict(image, top_k=3)
            if not self.json:
                progress.say(f"\n{image}\n  looks like: {prediction}\n\n{_what_next(run, pictures, dirty=self.dirty)}")
        if self.json:
            print_json(result.document | {"predicted": {"image": str(image), "predictions": prediction.to_json()}})
        return 0


def _what_next(run: Path, pictures: Path, *, dirty: bool) -> str:
    # `make demo` runs .venv/bin/carnet, which the shell that comes next may not find by its name.
    called = Path(sys.argv[0])
    carnet = "carnet" if shutil.which("carnet") or called.stem != "carnet" else quoted(called)
    return f"""Open {run / "report.html"} to see what it can and cannot tell apart.

Now with photos of your own, one folder per class:
  {carnet} train YOUR_PHOTOS
  {carnet} evaluate runs/YOUR_PHOTOS-carnet_s YOUR_PHOTOS
  {carnet} export runs/YOUR_PHOTOS-carnet_s
  {carnet} predict runs/YOUR_PHOTOS-carnet_s/model.onnx PHOTO.jpg
Or look at what you just trained, and where it sees each thing:
  {carnet} evaluate {quoted(run)} {quoted(pictures)} --split train{" --skip-unreadable" if dirty else ""}
  {carnet} export {quoted(run)}
  {carnet} predict {quoted(run / "model.onnx")} {quoted(pictures / "valid")} --explain heat"""
