"""Data sets for checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawing import draw_photo, save


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 12 photos to train on and 10 to validate with, with nothing to be found."""
    root = tmp_path / "photos"
    for number, (split, label) in enumerate(
        (split, label)
        for split, count in (("train", 12), ("valid", 10))
        for label in ("cat", "dog")
        for _ in range(count)
    ):
        save(root / split / label / f"{number}.jpg", draw_photo(number))
    return root
