"""Hold back some images of every class, the same ones every time."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from carnet.data.sources import Sample


def hold_out(
    samples: Sequence[Sample], digests: Mapping[Path, str], *, fraction: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Divide labelled images into those to train on and those to validate with.

    Stratified: each class gives `fraction` of its images, at least one where it has two or more. Files that are equal
    byte for byte stay on one side, under whatever name or class they appear. Which images are held back follows from
    `seed` and their content alone, so that adding or renaming files moves few others.

    Args:
        samples: the images.
        digests: content hash of each file.
        fraction: share to hold back, between 0 and 1.
        seed: chooses among the possible divisions.

    Returns:
        (train, valid), each in the order of `samples`.
    """
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[digests[sample.path]].append(sample)
    sizes = Counter(sample.label for sample in samples)
    # Never all of a class: something has to be left to learn from.
    room = {label: min(max(1, round(fraction * size)), size - 1) for label, size in sizes.items()}
    held_back: set[str] = set()
    for digest in sorted(groups, key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest()):
        wanted = Counter(sample.label for sample in groups[digest])
        if all(count <= room[label] for label, count in wanted.items()):
            held_back.add(digest)
            for label, count in wanted.items():
                room[label] -= count
    train = tuple(sample for sample in samples if digests[sample.path] not in held_back)
    valid = tuple(sample for sample in samples if digests[sample.path] in held_back)
    return train, valid
