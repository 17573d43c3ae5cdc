"""A service around a small exported model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Service, running

from carnet import Classifier
from carnet.server.app import create_app


@pytest.fixture(scope="session")
def service(exported: Path) -> Iterator[Service]:
    """A service with the default limits. Ask it only."""
    with running(create_app(Classifier(exported, threads=1))) as started:
        yield started


@pytest.fixture(scope="session")
def photo(photos: Path) -> bytes:
    """The bytes of a photo."""
    return next(path for path in sorted(photos.rglob("*.jpg"))).read_bytes()
