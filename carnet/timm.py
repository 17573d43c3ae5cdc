"""Our networks in timm: after `import carnet.timm`, `timm.create_model("carnet_s")` builds them as timm's own.

They are the networks of `carnet.create_model`, with the same names of weights, and have what timm expects besides: the
features of each stage, a head that can be replaced, a description of the input. The published ResNets are named
`carnet_resnet18` and so on, because timm has others of their names. No weights come with them; those of a run are
loaded from a folder (`local-dir:`) or the Hub (`hf-hub:`) that `carnet card` or `carnet push` has written.

What timm expects was read in its documentation, and in the tests of its own networks.
"""

# Without postponed annotations, which a traced network cannot be scripted with.
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carnet.errors import MissingExtraError
from carnet.models import carnet, residual_carnet, resnet
from carnet.spec import IMAGENET_MEAN, IMAGENET_STD

try:
    from timm.layers import create_classifier
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._features import feature_take_indices
except ModuleNotFoundError:
    raise MissingExtraError("carnet.timm", "timm", "timm") from None


@dataclass(frozen=True)
class _Head:
    """What timm's users may ask of every network."""

    num_classes: int = 1000
    in_chans: int = 3
    global_pool: str = "avg"
    drop_rate: float = 0.0


class _Timm(nn.Module):
    """What timm expects of a network whose head is a mean and the layer `linear`.

    Attributes:
        num_features: channels of the features, and of their mean.
        feature_info: of each stage its channels, the distance of two of its places in pixels, and its name.
    """

    def _complete(self, reductions: Sequence[int], head: _Head) -> None:
        """Add what the network itself does not have, at the end of its constructor."""
        self.in_chans, self.drop_rate = head.in_chans, head.drop_rate
        self.num_features = self.head_hidden_size = self.linear.in_features
        self.feature_info = [
            {"num_chs": _out_channels(stage), "reduction": reduction, "module": name}
            for (name, stage), reduction in zip(self._stages(), reductions, strict=True)
        ]
        self.reset_classifier(head.num_classes, head.global_pool)

    @torch.jit.ignore
    def _stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages and their names."""
        raise NotImplementedError

    def _stem(self, x: Tensor) -> Tensor:
        """Compute what comes before the stages."""
        raise NotImplementedError

    def _end(self, x: Tensor) -> Tensor:
        """Compute what comes after them."""
        return x

    @torch.jit.ignore
    def _keep_stages(self, number: int) -> None:
        """Remove the later stages."""
        raise NotImplementedError

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head: another number of classes (0: none), another pooling ("": none; None: as before)."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.linear = create_classifier(self.num_features, num_classes, pool_type=pool)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.linear

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, C, H, W) -> (N, num_classes), or with `pre_logits` (N, C)."""
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes)"""
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def forward_intermediates(  # noqa: PLR0917 - as timm calls it
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the features and those of the stages, or only the latter.

        Args:
            x: images (N, in_chans, H, W).
            indices: numbers of the stages; one number: so many last ones; None: all.
            norm: apply what follows the last stage to its features.
            stop_early: compute no stage beyond the last of `indices`.
            output_fmt: NCHW; the features have no other form.
            intermediates_only: leave out the features.
        """
        assert output_fmt == "NCHW", "the features have the form NCHW"
        stages = self._stages()
        taken, last = feature_take_indices(len(stages), indices)
        x = self._stem(x)
        intermediates = []
        for place, (_, stage) in enumerate(stages[: last + 1] if stop_early else stages):
            x = stage(x)
            end = self._end(x) if place == len(stages) - 1 else x
            if place in taken:
                intermediates.append(end if norm else x)
            x = end
        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages beyond the last of `indices`, and the head; return the indices."""
        taken, last = feature_take_indices(len(self._stages()), indices)
        is_shorter = last < len(self._stages()) - 1
        self._keep_stages(last + 1)
        if is_shorter:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or is_shorter:
            self.reset_classifier(0, "")
        return taken


def _out_channels(stage: nn.Module) -> int:
    return [one for one in stage.modules() if isinstance(one, nn.Conv2d)][-1].out_channels


class _Published(_Timm):
    """The published networks: a convolution, and the stages `layer1` to `layer4`."""

    @torch.jit.ignore
    def _stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages and their names."""
        return [(name, stage) for name, stage in self.named_children() if name.startswith("layer")]

    @torch.jit.ignore
    def _keep_stages(self, number: int) -> None:
        """Remove the later stages."""
        for name, _ in self._stages()[number:]:
            delattr(self, name)

    def _stem(self, x: Tensor) -> Tensor:
        """Compute what comes before the stages."""
        return F.relu(self.bn1(self.conv1(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, C, H', W')"""
        x = self.layer2(self.layer1(self._stem(x)))
        return self.layer4(self.layer3(x))

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return which weights belong together, for learning rates that depend on the depth."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


class CARNet(_Published, carnet.CARNet):
    """The published network."""

    def __init__(self, depths: Sequence[int], **given: Any) -> None:
        head = _Head(**given)
        super().__init__(depths, max(1, head.num_classes), head.in_chans)
        self._complete((1, 2, 4, 8), head)


class ResNet(_Published, resnet.ResNet):
    """The published ResNets, whose stem is smaller than that of timm's."""

    def __init__(self, block: type[Any], depths: Sequence[int], **given: Any) -> None:
        head = _Head(**given)
        super().__init__(block, depths, max(1, head.num_classes), head.in_chans)
        self._complete((1, 2, 4, 8), head)


class ResidualCARNet(_Timm, residual_carnet.ResidualCARNet):
    """The second generation."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], **given: Any) -> None:
        head = _Head(**given)
        super().__init__(widths, depths, max(1, head.num_classes), head.in_chans)
        self._complete((4, 8, 16, 32), head)

    @torch.jit.ignore
    def _stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages and their names."""
        return [(f"stages.{number}", stage) for number, stage in enumerate(self.stages)]

    @torch.jit.ignore
    def _keep_stages(self, number: int) -> None:
        """Remove the later stages."""
        self.stages = self.stages[:number]

    def _stem(self, x: Tensor) -> Tensor:
        """Compute what comes before the stages."""
        return self.stem(x)

    def _end(self, x: Tensor) -> Tensor:
        """Compute what comes after them."""
        return F.relu(x)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return which weights belong together, for learning rates that depend on the depth."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}


_NETWORKS: dict[str, tuple[type[_Timm], dict[str, Any]]] = {
    **{name: (ResidualCARNet, {"widths": w, "depths": d}) for name, (w, d) in residual_carnet.SIZES.items()},
    "carnet18": (CARNet, {"depths": (2, 2, 2, 2)}),
    **{
        f"carnet_{name}": (ResNet, {"block": block, "depths": depths}) for name, (block, depths) in resnet.SIZES.items()
    },
}


def _input(kind: type[_Timm]) -> dict[str, Any]:
    side, places, smallest, first = {
        ResidualCARNet: (128, 4, 32, "stem.0"),
        CARNet: (244, 25, 64, "conv1"),
        ResNet: (244, 31, 32, "conv1"),
    }[kind]
    return {
        **{"num_classes": 1000, "input_size": (3, side, side), "pool_size": (places, places), "crop_pct": 1.0},
        **{"interpolation": "bilinear", "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "license": "apache-2.0"},
        **{"first_conv": first, "classifier": "linear", "min_input_size": (3, smallest, smallest)},
    }


default_cfgs = generate_default_cfgs({name: _input(kind) for name, (kind, _) in _NETWORKS.items()})
"""Where timm looks for the description of the inputs."""


def _entry(name: str, kind: type[_Timm], sizes: dict[str, Any]) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **given: Any) -> nn.Module:
        features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
        network: nn.Module = build_model_with_cfg(kind, name, pretrained, feature_cfg=features, **sizes, **given)
        return network

    # timm registers a function under its name, and looks for `default_cfgs` in its module.
    build.__name__ = build.__qualname__ = name
    return build


for _name, (_kind, _sizes) in _NETWORKS.items():
    register_model(_entry(_name, _kind, _sizes))
