"""The initial weights of a run: random, pretrained or another run's; and the head that is fitted to their features."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from carnet.config import ResolvedConfig, TrainingConfig
from carnet.data.scanned import ScannedImages
from carnet.errors import ConfigError, ModelError, RunError
from carnet.files import digest_of
from carnet.models.registry import Preprocessing, create_model, preprocessing_of
from carnet.models.weights import check_start, compute_exactly, on_threads, start_from
from carnet.spec import ModelSpec
from carnet.text import Progress, counted, duration, parse_seconds
from carnet.training.features import linear_head, network_features
from carnet.training.head import start_head
from carnet.training.memory import allowed_bytes, keep_freed_memory
from carnet.training.optim import has_patches
from carnet.training.pipeline import Pipeline

_OF_STEPS = ("epochs", "patience", "batch_size", "optimizer", "lr", "min_crop", "cutmix", "compile", "frozen_share")
"""Fields that mean nothing where no step is taken."""


def check_freeze(requested: TrainingConfig, network: nn.Module, *, is_trained: bool) -> None:
    """Check that what was requested suits --freeze.

    Raises:
        ConfigError: if the initial weights are random, or another flag contradicts it.
        ModelError: if the network does not end in one linear layer.
    """
    if not is_trained:
        raise ConfigError(
            "--freeze keeps trained weights, and these are random; take --model efficientnet_lite0, "
            "--model timm/NAME --pretrained, or --init RUN"
        )
    if requested.devices > 1:
        raise ConfigError("--freeze computes features in one process; leave --devices out")
    if requested.stream:
        raise ConfigError("--freeze reads each image once, and keeps its features; leave --stream out")
    if requested.in_channels == 4 and requested.is_pretrained:
        raise ConfigError(
            "--freeze would not see the opacity, which pretrained weights do not know; take --in-channels 3"
        )
    given = [name for name in _OF_STEPS if getattr(requested, name) not in (None, False, 0)]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"--freeze fits a head without training steps; leave {flag} out, or --freeze")
    linear_head(network, requested.model)


def pretrained_network(config: TrainingConfig, num_classes: int) -> nn.Module:
    """Return a network with the pretrained weights that the config names, if it names any, and a random head.

    Raises:
        ModelError, MissingExtraError: as `create_model`.
    """
    return create_model(
        config.model,
        num_classes=num_classes,
        in_channels=config.in_channels,
        pretrained=config.is_pretrained,
        weights=None if config.weights is None else Path(config.weights).expanduser(),
    )


def initial_preprocessing(config: TrainingConfig, init: Path | str | None) -> Preprocessing:
    """Return what the initial weights were trained with."""
    if init is not None and not isinstance(config, ResolvedConfig):
        return Preprocessing.of(check_start(config.model, config.in_channels, init))
    own = preprocessing_of(config.model, config.in_channels, pretrained=config.is_pretrained)
    if isinstance(config, ResolvedConfig):
        # A resumed run goes on as it began.
        return Preprocessing(config.mean or own.mean, config.std or own.std, config.interpolation)
    return own


def needs_head(network: nn.Module, spec: ModelSpec, requested: TrainingConfig, init: Path | str | None) -> bool:
    """Return whether the head of a network with trained weights is new, and can be fitted to its features."""
    if requested.stream or (
        init is not None and check_start(spec.model, spec.in_channels, init).classes == spec.classes
    ):
        return False
    pixels = np.zeros((1, spec.image_size, spec.image_size, spec.in_channels), np.uint8)
    with suppress(ModelError):
        network_features(network, spec)(pixels)
        return True
    return False


def fit_first_head(
    network: nn.Module,
    spec: ModelSpec,
    images: ScannedImages,
    pipeline: Pipeline,
    config: ResolvedConfig,
    *,
    progress: Progress,
    started: float | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fit the head of a network with trained weights to its features; return what `config.json` records of it.

    `started` is when the budget began, by `time.monotonic`. A resumed run fits the head again as it is `recorded`.
    """
    begun = time.monotonic()
    left = None if config.budget is None or started is None else parse_seconds(config.budget) - (begun - started)
    if config.keep_memory:
        keep_freed_memory()
    compute_exactly()
    # The last digits depend on the number of threads.
    threads = config.threads if recorded is None else recorded["threads"]
    progress.say(f"Computes the features of {counted(len(images.data.splits['train']), 'image')} with {config.model} …")
    with on_threads(threads):
        head = start_head(
            network,
            spec,
            images,
            pipeline,
            device=config.device,
            seed=config.seed,
            progress=progress,
            seconds_left=left,
            left_bytes=allowed_bytes(config.max_memory, config.device),
            recorded=recorded,
        )
    return head.to_json() | {"threads": threads, "seconds": round(max(0.001, time.monotonic() - begun), 3)}


def check_weights(config: TrainingConfig, record: Mapping[str, Any]) -> None:
    """Check that the file of initial weights is the one that a resumed run began with.

    Raises:
        RunError: if it is not.
    """
    if config.weights is None:
        return
    path = Path(config.weights)
    if not path.is_file() or digest_of(path) != record.get("weights_sha256"):
        raise RunError(f"the run began with the weights in {path}, which are gone or others now; put them back there")


def about_head(head: Mapping[str, Any] | None) -> str:
    """Return a phrase about a head that was fitted to features; empty without one."""
    if head is None:
        return ""
    return (
        f"a head on {counted(head['num_views'], 'view')} of each image, its penalty {head['penalty']:g} chosen by "
        f"cross-validation of {counted(head['num_cross_validated'], 'image')}, in {duration(head['seconds'])}"
    )


def new_network(
    config: TrainingConfig,
    image_size: int,
    classes: tuple[str, ...],
    init: Path | str | None,
    *,
    is_resumed: bool = False,
) -> tuple[nn.Module, ModelSpec, str]:
    """Return a network with its initial weights (of another run, pretrained or random), its spec, and a message.

    A checkpoint replaces the weights of a run that `is_resumed`, so that pretrained ones are not loaded.
    """
    torch.manual_seed(config.seed)
    if is_resumed or init is not None:
        network = create_model(config.model, num_classes=len(classes), in_channels=config.in_channels)
    else:
        network = pretrained_network(config, len(classes))
    spec = initial_preprocessing(config, init).spec(
        model=config.model,
        classes=classes,
        image_size=image_size,
        resize=config.resize,
        in_channels=config.in_channels,
    )
    if init is not None:
        return network, spec, start_from(network, spec, init)
    if config.is_pretrained:
        source = f"the weights in {config.weights}" if config.weights else "pretrained weights"
        return network, spec, f"starts from {source}"
    whitened = " and a whitened first layer" if has_patches(network) else ""
    return network, spec, f"starts from random weights{whitened}"
