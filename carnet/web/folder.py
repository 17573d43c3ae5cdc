"""A folder for any web host: the page, and the model inside the visitor's browser."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carnet import files
from carnet.edge.classifier import Classifier
from carnet.errors import ModelFileError
from carnet.files import to_json
from carnet.web.page import icon, page_html, static
from carnet.web.runtime import FILES, LICENCES

_LISTING = "files.json"
_SCRIPTS = ("page.js", "model.js", "resize.js", "style.css")
_ICON_SIDES = (192, 512)
_NAMES = (
    *(*_SCRIPTS, "index.html", "sw.js", "model.json", "model.onnx", "manifest.webmanifest", _LISTING),
    *(f"icon-{side}.png" for side in _ICON_SIDES),
    *(f"ort/{name}" for name in (*FILES.values(), *LICENCES)),
)
"""Every file of such a folder."""


def write_web_folder(classifier: Classifier, folder: Path, runtime: Mapping[str, bytes]) -> None:
    """Write the folder, whole or not at all; an earlier one of ours is replaced.

    Args:
        classifier: an opened model file.
        folder: the folder; its name becomes that of the app.
        runtime: what computes in the browser, as `carnet.web.runtime.runtime_files` gives it.

    Raises:
        ModelFileError: if the model has no test images, or takes opacity, which browsers do not give exactly.
        OutputError: if the folder holds something else, or cannot be written.
    """
    folder = folder.resolve()
    check_web_folder(folder)
    if not classifier.document.get("tests"):
        raise ModelFileError(f"{classifier.name} has no test images; export it again")
    if classifier.spec.in_channels == 4:
        raise ModelFileError(f"{classifier.name} takes opacity (RGBA), which browsers do not give exactly")
    files.replace_folder(folder, _contents(classifier, folder.name, runtime))


def check_web_folder(folder: Path) -> None:
    """Check, before long work, that a folder is new, empty, or an earlier one of ours.

    Raises:
        OutputError: otherwise.
    """
    files.check_replaceable(folder, (*_NAMES, "ort"), ("index.html", b'data-engine="browser"'), "--web")


def _contents(classifier: Classifier, title: str, runtime: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return every file of the folder: name -> content; the page asks for each with the version in its address."""
    document = {key: value for key, value in classifier.document.items() if key != "training"}
    about = {**document, "threshold": classifier.threshold, "map_centres": classifier.map_centres}
    content = {
        **{name: static(name) for name in _SCRIPTS},
        **{f"icon-{side}.png": icon(side) for side in _ICON_SIDES},
        "model.json": to_json(about, ascii_only=True).encode(),
        "model.onnx": classifier.content,
        **{f"ort/{name}": data for name, data in runtime.items()},
    }
    heading = title.replace("-", " ").replace("_", " ").strip() or "Photo classifier"
    written = page_html(classifier, "browser", title=heading).encode()
    version = _digest(b"".join(map(bytes.fromhex, map(_digest, (*content.values(), static("sw.js"), written)))))[:12]
    page = page_html(classifier, "browser", version=version, title=heading).encode()
    manifest = to_json(_manifest(heading, version), ascii_only=True).encode()
    listed = {f"{name}?v={version}": data for name, data in content.items()}
    listed |= {"manifest.webmanifest": manifest, "./": page}
    return {
        **content,
        "manifest.webmanifest": manifest,
        "sw.js": static("sw.js"),
        _LISTING: to_json({address: _digest(data) for address, data in listed.items()}).encode(),
        "index.html": page,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _manifest(heading: str, version: str) -> dict[str, Any]:
    """Return what a phone needs to install the page as an app; without an id, its address is its identity."""
    return {
        "name": heading,
        "short_name": heading[:24],
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": "#fdfdfb",
        "theme_color": "#1b4f72",
        "icons": [
            {"src": f"icon-{side}.png?v={version}", "sizes": f"{side}x{side}", "type": "image/png", "purpose": purpose}
            for side in _ICON_SIDES
            for purpose in ("any", "maskable")
        ],
    }
