"""What tests do with teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runs import resolved, small

from carnet.data.find import find_images
from carnet.data.scan import scan_images
from carnet.data.scanned import ScannedImages
from carnet.data.unlabeled import find_unlabeled
from carnet.text import Silent
from carnet.training.distillation import Taught, ask_teacher


def record_of(path: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((path / "config.json").read_text())  # type: ignore[no-any-return]


def scanned(photos: Path, unlabeled: Path | None = None) -> ScannedImages:
    more = None if unlabeled is None else find_unlabeled(unlabeled)
    return scan_images(find_images(photos), image_size=48, unlabeled=more)


def taught_by(
    teacher: Path | str, photos: Path, unlabeled: Path | None = None, *, left_bytes: int | None = None, **changes: Any
) -> Taught:
    config = resolved(small(teacher=str(teacher), **changes), num_train=24, min_crop=0.25)
    return ask_teacher(scanned(photos, unlabeled), config, progress=Silent(), left_bytes=left_bytes)
