"""Models by name: ours, and any of timm's as `timm/<name>`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from statistics import fmean

from torch import nn

from carnet.errors import MissingExtraError, ModelError, is_out_of_memory
from carnet.models.carnet import carnet18
from carnet.models.residual_carnet import carnet_m, carnet_n, carnet_s
from carnet.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from carnet.spec import IMAGENET_MEAN, IMAGENET_STD

_TIMM_PREFIX = "timm/"
_BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    **{"carnet_n": carnet_n, "carnet_s": carnet_s, "carnet_m": carnet_m, "carnet18": carnet18, "resnet18": resnet18},
    **{"resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101, "resnet152": resnet152},
}
RESIZABLE = ("carnet_n", "carnet_s", "carnet_m")
"""Our networks that were designed for no particular image size."""
_IMAGE_SIZE, _PUBLISHED_IMAGE_SIZE = 128, 244


def list_models() -> list[str]:
    """Return the names of our own models, sorted; timm's are available as `timm/<name>`."""
    return sorted(_BUILDERS)


def create_model(name: str, *, num_classes: int, in_channels: int = 3, pretrained: bool = False) -> nn.Module:
    """Build a network with freshly initialised weights; it maps (N, in_channels, H, W) to logits (N, num_classes).

    Args:
        name: one of `list_models()`, or `timm/<name>` where timm is installed.
        num_classes: number of outputs.
        in_channels: channels of the input.
        pretrained: load timm's published weights, with a new head; needs a network connection.

    Raises:
        ModelError: for an unknown name, fewer than one class or channel, or weights that do not exist or do not load.
        MissingExtraError: for a timm model without timm.
    """
    for argument, number in (("num_classes", num_classes), ("in_channels", in_channels)):
        if number < 1:
            raise ModelError(f"{argument} must be at least 1, got {number}")
    if name.startswith(_TIMM_PREFIX):
        return _create_timm(name.removeprefix(_TIMM_PREFIX), num_classes, in_channels, pretrained)
    if name not in _BUILDERS:
        raise _unknown(name)
    if pretrained:
        raise ModelError(f"{name} has no published weights; leave --pretrained out, or take a timm/ model")
    return _BUILDERS[name](num_classes, in_channels)


def default_image_size(name: str) -> int:
    """Return the side of the input, in pixels, that a network is meant for.

    Raises:
        ModelError: for an unknown name.
        MissingExtraError: for a timm model without timm.
    """
    if name.startswith(_TIMM_PREFIX):
        network = create_model(name, num_classes=2)
        return int(getattr(network, "default_cfg", {}).get("input_size", (3, 224, 224))[-1])
    if name not in _BUILDERS:
        raise _unknown(name)
    return _IMAGE_SIZE if name in RESIZABLE else _PUBLISHED_IMAGE_SIZE


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers whose shape depends on the classes: the last one; some timm models have two."""
    timm_config = getattr(network, "default_cfg", None)
    names = "linear" if timm_config is None else timm_config["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def normalization(network: nn.Module, in_channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each input channel: ImageNet's, or what the weights of a timm model expect.

    A grey channel gets the average over the three colours, an opacity channel a half.
    """
    timm_config = getattr(network, "pretrained_cfg", None) or {}
    mean, std = (tuple(timm_config.get(key, own)) for key, own in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    if in_channels == 1:
        return (fmean(mean),), (fmean(std),)
    opacity = (0.5,) * (in_channels - len(mean))
    return mean + opacity, std + opacity


def _create_timm(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise MissingExtraError(f"model {_TIMM_PREFIX}{name}", "timm", "timm") from None
    if not timm.is_model(name):
        raise ModelError(f"timm {timm.__version__} has no model {name!r}; {_nearest(name, timm.list_models())}")
    try:
        network: nn.Module = timm.create_model(
            name, num_classes=num_classes, in_chans=in_channels, pretrained=pretrained
        )
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        # timm and its hub client raise these without a network connection, or for a model without weights.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"timm could not load weights for {name!r} ({reason}); leave --pretrained out") from error
    return network


def _unknown(name: str) -> ModelError:
    return ModelError(f"unknown model {name!r}; {_nearest(name, list_models())} timm's models are timm/NAME")


def _nearest(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    return f"available: {', '.join(known[:8])}{' …' if len(known) > 8 else ''};"
