"""What changes over a run: the learning rate, and how images are shown.

Both follow from the share of the run that is done, so that a run that has to be made shorter still goes all the way.
"""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

from carnet.config import ResolvedConfig

_MULTIPLE = 32
"""Of sides on the way: in others, positions at the edge of a stage see less than the rest."""
_SMALLEST = 64
"""Smaller images have no pixels to spare."""
_GROWN = 0.75
"""Share of the run after which images have their full side, and are nearly whole unless that comes later."""
_WHOLE_STEPS = 2000
"""At most so many with nearly whole images, which are soon learned by heart; fewer would not be what the average of the
weights is made of."""
_LAST_CROP = 0.9
"""Share of the area that is cut out at least from then on."""


class View(NamedTuple):
    """How training images are shown in a step."""

    side: int
    """In pixels."""
    min_crop: float = 1.0
    """Share of their area that is cut out at least."""


def lr_ratio(progress: float, config: ResolvedConfig) -> float:
    """Share of the learning rate: constant, or up in a line and down to zero in another.

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


def initial_side(config: ResolvedConfig) -> int:
    """Side of the images, in pixels, at the beginning."""
    return initial_side_of(config.image_size, config.initial_size_ratio)


def initial_side_of(image_size: int, ratio: float) -> int:
    """Side at the beginning of images that grow to `image_size` pixels."""
    if ratio == 1:
        return image_size
    return min(image_size, max(_SMALLEST, int(ratio * image_size) // _MULTIPLE * _MULTIPLE))


def view_at(progress: float, config: ResolvedConfig, num_steps: int) -> View:
    """How images are shown in the step that begins when this share of the run is done.

    Small images cost less, and are enough for what a network learns first. Pieces look larger than whole images, which
    are what it will be judged by; so it ends with nearly whole ones.
    Sources: Howard, "Training Imagenet in 3 hours for $25", 2018 (progressive resizing); Touvron et al., "Fixing the
    train-test resolution discrepancy", 2019.

    Args:
        progress: 0 to 1.
        config: names sides and pieces.
        num_steps: of the whole run.
    """
    last_share = min(1 - _GROWN, _WHOLE_STEPS / num_steps)
    min_crop = config.min_crop if progress < 1 - last_share else max(config.min_crop, _LAST_CROP)
    return View(side_at(progress, config), min_crop)


def initial_view(config: ResolvedConfig) -> View:
    """How images are shown where the run begins."""
    return View(initial_side(config), config.min_crop)


def final_view(config: ResolvedConfig) -> View:
    """How they are shown where it ends."""
    return View(config.image_size, max(config.min_crop, _LAST_CROP))


def side_at(progress: float, config: ResolvedConfig) -> int:
    """Side of the images, in pixels, when this share of the run is done."""
    first, last = initial_side(config), config.image_size
    if progress >= _GROWN or first == last:
        return last
    side = first + (last - first) * progress / _GROWN
    return min(last, max(first, round(side / _MULTIPLE) * _MULTIPLE))


def step_cost(side: int, config: ResolvedConfig) -> float:
    """What a step takes, as a share of one with images of full side.

    Args:
        side: of its images.
        config: names the first side and the last, and what a step with the first images takes.
    """
    if initial_side(config) == config.image_size:
        return 1.0
    smallest, largest = initial_side(config) ** 2, config.image_size**2
    return config.initial_step_cost + (1 - config.initial_step_cost) * (side**2 - smallest) / (largest - smallest)


def mean_cost(config: ResolvedConfig, start: float = 0.0, end: float = 1.0) -> float:
    """The mean of `step_cost` over a part of the run, from one progress to another."""
    moments = (start + (end - start) * (place + 0.5) / 100 for place in range(100))
    return fmean(step_cost(side_at(moment, config), config) for moment in moments)
