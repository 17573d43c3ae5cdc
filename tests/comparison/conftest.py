"""Two networks with two seeds each."""

from __future__ import annotations

from pathlib import Path

import pytest
from comparing import MODELS, SMALL

from carnet.comparison.runs import train_here, train_runs
from carnet.text import Silent


@pytest.fixture(scope="session")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks with two seeds each. Read only."""
    folder = tmp_path_factory.mktemp("comparison")
    # In this process, since starting four more takes long; test_runs.py has runs that are processes.
    train_runs(str(photos), MODELS, seeds=2, config=SMALL, folder=folder, progress=Silent(), train=train_here)
    return folder
