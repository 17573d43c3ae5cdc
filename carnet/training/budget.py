"""What a budget is spent on: the side of the images, which decides how often a network can see each of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress

from carnet.config import ResolvedConfig, TrainingConfig, steps_per_epoch
from carnet.data.samples import LabeledImages
from carnet.errors import CarnetError
from carnet.machine import loading_threads
from carnet.models.registry import RESIZABLE, create_model, default_image_size
from carnet.preprocess import load_image
from carnet.spec import ModelSpec
from carnet.text import Progress, counted
from carnet.training.autotune import CHOICES_OF_STEP, circumstances, seconds_left
from carnet.training.measurements import Images, Measure
from carnet.training.rehearsal import Rehearsal
from carnet.training.resolve import first_guess
from carnet.training.step import explaining_out_of_memory

SIDES_BY_STEPS = ((500, 64), (1300, 96), (8500, 128), (math.inf, 160))
"""What a budget is best spent on: up to so many steps, if images had the network's own side, and the side to take
instead. `docs/recipe.md` has the experiments."""
_DECODED_TO_TIME = 32
"""Images."""
Rehearse = Callable[[ResolvedConfig, ModelSpec], Measure]
"""Begins to measure steps on random pixels."""


def budget_chooses_size(asked: TrainingConfig) -> bool:
    """Whether measured speed decides on the side: with a budget and nothing else, for networks that take any side."""
    is_open = asked.image_size is None and asked.epochs is None and not asked.stream
    return asked.budget is not None and is_open and asked.model in RESIZABLE


def size_for(num_steps: float) -> int:
    """Side of the images, in pixels, where there is time for so many steps at the network's own side."""
    return next(side for most, side in SIDES_BY_STEPS if num_steps <= most)


def choose_size(
    asked: TrainingConfig,
    images: LabeledImages,
    progress: Progress,
    *,
    started: float,
    rehearse: Rehearse | None = None,
    decoding_seconds: float | None = None,
) -> int:
    """The side of the images, in pixels: as asked, the network's own, or what makes the most of a budget.

    Args:
        asked: the config as it was asked for.
        images: as they were found.
        progress: told the choice where a budget makes it.
        started: when the command began, by `time.monotonic`.
        rehearse: measures this machine; None: by steps on random pixels.
        decoding_seconds: what decoding all images takes; None: some of them are decoded.
    """
    usual = default_image_size(asked.model)
    if not budget_chooses_size(asked):
        return asked.image_size or usual
    num_train = len(images.splits.get("train", images.samples))
    if "valid" not in images.splits:
        num_train = max(1, round((1 - asked.valid_fraction) * num_train))
    spec = ModelSpec(
        model=asked.model, classes=images.classes, image_size=usual, resize=asked.resize, in_channels=asked.in_channels
    )
    guess = first_guess(asked, num_train=num_train, image_size=usual)
    data = _Counted(num_train, len(images.samples) - num_train, usual)
    measure = (rehearse or _on_random_pixels(started))(guess, spec)
    seconds = _seconds_of_step(guess, asked, data, measure)
    steps = steps_per_epoch(num_train, guess.batch_size, guess.devices)
    decoding = seconds_to_decode(images, spec) if decoding_seconds is None else decoding_seconds
    left = seconds_left(asked, measure)
    # Images that are not kept are decoded in every pass.
    of_pass, once = (seconds * steps + decoding, 0.0) if asked.cache == "off" else (seconds * steps, decoding)
    passes = max(0.0, left - once) / of_pass
    fitting = round(passes * steps)
    side = size_for(fitting)
    progress.say(
        f"Takes images of {side} px, because --budget {asked.budget} leaves time for about {fitting:,} "
        f"steps at {usual} px ({passes:.2g} passes over {counted(num_train, 'training image')}, at "
        f"{guess.batch_size / seconds:,.0f} images/s); --image-size takes another side."
    )
    return side


class _Counted:
    def __init__(self, num_train: int, num_valid: int, image_size: int) -> None:
        self.num_train, self.num_valid, self.image_size = num_train, num_valid, image_size


def _on_random_pixels(started: float) -> Rehearse:
    def rehearse(guess: ResolvedConfig, spec: ModelSpec) -> Measure:
        network = create_model(spec.model, num_classes=spec.num_classes, in_channels=spec.in_channels)
        return Rehearsal.on_random_pixels(network, spec, guess.micro_batch, started=started)

    return rehearse


def _seconds_of_step(guess: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure) -> float:
    """What a step takes once precision, layout, gradients and threads are chosen; measured once on a machine."""
    what = f"a step of {asked.model} at {guess.image_size} px, asked for {asked.precision}, {asked.memory_format}, "
    what += f"{asked.fast_depthwise}, {asked.max_memory or 'any'} memory: {circumstances(guess)}"
    # What was measured first counts, so that equal runs choose the same.
    if known := measure.recall().get(what, {}).get("seconds"):
        return known
    config = guess
    with explaining_out_of_memory(guess.image_size, guess.micro_batch):
        for choose in CHOICES_OF_STEP:
            config = choose(config, asked, data, measure)
    seconds = float(f"{config.step_seconds:.3g}")
    measure.remember(what, {"seconds": seconds})
    return seconds


def seconds_to_decode(images: LabeledImages, spec: ModelSpec) -> float:
    """About how long it takes to decode all images, by some of them."""
    samples = images.samples[:: max(1, len(images.samples) // _DECODED_TO_TIME)]
    started = time.perf_counter()
    for sample in samples:
        # What cannot be decoded is found when all are looked at.
        with suppress(CarnetError):
            load_image(sample.path, spec)
    return (time.perf_counter() - started) / len(samples) * len(images.samples) / loading_threads()
