"""Two networks with two seeds each."""

from __future__ import annotations

from pathlib import Path

import pytest
from comparing import MODELS, SMALL, graph_of

from carnet.comparison.runs import train_here, train_runs
from carnet.export import graph
from carnet.text import Silent


@pytest.fixture(scope="session")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks with two seeds each. Read only."""
    folder = tmp_path_factory.mktemp("comparison")
    # In this process, since starting four more takes long; test_runs.py has runs that are processes.
    train_runs(str(photos), MODELS, seeds=2, config=SMALL, folder=folder, progress=Silent(), train=train_here)
    return folder


@pytest.fixture(autouse=True)
def each_graph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing a network as ONNX takes seconds, and these tests have two of them."""
    monkeypatch.setattr(graph, "to_graph", graph_of)
