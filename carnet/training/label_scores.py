"""Out-of-sample probabilities of classes, to check labels with: heads on features, each fitted without a part."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from carnet.checks.data import CheckedData
from carnet.checks.labels import LabelScores
from carnet.config import LITE0
from carnet.data.samples import representatives
from carnet.errors import DataError
from carnet.metrics import softmax
from carnet.preprocess import load_image
from carnet.text import Progress, counted, show_bytes
from carnet.training.augment import Augmentation
from carnet.training.features import FeatureExtractor, Photo, linear_head
from carnet.training.head import choose_penalty, fit_fold_heads
from carnet.training.memory import free_bytes
from carnet.training.teacher import open_run, pretrained_lite0

_COPIES = 4
"""Of all features in memory, while a head is fitted."""
_SEED = 0
"""Of the division into parts."""


def score_labels(data: CheckedData, run: Path | None = None, *, progress: Progress) -> LabelScores:
    """Return the probabilities of the classes of each image that can be decoded.

    Where a run's weights were trained on these images and labels, its features have seen them, but the heads that give
    the probabilities have not: those are fitted anew, each without a part of the images.

    Args:
        data: the images; near copies are in the same part.
        run: a finished run, whose features are used; None: those of pretrained EfficientNet-Lite0.
        progress: shows how far it is.

    Raises:
        DataError: if there are fewer than two classes or images.
        CarnetError: if the run cannot be read.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if run is None:
        network, spec = pretrained_lite0(device)
        source = f"pretrained {LITE0}"
    else:
        model, _ = open_run(run, device, "--model")
        network, spec, source = model.network, model.spec, f"the run {run.name}"
    extractor = FeatureExtractor.of_network(network, spec, Augmentation(0.0, 0.0, 0.0))
    samples = [sample for _, sample in data if data.facts[sample.path].error is None]
    if len(samples) < 2 or len({sample.label for sample in samples}) < 2:
        raise DataError(f"labels cannot be checked with {counted(len(samples), 'image')} of fewer than two classes")
    channels = linear_head(network, spec.model).in_features
    if (needed := _COPIES * 4 * len(samples) * channels) > (allowed := free_bytes()):
        raise DataError(
            f"the features of {counted(len(samples), 'image')} take {show_bytes(needed)} of memory, more than the "
            f"{show_bytes(allowed)} that are free"
        )
    photos = [Photo(data.facts[sample.path].sha256, partial(load_image, sample.path, spec)) for sample in samples]
    features = extractor.features(photos, extractor.whole_views, partial(progress.bar, "features for the labels"))
    labels = np.array([sample.label for sample in samples], np.int64)
    near = None if data.appearance is None else data.appearance.near_copies
    contents = representatives([photo.digest for photo in photos], near)
    number = len(data.images.classes)
    bar = partial(progress.bar, "choosing the penalty")
    choice = choose_penalty(features, labels, contents, number, seed=_SEED, progress=bar)
    bar = partial(progress.bar, "fitting heads without a part of the images")
    folds = fit_fold_heads(features, labels, contents, choice, number, seed=_SEED, progress=bar)
    scores = folds.scores(features[0])
    support = folds.support(labels, contents)
    return LabelScores([sample.path for sample in samples], softmax(scores), support, source)
