"""Networks by name: ours, EfficientNet-Lite0, and any of timm's as `timm/<name>`; and the images they are made for."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from carnet.config import LITE0
from carnet.errors import MissingExtraError, ModelError, is_out_of_memory
from carnet.models.carnet import carnet18
from carnet.models.efficientnet_lite import efficientnet_lite0
from carnet.models.pretrained import read_weights, start_lite0
from carnet.models.residual_carnet import carnet_m, carnet_n, carnet_s
from carnet.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from carnet.spec import IMAGENET_MEAN, IMAGENET_STD, Interpolation, ModelSpec

_TIMM_PREFIX = "timm/"
_BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    **{"carnet_n": carnet_n, "carnet_s": carnet_s, "carnet_m": carnet_m, "carnet18": carnet18, "resnet18": resnet18},
    **{"resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101, "resnet152": resnet152},
    LITE0: efficientnet_lite0,
}
RESIZABLE = ("carnet_n", "carnet_s", "carnet_m")
"""Our networks that were designed for no particular image size."""
_IMAGE_SIZE, _PUBLISHED_IMAGE_SIZE, _LITE0_IMAGE_SIZE = 128, 244, 224


def list_models() -> list[str]:
    """Return the names of the networks, sorted; timm's are available as `timm/<name>`."""
    return sorted(_BUILDERS)


def create_model(
    name: str, *, num_classes: int, in_channels: int = 3, pretrained: bool = False, weights: Path | None = None
) -> nn.Module:
    """Build a network; it maps (N, in_channels, H, W) to logits (N, num_classes). Its head always has random weights.

    Args:
        name: one of `list_models()`, or `timm/<name>` where timm is installed.
        num_classes: number of outputs.
        in_channels: channels of the input.
        pretrained: load published weights: those of efficientnet_lite0 come with the extra `pretrained`, timm's are in
            its cache or on the network.
        weights: a file to load them from instead, in safetensors form or as `torch.save` writes a state dict.

    Raises:
        ModelError: for an unknown name, fewer than one class or channel, or weights that do not exist or do not load.
        MissingExtraError: for a timm model without timm, or pretrained weights whose package is not installed.
    """
    for argument, number in (("num_classes", num_classes), ("in_channels", in_channels)):
        if number < 1:
            raise ModelError(f"{argument} must be at least 1, got {number}")
    if name.startswith(_TIMM_PREFIX):
        return _create_timm(name.removeprefix(_TIMM_PREFIX), num_classes, in_channels, pretrained, weights)
    if name not in _BUILDERS:
        raise _unknown(name)
    network = _BUILDERS[name](num_classes, in_channels)
    if name == LITE0 and (pretrained or weights):
        start_lite0(network, weights)
    elif pretrained or weights:
        flag = "--weights" if weights else "--pretrained"
        raise ModelError(f"{name} has no published weights; leave {flag} out, or take {LITE0} or a timm/ model")
    return network


def default_image_size(name: str) -> int:
    """Return the side of the input, in pixels, that a network is meant for.

    Raises:
        ModelError: for an unknown name.
        MissingExtraError: for a timm model without timm.
    """
    if name.startswith(_TIMM_PREFIX):
        return int(_timm_config(name.removeprefix(_TIMM_PREFIX)).get("input_size", (3, 224, 224))[-1])
    if name not in _BUILDERS:
        raise _unknown(name)
    if name == LITE0:
        return _LITE0_IMAGE_SIZE
    return _IMAGE_SIZE if name in RESIZABLE else _PUBLISHED_IMAGE_SIZE


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers whose shape depends on the classes: the last one; some timm models have two."""
    timm_config = getattr(network, "default_cfg", None)
    names = "linear" if timm_config is None else timm_config["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the input of a network: what its initial weights were trained with.

    Attributes:
        mean: of each input channel, between 0 and 1.
        std: of each input channel.
        interpolation: filter that resizes images.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"

    @classmethod
    def of(cls, spec: ModelSpec) -> Preprocessing:
        """Return that of a trained model."""
        return cls(spec.mean, spec.std, spec.interpolation)

    def spec(self, **fields: Any) -> ModelSpec:
        """Return the spec of a network whose images are prepared in this way; `fields` are those of `ModelSpec`."""
        return ModelSpec(mean=self.mean, std=self.std, interpolation=self.interpolation, **fields)

    def for_channels(self, number: int) -> Preprocessing:
        """Return it for images of 1 channel (the average over the three colours) or 4 (a half for opacity)."""
        if number == 1:
            return replace(self, mean=(fmean(self.mean),), std=(fmean(self.std),))
        opacity = (0.5,) * (number - len(self.mean))
        return replace(self, mean=self.mean + opacity, std=self.std + opacity)


def preprocessing_of(name: str, in_channels: int = 3, *, pretrained: bool = False) -> Preprocessing:
    """Return the preprocessing that a network is made for.

    Args:
        name: as `create_model` takes it.
        in_channels: channels of the input.
        pretrained: whether it starts from timm's weights, whose interpolation counts then.

    Raises:
        ModelError, MissingExtraError: as `create_model`.
    """
    own = Preprocessing()
    if name == LITE0:
        own = Preprocessing((127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    elif name.startswith(_TIMM_PREFIX):
        config = _timm_config(name.removeprefix(_TIMM_PREFIX))
        # Random weights have no filter that they expect; of others than these two, timm has only "random".
        is_bicubic = pretrained and config.get("interpolation") == "bicubic"
        own = Preprocessing(
            tuple(config.get("mean", own.mean)),
            tuple(config.get("std", own.std)),
            "bicubic" if is_bicubic else "bilinear",
        )
    return own.for_channels(in_channels)


def _timm_config(name: str) -> dict[str, Any]:
    """Return what timm says about the weights of a network.

    Raises:
        ModelError: if timm has no such network.
        MissingExtraError: without timm.
    """
    timm = _import_timm(name)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {} if config is None else dict(config.to_dict())


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise MissingExtraError(f"model {_TIMM_PREFIX}{name}", "timm", "timm") from None
    if not timm.is_model(name):
        raise ModelError(f"timm {timm.__version__} has no model {name!r}; {_nearest(name, timm.list_models())}")
    return timm


def _create_timm(name: str, num_classes: int, in_channels: int, pretrained: bool, weights: Path | None) -> nn.Module:
    timm = _import_timm(name)
    create = partial(timm.create_model, name, num_classes=num_classes, in_chans=in_channels)
    try:
        if weights:
            network: nn.Module = create()
            # timm would read the file by its own rules, and go on with random weights where a layer is missing.
            tensors = read_weights(weights)
            heads = tuple(f"{head}." for head in head_names(network))
            if missing := [key for key in network.state_dict() if key not in tensors and not key.startswith(heads)]:
                raise ModelError(
                    f"the weights in {weights} are not those of {_TIMM_PREFIX}{name}: {missing[0]} is missing"
                )
            if unknown := [key for key in tensors if key not in network.state_dict() and not key.startswith(heads)]:
                raise ModelError(
                    f"the weights in {weights} are not those of {_TIMM_PREFIX}{name}: it has no {unknown[0]}"
                )
            plain, network = (
                network,
                create(pretrained=True, pretrained_cfg_overlay={"state_dict": tensors, "source": ""}),
            )
            # timm's description of the weights would hold the tensors themselves.
            network.pretrained_cfg, network.default_cfg = plain.pretrained_cfg, plain.default_cfg
        else:
            network = create(pretrained=pretrained)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if is_out_of_memory(error) or isinstance(error, ModelError):
            raise
        # timm and its hub client raise these without a network connection, or for a model without weights.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if weights:
            raise ModelError(f"the weights in {weights} do not fit {_TIMM_PREFIX}{name} ({reason})") from error
        raise ModelError(
            f"timm could not load weights for {name!r} ({reason}); name a file of them with --weights, or leave "
            "--pretrained out"
        ) from error
    return network


def _unknown(name: str) -> ModelError:
    return ModelError(f"unknown model {name!r}; {_nearest(name, list_models())} timm's models are timm/NAME")


def _nearest(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    return f"available: {', '.join(known[:8])}{' …' if len(known) > 8 else ''};"
