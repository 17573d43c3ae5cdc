"""`carnet summary` and `carnet benchmark`: what networks cost."""

from __future__ import annotations

import json
from collections.abc import Callable

Call = Callable[..., tuple[int, str, str]]


def test_summary(call: Call) -> None:
    code, out, _ = call("summary", "carnet18")
    assert code == 0
    assert all(number in out for number in ("653,376", "1,600,720,576", "1,625,914,880", "357,158,912"))
    document = json.loads(call("summary", "resnet18", "--image-size", "64", "--json")[1])
    assert (document["params"], document["input_shape"]) == (11_217_444, [1, 3, 64, 64])
    assert sum(layer["macs"] for layer in document["layers"]) == document["macs"]
    assert {"model", "num_classes", "published_mult_adds", "weights_bytes", "activations_bytes"} <= set(document)


def test_benchmark(call: Call) -> None:
    flags = ["benchmark", "carnet_n@32", "carnet_s@32", "--rounds", "2", "--batch-sizes", "1,2"]
    code, out, _ = call(*flags, "--runtimes", "pytorch")
    assert code == 0
    head, *rows = (line.split() for line in out.splitlines()[:5])
    assert (head[0], [row[0] for row in rows]) == ("model", [*["carnet_n@32"] * 2, *["carnet_s@32"] * 2])
    assert (rows[0][1:3], rows[0][-1]) == (["32", "px"], "1.00")
    assert "on 1 thread of " in out
    document = json.loads(call(*flags, "--runtimes", "onnxruntime", "--json")[1])
    assert [row["batch_size"] for row in document["timings"]] == [1, 2, 1, 2]
    assert document["machine"]["versions"]["onnxruntime"]
