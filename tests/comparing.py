"""Runs that tests of comparisons share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carnet import TrainingConfig
from carnet.comparison import verdict
from carnet.comparison.verdict import Comparison
from carnet.export.graph import Graph, to_graph
from carnet.models.weights import TrainedModel

SMALL = TrainingConfig(model="carnet_n", image_size=32, epochs=2, batch_size=8, compile=False)
MODELS = ("carnet_n", "carnet_s")
_graphs: dict[tuple[str, str], Graph] = {}


def compare(paths: Sequence[Path] | Path, folder: Path, **keywords: Any) -> Comparison:
    """As `carnet.comparison.verdict.compare`, with each network written as ONNX once: that takes seconds."""
    return verdict.compare(paths, folder, **({"to_graph": graph_of} | keywords))


def graph_of(trained: TrainedModel) -> Graph:
    weights = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in trained.network.state_dict().values()))
    key = (json.dumps(trained.spec.to_json()), weights.hexdigest())
    if key not in _graphs:
        _graphs[key] = to_graph(trained)
    return _graphs[key]
