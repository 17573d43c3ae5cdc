"""Look at images that are streamed: what `carnet.data.scan` does for files, in one pass over the data.

Training images are never stored; their paths are those that `carnet.data.stream.store` would give them. Images to
validate or test with are few, and read again every epoch, so they are kept as files. Of every image its name, class
and facts stay in memory, about a kilobyte.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from carnet.data.cache import cache_root, cached_folder
from carnet.data.samples import LabeledImages, Sample, about_strange, expanded, named_images
from carnet.data.scan import CheckedImages, ImageFacts, check_images, hash_files, inspect_bytes
from carnet.data.stream import ImageStream, StreamedImage, extension_of
from carnet.prefetch import load_ahead, loading_threads
from carnet.text import OnProgress

_BATCH = 64
"""Images that are looked at side by side."""


def check_stream(
    stream: ImageStream,
    *,
    image_size: int,
    skip_unreadable: bool = False,
    valid_fraction: float = 0.2,
    seed: int = 0,
    ignore: Sequence[str] = (),
    progress: OnProgress | None = None,
) -> CheckedImages:
    """Decode every image of a stream once, keep those to validate with as files, and report what is odd.

    Args:
        stream: the data.
        image_size: the model's.
        skip_unreadable: leave out, and count, what cannot be decoded, instead of stopping.
        valid_fraction: share held back for validation where the data has no such split; costs a second pass.
        seed: of that division.
        ignore: images to leave out, as `data.csv` of a run names them: images/train/0000123.jpg.
        progress: told how many images are done, of how many.

    Raises:
        DataError: as `carnet.data.scan.check_images`, or if the data cannot be read.
        OutputError: if the cache cannot be written.
    """
    choice = f"{stream.content_hash} {seed} {valid_fraction} {skip_unreadable} {sorted(ignore)}"
    key = hashlib.sha256(choice.encode("utf-8", "surrogateescape")).hexdigest()
    # Where the files will lie is known before they are written.
    root = cache_root() / "streamed" / key
    facts, by_split = _look(stream, root, image_size, progress)
    named, strange = named_images(facts, ignore, [root])
    left_out = {split: tuple(s.path for s in samples if s.path in named) for split, samples in by_split.items()}
    flat = len(by_split) == 1
    data = LabeledImages(
        root=root,
        classes=stream.classes,
        splits={
            "all" if flat else split: tuple(s for s in samples if s.path not in left_out[split])
            for split, samples in by_split.items()
        },
        source=expanded(stream.source.data),
        left_out=left_out,
        warnings=(*stream.warnings, *([about_strange(strange)] if strange else [])),
    )
    checked = check_images(
        data,
        image_size=image_size,
        skip_unreadable=skip_unreadable,
        valid_fraction=valid_fraction,
        seed=seed,
        facts=facts,
    )
    kept = {sample.path for split, samples in checked.data.splits.items() if split != "train" for sample in samples}
    _keep_as_files(stream, kept, root, key)
    if hash_files(sorted(kept)) != {path: facts[path].sha256 for path in kept}:
        # Other images may lie in shards of the same size by now.
        shutil.rmtree(root, ignore_errors=True)
        _keep_as_files(stream, kept, root, key)
    return replace(checked, data=replace(checked.data, root=root))


def _look(
    stream: ImageStream, root: Path, image_size: int, progress: OnProgress | None
) -> tuple[dict[Path, ImageFacts], dict[str, list[Sample]]]:
    """What each image holds, and the images of each split in the order in which stored ones would stand."""
    number = {name: label for label, name in enumerate(stream.classes)}
    facts: dict[Path, ImageFacts] = {}
    by_split: dict[str, list[Sample]] = {}
    total = sum(stream.num_images.values())

    def look(image: StreamedImage) -> tuple[Sample, ImageFacts]:
        path = path_of(image, root)
        return Sample(path, number[image.label]), inspect_bytes(image.content, path, image_size)

    for split in stream.splits:
        samples = by_split.setdefault(split, [])
        for batch in load_ahead(look, _batches(stream, split), threads=loading_threads()):
            for sample, fact in batch:
                samples.append(sample)
                facts[sample.path] = fact
            if progress is not None:
                progress(len(facts), total)
        samples.sort(key=lambda sample: (sample.label, sample.path))
    return facts, by_split


def path_of(image: StreamedImage, root: Path) -> Path:
    """Where the image would lie if it were stored."""
    return root / "images" / f"{image.name}{extension_of(image.content)}"


def _keep_as_files(stream: ImageStream, kept: Collection[Path], root: Path, key: str) -> None:
    def fill(folder: Path) -> None:
        for split in {path.parent.name for path in kept}:
            for image in stream.read(split):
                path = path_of(image, root)
                if path in kept:
                    target = folder / path.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(image.content)

    cached_folder("streamed", key, fill)


def _batches(stream: ImageStream, split: str) -> Iterator[list[StreamedImage]]:
    images = stream.read(split)
    while batch := list(islice(images, _BATCH)):
        yield batch
