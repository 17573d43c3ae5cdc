"""`carnet predict`: classify images."""

from __future__ import annotations

import glob
import io
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from carnet import files
from carnet.cli.main import complain, console, print_json
from carnet.errors import ConfigError, DataError, ImageError
from carnet.files import MAX_IMAGE_BYTES, check_listed
from carnet.text import Progress, counted, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from carnet.edge.classifier import Classifier
    from carnet.models.weights import TrainedModel
    from carnet.prediction import Prediction

    Answer = tuple[Prediction | ImageError, Image | None]
    """The prediction for an image, or why there is none; and the figure with the heat map, if asked for."""

STDIN = "-"
_MAX_STEM_BYTES = 200
"""Leaves room for a number and an ending in a file name, which no system allows to have more than 255 bytes."""


@dataclass(frozen=True)
class Command:
    """Classify images: files, folders (all images inside), patterns such as "2024/*.jpg", or - for standard input.

    MODEL is a .onnx file written by carnet export, which needs no PyTorch, or the folder of a run. An image that cannot
    be decoded is reported on standard error, and the exit code is 1 after all others are classified. Only a .onnx file
    has a threshold below which a prediction is not confident.

    Examples:
      carnet predict model.onnx photo.jpg
      carnet predict model.onnx holiday/ --csv > holiday.csv
      carnet predict runs/photos-carnet_s holiday/ --json
      carnet predict model.onnx photo.jpg --explain heat/
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A .onnx file, or the folder of a training run."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Files, folders, patterns, or -."""
    top_k: int = 5
    """Number of classes to name, the most probable first."""
    explain: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Write a heat map of each image into this folder, which shows where its class is seen."""
    ignore: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Skip and count the images listed in this text file, one path per line."""
    batch_size: int = 32
    """Images per batch; affects memory and speed, not the results."""
    threads: int = 0
    """Number of compute threads, for a .onnx file; 0 lets the runtime choose."""
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """Runtime that computes a .onnx file."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on, for a run; auto uses a GPU if there is one."""
    csv: bool = False
    """Print a table for spreadsheets: image, class, probability, confident, error."""
    json: bool = False
    """Print the results as one JSON document, with exact names and the ignored images."""

    def run(self) -> int:
        if self.csv and self.json:
            raise ConfigError("--csv and --json exclude each other; leave one out")
        if self.csv and self.top_k != Command.top_k:
            raise ConfigError("--csv names one class for each image; leave --top-k out, or use --json")
        for flag, number in (("--top-k", self.top_k), ("--batch-size", self.batch_size)):
            if number < 1:
                raise ConfigError(f"{flag} must be at least 1, got {number}")
        if STDIN in self.images and sys.stdin is None:
            raise ConfigError("cannot read an image from standard input (-), because it is closed")
        listed = _expand(self.images)
        with console(as_json=True) as progress:
            names, ignored = _leave_out(listed, self.images, self.ignore, progress)
            answers = self._answers(names, progress)
            heat_names: set[str] = set()
            # Keep no answers but for one JSON document, since there may be millions of images.
            documents: list[dict[str, Any]] = []
            num_unread = 0
            if self.csv:
                print(files.csv_line_for_people(("image", "class", "probability", "confident", "error")), end="")
            for done, (name, (answer, figure)) in enumerate(zip(names, answers, strict=True), start=1):
                document = self._print(name, answer)
                num_unread += isinstance(answer, ImageError)
                if self.explain is not None and figure is not None:
                    document["heat"] = str(_write_heat(figure, self.explain, name, heat_names))
                if self.json:
                    documents.append(document)
                # On a terminal, the answers themselves show the progress.
                if self.json or not sys.stdout.isatty():
                    progress.bar("predicting", done, len(names))
        if self.json:
            print_json(documents + [{"image": name, "ignored": True} for name in ignored])
        return 1 if num_unread else 0

    def _answers(self, names: list[str], progress: Progress) -> Iterator[Answer]:
        """Open the model, and return an iterator over its answers for the images."""
        from carnet.model import load

        model = load(self.model, device=self.device, threads=self.threads or None, runtime=self.runtime)
        if model.threshold is None:
            progress.say(
                "Note: this model has no confidence threshold, and its probabilities are not calibrated; "
                "carnet export sets both on held-out images."
            )
        piped = sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1) if STDIN in names else b""
        sources = (piped if name == STDIN else Path(name) for name in names)
        if self.explain is not None:
            files.make_folder(self.explain)
            return _explained(model.predictor, sources, self.top_k)
        return ((answer, None) for answer in model.predict_many(sources, self.batch_size, self.top_k))

    def _print(self, name: str, answer: Prediction | ImageError) -> dict[str, Any]:
        """Print an answer, except for JSON, and return the document for JSON."""
        row: tuple[object, ...]
        if isinstance(answer, ImageError):
            complain(printable(f"{name}: {answer.reason}"))
            document: dict[str, Any] = {"image": name, "error": answer.reason}
            row = (name, "", "", "", answer.reason)
        else:
            if not self.csv and not self.json:
                print(printable(f"{name}: {answer}"))
            document = {"image": name, "predictions": answer.to_json(), "confident": answer.is_confident}
            row = (name, answer.label, f"{answer.probability:.6f}", answer.is_confident, "")
        if self.csv:
            print(files.csv_line_for_people(row), end="")
        return document


def _explained(model: Classifier | TrainedModel, sources: Iterable[Path | bytes], top_k: int) -> Iterator[Answer]:
    for source in sources:
        try:
            explanation = model.explain(source, top_k=top_k)
        except ImageError as error:
            yield error, None
        else:
            yield explanation.prediction, explanation.figure


def _write_heat(figure: Image, folder: Path, name: str, taken: set[str]) -> Path:
    """Write a figure under the name of its image, with a number if that is `taken`, and return its path."""
    stem = "stdin" if name == STDIN else Path(name).stem
    while len(os.fsencode(stem)) > _MAX_STEM_BYTES:
        stem = stem[:-1]
    path, number = folder / f"{stem}.heat.png", 1
    # Some systems ignore case, or how an accent is encoded.
    while (key := unicodedata.normalize("NFC", path.name).casefold()) in taken:
        number += 1
        path = folder / f"{stem}-{number}.heat.png"
    taken.add(key)
    figure.save(png := io.BytesIO(), "PNG")
    files.write_bytes(path, png.getvalue())
    return path


def _leave_out(
    names: list[str], given: tuple[str, ...], ignore: Path | None, progress: Progress
) -> tuple[list[str], list[str]]:
    """Return (names to classify, names on the ignore list), and report the latter."""
    from carnet.data.samples import describe_unmatched, named_images, read_ignore_file

    if ignore is None:
        return names, []
    folders = [Path(name) for name in given if _is_folder(name)]
    images = [Path(name) for name in names if name != STDIN]
    named, strange = named_images(images, read_ignore_file(ignore), folders)
    ignored = [name for name in names if name != STDIN and Path(name) in named]
    if len(ignored) == len(names):
        raise DataError(f"{ignore} lists every image; shorten it, or name other images")
    progress.say(f"Ignored: {counted(len(ignored), 'image')}, as requested.")
    if strange:
        progress.say(f"Note: {describe_unmatched(strange)}.")
    return [name for name in names if name == STDIN or Path(name) not in named], ignored


def _is_folder(name: str) -> bool:
    # pathlib raises an error for a name in a folder that may not be entered.
    return name != STDIN and os.path.isdir(name)  # noqa: PTH112


def _matches(pattern: str) -> list[str]:
    """Return the sorted matches of a pattern; an existing folder at its beginning is taken literally."""
    folder = os.path.dirname(pattern)  # noqa: PTH120 - pathlib would change how the names are written
    while folder and not _is_folder(folder):
        folder = os.path.dirname(folder)  # noqa: PTH120
    below = pattern[len(folder) :]
    # pathlib takes no patterns of absolute paths. Brackets that match nothing may belong to a name.
    found = glob.glob(glob.escape(folder) + below, recursive=True)  # noqa: PTH207
    return sorted(found or glob.glob(glob.escape(folder) + below.replace("[", "[[]"), recursive=True))  # noqa: PTH207


def _expand(names: tuple[str, ...]) -> list[str]:
    """Replace folders and patterns by the images they hold; other names stay, so that a missing file is reported."""
    from carnet.data.folder import images_in

    expanded: list[str] = []
    for name in names:
        if not name:
            raise DataError("the name of an image is empty; name files, folders, or - for standard input")
        if _is_folder(name):
            expanded += map(str, images_in(Path(name)))
        # Brackets alone may be a name: browsers call a second download `photo[1].jpg`.
        elif glob.has_magic(name) and not os.path.lexists(name) and ((matches := _matches(name)) or {*"*?"} & {*name}):
            # Include what is no regular file, so that it is reported by name.
            found = [match for match in matches if not _is_folder(match)]
            # With **, the images inside folders match by themselves.
            if "**" not in name or not found:
                found += [str(path) for match in matches if _is_folder(match) for path in images_in(Path(match))]
            if not found:
                check_listed(name)
                raise DataError(f"no file matches {name}")
            expanded += found
        else:
            expanded.append(name)
    if not expanded:
        where = f"no images in {', '.join(names)}; " if names else ""
        raise DataError(f"{where}name the images: files, folders, or - for standard input")
    return expanded
