"""Save weights together with what they need, load them onto a device, predict and evaluate with them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from carnet import files, metrics
from carnet.config import Device
from carnet.documents import CHECKSUM, DocumentError, unsealed
from carnet.errors import ConfigError, ModelError, RunError, is_out_of_memory
from carnet.explanation import Explanation, explain
from carnet.hub_models import fetch, is_hub_model
from carnet.machine import processor_name
from carnet.models.class_maps import Centres, Features, map_centres, mean_and_linear_head
from carnet.models.registry import create_model, head_names, preprocessing_of
from carnet.models.summary import check_image_size
from carnet.models.tensors import pack, read_metadata, unpack
from carnet.prediction import Predictor
from carnet.preprocess import Images, ImageSource
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.text import quoted

_WEIGHTS_METADATA = {"format": "pt"}
_INFO = {"params", "epoch", "metrics"}
"""Entries of `model.json` besides the spec."""
MAX_WEIGHTS_BYTES = 16 * 2**30
_COPY_AGAIN = "copy it again from where the run was made"


class TrainedModel(Predictor):
    """A network with its weights and its spec. Evaluates in float32.

    Attributes:
        network: in evaluation mode.
        spec: classes, image size, normalisation.
        info: the rest of `model.json`: parameters, epoch, metrics.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec, info: Mapping[str, Any] | None = None) -> None:
        self.network = network.eval()
        self.spec = spec
        self.info = dict(info or {})

    def logits(self, images: Images) -> NDArray[np.float32]:
        """uint8 images (N, S, S, C) -> logits (N, classes)."""
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            answer = self.network(normalize_on(device, torch.from_numpy(images), self.spec))
        return np.asarray(answer.float().cpu().numpy(), dtype=np.float32)

    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """uint8 images (N, S, S, C) -> probabilities (N, classes); they are not calibrated."""
        return metrics.softmax(self.logits(images))

    @cached_property
    def _head(self) -> tuple[nn.Linear, Centres] | None:
        """The last layer, and where the class maps look; None if the head is not a mean and a linear layer."""
        network = copy.deepcopy(self.network).cpu().to(memory_format=torch.contiguous_format)
        head = mean_and_linear_head(network, self.spec)
        return None if head is None else (head, map_centres(network, self.spec))

    @property
    def map_centres(self) -> Centres | None:
        """Where each row, and each column, of the class maps looks, in pixels of the input; None without class maps."""
        return None if self._head is None else self._head[1]

    def class_maps(self, images: Images) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """uint8 images (N, S, S, C) -> probabilities (N, classes) and class maps (N, classes, h, w).

        Raises:
            ModelError: if the network has none, or they are not numbers.
        """
        if self._head is None:
            raise ModelError(f"{self.spec.model} has no class maps: its head is not a mean and a linear layer")
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            pixels = normalize_on(device, torch.from_numpy(images), self.spec)
            features = cast(Features, self.network.forward_features)(pixels).float().cpu()
            head = self._head[0]
            maps = F.conv2d(features, head.weight[:, :, None, None])
            logits = head(features.mean(dim=(2, 3)))
        if not maps.isfinite().all():
            raise ModelError(f"{self.spec.model} has class maps that are not numbers; train it again")
        return metrics.softmax(logits.numpy()), maps.numpy()

    def explain(self, source: ImageSource, label: str | None = None, top_k: int | None = None) -> Explanation:
        """Show where in an image a class is seen: `carnet.explanation.explain` with this model."""
        return explain(self, source, label, top_k)

    def __getstate__(self) -> dict[str, Any]:
        # The weights alone, so that another process may compute them on another device.
        device = next(self.network.parameters()).device.type
        return {"spec": self.spec, "info": self.info, "weights": pack(self.network.state_dict(), {}), "device": device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device: str = "cpu"
        with suppress(ConfigError):
            device = choose_device(state["device"])
        network = _network_of(state["spec"])
        network.load_state_dict(unpack(state["weights"]))
        self.__init__(_placed(network, device), state["spec"], state["info"])  # type: ignore[misc]


def _network_of(spec: ModelSpec) -> nn.Module:
    return create_model(spec.model, num_classes=spec.num_classes, in_channels=spec.in_channels)


def _placed(network: nn.Module, device: str) -> nn.Module:
    """Move a network to a device, where float32 stays float32."""
    compute_exactly()
    return network.to(device).to(memory_format=torch.channels_last)


def normalize_on(device: torch.device, images: Tensor, spec: ModelSpec) -> Tensor:
    """uint8 (N, S, S, C) -> float32 (N, C, S, S) on `device`, in channels-last layout except on Apple's GPUs."""
    number, height, width, channels = images.shape
    # A whole row of pixels at a time, because PyTorch is slow where the innermost dimension has three elements.
    mean, std = (torch.tensor(values, device=device).repeat(width) for values in (spec.mean, spec.std))
    rows = images.to(device).reshape(number, height, width * channels).float().div_(255).sub_(mean).div_(std)
    # Stored as (N, S, S, C), so the permuted view already is channels-last: no copy is made.
    pixels = rows.view(number, height, width, channels).permute(0, 3, 1, 2)
    # On Apple's GPUs, PyTorch's gradients of channels-last batch norm are wrong.
    return pixels.contiguous() if device.type == "mps" else pixels


def save_model(run: RunFolder, network: nn.Module, spec: ModelSpec, info: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `model.json`, each whole or not at all, and each with its own checksum.

    Raises:
        OutputError: if the folder cannot be written.
    """
    files.write_bytes(run.weights, pack(network.state_dict(), _WEIGHTS_METADATA))
    files.write_json(run.model, spec.to_json() | dict(info), seal=True)


def load(run: Path | str, *, device: str | None = "cpu") -> TrainedModel:
    """Load the model of a run folder. Never executes code from a file.

    Switches PyTorch's reduced precision (TF32) off, so that evaluation is float32 on every device.

    Args:
        run: the folder.
        device: cpu, cuda or mps; None and auto take a GPU where there is one.

    Raises:
        ConfigError: if the device is not available.
        RunError: if the folder is no run, has no model yet, a file of it is damaged, or its weights do not fit its
            description.
    """
    folder = RunFolder.open(run)
    if not folder.weights.exists() or not folder.model.exists():
        raise RunError(f"{run} has no model yet; continue with carnet train --resume {quoted(run)}")
    spec, info = _read_description(folder)
    network = create_model(spec.model, num_classes=spec.num_classes, in_channels=spec.in_channels)
    try:
        network.load_state_dict(_read_weights(folder.weights))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise RunError(f"{folder.weights} does not fit {folder.model} ({spec.model})") from error
    return TrainedModel(_placed(network, choose_device(device)), spec, info)


def untrained(
    name: str, image_size: int, *, num_classes: int, in_channels: int = 3, device: str | None = "cpu"
) -> TrainedModel:
    """Return a network with random weights, which costs what a trained one does.

    Raises:
        ModelError, MissingExtraError: as `create_model`, or if the network cannot take images of this side.
        ConfigError: if the device is not available.
    """
    network = create_model(name, num_classes=num_classes, in_channels=in_channels)
    check_image_size(network, name, image_size, in_channels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            # Our blocks start with a scale of zero, after which a runtime may find nothing to compute.
            nn.init.ones_(module.weight)
    spec = preprocessing_of(name, in_channels).spec(
        model=name, classes=tuple(map(str, range(num_classes))), image_size=image_size, in_channels=in_channels
    )
    return TrainedModel(_placed(network, choose_device(device)), spec)


def start_from(network: nn.Module, spec: ModelSpec, run: Path | str) -> str:
    """Copy another run's weights into a network, and return a clause that says what was copied.

    The head is copied too, if both have the same classes in the same order.

    Raises:
        RunError: if the run holds another model.
    """
    source = check_start(spec.model, spec.in_channels, run)
    file = _start_file(run, "model.safetensors")
    weights = _read_weights(file)
    same_classes = source.classes == spec.classes
    if not same_classes:
        heads = tuple(f"{name}." for name in head_names(network))
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(heads)}
    unfit = RunError(f"{file} does not fit {source.model}")
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise unfit from error
    if unexpected or (same_classes and missing):
        raise unfit
    kept = "with its head (same classes)" if same_classes else "with a new head (other classes)"
    return f"starts from the weights of {run}, {kept}"


def check_start(model: str, in_channels: int, run: Path | str) -> ModelSpec:
    """Return the spec of a run to start from; a model of the Hub and a folder of `carnet card` count as runs.

    Raises:
        RunError: if it has no model, or another one, or one for images with other channels.
        HubError: as `carnet.hub_models.fetch`.
    """
    if is_hub_model(run) or _is_card(run):
        source = _described_by_card(_start_file(run, "config.json"))
    else:
        folder = RunFolder.open(run)
        if not folder.weights.exists():
            raise RunError(f"{run} has no model yet to start from")
        source, _ = _read_description(folder)
    if source.model != model:
        raise RunError(f"{run} is a {source.model}, not a {model}; add --model {source.model}")
    if source.in_channels != in_channels:
        raise RunError(f"{run} takes images of {source.in_channels} channels; add --in-channels {source.in_channels}")
    return source


def _is_card(run: Path | str) -> bool:
    """Return whether a folder is one that `carnet card` has written, and no run."""
    return (Path(run) / "config.json").is_file() and not (Path(run) / "data.csv").exists()


def _start_file(run: Path | str, name: str) -> Path:
    return fetch(run, name) if is_hub_model(run) else Path(run) / name


def _described_by_card(path: Path) -> ModelSpec:
    """Read the spec in the `config.json` of a card."""
    document = files.read_json(path, dict[str, Any])
    if not isinstance(document.get("carnet"), dict):
        raise RunError(f"{path} was not written by carnet card or carnet push, and describes no model of ours")
    return ModelSpec.from_json(document["carnet"])


def _read_description(run: RunFolder) -> tuple[ModelSpec, dict[str, Any]]:
    """Read `model.json`: the spec, and the rest."""
    document = files.read_json(run.model, dict[str, Any])
    try:
        values, has_checksum = unsealed(document)
        spec = ModelSpec.from_json(values)
        info = {name: value for name, value in values.items() if name not in vars(spec) and name != "format"}
        # Runs from before there were checksums have no other entries; otherwise the checksum's name was damaged.
        if not has_checksum and (unknown := info.keys() - _INFO):
            raise DocumentError(f"it has unknown entries: {', '.join(sorted(unknown))}")
    except (DocumentError, RunError) as error:
        raise RunError(f"cannot read {run.model}: {error}; {_COPY_AGAIN}") from error
    return spec, info


def _read_weights(path: Path) -> dict[str, Tensor]:
    content = files.read_whole(path, MAX_WEIGHTS_BYTES)
    try:
        metadata = read_metadata(content)
        if CHECKSUM not in metadata and metadata not in ({}, _WEIGHTS_METADATA):
            # Older runs have no checksum and no other metadata; otherwise the checksum's name was damaged.
            raise DocumentError("it has unknown metadata")
        return unpack(content)
    except DocumentError as error:
        raise RunError(f"cannot read {path}: {error}; {_COPY_AGAIN}") from error


def choose_device(wish: str | None) -> Device:
    """Return the device that was asked for: cpu, cuda or mps; None and auto take a GPU where there is one.

    Raises:
        ConfigError: if the device is not available.
    """
    usable: list[Device] = ["cuda"] if torch.cuda.is_available() else []
    usable += ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]
    for name in usable:
        if wish in (None, "auto", name):
            return name
    raise ConfigError(f"--device {wish} is not available here; PyTorch sees: {', '.join(usable)}")


def device_name(device: str) -> str:
    """Return the product name of a device: cpu, cuda or mps."""
    return torch.cuda.get_device_name() if device == "cuda" else processor_name()


def compute_exactly() -> None:
    """Keep float32 arithmetic float32 on NVIDIA GPUs, whose convolutions otherwise round to 10 bits (TF32)."""
    with warnings.catch_warnings():
        # Some versions recommend another way, after which torch.export and torch.compile fail to read the setting.
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Let PyTorch compute on this number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
