"""`carnet predict`: classes for image files."""

from __future__ import annotations

import glob
import io
import os
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from carnet.cli.main import complain, console, print_json
from carnet.errors import ConfigError, DataError, ImageError
from carnet.inputs import MAX_IMAGE_BYTES, check_listed
from carnet.text import Progress, counted, printable, quoted

if TYPE_CHECKING:
    from carnet.prediction import Prediction, Predictor

STDIN = "-"
_STEM_BYTES = 200


@dataclass(frozen=True)
class Command:
    """Classify images: files, folders (all images inside), patterns such as "2024/*.jpg", or - for standard input.

    A model is a .onnx file that carnet export has written, which needs no PyTorch, or the folder of a run. An image
    that cannot be read is a line on standard error and exit code 1; the others are done. What --ignore names is left
    out and counted; with --json it stands among the answers as {"image": …, "ignored": true}. Whether an answer is
    sure is known of exported files only.

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
    """How many classes to name, most probable first."""
    explain: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write a picture for each image into this folder, with heat where its class is seen."""
    ignore: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Leave out, and count, the images whose paths this list holds, one on each line."""
    batch_size: int = 32
    """Images at a time; takes memory, does not change the answers."""
    threads: int = 0
    """Threads of the arithmetic, for a .onnx file; 0 leaves it to the runtime."""
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """What computes a .onnx file."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """Where to compute, for a run's folder."""
    csv: bool = False
    """Print a table for people: image, class, probability, sure, error. Names are exact in --json."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        if self.csv and self.json:
            raise ConfigError("--csv and --json cannot both be printed; leave one out")
        if self.csv and self.top_k != Command.top_k:
            raise ConfigError("--csv names one class for each image; --top-k is for --json and for people")
        if STDIN in self.images and sys.stdin is None:
            raise ConfigError("- reads an image from standard input, which is closed")
        listed = _expand(self.images)
        with console(as_json=True) as progress:
            names, ignored = _leave_out(listed, self.images, self.ignore, progress)
            model = self._open()
            if model.threshold is None:
                progress.say(
                    "Note: this run has no threshold below which it says that it is not sure, and its percentages are "
                    "not calibrated; carnet export sets both on held-back images."
                )
            piped = sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1) if STDIN in names else b""

            def source_of(name: str) -> Path | bytes:
                return piped if name == STDIN else Path(name)

            heat = _HeatFolder(self.explain, model) if self.explain is not None else None
            # Of millions of images nothing is kept but their names, unless one document has to hold all answers.
            documents: list[dict[str, Any]] = []
            num_unread = 0
            answers = model.predict_many(map(source_of, names), self.batch_size, self.top_k)
            with _Printer(self.csv, self.json) as printer:
                for done, (name, answer) in enumerate(zip(names, answers, strict=True), start=1):
                    printer.print(name, answer)
                    num_unread += isinstance(answer, ImageError)
                    drawn = {}
                    if heat is not None and not isinstance(answer, ImageError):
                        drawn = {"heat": str(heat.write(name, source_of(name)))}
                    if self.json:
                        documents.append(_document(name, answer) | drawn)
                    # Where the answers themselves are seen to come, a bar would stand in their way.
                    if self.json or not sys.stdout.isatty():
                        progress.bar("predicting", done, len(names))
        if self.json:
            print_json(documents + [{"image": name, "ignored": True} for name in ignored])
        return 1 if num_unread else 0

    def _open(self) -> Predictor:
        from carnet.edge.model_file import is_model_file

        if is_model_file(self.model):
            from carnet.edge.classifier import Classifier

            if self.device != "cpu":
                raise ConfigError(f"--device {self.device} is for a run's folder; {self.model} is computed on the cpu")
            return Classifier(self.model, threads=self.threads, runtime=self.runtime)
        if self.runtime != "onnxruntime" or self.threads:
            raise ConfigError("--runtime and --threads are for a .onnx file; a run's folder is computed by PyTorch")
        if self.explain is not None:
            raise ConfigError(f"--explain needs a .onnx file: carnet export {quoted(self.model)} writes one")
        from carnet.models.weights import load

        return load(self.model, device=self.device)


class _Printer:
    """Prints answers as they come, one line each; in JSON they come later."""

    def __init__(self, as_csv: bool, as_json: bool) -> None:
        self.as_csv, self.as_json = as_csv, as_json

    def __enter__(self) -> _Printer:
        if self.as_csv:
            self._print_row("image", "class", "probability", "confident", "error")
        return self

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()

    def print(self, name: str, answer: Prediction | ImageError) -> None:
        if isinstance(answer, ImageError):
            complain(printable(f"{name}: {answer.reason}"))
            if self.as_csv:
                self._print_row(name, "", "", "", answer.reason)
        elif self.as_csv:
            self._print_row(name, answer.label, f"{answer.probability:.6f}", answer.is_confident, "")
        elif not self.as_json:
            print(printable(f"{name}: {answer}"))

    def _print_row(self, *cells: object) -> None:
        from carnet.files import csv_line_for_people

        print(csv_line_for_people(cells), end="")


class _HeatFolder:
    """Pictures with heat, named like the images."""

    def __init__(self, folder: Path, model: Predictor) -> None:
        from carnet import files
        from carnet.edge.classifier import Classifier

        assert isinstance(model, Classifier)
        self.folder, self.model = folder, model
        self.taken: set[str] = set()
        files.make_folder(folder)

    def write(self, name: str, source: Path | bytes) -> Path:
        """Draw one, and return its path."""
        from carnet import files

        stem = "stdin" if name == STDIN else _cut(Path(name).stem)
        path, number = self.folder / f"{stem}.heat.png", 1
        while (key := _same_on_all_systems(path.name)) in self.taken:
            number += 1
            path = self.folder / f"{stem}-{number}.heat.png"
        self.taken.add(key)
        png = io.BytesIO()
        self.model.explain(source).picture.save(png, "PNG")
        files.write_bytes(path, png.getvalue())
        return path


def _cut(stem: str) -> str:
    """So much of a name that a number and an ending have room: no system takes more than 255 bytes."""
    while len(os.fsencode(stem)) > _STEM_BYTES:
        stem = stem[:-1]
    return stem


def _same_on_all_systems(name: str) -> str:
    # Some tell neither A from a nor one way of writing an accent from the other.
    return unicodedata.normalize("NFC", name).casefold()


def _document(name: str, answer: Prediction | ImageError) -> dict[str, Any]:
    if isinstance(answer, ImageError):
        return {"image": name, "error": answer.reason}
    return {"image": name, "predictions": answer.to_json(), "confident": answer.is_confident}


def _leave_out(
    names: list[str], given: tuple[str, ...], ignore: Path | None, progress: Progress
) -> tuple[list[str], list[str]]:
    """(what to look at, what the ignore list names), with a word about the latter."""
    from carnet.data.samples import describe_unmatched, named_images, read_ignore_file

    if ignore is None:
        return names, []
    folders = [Path(name) for name in given if _is_folder(name)]
    images = [Path(name) for name in names if name != STDIN]
    named, strange = named_images(images, read_ignore_file(ignore), folders)
    ignored = [name for name in names if name != STDIN and Path(name) in named]
    if len(ignored) == len(names):
        raise DataError(f"{ignore} names every image; shorten it, or name other images")
    progress.say(f"Ignored: {counted(len(ignored), 'image')}, as asked.")
    if strange:
        progress.say(f"Note: {describe_unmatched(strange)}.")
    return [name for name in names if name == STDIN or Path(name) not in named], ignored


def _is_folder(name: str) -> bool:
    # pathlib's would raise an error for a name in a folder that may not be entered.
    return name != STDIN and os.path.isdir(name)  # noqa: PTH112


def _is_pattern(name: str) -> bool:
    """Whether it can only be meant as a pattern: a browser calls a second download `photo[1].jpg`."""
    return "*" in name or "?" in name


def _matches(pattern: str) -> list[str]:
    """What a pattern finds, sorted. A folder that exists is taken by its name, even if it looks like a pattern."""
    folder = os.path.dirname(pattern)  # noqa: PTH120 - pathlib's would change how the names are written
    while folder and not _is_folder(folder):
        folder = os.path.dirname(folder)  # noqa: PTH120
    below = pattern[len(folder) :]
    # Unlike pathlib's, it takes patterns of absolute paths. Brackets that find nothing may be part of a name.
    found = glob.glob(glob.escape(folder) + below, recursive=True)  # noqa: PTH207
    return sorted(found or glob.glob(glob.escape(folder) + below.replace("[", "[[]"), recursive=True))  # noqa: PTH207


def _expand(names: tuple[str, ...]) -> list[str]:
    """Folders and patterns become the images they hold; the rest stays, so that a missing file is reported by name."""
    from carnet.data.folder import images_in

    expanded: list[str] = []
    for name in names:
        if not name:
            raise DataError("an image's name is empty; name files, folders, or - for standard input")
        if _is_folder(name):
            expanded += map(str, images_in(Path(name)))
        elif glob.has_magic(name) and not os.path.lexists(name) and ((matches := _matches(name)) or _is_pattern(name)):
            # Also what is no file, or a link to nothing: it is reported by name, as in a folder.
            found = [match for match in matches if not _is_folder(match)]
            # With ** the images of a folder are among the matches themselves.
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
