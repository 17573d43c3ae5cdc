"""`carnet predict`: classes for image files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from carnet.cli.output import console, print_json
from carnet.errors import ConfigError, DataError, ImageError
from carnet.progress import Progress, counted

STDIN = "-"


@dataclass(frozen=True)
class Command:
    """Classify images: files, folders (all images inside), or - for one image on standard input.

    An image that cannot be read is a line on standard error and exit code 1; the others are done. What --ignore names
    is left out and counted; with --json it stands among the answers as {"image": …, "ignored": true}.

    Examples:
      carnet predict runs/photos-carnet_s photo.jpg
      carnet predict runs/photos-carnet_s holiday/ --json
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Files, folders, or -."""
    top_k: int = 5
    """How many classes to name, most probable first."""
    ignore: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Leave out, and count, the images whose paths this list holds, one on each line."""
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
        listed = _expand(self.images)
        with console(as_json=True) as progress:
            names, ignored = _leave_out(listed, self.images, self.ignore, progress)
            model = load(self.run_folder, device=self.device)
            sources = [sys.stdin.buffer.read() if name == STDIN else Path(name) for name in names]
            answers = model.predict_many(
                sources, self.top_k, progress=lambda done, total: progress.bar("predicting", done, total)
            )
        documents: list[dict[str, Any]] = []
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, ImageError):
                print(f"carnet: {name}: {answer.reason}", file=sys.stderr)
                documents.append({"image": name, "error": answer.reason})
            else:
                documents.append({"image": name, "predictions": answer.to_json()})
                if not self.json:
                    print(f"{name}: {answer}")
        if self.json:
            print_json(documents + [{"image": name, "ignored": True} for name in ignored])
        return 1 if any("error" in document for document in documents) else 0


def _leave_out(
    names: list[str], given: tuple[str, ...], ignore: Path | None, progress: Progress
) -> tuple[list[str], list[str]]:
    """(what to look at, what the ignore list names), with a word about the latter."""
    from carnet.data.ignore import about_strange, named_images, read_ignore_file

    if ignore is None:
        return names, []
    folders = [Path(name) for name in given if name != STDIN and Path(name).is_dir()]
    images = [Path(name) for name in names if name != STDIN]
    named, strange = named_images(images, read_ignore_file(ignore), folders)
    ignored = [name for name in names if name != STDIN and Path(name) in named]
    if len(ignored) == len(names):
        raise DataError(f"{ignore} names every image; shorten it, or name other images")
    progress.say(f"Ignored: {counted(len(ignored), 'image')}, as asked.")
    if strange:
        progress.say(f"Note: {about_strange(strange)}.")
    return [name for name in names if name == STDIN or Path(name) not in named], ignored


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
