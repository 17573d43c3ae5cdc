"""What changes over a run: the learning rate, and the side and crops of the training images.

Both follow from progress, the share of the run that is done, so that a run that has to be made shorter still completes
its whole schedule.
"""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

from carnet.config import ResolvedConfig, TrainingConfig

_MULTIPLE = 32
"""Intermediate sides are multiples of this: at others, positions at the edge of a stage see less than the rest."""
_SMALLEST_SIDE = 64
"""Smaller images have no pixels to spare."""
_GROWN = 0.75
"""Share of the run after which images have their full side, and crops are nearly the whole image unless later."""
_LAST_STEPS = 2000
"""Most steps with nearly uncropped images, soon overfitted; fewer would not dominate the EMA of the weights."""
_LAST_CROP = 0.9
"""Smallest share of the area that is cut out in those steps."""


class View(NamedTuple):
    """The side and the crops of training images in a step."""

    side: int
    """In pixels."""
    min_crop: float = 1.0
    """Smallest share of their area that is cut out."""


def lr_ratio(progress: float, config: ResolvedConfig) -> float:
    """Return the learning rate as a share of the highest: constant, or a linear warmup and a linear decay to zero.

    Source: Defazio et al., "Optimal linear decay learning rate schedules and further refinements", 2023.

    Args:
        progress: share of the run that is done, 0 to 1.
        config: names the schedule.
    """
    if config.schedule == "constant":
        return 1.0
    if progress < config.warmup:
        return progress / config.warmup
    return (1 - progress) / (1 - config.warmup)


def view_at(progress: float, config: ResolvedConfig, num_steps: int) -> View:
    """Return the view in the step that begins when this share of the run is done.

    Small images cost less, and are enough for what a network learns first (progressive resizing). Crops make objects
    look larger than in the uncropped images that the network is evaluated on, so the last steps hardly crop.
    Sources: Howard, "Training Imagenet in 3 hours for $25", 2018 (progressive resizing); Touvron et al., "Fixing the
    train-test resolution discrepancy", 2019.

    Args:
        progress: 0 to 1.
        config: names sides and crops.
        num_steps: of the whole run.
    """
    last_share = min(1 - _GROWN, _LAST_STEPS / num_steps)
    min_crop = config.min_crop if progress < 1 - last_share else max(config.min_crop, _LAST_CROP)
    return View(side_at(progress, config), min_crop)


def side_at(progress: float, config: ResolvedConfig) -> int:
    """Return the side of the images, in pixels, when this share of the run is done."""
    first, last = initial_side(config), config.image_size
    if progress >= _GROWN or first == last:
        return last
    side = first + (last - first) * progress / _GROWN
    return min(last, max(first, round(side / _MULTIPLE) * _MULTIPLE))


def initial_side(config: TrainingConfig) -> int:
    """Return the side of the images, in pixels, at the beginning of a run whose sides are known."""
    assert config.image_size is not None
    assert config.initial_size_ratio is not None
    if config.initial_size_ratio == 1:
        return config.image_size
    side = int(config.initial_size_ratio * config.image_size) // _MULTIPLE * _MULTIPLE
    return min(config.image_size, max(_SMALLEST_SIDE, side))


def step_cost(side: int, config: ResolvedConfig) -> float:
    """Return the time of a step as a share of one with images of full side.

    Args:
        side: of its images.
        config: names the first side and the last, and the share that a step with the first images takes.
    """
    first = initial_side(config)
    if first == config.image_size:
        return 1.0
    smallest, largest = first**2, config.image_size**2
    return config.initial_step_cost + (1 - config.initial_step_cost) * (side**2 - smallest) / (largest - smallest)


def mean_cost(config: ResolvedConfig, start: float = 0.0, end: float = 1.0) -> float:
    """Return the mean of `step_cost` over a part of the run, from one progress to another."""
    moments = (start + (end - start) * (place + 0.5) / 100 for place in range(100))
    return fmean(step_cost(side_at(moment, config), config) for moment in moments)
