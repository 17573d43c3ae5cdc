"""Features of images by a network whose weights stay as they are, computed once and kept in the cache by content.

An image has several views: as it is evaluated, mirrored, and cut out at random. The features of a view follow from the
network's weights, the bytes of the image's file and the number of the view alone, so that another run, or one with ten
more photos, computes only what is new.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import __version__
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
from carnet.training.augment import Augmentation

Features = NDArray[np.float32]

_FORMAT = 1
"""Version of the kept features; a new number computes all anew."""
_CHUNK = 2048
"""Images in one file of the cache: what a stop may lose."""
BATCH = 32
SMALLEST_CROP = 0.5
"""Share of the area that a view cuts out at least. Smaller crops show things that the whole image does not."""
_WHOLE, _MIRRORED = 0, 1
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


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes the features of views, and keeps them.

    Attributes:
        network: whose weights stay as they are, on the processor or a GPU.
        spec: of its images.
        augmentation: of the views that are cut out at random, by random numbers that follow from the image alone.
    """

    network: nn.Module
    spec: ModelSpec
    augmentation: Augmentation

    def __post_init__(self) -> None:
        self.network.to(memory_format=torch.channels_last)

    def views(self, number: int) -> list[int]:
        """Return the first views of each image: the whole, mirrored (if mirroring is allowed), then crops."""
        allowed = [_WHOLE, *([_MIRRORED] if self.augmentation.flip else []), *range(_MIRRORED + 1, number + 2)]
        return allowed[:number]

    def seconds_per_image(self) -> float:
        """Time the network on pixels of noise, after one batch to warm up."""
        side, channels = self.spec.image_size, self.spec.in_channels
        pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, channels), np.uint8)
        self.compute(pixels)
        started = time.perf_counter()
        self.compute(pixels)
        return (time.perf_counter() - started) / len(pixels)

    def features(self, photos: Sequence[Photo], view: int, progress: OnProgress | None = None) -> Features:
        """Return the features of one view of each photo: (N, channels).

        Args:
            photos: which; photos of equal content are computed once.
            view: one of `views`.
            progress: called with the number of photos done, and of all that are not in the cache.

        Raises:
            DataError: if an image can no longer be read.
        """
        folder = cache_root() / "features" / self._key(view)
        known = _read_chunks(folder, {photo.digest for photo in photos})
        missing = list({photo.digest: photo for photo in photos if photo.digest not in known}.values())
        done = 0
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            rows = []
            work = (chunk[first : first + BATCH] for first in range(0, len(chunk), BATCH))
            for images in load_ahead(lambda photo: self._view(photo, view), work, threads=loading_threads()):
                # Rounded, so that features from the cache and new ones are equal.
                rows.append(self.compute(np.stack(images)).astype(np.float16))
                done += len(images)
                if progress is not None:
                    progress(done, len(missing))
            values = np.concatenate(rows)
            _write_chunk(folder, [photo.digest for photo in chunk], values)
            known |= dict(zip((photo.digest for photo in chunk), values, strict=True))
        return np.stack([known[photo.digest] for photo in photos]).astype(np.float32)

    def _view(self, photo: Photo, view: int) -> Images:
        pixels = photo.load()
        if view == _WHOLE:
            return pixels
        if view == _MIRRORED:
            return np.ascontiguousarray(pixels[:, ::-1])
        rng = np.random.default_rng([view, int(photo.digest[:16], 16)])
        return self.augmentation.apply(pixels, self.augmentation.draw(rng, SMALLEST_CROP), self.spec.image_size)

    def compute(self, pixels: Images) -> Features:
        """uint8 (N, S, S, C), at most `BATCH` -> (N, channels), the input of the last layer.

        Raises:
            ModelError: if that is no vector for each image, or not finite.
        """
        number, device = len(pixels), next(self.network.parameters()).device
        # Kernels round otherwise for another number of images, and features must depend on the image alone.
        whole = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
        whole[:number] = pixels
        self.network.eval()
        with torch.inference_mode(), _catching_input(linear_head(self.network, self.spec.model)) as caught:
            self.network(normalize_on(device, torch.from_numpy(whole), self.spec))
        if not caught or caught[-1].dim() != 2:
            raise ModelError(f"{self.spec.model} has no features of whole images for its last layer")
        features = caught[-1][:number].float().cpu().numpy()
        if not (np.abs(features) <= np.finfo(np.float16).max).all():
            raise ModelError(f"{self.spec.model} has features that are not finite; are its initial weights damaged?")
        return np.asarray(features)

    def _key(self, view: int) -> str:
        """Return what the features of a view depend on besides the images, as a hash."""
        spec, head = self.spec, head_names(self.network)
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            if not name.startswith(tuple(f"{each}." for each in head)):
                digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        depends_on = {
            "format": _FORMAT,
            "pillow": __version__,
            "weights": digest.hexdigest(),
            "device": next(self.network.parameters()).device.type,
            "spec": {key: value for key, value in spec.to_json().items() if key not in ("format", "classes")},
            "view": [view, *([asdict(self.augmentation)] if view > _MIRRORED else [])],
            "crop": SMALLEST_CROP,
        }
        return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]


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


def _remove_unused(root: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for path in root.glob("*/*.safetensors"):
        # Another process may remove it at the same time.
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
