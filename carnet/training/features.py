"""Features of images by a model that stays as it is, computed once and kept in the cache by content.

An image has several views: as it is evaluated, mirrored, and cut out at random. The features of a view follow from the
network's weights, the bytes of the image's file and the number of the view alone, so that another run, or one with ten
more photos, computes only what is new.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import __version__
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from carnet import files
from carnet.data.cache import UNUSED_DAYS, cache_root
from carnet.documents import DocumentError
from carnet.errors import ModelError, OutputError
from carnet.machine import load_ahead, loading_threads
from carnet.models.registry import head_names
from carnet.models.tensors import pack, read_metadata, unpack
from carnet.models.weights import normalize_on
from carnet.preprocess import Images
from carnet.spec import ModelSpec
from carnet.text import OnProgress
from carnet.training.augment import Augmentation, Change
from carnet.training.memory import peak_anonymous_bytes

Features = NDArray[np.float32]
Value = TypeVar("Value")

_FORMAT = 2
"""Version of the kept features; a new number computes all anew."""
_CHUNK = 2048
"""Images in one file of the cache: what a stop may lose."""
BATCH = 32
SMALLEST_CROP = 0.5
"""Share of the area that a view for a head cuts out at least. Smaller crops show what the whole image does not."""
_WHOLE, _MIRRORED = 0, 1
_BATCHES_UNDER_WAY = 3
"""Of decoded images: see `carnet.machine.load_ahead`."""
_MAX_CHUNK_BYTES = 2**31


@dataclass(frozen=True)
class Photo:
    """An image whose features are wanted.

    Attributes:
        digest: SHA-256 of its file.
        load: returns its pixels, uint8 (S, S, C), as they are evaluated.
    """

    digest: str
    load: Callable[[], Images]


def linear_head(network: nn.Module, name: str) -> nn.Linear:
    """Return the last layer of a network.

    Raises:
        ModelError: if it is not one linear layer.
    """
    names = head_names(network)
    head = None
    with suppress(AttributeError):
        head = network.get_submodule(names[0]) if len(names) == 1 and names[0] else None
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{name} does not end in one linear layer, which a start from its features needs")
    return head


@contextmanager
def _catching_input(head: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that receives what the last layer is given."""
    caught: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        yield caught
    finally:
        handle.remove()


def network_features(network: nn.Module, spec: ModelSpec) -> Callable[[Images], Features]:
    """Return what computes the features of images with a network: the input of its last layer.

    The network is on the processor or a GPU, and its weights stay as they are.
    """
    network.to(memory_format=torch.channels_last)
    return partial(_features_of, network, spec)


def _features_of(network: nn.Module, spec: ModelSpec, pixels: Images) -> Features:
    """uint8 (N, S, S, C) -> (N, channels)

    Raises:
        ModelError: if the input of the last layer is no vector for each image.
    """
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode(), _catching_input(linear_head(network, spec.model)) as caught:
        network(normalize_on(device, torch.from_numpy(pixels), spec))
    if not caught or caught[-1].dim() != 2:
        raise ModelError(f"{spec.model} has no features of whole images for its last layer")
    return np.asarray(caught[-1].float().cpu().numpy())


def _identity(network: nn.Module) -> str:
    """Return a hash of a network's weights without its last layer, and of the kind of device that computes."""
    heads = tuple(f"{name}." for name in head_names(network))
    digest = hashlib.sha256(next(network.parameters()).device.type.encode())
    for name, tensor in network.state_dict().items():
        if not name.startswith(heads):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes the features of views, and keeps them.

    Attributes:
        forward: computes the features of up to `BATCH` images: uint8 (N, S, S, C) -> (N, channels).
        spec: of its images.
        augmentation: of the views that are cut out at random, by random numbers that follow from the image alone.
        identity: what the features depend on besides images and spec: a hash of the weights.
        min_crop: share of the area that a view cuts out at least.
    """

    forward: Callable[[Images], Features]
    spec: ModelSpec
    augmentation: Augmentation
    identity: str
    min_crop: float = SMALLEST_CROP

    @classmethod
    def of_network(
        cls, network: nn.Module, spec: ModelSpec, augmentation: Augmentation, *, min_crop: float = SMALLEST_CROP
    ) -> FeatureExtractor:
        """Return the extractor of what a network gives its last layer."""
        return cls(network_features(network, spec), spec, augmentation, _identity(network), min_crop)

    def views(self, number: int) -> list[int]:
        """Return the first views of each image: the whole, mirrored (if mirroring is allowed), then crops."""
        return [*self.whole_views, *range(_MIRRORED + 1, number + 2)][:number]

    @property
    def whole_views(self) -> list[int]:
        """The views that show the whole image."""
        return [_WHOLE, *([_MIRRORED] if self.augmentation.flip else [])]

    def seconds_per_image(self) -> float:
        """Time the model on pixels of noise, after one batch to warm up."""
        side, channels = self.spec.image_size, self.spec.in_channels
        pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, channels), np.uint8)
        self.compute(pixels)
        started = time.perf_counter()
        self.compute(pixels)
        return (time.perf_counter() - started) / len(pixels)

    def features(
        self, photos: Sequence[Photo], views: Sequence[int], progress: OnProgress | None = None
    ) -> list[NDArray[np.float16]]:
        """Return the features of some views of each photo: (N, channels) for each view.

        Args:
            photos: which; photos of equal content are computed once.
            views: some of `views`.
            progress: called with the number of views done, and of all that are not in the cache.

        Raises:
            DataError: if an image can no longer be read.
        """
        folders = {view: cache_root() / "features" / self._key(view) for view in views}
        known = {view: _read_chunks(folder, {photo.digest for photo in photos}) for view, folder in folders.items()}
        missing: dict[tuple[int, ...], dict[str, Photo]] = defaultdict(dict)
        for photo in photos:
            if wanted := tuple(view for view in views if photo.digest not in known[view]):
                missing[wanted][photo.digest] = photo
        done, total = 0, sum(len(wanted) * len(unknown) for wanted, unknown in missing.items())
        for wanted, unknown in missing.items():
            for chunk in batched(unknown.values(), max(BATCH, _CHUNK // len(wanted))):
                rows: dict[int, list[NDArray[np.float16]]] = {view: [] for view in wanted}
                load = partial(self._views, views=wanted)
                for images in load_ahead(load, batched(chunk, BATCH), threads=loading_threads()):
                    for place, view in enumerate(wanted):
                        # Rounded, so that features from the cache and new ones are equal.
                        rows[view].append(self.compute(np.stack([each[place] for each in images])).astype(np.float16))
                        done += len(images)
                        if progress is not None:
                            progress(done, total)
                digests = [photo.digest for photo in chunk]
                for view in wanted:
                    values = np.concatenate(rows[view])
                    _write_chunk(folders[view], digests, values)
                    known[view] |= dict(zip(digests, values, strict=True))
        # A view's rows are let go as soon as they are joined, so that no more than one view is held twice.
        return [_joined(known.pop(view), photos) for view in views]

    def seconds_of(self, photos: Sequence[Photo], views: Sequence[int], seconds_per_image: float) -> list[float]:
        """Return how long each view of all photos takes; those that are in the cache take no time."""
        root, wanted = cache_root() / "features", {photo.digest for photo in photos}
        with suppress(OSError):
            _remove_unused(root)
        folders = (root / self._key(view) for view in views)
        return [seconds_per_image * len(wanted - _kept(folder)) for folder in folders]

    def bytes_to_compute(self, photos: Sequence[Photo]) -> int:
        """Return the memory that the features of a batch take while they are computed, measured with some photos."""
        peak = peak_anonymous_bytes(lambda: self.compute(np.stack([photo.load() for photo in photos[:BATCH]])))
        return peak - peak_anonymous_bytes(lambda: None)

    def bytes_ahead(self, num_views: int) -> int:
        """Return the memory that pixels of so many views of the batches under way take."""
        return _BATCHES_UNDER_WAY * BATCH * num_views * self.spec.image_size**2 * self.spec.in_channels

    def change(self, digest: str, view: int) -> Change:
        """Return how a crop is cut out of an image, and changed."""
        return self.augmentation.draw(np.random.default_rng([view, int(digest[:16], 16)]), self.min_crop)

    def _views(self, photo: Photo, views: Sequence[int]) -> list[Images]:
        pixels = photo.load()
        return [self._view(photo, pixels, view) for view in views]

    def _view(self, photo: Photo, pixels: Images, view: int) -> Images:
        if view == _WHOLE:
            return pixels
        if view == _MIRRORED:
            return np.ascontiguousarray(pixels[:, ::-1])
        return self.augmentation.apply(pixels, self.change(photo.digest, view), self.spec.image_size)

    def compute(self, pixels: Images) -> Features:
        """uint8 (N, S, S, C), at most `BATCH` -> (N, channels).

        Raises:
            ModelError: if these are not finite.
        """
        # Kernels round otherwise for another number of images, and features must depend on the image alone.
        whole = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
        whole[: len(pixels)] = pixels
        features = self.forward(whole)[: len(pixels)]
        if not (np.abs(features) <= np.finfo(np.float16).max).all():
            raise ModelError(f"{self.spec.model} has features that are not finite; are its weights damaged?")
        return features

    def _key(self, view: int) -> str:
        """Return what the features of a view depend on besides the images, as a hash."""
        depends_on = {
            "format": _FORMAT,
            "pillow": __version__,
            "identity": self.identity,
            "spec": {key: value for key, value in self.spec.to_json().items() if key not in ("format", "classes")},
            "view": [view, *([asdict(self.augmentation), self.min_crop] if view > _MIRRORED else [])],
        }
        return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]


def num_within(seconds_of_views: Sequence[float], seconds: float) -> int:
    """Return how many of the first views take at most so long together, one at least."""
    return max(1, int((np.cumsum(seconds_of_views) <= seconds).sum()))


def _joined(rows: Mapping[str, NDArray[np.float16]], photos: Sequence[Photo]) -> NDArray[np.float16]:
    return np.stack([rows[photo.digest] for photo in photos])


def batched(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Yield the values in lists of `size`; the last one may be shorter."""
    left = iter(values)
    while part := list(islice(left, size)):
        yield part


def _write_chunk(folder: Path, digests: Sequence[str], values: NDArray[np.float16]) -> None:
    """Keep the features of some images, if the cache can be written."""
    name = hashlib.sha256("".join(digests).encode()).hexdigest()[:32]
    content = pack({"features": torch.from_numpy(values)}, {"digests": " ".join(digests)})
    # The cache only saves time.
    with suppress(OutputError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes(folder / f"{name}.safetensors", content)


def _read_chunks(folder: Path, wanted: set[str]) -> dict[str, NDArray[np.float16]]:
    """Return the kept features of the images with these digests; damaged files count as missing."""
    known: dict[str, NDArray[np.float16]] = {}
    with suppress(OSError):
        _remove_unused(folder.parent)
        for path in sorted(folder.glob("*.safetensors")):
            with suppress(OSError, DocumentError, KeyError, ValueError):
                content = files.read_file(path, _MAX_CHUNK_BYTES)
                digests, values = read_metadata(content)["digests"].split(), unpack(content)["features"].numpy()
                found = {digest: row for digest, row in zip(digests, values, strict=True) if digest in wanted}
                known |= found
                if found:
                    path.touch()
    return known


def _kept(folder: Path) -> set[str]:
    """Return the digests of the images whose features are kept; whether they are whole is not checked."""
    kept: set[str] = set()
    with suppress(OSError):
        for path in folder.glob("*.safetensors"):
            with suppress(OSError, SafetensorError), safe_open(path, framework="np") as file:
                kept.update((file.metadata() or {}).get("digests", "").split())
    return kept


def _remove_unused(root: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for path in root.glob("*/*.safetensors"):
        # Another process may remove it at the same time.
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
