"""Checks of duplicates: one photo twice in a class, under two labels, or in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from carnet.checks.data import CheckedData
from carnet.checks.findings import Example, Finding
from carnet.data.samples import Sample
from carnet.errors import ImageError
from carnet.preprocess import decode, open_image

_MAX_PER_PAIR = 16
"""Files of one content that are paired with those of another."""
_EQUAL_SIMILARITY = 0.999
"""Of thumbnails, from which the pixels of both files are compared."""
_ORDER = {"train": 0, "all": 1, "valid": 2, "test": 3}
_File = tuple[Sample, str]
"""An image and its split."""


def check_duplicates(data: CheckedData) -> Iterator[Finding]:
    """Find pairs of files that show one photo; each pair is found once, in the closest of its kinds."""
    found: dict[str, list[tuple[_File, _File, str]]] = defaultdict(list)

    def add(kind: str, one: _File, other: _File, about: str) -> None:
        is_leak, is_conflict = one[1] != other[1], one[0].label != other[0].label
        # A photo in two splits under two labels is both.
        for relation, applies in (("leak", is_leak), ("conflict", is_conflict)):
            if applies:
                found[f"{relation}-{kind}"].append((one, other, about))
        if not is_leak and not is_conflict:
            found[f"copy-{kind}"].append((one, other, about))

    for files in data.files_of.values():
        for other in files[1:]:
            # The first of another class or split says more than the first of all.
            others = [one for one in files if (one[1], one[0].label) != (other[1], other[0].label)]
            one = files[0] if not others or files[0] in others else others[0]
            add("bytes", one, other, "")
    for kind, ones, others, about in _pairs_of_contents(data):
        told = set()
        for one in ones[:_MAX_PER_PAIR]:
            for other in others[:_MAX_PER_PAIR]:
                relation = (one[1] == other[1], one[0].label == other[0].label)
                if relation not in told:
                    told.add(relation)
                    add(kind, one, other, about)
    for kind, pairs in sorted(found.items()):
        yield _finding(data, kind, pairs)


def _pairs_of_contents(data: CheckedData) -> Iterator[tuple[str, list[_File], list[_File], str]]:
    """Yield pairs of different contents that show one photo: kind, the files of both, and how similar they are."""
    if data.appearance is None:
        return
    copies, digests = data.appearance.copies, data.appearance.digests
    pairs = zip(copies.first.tolist(), copies.second.tolist(), strict=True)
    for (first, second), similarity, is_mirrored in zip(pairs, copies.similarity, copies.is_mirrored, strict=True):
        ones, others = data.files_of[digests[first]], data.files_of[digests[second]]
        if is_mirrored:
            kind = "mirrored"
        elif similarity > _EQUAL_SIMILARITY and _have_equal_pixels(ones[0][0], others[0][0]):
            kind = "pixels"
        else:
            kind = "near"
        yield kind, ones, others, "" if kind == "pixels" else f"{100 * similarity:.0f}% alike"


def _have_equal_pixels(one: Sample, other: Sample) -> bool:
    try:
        pixels = []
        for sample in (one, other):
            with open_image(sample.path) as image:
                pixels.append(np.asarray(decode(image, sample.path)))
    except ImageError:
        return False
    return np.array_equal(pixels[0], pixels[1])


def _finding(data: CheckedData, kind: str, pairs: list[tuple[_File, _File, str]]) -> Finding:
    examples, dropped = [], []
    for pair in pairs:
        one, other = sorted(pair[:2], key=lambda file: _ORDER.get(file[1], 4))
        places = data.place(one[1], one[0]), data.place(other[1], other[0])
        examples.append(Example(pair[2], places))
        if kind.startswith("conflict"):
            dropped += [place.name for place in places]
        else:
            # Of a leak the copy in train; of two copies in a class the second.
            dropped.append(places[0 if kind.startswith("leak") else 1].name)
    return Finding.of(kind, examples, dropped)
