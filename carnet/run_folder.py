"""The folder of a training run: its files, and how they are written, read and locked."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict

from carnet import files
from carnet.config import FORMAT
from carnet.data.samples import Layout
from carnet.documents import MAX_BYTES, Count, DocumentError, Range, Seconds, Share, conform
from carnet.errors import OutputError, RunError
from carnet.older_records import from_format_1
from carnet.text import first_few, quoted

_MAX_TABLE_BYTES = 2**30
_MAX_COPIED_BYTES = 32 * 2**30
"""Limit of any file of a run; checkpoints are the largest."""
_MAX_CONFIG_LENGTH = MAX_BYTES // 4
"""Characters of `config.json`; checkpoints hold a copy inside other JSON, where a character can take 4 bytes."""


class RecordedData(TypedDict):
    """The entry of `config.json` about the images."""

    path: str
    content_hash: str
    classes: list[str]
    num_images: dict[str, Count]
    num_unreadable: Count
    ignore: NotRequired[list[str]]
    """Images to leave out; early runs lack the entry."""
    ignore_unlabeled: NotRequired[list[str]]
    """Images without labels to leave out, by their paths inside their folder."""


class RecordedConfig(TypedDict):
    """The part of a config that is needed without PyTorch; `TrainingConfig.from_json` reads the whole."""

    seed: int
    layout: NotRequired[Layout | None]
    unlabeled: NotRequired[str | None]


class DataPlace(NamedTuple):
    """Where the images of a run are, and how they are found again.

    Attributes:
        path: DATA.
        layout: what its folders are.
        ignore: images that are left out.
        unlabeled: the folder of images without labels, which may be inside DATA; None: there is none.
    """

    path: Path | str
    layout: Layout
    ignore: Sequence[str]
    unlabeled: str | None

    def moved_to(self, path: Path | str) -> DataPlace:
        """Return the place where DATA is now, with the folder of images without labels if that is inside it."""
        unlabeled = self.unlabeled
        if unlabeled is not None:
            # Where it was: the folder may be gone.
            was = Path(os.path.realpath(unlabeled))
            if was.is_relative_to(self.path):
                unlabeled = str(Path(path) / was.relative_to(self.path))
        return self._replace(path=path, unlabeled=unlabeled)


class RecordedHead(TypedDict):
    """The part of a fitted head's record that is needed to fit it again, and to finish a run with --freeze."""

    num_views: Annotated[int, Range(1, 64)]
    penalty: Annotated[float, Range(0, above=True)]
    temperature: Annotated[float, Range(0, above=True)]
    top1: Share
    threads: Annotated[int, Range(1, 1024)]
    fitted_loss: Annotated[float, Range(0, 1e30)]
    num_fitted: Annotated[int, Range(1)]
    num_fitted_correct: Count
    seconds: Annotated[float, Range(0, above=True)]


class RecordedTeacher(TypedDict):
    """The part of a teacher's record that is needed to finish a run, and to say who taught it."""

    name: str
    digest: str
    sha256: str
    num_crops: Count
    num_views: Annotated[int, Range(1, 64)]
    threads: Annotated[int, Range(1, 1024)]
    head: dict[str, Any] | None
    seconds: Seconds


class Record(TypedDict):
    """The content of `config.json`, and of an entry of every checkpoint."""

    format: Annotated[int, Range(FORMAT, FORMAT)]
    requested: RecordedConfig
    resolved: RecordedConfig
    init: str | None
    head: NotRequired[RecordedHead | None]
    """A head that was fitted to features before the first step; None: there was none."""
    teacher: NotRequired[RecordedTeacher | None]
    """Whose answers the network learns from; None: it learns from labels."""
    versions: dict[str, str]
    processor_features: str
    data: RecordedData
    checksums: NotRequired[dict[str, str]]
    """SHA-256 of files that are written once, by name; early runs lack the entry."""


def current_record(values: Any) -> dict[str, Any]:
    """Translate the record in a `config.json` or checkpoint of any version to this version's format.

    Raises:
        DocumentError: if it is damaged.
    """
    if isinstance(values, Mapping) and "recipe" in values:
        try:
            values = from_format_1(values)
        except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise DocumentError(f"its entry {error} is missing or of another type") from error
    return dict(conform(values, Record))


class _File:
    """The path of a file in a run's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunFolder, _: type[RunFolder]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    weights = _File("model.safetensors")
    """Weights, in safetensors form."""
    model = _File("model.json")
    """How to use the weights (model name, classes, size, normalisation), and how accurate they are."""
    config = _File("config.json")
    """`Record`, written before the first step."""
    data = _File("data.csv")
    """One line per image: split, class, path, content hash, oddities."""
    answers = _File("answers.safetensors")
    """A teacher's answers for the training images."""
    batch = _File("batch.png")
    """The augmented images of the first batch."""
    metrics = _File("metrics.csv")
    """One line per epoch."""
    curves = _File("curves.png")
    """Loss and accuracy over the epochs."""
    checkpoint = _File("last.ckpt")
    """Everything needed to resume."""
    previous_checkpoint = _File("previous.ckpt")
    """The checkpoint before it, used if the last one is damaged."""
    result = _File("result.json")
    """The result of the run."""
    report = _File("report.html")
    """The report as a page."""

    @classmethod
    def new(cls, path: Path) -> RunFolder:
        """Return a run that does not exist yet; `create` makes its folder.

        Raises:
            OutputError: if the folder exists, and is neither empty nor left by a killed `create`.
        """
        if path.exists() and not cls(path)._is_begun():
            raise OutputError(f"{path} exists; go on with --resume {quoted(path)}, or choose another --output")
        return cls(path)

    @classmethod
    def numbered(cls, base: Path) -> RunFolder:
        """Return a run in a new folder `base`, or base-2, base-3 …, made at once so that no other takes the name.

        Raises:
            OutputError: if the folder cannot be made.
        """
        files.make_folder(base.parent)
        while True:
            run = cls(new_run_path(base))
            try:
                # Another process may be faster.
                with suppress(FileExistsError):
                    run.path.mkdir()
                    return run
            except OSError as error:
                raise OutputError(f"cannot create the folder {run.path}: {error.strerror or error}") from error

    def create(self, data: Iterable[Mapping[str, str]], config: Mapping[str, Any]) -> dict[str, Any]:
        """Make the folder with `data.csv` (a row per image) and `config.json`, a `Record`.

        Returns:
            The `Record`, with the checksum of `data.csv` added.

        Raises:
            OutputError: if that is not possible.
        """
        files.make_folder(self.path)
        table = files.csv_text(data)
        files.write_text(self.data, table)
        if self.config.exists():
            raise OutputError(f"another process has started a run in {self.path}; choose another --output")
        digest = hashlib.sha256(table.encode("utf-8", "surrogateescape")).hexdigest()
        config = {**config, "checksums": {self.data.name: digest}}
        text = files.to_json(config) + "\n"
        if len(text) > _MAX_CONFIG_LENGTH:
            raise OutputError(
                f"{self.config} would be too large to read: the ignore list names too many images; move them instead"
            )
        # Written last, because a folder without it is not a run yet: after a kill in between, `new` accepts the folder.
        files.write_text(self.config, text)
        return config

    def copy_to(self, path: Path) -> RunFolder:
        """Copy the run to a new folder.

        Raises:
            OutputError: as `new`; or if the folder cannot be written, or is the working directory.
        """
        if path.resolve() == Path.cwd():
            raise OutputError("a run cannot be copied into the working directory; choose another --output")
        copy = RunFolder.new(path)
        # The copy is renamed when it is whole; the next copy removes what a kill leaves.
        begun = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(begun, ignore_errors=True)
        files.make_folder(begun)
        for file in sorted(self.path.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                files.write_bytes(begun / file.name, files.read_whole(file, _MAX_COPIED_BYTES))
        shutil.rmtree(path, ignore_errors=True)
        try:
            files.rename(begun, path)
        except OSError as error:
            raise OutputError(f"cannot create the folder {path}: {error.strerror or error}") from error
        return copy

    def _is_begun(self) -> bool:
        """Return whether the folder is empty, or left by a killed `create`."""
        if not self.path.is_dir():
            return False
        # Ignore unfinished files of a killed writer, and the files that systems add to a folder on display.
        there = [
            file
            for file in self.path.iterdir()
            if not file.match(".*.tmp") and file.name.lower() not in (".ds_store", "desktop.ini")
        ]
        if there != [self.data]:
            return not there
        # A table of the user's, or a pipe, may have the same name.
        begins = "split,label,filepath,sha256,"
        try:
            with files.open_text(self.data, errors="replace") as file:
                return file.read(len(begins)) == begins
        except OSError:
            return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run, so that only one process trains it and writes its files.

        Raises:
            RunError: if another process trains it.
        """
        with files.locked(self.config) as alone:
            if not alone:
                raise RunError(f"{self.path} is being trained by another process; wait until it ends, or stop it")
            yield

    def promote_previous_checkpoint(self) -> None:
        """Make the previous checkpoint the last one.

        Raises:
            OutputError: if the folder cannot be written.
        """
        try:
            files.rename(self.previous_checkpoint, self.checkpoint)
        except OSError as error:
            raise OutputError(f"cannot write {self.checkpoint}: {error.strerror or error}") from error

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Open an existing run.

        Raises:
            RunError: if the folder is not there or is not a run's.
        """
        run = cls(Path(path))
        try:
            there, *known = map(files.state_of, (run.path, run.config, run.model))
        except PermissionError as error:
            raise RunError(f"cannot look into {path}: {error.strerror}; change its permissions") from error
        if there is None or not stat.S_ISDIR(there.st_mode):
            raise RunError(f"no run folder {path}; check the name")
        if not any(known):
            raise RunError(
                f"{path} is not a run: it has neither config.json nor model.json; name a folder that training created"
            )
        return run

    def read_config(self) -> dict[str, Any]:
        """Return the `Record` of the run.

        Raises:
            RunError: if it is missing or damaged.
        """
        document = files.read_json(self.config)
        try:
            return current_record(document)
        except DocumentError as error:
            raise RunError(f"{self.config} does not describe a run: {error}") from error

    def recorded_data(self) -> DataPlace:
        """Return where the images are, and how they are found again.

        Raises:
            RunError: if the record is missing or damaged.
        """
        config = self.read_config()
        data, requested = config["data"], config["requested"]
        layout: Layout = requested.get("layout") or "auto"
        return DataPlace(data["path"], layout, data.get("ignore", ()), requested.get("unlabeled"))

    def digests(self) -> dict[str, set[str]] | None:
        """Return the content hashes of the run's images by split, or None where the run has no `data.csv`.

        Raises:
            RunError: if the record is damaged.
        """
        if not self.data.exists():
            return None
        splits: dict[str, set[str]] = {}
        for row in self.images():
            splits.setdefault(row["split"], set()).add(row["sha256"])
        return splits

    def images(self) -> list[dict[str, str]]:
        """Return the rows of `data.csv`, one per image; none where there is no such file.

        Raises:
            RunError: if it is damaged.
        """
        if not self.data.exists():
            return []
        content = files.read_whole(self.data, _MAX_TABLE_BYTES)
        recorded = self.read_config().get("checksums", {}) if self.config.exists() else {}
        if recorded.get(self.data.name, found := hashlib.sha256(content).hexdigest()) != found:
            raise RunError(
                f"cannot read {self.data}: its checksum is wrong, so it is damaged or was changed; copy it again from "
                "where the run was made"
            )
        try:
            rows = list(csv.DictReader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")))
        except csv.Error as error:
            raise RunError(f"cannot read {self.data}: {error}") from error
        if missing := {"split", "label", "filepath", "sha256"} - set(rows[0] if rows else ()):
            raise RunError(f"cannot read {self.data}: it has no {first_few(sorted(missing))}")
        if any(None in row or None in row.values() for row in rows):
            raise RunError(f"cannot read {self.data}: its lines have different numbers of cells")
        return rows


def new_run_path(base: Path) -> Path:
    """Return `base`, or the first of base-2, base-3 … that does not exist."""
    path, number = base, 1
    while path.exists() or path.is_symlink():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
