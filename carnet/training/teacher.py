"""A teacher: a larger model whose answers a smaller one learns from (knowledge distillation).

It is a finished run, an exported file, or pretrained EfficientNet-Lite0, whose head is still to be fitted to the
labelled images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from carnet.config import LITE0, ResolvedConfig, TrainingConfig
from carnet.data.samples import expanded
from carnet.data.scanned import UNLABELED
from carnet.edge.classifier import Classifier
from carnet.errors import ConfigError, ModelError
from carnet.files import digest_of
from carnet.models.registry import create_model, default_image_size, preprocessing_of
from carnet.models.weights import TrainedModel, load
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec, ResizeRule
from carnet.text import quoted
from carnet.training.augment import Augmentation
from carnet.training.features import FeatureExtractor, Features, linear_head, network_features

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Teacher:
    """A model whose answers another one learns from.

    Attributes:
        name: of the model, and where it comes from.
        extractor: computes its features; those of a file are its scores.
        digest: SHA-256 of its weights or its file.
        score: features (N, channels) -> scores (N, classes); None: a head is fitted to the labelled images first.
        trained_on: digests of the images that it was trained on; None: they are not known.
        is_file: whether it is an exported file, whose features no head can be fitted to.
    """

    name: str
    extractor: FeatureExtractor
    digest: str
    score: Callable[[Features], Scores] | None = None
    trained_on: frozenset[str] | None = None
    is_file: bool = False

    def knows(self, digest: str) -> bool:
        """Return whether it may have been trained on an image, and can answer by a head that was not."""
        return not self.is_file and (self.score is None or self.trained_on is None or digest in self.trained_on)


def check_teacher(requested: TrainingConfig) -> None:
    """Check the teacher, and that what was requested suits it, before the images are scanned.

    Raises:
        ConfigError: if there is no such teacher, or another flag contradicts it.
        CarnetError: if it cannot be opened.
    """
    if requested.teacher is None:
        if requested.unlabeled is not None:
            raise ConfigError(
                f"--unlabeled {requested.unlabeled} needs a --teacher that names its images, such as "
                "--teacher efficientnet_lite0"
            )
        return
    if requested.stream:
        raise ConfigError("--teacher answers for each image before the first step; leave --stream out")
    if requested.freeze:
        raise ConfigError("--freeze fits a head to the labels without training steps; leave --teacher out, or --freeze")
    path = expanded(requested.teacher)
    if requested.teacher == LITE0:
        create_model(LITE0, num_classes=2, pretrained=True)
    elif path.is_dir():
        open_run(path, "cpu")
        # A run that was published has no checkpoint.
        if RunFolder(path).checkpoint.exists() and not RunFolder(path).result.exists():
            raise ConfigError(
                f"--teacher {requested.teacher} is not finished; continue with carnet train --resume {quoted(path)}"
            )
    elif path.is_file():
        Classifier(path)
    else:
        raise ConfigError(
            f"--teacher {requested.teacher} does not exist; name a finished run, a model file (.onnx), or {LITE0}"
        )


def open_teacher(config: ResolvedConfig, classes: Sequence[str], *, threads: int) -> Teacher:
    """Open the teacher of a student that is trained as `config` says, for these classes.

    An exported file computes on so many threads.

    Raises:
        CarnetError: if it cannot be opened, or is an exported file for other classes.
    """
    assert config.teacher is not None
    # The crop is what both see. The student's colours are changed as well, which the answer does not depend on.
    rules: dict[str, Any] = {"augmentation": Augmentation(0.0, config.flip, 0.0), "min_crop": config.min_crop}
    path = expanded(config.teacher)
    if config.teacher == LITE0:
        network, spec = pretrained_lite0(config.device, config.resize)
        extractor = FeatureExtractor.of_network(network, spec, **rules)
        return Teacher(f"pretrained {LITE0}", extractor, extractor.identity)
    if path.is_dir():
        return _run_as_teacher(path, config, classes, rules)
    classifier, digest = Classifier(path, threads=threads), digest_of(path)
    order = _order(classifier.classes, classes)
    if order is None:
        raise ConfigError(
            f"--teacher {config.teacher} knows other classes than the data; name the run it was exported from, to "
            "whose features a head for these classes is fitted"
        )
    spec = replace(classifier.spec, resize=config.resize)
    return Teacher(
        f"{spec.model} in {path.name}",
        FeatureExtractor(classifier.logits, spec, identity=digest, **rules),
        digest,
        score=lambda scores: scores[:, order],
        is_file=True,
    )


def pretrained_lite0(device: str, resize: ResizeRule = "crop") -> tuple[nn.Module, ModelSpec]:
    """Return pretrained EfficientNet-Lite0, with a head that means nothing, and the spec of its images.

    Raises:
        MissingExtraError: if its weights are not installed.
    """
    network = create_model(LITE0, num_classes=2, pretrained=True).to(device)
    spec = preprocessing_of(LITE0, pretrained=True).spec(
        model=LITE0, classes=("0", "1"), image_size=default_image_size(LITE0), resize=resize
    )
    return network, spec


def _run_as_teacher(path: Path, config: ResolvedConfig, classes: Sequence[str], rules: dict[str, Any]) -> Teacher:
    """Return a finished run as a teacher; if it knows other classes, by its features alone."""
    model, digests = open_run(path, config.device)
    spec = replace(model.spec, resize=config.resize)
    layer = linear_head(model.network, spec.model)
    weight = layer.weight.detach().cpu().numpy()
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias.detach().cpu().numpy()
    order = _order(spec.classes, classes)
    return Teacher(
        f"{spec.model} of the run {path.name}",
        FeatureExtractor.of_network(model.network, spec, **rules),
        digest_of(RunFolder(path).weights),
        score=None if order is None else lambda features: (features @ weight.T + bias)[:, order],
        trained_on=None if digests is None else frozenset(digests.get("train", set()) | digests.get(UNLABELED, set())),
    )


def open_run(path: Path, device: str, flag: str = "--teacher") -> tuple[TrainedModel, dict[str, set[str]] | None]:
    """Return the model of a run, and the digests of its images by split.

    Raises:
        CarnetError: if it cannot be read, or its network has no features for a last linear layer.
    """
    model = load(path, device=device)
    check_features(model, path, flag)
    return model, RunFolder.open(path).digests()


def check_features(model: TrainedModel, path: Path, flag: str = "--teacher") -> None:
    """Check, before thousands of images are scanned, that a run ends in one linear layer with a vector for each image.

    Raises:
        ModelError: if it does not.
    """
    spec = model.spec
    blank = np.zeros((1, spec.image_size, spec.image_size, spec.in_channels), np.uint8)
    try:
        network_features(model.network, spec)(blank)
    except ModelError as error:
        way_out = "name another run" + (", or export this one and name the file" if flag == "--teacher" else "")
        raise ModelError(f"{flag} {path}: {error}; {way_out}") from error


def _order(known: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return the places of the wanted classes among the known ones; None if these are other classes."""
    return [known.index(name) for name in wanted] if set(known) == set(wanted) else None
