"""On real photos, the edge answers as training's evaluation does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from carnet import Classifier, create_model
from carnet.data.find import find_images
from carnet.edge.model_file import seal
from carnet.errors import ImageError
from carnet.evaluation import evaluate
from carnet.export.graph import serialized, to_graph
from carnet.models.weights import TrainedModel
from carnet.spec import ModelSpec


@pytest.mark.data
def test_five_hundred_photos(shared_data: Callable[[str], Path]) -> None:
    found = find_images(shared_data("sports100"))
    torch.manual_seed(0)
    network = create_model("carnet_s", num_classes=100)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    model = TrainedModel(network, ModelSpec(model="carnet_s", classes=found.classes, image_size=128))
    # As far apart as after training, so that small differences count.
    few = evaluate(model.logits, found.splits["valid"][:50], model.spec).logits
    with torch.no_grad():
        network.get_parameter("linear.weight").mul_(3 / float((few - few.mean(axis=0)).std()))
    bench = evaluate(model.logits, found.splits["valid"], model.spec)
    classifier = Classifier(seal(serialized(to_graph(model).model), model.spec.to_json()))
    answers = list(classifier.predict_many((sample.path for sample in bench.samples), top_k=100))
    assert bench.num_images == 500
    assert len(set(bench.predictions.tolist())) > 10
    for answer, probabilities in zip(answers, bench.probabilities):
        assert not isinstance(answer, ImageError)
        expected = dict(zip(found.classes, probabilities))
        assert max(abs(expected[name] - p) for name, p in zip(answer.classes, answer.probabilities)) < 1e-4
        first, second = np.sort(probabilities)[::-1][:2]
        if first - second > 1e-3:
            assert answer.label == found.classes[int(probabilities.argmax())]
