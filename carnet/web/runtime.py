"""The files of onnxruntime-web, which computes a model inside a browser: fetched once, and no part of this package."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from carnet import files
from carnet.data.cache import cached_folder
from carnet.errors import ConfigError
from carnet.text import Progress, quoted

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The checksum of the archive, as npm's lock files write it."""
FILES = {"ort.wasm.bundle.min.mjs": "ort.js", "ort-wasm-simd-threaded.wasm": "ort.wasm"}
"""Names in the package's folder `dist` -> ours; many web hosts do not know .mjs as a script."""
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
"""Files of the Python package `onnxruntime`, which is of the same source and licence."""
MAX_BYTES = 64 * 10**6


def runtime_files(
    dist: Path | None, progress: Progress, download: Callable[[Path], None] | None = None
) -> dict[str, bytes]:
    """Return the runtime's files and their licences: name -> content.

    Args:
        dist: the package's folder, or `dist` in it, for machines without npm, and not checked; None: the pinned
            archive, which is kept.
        progress: is told when the archive is fetched.
        download: puts the archive into a folder; None: `npm pack`, by the user's own settings.

    Raises:
        ConfigError: if the files are not there, npm is missing or fails, or the archive is not the pinned one.
        OutputError: if the cache cannot be written.
    """
    found = _from_folder(dist) if dist is not None else _from_archive(progress, download or _npm_pack)
    licences = {name: resources.files("onnxruntime").joinpath(name).read_bytes() for name in LICENCES}
    return found | licences


def _from_folder(dist: Path) -> dict[str, bytes]:
    if (dist / "dist").is_dir():
        dist = dist / "dist"
    try:
        return {ours: files.read_file(dist / name, MAX_BYTES) for name, ours in FILES.items()}
    except OSError as error:
        raise ConfigError(
            f"{dist} lacks the runtime ({error.strerror}: {Path(error.filename or '').name}); "
            f"--ort-dist takes the folder dist of {PACKAGE} {VERSION}"
        ) from error


def _from_archive(progress: Progress, download: Callable[[Path], None]) -> dict[str, bytes]:
    def fill(folder: Path) -> None:
        progress.say(f"Fetches {PACKAGE} {VERSION} once (33 MB) …")
        archive = folder / f"{PACKAGE}-{VERSION}.tgz"
        download(folder)
        content = files.read_file(archive, MAX_BYTES)
        if not _is_pinned(content):
            raise ConfigError(f"{archive.name} has another checksum than the archive that was tested; use --ort-dist")
        with tarfile.open(archive, "r:gz") as opened:
            for name in FILES:
                member = opened.extractfile(f"package/dist/{name}")
                assert member is not None, "a file of the pinned archive"
                (folder / name).write_bytes(member.read())
        archive.unlink()

    return _from_folder(cached_folder("web", f"{PACKAGE}-{VERSION}", fill))


def _is_pinned(content: bytes) -> bool:
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}" == INTEGRITY


def _npm_pack(folder: Path) -> None:
    npm = shutil.which("npm")
    way_out = f"download {PACKAGE} {VERSION} elsewhere, and name its folder dist with --ort-dist"
    if npm is None:
        raise ConfigError(f"npm is not installed; install Node.js, or {way_out}")
    words = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(folder)]
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"npm pack failed ({error}); {way_out}") from error
    if ended.returncode:
        reason = next((line for line in ended.stderr.splitlines() if line.strip()), f"exit code {ended.returncode}")
        raise ConfigError(f"{quoted(npm)} pack failed ({reason}); {way_out}")
