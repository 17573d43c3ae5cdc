"""A folder for any web host: the page, and the model inside the visitor's browser."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from carnet import files
from carnet.documents import MAX_BYTES, DocumentError, conform, parse
from carnet.edge.classifier import Classifier
from carnet.errors import ModelFileError, OutputError
from carnet.files import to_json
from carnet.text import Progress, Silent
from carnet.web.page import icon, page_html, static
from carnet.web.runtime import runtime_files

_LISTING = "files.json"
_SCRIPTS = ("page.js", "model.js", "resize.js", "style.css")


def write_web_folder(
    classifier: Classifier, folder: Path, *, ort_dist: Path | None = None, progress: Progress | None = None
) -> None:
    """Write the folder, whole or not at all; an earlier one of ours is replaced.

    Args:
        classifier: an opened model file.
        folder: the folder; its name becomes that of the app.
        ort_dist: the folder `dist` of onnxruntime-web, for machines without npm.
        progress: shows what happens; None: nothing is shown.

    Raises:
        ModelFileError: if the model has no test images, or takes opacity, which browsers do not give exactly.
        OutputError: if the folder holds something else, cannot be written, or the runtime's files are not there.
    """
    check_web_folder(folder)
    if not classifier.document.get("tests"):
        raise ModelFileError(f"{classifier.name} has no test images; export it again")
    if classifier.spec.in_channels == 4:
        raise ModelFileError(f"{classifier.name} takes opacity (RGBA), which browsers do not give exactly")
    runtime = runtime_files(ort_dist, progress or Silent())
    content = _contents(classifier, folder.absolute().name, runtime)
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.tmp")
    try:
        for name, data in content.items():
            files.make_folder((temporary / name).parent)
            files.write_bytes(temporary / name, data)
        if folder.exists():
            earlier = temporary.with_suffix(".old")
            files.rename(folder, earlier)
            files.rename(temporary, folder)
            shutil.rmtree(earlier)
        else:
            files.rename(temporary, folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_web_folder(folder: Path) -> None:
    """Check, before long work, that a folder is new, empty, or an earlier one of ours.

    Raises:
        OutputError: otherwise.
    """
    files.check_folder(folder)
    if not folder.exists():
        return
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    ours: set[str] = set()
    # Without a listing of ours, no file there is ours.
    with suppress(OSError, DocumentError):
        listed = conform(parse(files.read_file(folder / _LISTING, MAX_BYTES)), list[str])
        ours = {"index.html", "sw.js", _LISTING, *(name.partition("?")[0] for name in listed)}
    if strange := sorted(there - ours):
        raise OutputError(f"{folder} holds other files, such as {strange[0]}; name a new folder with --web")


def _contents(classifier: Classifier, title: str, runtime: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return every file of the folder: name -> content; the page asks for each with the version in its address."""
    document = {key: value for key, value in classifier.document.items() if key != "training"}
    about = {**document, "threshold": classifier.threshold, "map_centres": classifier.map_centres}
    content = {
        **{name: static(name) for name in _SCRIPTS},
        **{f"icon-{side}.png": icon(side) for side in (192, 512)},
        "model.json": to_json(about, ascii_only=True).encode(),
        "model.onnx": classifier.content,
        **{f"ort/{name}": data for name, data in runtime.items()},
    }
    heading = title.replace("-", " ").replace("_", " ").strip() or "Photo classifier"
    digest = hashlib.sha256()
    for data in (*content.values(), page_html(classifier, "browser", title=heading).encode(), static("sw.js")):
        digest.update(hashlib.sha256(data).digest())
    version = digest.hexdigest()[:12]
    manifest = {
        "id": "./",
        "name": heading,
        "short_name": heading[:24],
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": "#fdfdfb",
        "theme_color": "#1b4f72",
        "icons": [
            {"src": f"icon-{side}.png?v={version}", "sizes": f"{side}x{side}", "type": "image/png", "purpose": purpose}
            for side in (192, 512)
            for purpose in ("any", "maskable")
        ],
    }
    return {
        **content,
        _LISTING: to_json([f"{name}?v={version}" for name in content] + ["manifest.webmanifest"]).encode(),
        "manifest.webmanifest": to_json(manifest, ascii_only=True).encode(),
        "sw.js": static("sw.js"),
        "index.html": page_html(classifier, "browser", version=version, title=heading).encode(),
    }
