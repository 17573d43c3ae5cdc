"""What a budget is spent on: the side of the images, which decides how often a network can see each of them."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from carnet.config import TrainingConfig
from carnet.data.samples import LabeledImages
from carnet.errors import CarnetError
from carnet.models.registry import create_model, default_image_size
from carnet.prefetch import loading_threads
from carnet.preprocess import load_image
from carnet.spec import ModelSpec
from carnet.text import Progress, counted, parse_seconds
from carnet.training.autotune import circumstances, seconds_of_step
from carnet.training.measurements import recall, remember
from carnet.training.rehearsal import Rehearsal
from carnet.training.resolve import Plan, size_for, whole_micro_batch, with_augmentation, with_batch_size
from carnet.training.step import explaining_out_of_memory

_DECODED_TO_TIME = 32
"""Images."""


def size_in_budget(
    config: TrainingConfig, plan: Plan, images: LabeledImages, started: float, progress: Progress
) -> int:
    """The side of the images, in pixels, that makes the most of a budget, by steps on random pixels.

    Args:
        config: the recipe, which leaves the side open.
        plan: how it is done here.
        images: as they were found.
        started: when the budget began, by `time.monotonic`.
        progress: told the choice.
    """
    num_train = len(images.splits.get("train", images.samples))
    if "valid" not in images.splits:
        num_train = max(1, round((1 - config.valid_fraction) * num_train))
    usual = replace(config, image_size=default_image_size(config.model))
    usual = with_augmentation(with_batch_size(usual, num_train, devices=plan.devices))
    plan = replace(plan, micro_batch=whole_micro_batch(usual, plan.devices))
    spec = ModelSpec(
        model=usual.model,
        classes=images.classes,
        image_size=usual.image_size,
        resize=usual.resize,
        in_channels=usual.in_channels,
    )
    steps = max(1, num_train // usual.batch_size)
    what = f"a step of {usual.model} at {usual.image_size} px, asked for {usual.precision}, {usual.memory_format}, "
    what += f"{usual.fast_depthwise}, {usual.max_memory or 'any'} memory: {circumstances(usual, plan)}"
    # What was measured first counts, so that equal runs choose the same.
    seconds = recall().get(what, {}).get("seconds", 0.0)
    if not seconds:
        network = create_model(usual.model, num_classes=len(images.classes), in_channels=usual.in_channels)
        rehearsal = Rehearsal.on_random_pixels(network, spec, usual, plan.micro_batch)
        with explaining_out_of_memory(usual, plan.micro_batch):
            seconds = seconds_of_step(usual, plan, rehearsal, steps_per_epoch=steps, started=started)
        remember(what, {"seconds": round(seconds, 4)})
    decoding = seconds_to_decode(images, spec)
    left = parse_seconds(config.budget) - (time.monotonic() - started)
    # Images that are not kept are decoded in every pass.
    of_pass, once = (seconds * steps + decoding, 0.0) if config.cache == "off" else (seconds * steps, decoding)
    passes = max(0.0, left - once) / of_pass
    side = size_for(passes)
    progress.say(
        f"Takes images of {side} px, because --budget {config.budget} leaves time for about {passes:.2g} passes over "
        f"{counted(num_train, 'training image')} at {usual.image_size} px, at {usual.batch_size / seconds:,.0f} "
        f"images/s; --image-size takes another side."
    )
    return side


def seconds_to_decode(images: LabeledImages, spec: ModelSpec) -> float:
    """About how long it takes to decode all images, by some of them."""
    samples = images.samples[:: max(1, len(images.samples) // _DECODED_TO_TIME)]
    started = time.perf_counter()
    for sample in samples:
        # What cannot be decoded is found when all are looked at.
        with suppress(CarnetError):
            load_image(sample.path, spec)
    return (time.perf_counter() - started) / len(samples) * len(images.samples) / loading_threads()
