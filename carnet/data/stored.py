"""The images of a data set that `carnet.data.hub` names, written into files once, with a table of their labels."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from carnet import files
from carnet.data import hub
from carnet.data.cache import cache_root, cached_folder
from carnet.data.opening import HubUnreachableError, pin
from carnet.data.stream import ImageStream
from carnet.errors import ImageError
from carnet.preprocess import open_image
from carnet.progress import OnProgress

_EXTENSIONS = {"JPEG": ".jpg", "TIFF": ".tif"}
_TABLE, _ABOUT = "data.csv", "about.json"
"""What `store` writes beside the images."""


class _About(TypedDict):
    warnings: list[str]
    revision: str | None


def store(data: str, progress: OnProgress | None = None, warnings: list[str] | None = None) -> Path:
    """Write the images of a data set into files, once, each exactly as the data set holds it.

    Args:
        data: as `carnet.data.hub` describes it.
        progress: told how much is counted, of how much, and then the same of the images written.
        warnings: takes up what was left out, and that the hub did not answer.

    Returns:
        A table with the columns filepath and label, and split unless the data is not divided, beside its images. If the
        hub does not answer, the one stored last.

    Raises:
        DataError: as `ImageStream`.
        OutputError: if the cache cannot be written.
    """
    source = hub.find_source(data)
    try:
        source = pin(source)
    except HubUnreachableError:
        stored = list((cache_root() / "datasets").glob(f"{source.name}@*/{_TABLE}")) if not source.revision else []
        if not stored:
            raise
        table = max(stored, key=lambda table: table.stat().st_mtime)
    else:
        key = source.key(progress=progress)
        table = cached_folder("datasets", key, lambda folder: _write(source, folder, progress)) / _TABLE
    if warnings is not None:
        about = files.read_json(table.with_name(_ABOUT), _About)
        warnings += about["warnings"]
        if source.on_hub and not source.revision:
            # It could not be pinned.
            revision = about["revision"]
            warnings.append(f"the Hugging Face hub does not answer; {data} is taken as stored, revision {revision}")
    return table


def _write(source: hub.Source, folder: Path, progress: OnProgress | None) -> None:
    stream = ImageStream(source, progress=progress)
    total, done = sum(stream.num_images.values()), 0
    divided = len(stream.splits) > 1
    with (folder / _TABLE).open("w", encoding="utf-8", newline="") as file:
        file.write(files.csv_line(("filepath", "label", "split") if divided else ("filepath", "label")))
        for split in stream.splits:
            (folder / "images" / split).mkdir(parents=True)
            for image in stream.read(split):
                name = f"images/{image.name}{extension_of(image.content)}"
                (folder / name).write_bytes(image.content)
                file.write(files.csv_line((name, image.label, split) if divided else (name, image.label)))
                done += 1
                if progress is not None:
                    progress(done, total)
    about = {"data": stream.source.data, "revision": stream.source.revision, "warnings": stream.warnings}
    files.write_json(folder / _ABOUT, about)


def extension_of(content: bytes) -> str:
    """What an image's file should be called, by its content."""
    try:
        kind = open_image(content).format or ""
    except ImageError:
        # The check before training shall find it and say what is wrong.
        return ".jpg"
    return _EXTENSIONS.get(kind, f".{kind.lower()}")
