"""Checks of duplicates: one photo twice in a class, under two labels, or in two splits."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np

from carnet.checks.data import CheckedData
from carnet.checks.findings import MAX_EXAMPLES, Example, Finding
from carnet.data.samples import Sample
from carnet.errors import ImageError
from carnet.preprocess import decode, open_image

_MAX_PER_PAIR = 16
"""Files of one content that are paired with those of another."""
_EQUAL_SIMILARITY = 0.999
"""Of thumbnails, from which the pixels of both files are compared."""
_ORDER = {"train": 0, "all": 1, "valid": 2, "test": 3}
_MOST_OF_CLASS = 0.5
"""Share of a class's images that an ignore list leaves out without asking."""
_File = tuple[Sample, str]
"""An image and its split."""
_Pair = tuple[_File, _File, str]
"""Two images that show one photo, and how similar they are."""


def check_duplicates(data: CheckedData) -> Iterator[Finding]:
    """Find pairs of files that show one photo; each pair is found once, in the closest of its kinds."""
    found: dict[str, list[_Pair]] = defaultdict(list)
    for kind, one, other, about in (*_equal_files(data), *_similar_files(data)):
        is_leak, is_conflict = one[1] != other[1], one[0].label != other[0].label
        # A photo in two splits under two labels is both.
        for relation, applies in (("leak", is_leak), ("conflict", is_conflict), ("copy", not is_leak | is_conflict)):
            if applies:
                found[f"{relation}-{kind}"].append((one, other, about))
    for kind, pairs in sorted(found.items()):
        yield _finding(data, kind, pairs)


def _equal_files(data: CheckedData) -> Iterator[tuple[str, _File, _File, str]]:
    """Yield pairs of files that are equal byte for byte, one for each file but the first of its content."""
    for files in data.files_of.values():
        firsts: dict[tuple[str, int], _File] = {}
        for file in files:
            firsts.setdefault((file[1], file[0].label), file)
        for file in files[1:]:
            # The first of another class or split says more than the first of all.
            elsewhere = (one for place, one in firsts.items() if place != (file[1], file[0].label))
            yield "bytes", next(elsewhere, files[0]), file, ""


def _similar_files(data: CheckedData) -> Iterator[tuple[str, _File, _File, str]]:
    """Yield pairs of files of different content that show one photo, one for each relation of two contents."""
    if data.appearance is None:
        return
    pixels: dict[str, bytes] = {}
    copies, digests = data.appearance.copies, data.appearance.digests
    pairs = zip(copies.first.tolist(), copies.second.tolist(), strict=True)
    for (first, second), similarity, is_mirrored in zip(pairs, copies.similarity, copies.is_mirrored, strict=True):
        ones, others = (data.files_of[digests[index]][:_MAX_PER_PAIR] for index in (first, second))
        kind, about = "mirrored" if is_mirrored else "near", f"{100 * similarity:.0f}% alike"
        if not is_mirrored and similarity > _EQUAL_SIMILARITY:
            one, other = (_pixels_of(data.files_of[digests[index]][0][0], pixels) for index in (first, second))
            kind, about = ("pixels", "") if one == other else (kind, about)
        told = set()
        for one_file, other_file in product(ones, others):
            relation = (one_file[1] == other_file[1], one_file[0].label == other_file[0].label)
            if relation not in told:
                told.add(relation)
                yield kind, one_file, other_file, about


def _pixels_of(sample: Sample, known: dict[str, bytes]) -> bytes:
    """Return a hash of an image's pixels and size; of one that cannot be read, its name."""
    name = str(sample.path)
    if name not in known:
        try:
            with open_image(sample.path) as image:
                pixels = np.asarray(decode(image, sample.path))
            known[name] = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()
        except ImageError:
            known[name] = name.encode("utf-8", "surrogatepass")
    return known[name]


def _finding(data: CheckedData, kind: str, pairs: list[_Pair]) -> Finding:
    dropped: dict[str, Sample] = {}
    examples: list[Example] = []
    for first, second, about in pairs:
        one, other = sorted((first, second), key=lambda file: _ORDER.get(file[1], 4))
        if len(examples) < MAX_EXAMPLES:
            examples.append(Example(about, (data.place(one[1], one[0]), data.place(other[1], other[0]))))
        left_out = [one, other] if kind.startswith("conflict") else [other]
        if kind.startswith("leak"):
            # Of a leak all copies in train.
            left_out = [file for file in data.files_of[data.facts[one[0].path].sha256] if file[1] == one[1]]
        dropped |= {data.images.relative(sample): sample for sample, _ in left_out}
    return Finding(kind, len(pairs), tuple(examples), tuple(dropped), _undecided(data, dropped))


def _undecided(data: CheckedData, dropped: Mapping[str, Sample]) -> frozenset[str]:
    """Return the images that a person has to decide on, because their class would lose most of its images."""
    sizes, lost = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for split, sample in data:
        sizes[split, sample.label] += 1
    place_of = {name: (data.split_of[sample.path], sample.label) for name, sample in dropped.items()}
    for place in place_of.values():
        lost[place] += 1
    return frozenset(name for name, place in place_of.items() if lost[place] > _MOST_OF_CLASS * sizes[place])
