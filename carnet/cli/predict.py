"""`carnet predict`: classes for image files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from carnet.cli.output import console, print_json
from carnet.errors import ConfigError, DataError, ImageError

STDIN = "-"


@dataclass(frozen=True)
class Command:
    """Classify images: files, folders (all images inside), or - for one image on standard input.

    An image that cannot be read is a line on standard error and exit code 1; the others are done.

    Examples:
      carnet predict runs/photos-carnet18 photo.jpg
      carnet predict runs/photos-carnet18 holiday/ --json
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Files, folders, or -."""
    top_k: int = 5
    """How many classes to name, most probable first."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """Where to compute."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        from carnet.models.trained import load

        if self.top_k < 1:
            raise ConfigError(f"--top-k must be at least 1, got {self.top_k}")
        if STDIN in self.images and sys.stdin is None:
            raise ConfigError("- reads an image from standard input, which is closed")
        names = _expand(self.images)
        model = load(self.run_folder, device=self.device)
        sources = [sys.stdin.buffer.read() if name == STDIN else Path(name) for name in names]
        with console(as_json=True) as progress:
            answers = model.predict_many(
                sources, self.top_k, progress=lambda done, total: progress.bar("predicting", done, total)
            )
        failed = 0
        documents: list[dict[str, Any]] = []
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, ImageError):
                failed += 1
                print(f"carnet: {name}: {answer.reason}", file=sys.stderr)
                documents.append({"image": name, "error": answer.reason})
            else:
                documents.append({"image": name, "predictions": answer.to_json()})
                if not self.json:
                    print(f"{name}: {answer}")
        if self.json:
            print_json(documents)
        return 1 if failed else 0


def _expand(names: tuple[str, ...]) -> list[str]:
    """Folders become the images inside them; everything else stays, so that a missing file is reported by name."""
    from carnet.data.sources import images_in

    expanded: list[str] = []
    for name in names:
        if not name:
            raise DataError("an image's name is empty; name files, folders, or - for standard input")
        expanded += map(str, images_in(Path(name))) if name != STDIN and Path(name).is_dir() else [name]
    if not expanded:
        raise DataError(f"no images in {', '.join(names) or 'nothing'}; name files, folders, or - for standard input")
    return expanded
