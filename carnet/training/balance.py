"""Classes of unequal size: draw images of small classes more often, or let them weigh more in the loss.

Full weights, the inverse of the classes' sizes, repeat the few images of a small class very often; their square roots
are the usual compromise (Mahajan et al., "Exploring the limits of weakly supervised pretraining", 2018).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from carnet.config import TrainingConfig
from carnet.errors import ConfigError

POWER = 0.5
"""Weights are the classes' sizes to the power of minus this."""


def check_balance(requested: TrainingConfig) -> None:
    """Check that --balance suits what else was requested.

    Raises:
        ConfigError: if it does not.
    """
    if requested.balance == "none":
        return
    flag = f"--balance {requested.balance}"
    if requested.freeze:
        raise ConfigError(f"{flag} is for training steps, and --freeze takes none; leave one of them out")
    if requested.balance == "sampler" and requested.stream:
        raise ConfigError(f"{flag} draws images in an order of its own, and a stream has one; take --balance loss")
    if requested.balance == "loss" and requested.teacher is not None:
        raise ConfigError(f"{flag} weighs labels, and --teacher replaces them by answers; take --balance sampler")


def class_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Return the weight of each class in the loss; their mean over the images is 1."""
    sizes = np.array(counts, np.float64)
    weights = np.where(sizes > 0, np.maximum(sizes, 1) ** -POWER, 0)
    return tuple((weights * sizes.sum() / (weights * sizes).sum()).tolist())


def balanced_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return as many indices as there are images, with more of small classes than there are images of them.

    Within a class, no image is drawn twice more often than another; between classes, chance rounds the numbers.
    """
    counts = np.bincount(labels)
    shares = np.array(class_weights(counts.tolist())) * counts / len(labels)
    # One uniform number rounds all sums of shares, so that the numbers add up, and each is right on average.
    sums = np.floor(np.cumsum(shares) * len(labels) + rng.random()).astype(np.int64)
    sums[-1] = len(labels)
    wanted = np.diff(sums, prepend=0)
    order = []
    for label in np.flatnonzero(counts):
        members = np.flatnonzero(labels == label)
        rounds, rest = divmod(int(wanted[label]), len(members))
        order += [np.tile(members, rounds), rng.permutation(members)[:rest]]
    drawn: NDArray[np.int64] = np.concatenate(order)
    return rng.permutation(drawn)
