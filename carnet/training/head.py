"""A linear head on frozen features: fitted to convergence, its penalty chosen by cross-validation, and calibrated.

The features of each view are scaled to the same length, and the head has no bias, so that an image's class does not
depend on how strongly the network responds to it. Scaling back gives an ordinary linear layer, which predicts the same
classes from the features as they are. This is 0.5 to 1.8 points better than standardised features and a bias, most
where there are few photos (`benchmarks/LOG.md`).

Source of the setting: Kornblith et al., "Do better ImageNet models transfer better?", 2019 (logistic regression by
L-BFGS on the features of pretrained networks).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from carnet import metrics
from carnet.calibration import fit_temperature
from carnet.data.samples import representatives
from carnet.data.scanned import ScannedImages
from carnet.errors import ConfigError
from carnet.spec import ModelSpec
from carnet.text import OnProgress, Progress, counted, duration, show_bytes
from carnet.training.features import FeatureExtractor, Photo, linear_head, num_within
from carnet.training.memory import free_bytes
from carnet.training.pipeline import Pipeline

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)
"""Of the squared weights, for features whose mean square is 1; each fit starts from the one before."""
FOLDS = 5
_MOST_CROSS_VALIDATED = 2500
"""Images; of more, so many are drawn, because the best penalty hardly changes."""
_ITERATIONS = 300
_TOLERANCE = 1e-7
"""A change of the loss below this ends a fit."""


@dataclass(frozen=True)
class LinearHead:
    """A fitted head, and what cross-validation says about it.

    Attributes:
        weight: (classes, channels), for features as they are.
        penalty: the chosen one.
        temperature: that the weights were divided by.
        top1: share of the cross-validated images that are predicted right by a head that was fitted without them.
        num_cross_validated: how many images that is about; they may be a part of all.
        num_fitted: images that the head was fitted to.
        fitted_loss: its mean cross-entropy on these images.
        num_fitted_correct: how many of them it predicts right.
    """

    weight: Tensor
    penalty: float
    temperature: float
    top1: float
    num_cross_validated: int
    num_fitted: int
    fitted_loss: float
    num_fitted_correct: int
    num_views: int = 1
    """Views of each image that the head was fitted to."""

    def to_json(self) -> dict[str, Any]:
        """Return the numbers without the weights."""
        return {key: value for key, value in vars(self).items() if key != "weight"}

    def copy_to(self, layer: nn.Linear) -> None:
        """Replace the weights of a network's last layer."""
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            if layer.bias is not None:
                layer.bias.zero_()


def fit_head(
    views: Sequence[NDArray[np.floating[Any]]],
    labels: NDArray[np.int64],
    digests: Sequence[str],
    num_classes: int,
    *,
    seed: int = 0,
    chosen: Choice | None = None,
    progress: OnProgress | None = None,
) -> LinearHead:
    """Fit a head to the features of images, the same images in each view; the first is the whole image.

    Args:
        views: (N, channels) each.
        labels: (N,)
        digests: of the images' files, or those that stand for near copies; those that are equal are never on both
            sides of a division.
        num_classes: number of outputs.
        seed: of the divisions.
        chosen: penalty and temperature; None: they are chosen by cross-validation.
        progress: called with the number of fits done, and of all.
    """
    labels, views = labels.astype(np.int64), [view.astype(np.float32) for view in views]
    length = _length(views)
    fits = 0

    def tell(done: int, number: int) -> None:
        nonlocal fits
        fits = number + 1
        if progress is not None:
            progress(done, fits)

    if chosen is None:
        chosen = choose_penalty(views, labels, digests, num_classes, seed=seed, progress=tell)
    weight = _path(views, labels, num_classes, [chosen.penalty])[chosen.penalty] / (length * chosen.temperature)
    if progress is not None:
        progress(fits or 1, fits or 1)
    logits = views[0] @ weight.numpy().T
    return LinearHead(
        weight,
        chosen.penalty,
        chosen.temperature,
        chosen.top1,
        min(len(labels), _MOST_CROSS_VALIDATED),
        num_fitted=len(labels),
        fitted_loss=float(metrics.cross_entropy(logits, labels).mean()),
        num_fitted_correct=int(metrics.in_top_k(logits, labels, 1).sum()),
    )


class Choice(NamedTuple):
    """A penalty, the temperature with which it has the lowest loss on left-out images, and the accuracy there."""

    penalty: float
    temperature: float
    top1: float


def choose_penalty(
    views: Sequence[NDArray[np.floating[Any]]],
    labels: NDArray[np.int64],
    digests: Sequence[str],
    num_classes: int,
    *,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Choice:
    """Choose the penalty by cross-validation: each fold is predicted by heads that were fitted to the others.

    The arguments are those of `fit_head`.
    """
    folds = divide(labels, digests, seed)
    number, drawn = int(folds.max()) + 1, np.flatnonzero(folds >= 0)
    if number < 2:
        # Equal images cannot be divided, so that nothing tells what new ones would get.
        return Choice(PENALTIES[0], 1.0, 0.0)
    length = _length([views[0].astype(np.float32)])
    # Two views tell which penalty is the best one; more would only take longer.
    rows = [view[drawn].astype(np.float32) for view in views[:2]]
    known, folds = labels[drawn], folds[drawn]
    logits = {penalty: np.empty((len(known), num_classes), np.float32) for penalty in PENALTIES}
    for fold in range(number):
        fitted, tested = folds != fold, folds == fold
        path = _path([view[fitted] for view in rows], known[fitted], num_classes, PENALTIES)
        for penalty, weight in path.items():
            logits[penalty][tested] = rows[0][tested] @ weight.numpy().T / length
        if progress is not None:
            progress(fold + 1, number)
    choices = {}
    for penalty, values in logits.items():
        temperature = fit_temperature(values, known)
        loss = float(metrics.cross_entropy(values / temperature, known).mean())
        top1 = float(metrics.in_top_k(values, known, 1).mean())
        choices[penalty] = (loss, Choice(penalty, temperature, top1))
    return min(choices.values(), key=lambda one: one[0])[1]


@dataclass(frozen=True)
class FoldHeads:
    """Heads that were each fitted without a part of the images.

    Attributes:
        folds: (N,), the part of each image.
        weights: (classes, channels) of the head that was fitted without each part.
    """

    folds: NDArray[np.int64]
    weights: Sequence[NDArray[np.float32]]

    def support(self, labels: NDArray[np.int64], digests: Sequence[str]) -> NDArray[np.int64]:
        """Return of how many different images with its label each image's head knows: (N,).

        The arguments are those of `fit_fold_heads`.
        """
        images = dict(zip(zip(labels.tolist(), digests, strict=True), self.folds.tolist(), strict=True))
        of_class = Counter(label for label, _ in images)
        in_fold = Counter((label, fold) for (label, _), fold in images.items())
        places = zip(labels.tolist(), self.folds.tolist(), strict=True)
        return np.array([of_class[label] - in_fold[label, fold] for label, fold in places], np.int64)

    def scores(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """(N, channels) -> (N, classes), each image's by the head that was fitted without it."""
        scores = np.zeros((len(features), len(self.weights[0])), np.float32)
        for fold, weight in enumerate(self.weights):
            scores[self.folds == fold] = features[self.folds == fold].astype(np.float32) @ weight.T
        return scores


def fit_fold_heads(
    views: Sequence[NDArray[np.floating[Any]]],
    labels: NDArray[np.int64],
    digests: Sequence[str],
    choice: Choice,
    num_classes: int,
    *,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> FoldHeads:
    """Fit a head without each part of the images.

    Args:
        views: (N, channels) each.
        labels: (N,)
        digests: of the images' files, or those that stand for near copies; those that are equal are in the same part.
        choice: penalty and temperature of the heads.
        num_classes: number of outputs.
        seed: of the division.
        progress: called with the number of fits done, and of all.
    """
    folds = divide(labels, digests, seed, most=len(labels))
    number, weights = int(folds.max()) + 1, []
    length = _length([views[0].astype(np.float32)])
    for fold in range(number):
        fitted = folds != fold
        # Of copies of one image nothing is left to fit to: such a head says nothing.
        weight = np.zeros((num_classes, views[0].shape[1]), np.float32)
        if fitted.any():
            part = [view[fitted].astype(np.float32) for view in views]
            path = _path(part, labels[fitted], num_classes, [choice.penalty])
            weight = (path[choice.penalty] / (length * choice.temperature)).numpy()
        weights.append(weight)
        if progress is not None:
            progress(fold + 1, number)
    return FoldHeads(folds, weights)


def _length(views: Sequence[NDArray[np.float32]]) -> float:
    """Return the mean length of the features of whole images."""
    return float(np.linalg.norm(views[0], axis=1).mean()) or 1.0


def _path(
    views: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], num_classes: int, penalties: Sequence[float]
) -> Mapping[float, Tensor]:
    """Return the weights (classes, channels) for features of length 1, for each penalty."""
    rows = torch.from_numpy(np.concatenate(views))
    # The mean square of each channel becomes 1, so that a penalty means the same for any number of channels.
    scale = rows.shape[1] ** 0.5
    rows = F.normalize(rows) * scale
    truth = torch.from_numpy(labels).repeat(len(views))
    weight = torch.zeros(num_classes, rows.shape[1], requires_grad=True)
    path = {}
    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [weight],
            max_iter=_ITERATIONS,
            tolerance_grad=1e-6,
            tolerance_change=_TOLERANCE,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def loss(penalty: float = penalty, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(rows @ weight.T, truth) + penalty / 2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        path[penalty] = weight.detach() * scale
    return path


def divide(
    labels: NDArray[np.int64], digests: Sequence[str], seed: int, *, most: int = _MOST_CROSS_VALIDATED
) -> NDArray[np.int64]:
    """Return the fold of each image; -1 for those beyond `most`, which are drawn.

    The images of a class are spread evenly over the folds; images of equal content are in the same fold.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    chosen = np.sort(order[:most])
    folds = np.full(len(labels), -1, np.int64)
    of_content: dict[str, int] = {}
    members: dict[int, list[int]] = defaultdict(list)
    for place in rng.permutation(chosen).tolist():
        members[int(labels[place])].append(place)
    place_in_turn = 0
    for label in sorted(members):
        for place in members[label]:
            folds[place] = of_content.setdefault(digests[place], place_in_turn % FOLDS)
            place_in_turn += 1
    # With very few images some folds may be empty.
    used = np.unique(folds[folds >= 0])
    folds[folds >= 0] = np.searchsorted(used, folds[folds >= 0])
    return folds


MOST_VIEWS, VIEWED_IMAGES = 8, 16_000
"""Views of each image, and of all images together, which the head is fitted to; at least two of each."""
_FEATURES_SHARE, _MOST_OF_BUDGET = 0.4, 0.8
"""Share of the rest of a budget that features of several views may take, and those of one view at most."""
_COPIES = 3
"""Of the features of a view in memory, while a head is fitted."""


def start_head(
    network: nn.Module,
    spec: ModelSpec,
    images: ScannedImages,
    pipeline: Pipeline,
    *,
    device: str,
    seed: int,
    progress: Progress,
    seconds_left: float | None = None,
    left_bytes: int | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> LinearHead:
    """Fit the last layer of a network to the features that its other weights give the training images.

    Args:
        network: on the processor, where it also is afterwards.
        spec: of its images.
        images: as they were scanned.
        pipeline: of the training images, which are files.
        device: where features are computed: cpu, cuda or mps.
        seed: of the cross-validation.
        progress: shows what happens.
        seconds_left: of the budget; None: there is none.
        left_bytes: memory that may be taken; None: what is free.
        recorded: the head of a resumed run, which is fitted again; None: views and penalty are chosen.

    Raises:
        ModelError: if the network does not end in one linear layer.
        ConfigError: if the features do not fit into memory or budget.
        DataError: if an image can no longer be read.
    """
    samples = images.data.splits["train"]
    photos = [Photo(images.facts[sample.path].sha256, partial(pipeline.load, sample.path)) for sample in samples]
    layer = linear_head(network, spec.model)
    extractor = FeatureExtractor.of_network(network.to(device), spec, pipeline.augmentation)
    allowed = max(0, (free_bytes() if left_bytes is None else left_bytes) - extractor.bytes_to_compute(photos))
    needed = _COPIES * 4 * len(samples) * layer.in_features + extractor.bytes_ahead(1)
    if needed > allowed:
        raise ConfigError(
            f"the features of {counted(len(samples), 'image')} take {show_bytes(needed)} of memory, more than the "
            f"{show_bytes(allowed)} allowed; train with fewer images, or a network from random weights"
        )
    if recorded is not None:
        num_views = recorded["num_views"]
    else:
        num_views = min(max(2, min(MOST_VIEWS, VIEWED_IMAGES // len(samples))), allowed // needed)
        if seconds_left is not None:
            seconds = extractor.seconds_of(photos, extractor.views(num_views), extractor.seconds_per_image())
            num_views = _views_within(seconds_left, seconds)
    bar = partial(progress.bar, f"features of {counted(num_views, 'view')}")
    views = extractor.features(photos, extractor.views(num_views), bar)
    network.to("cpu")
    head = fit_head(
        views,
        np.array([sample.label for sample in samples]),
        representatives([photo.digest for photo in photos], images.near),
        spec.num_classes,
        seed=seed,
        chosen=None if recorded is None else Choice(*(recorded[name] for name in Choice._fields)),
        progress=partial(progress.bar, "fitting the head"),
    )
    head.copy_to(layer)
    return replace(head, num_views=num_views)


def _views_within(seconds_left: float, seconds_of_views: Sequence[float]) -> int:
    """Return how many of the first views of all images fit into a budget.

    Raises:
        ConfigError: if not even one fits.
    """
    if seconds_of_views[0] > _MOST_OF_BUDGET * seconds_left:
        raise ConfigError(
            f"the features of all images take about {duration(seconds_of_views[0])}, and --budget leaves "
            f"{duration(max(0.0, seconds_left))}; give more, or take a smaller --image-size"
        )
    return num_within(seconds_of_views, _FEATURES_SHARE * seconds_left)
