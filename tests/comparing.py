"""Runs that tests of comparisons share."""

from __future__ import annotations

import hashlib
import json

from carnet import TrainingConfig
from carnet.export import graph
from carnet.export.graph import to_graph
from carnet.models.weights import TrainedModel

SMALL = TrainingConfig(model="carnet_n", image_size=32, epochs=2, batch_size=8, compile=False)
MODELS = ("carnet_n", "carnet_s")
_graphs: dict[tuple[str, str], graph.Graph] = {}


def graph_of(trained: TrainedModel) -> graph.Graph:
    weights = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in trained.network.state_dict().values()))
    key = (json.dumps(trained.spec.to_json()), weights.hexdigest())
    if key not in _graphs:
        _graphs[key] = to_graph(trained)
    return _graphs[key]
