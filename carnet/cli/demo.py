"""`carnet demo`: train, evaluate and predict on drawn images."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from carnet.cli.main import console, print_json
from carnet.config import TrainingConfig
from carnet.data.synthetic import CLASSES, PICTURE_SIZE, write_dataset
from carnet.errors import OutputError
from carnet.files import make_folder
from carnet.run_folder import new_run_path
from carnet.text import quoted

RECIPE = TrainingConfig(image_size=PICTURE_SIZE, epochs=40, batch_size=32, budget="2m", compile=False)
"""The default recipe at the size of the drawn images, for two minutes, or for 40 epochs if they take less."""


@dataclass(frozen=True)
class Command:
    """Draw images of ten classes, train carnet_s on them, evaluate it, and classify one image.

    This takes about two minutes on two processor cores, and downloads nothing.

    Examples:
      carnet demo
      carnet demo --dirty     add unreadable, duplicate and mislabelled images
    """

    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """New folder for the images and the run (default: carnet-demo, numbered if it exists)."""
    dirty: bool = False
    """Add unreadable, duplicate and mislabelled images, to see how they are reported."""
    seed: int = 0
    """Seed of the images and of training."""
    json: bool = False
    """Print the results as one JSON document; progress goes to standard error."""

    def run(self, recipe: TrainingConfig = RECIPE, draw: Callable[..., Any] = write_dataset) -> int:
        """Run the demo and return the exit code.

        Args:
            recipe: how to train.
            draw: draws the images, as `carnet.data.synthetic.write_dataset` does.
        """
        from carnet.models.weights import load
        from carnet.training.run import train

        config = replace(recipe, seed=self.seed, skip_unreadable=self.dirty)
        output = self.output or new_run_path(Path("carnet-demo"))
        images, run = output / "pictures", output / "run"
        if images.exists() or run.exists():
            raise OutputError(f"{output} already holds a demo; choose another --output")
        with console(self.json) as progress:
            make_folder(output)
            draw(
                images,
                seed=self.seed,
                dirty=self.dirty,
                progress=lambda done, total: progress.bar("drawing images", done, total),
            )
            result = train(images, config, output=run, progress=progress)
            image = sorted((images / "valid" / CLASSES[0]).iterdir())[0]
            prediction = load(run).predict(image, top_k=3)
            if not self.json:
                progress.say(f"\n{image}\n  prediction: {prediction}\n\n{_next_steps(run, images, dirty=self.dirty)}")
        if self.json:
            print_json(result.document | {"predicted": {"image": str(image), "predictions": prediction.to_json()}})
        return 0


def _next_steps(run: Path, images: Path, *, dirty: bool) -> str:
    # `make demo` runs .venv/bin/carnet, which may not be on the user's PATH.
    called = Path(sys.argv[0])
    carnet = "carnet" if shutil.which("carnet") or called.stem != "carnet" else quoted(called)
    return f"""Open {run / "report.html"} to see the results.

Train on your own photos, with one folder per class:
  {carnet} train YOUR_PHOTOS
  {carnet} evaluate runs/YOUR_PHOTOS-carnet_s YOUR_PHOTOS
  {carnet} export runs/YOUR_PHOTOS-carnet_s
  {carnet} predict runs/YOUR_PHOTOS-carnet_s/model.onnx PHOTO.jpg
Or continue with the model that you have just trained:
  {carnet} evaluate {quoted(run)} {quoted(images)} --split train{" --skip-unreadable" if dirty else ""}
  {carnet} export {quoted(run)}
  {carnet} predict {quoted(run / "model.onnx")} {quoted(images / "valid")} --explain heat
Or open a page that classifies photos with it:
  {carnet} serve {quoted(run)} --open"""
