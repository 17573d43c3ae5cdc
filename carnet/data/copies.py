"""Find near copies among images: one photo saved again, resized, brightened, cropped a little, or mirrored.

1. Each thumbnail gets a perceptual hash: 64 bits, the signs of its lowest frequencies (Zauner, "Implementation and
   benchmarking of perceptual image hash functions", 2010).
2. An index finds the hashes that differ in few bits, without comparing all pairs: hashes that differ in at most 11 of
   64 bits differ in at most 2 bits of one of four parts (Norouzi et al., "Fast search in Hamming space with
   multi-index hashing", 2012).
3. Each pair found is aligned, because a crop shifts and scales an image (Lucas and Kanade, 1981), and its edges are
   compared. How much the edges of unrelated images of the same data agree decides what counts as a copy, beyond a fixed
   minimum: drawings of a digit agree far more than photos do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from carnet.data.thumbnails import SIDE, Pages
from carnet.preprocess import Images
from carnet.text import OnProgress

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

LEAST_SIMILARITY = 0.85
"""Of the edges of copies, after alignment: `benchmarks/LOG.md` has what was tried, `benchmarks/near_copies.py` measures
what it finds."""
_COARSE = 32
"""Side in pixels at which hashes are computed and images first aligned."""
_NUM_BITS, _PART_BITS, _NUM_PARTS = 64, 16, 4
_RADIUS, _MIRRORED_RADIUS = 2, 1
"""Bits by which one part of two hashes may differ."""
_MOST_BITS = 14
"""Bits by which two hashes may differ."""
_CROWD = 32
"""Of the many images of one scene, each is compared with so many that follow it and are most like it."""
_BLOCK = 2**14
"""Images that are looked up at a time."""
_MOST_AT_ONCE = 2**20
"""Pairs in memory before those of crowds are dropped."""
_LEAST_BLURRED, _LEAST_ROUGHLY = 0.7, 0.35
"""Similarity of the lowest frequencies, and of the edges before fine alignment, below which a pair is dropped."""
_LEAST_CONTRAST = 0.7
"""Root mean square of the differences of neighbours in a row; an image with less is blank, and like all others."""
_CHUNK, _PAIRS = 256, 128
"""Images, and pairs, in memory at a time."""
_NUM_UNRELATED, _DEVIATIONS = 160, 6
"""Pairs of unrelated images, and standard deviations above their median from which they are not expected."""
_BELOW_A_TWELFTH, _BELOW_A_QUARTER = 1.405, 0.674
"""Standard deviations below the median at which 8% and 25% of a normal distribution are lower."""


@dataclass(frozen=True)
class NearCopies:
    """Pairs of near copies, sorted.

    Attributes:
        first: (M,) index of an image.
        second: (M,) index of its copy, larger than that of the image.
        similarity: (M,) of their edges, at most 1.
        is_mirrored: (M,) whether the second shows the first mirrored.
        cut: the lowest similarity of a copy; above 1 if unrelated images are too similar to tell copies apart.
    """

    first: Places
    second: Places
    similarity: Floats
    is_mirrored: NDArray[np.bool_]
    cut: float = LEAST_SIMILARITY

    @classmethod
    def none(cls) -> NearCopies:
        """Return an empty list of pairs."""
        no_place = np.empty(0, np.int64)
        return cls(no_place, no_place, np.empty(0, np.float32), np.empty(0, np.bool_))


def find_near_copies(thumbnails: Images, rows: Places | None = None, progress: OnProgress | None = None) -> NearCopies:
    """Find the pairs of thumbnails that show the same photo.

    Args:
        thumbnails: uint8 (M, S, S), in memory or mapped into it; see `carnet.data.thumbnails`.
        rows: (N,) the rows to compare, whose order is that of the images; None: all.
        progress: called with the number of steps done, and of all.
    """
    tell = progress or (lambda done, total: None)
    pages = Pages(thumbnails, np.arange(len(thumbnails)) if rows is None else rows)
    spectra, contrasts = _spectra(pages)
    has_content = contrasts > _LEAST_CONTRAST
    cut = _cut(pages, np.flatnonzero(has_content))
    tell(1, 3)
    pairs = _candidates(spectra, spectra, has_content, _RADIUS)
    plain = _confirmed(pages, *pairs, cut, is_mirrored=False)
    tell(2, 3)
    pairs = _candidates(spectra, spectra * _mirror_signs(), has_content, _MIRRORED_RADIUS)
    mirrored = _confirmed(pages, *pairs, cut, is_mirrored=True)
    tell(3, 3)
    return _merged(plain, mirrored, cut)


def perceptual_hashes(spectra: Floats) -> NDArray[np.uint64]:
    """(N, 64) lowest frequencies -> (N,) hashes: which of them are above their median."""
    hashes = np.empty(len(spectra), np.uint64)
    for start in range(0, len(spectra), _BLOCK):
        part = spectra[start : start + _BLOCK]
        bits = np.packbits(part > np.median(part, axis=1, keepdims=True), axis=1)
        hashes[start : start + _BLOCK] = bits.view(np.uint64)[:, 0]
    return hashes


def _merged(plain: NearCopies, mirrored: NearCopies, cut: float) -> NearCopies:
    """Put both kinds of pairs into one list; an image that is its own mirror image is a copy, not a mirrored one."""
    known = set(zip(plain.first.tolist(), plain.second.tolist(), strict=True))
    is_new = np.array(
        [pair not in known for pair in zip(mirrored.first.tolist(), mirrored.second.tolist(), strict=True)], bool
    )
    first, second, similarity, is_mirrored = (
        np.concatenate([getattr(plain, name), getattr(mirrored, name)[is_new]])
        for name in ("first", "second", "similarity", "is_mirrored")
    )
    order = np.lexsort((second, first))
    return NearCopies(first[order], second[order], similarity[order], is_mirrored[order], cut)


# Frequencies and hashes.


@cache
def _frequencies() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of the 64 lowest frequencies but the mean, the lowest first."""
    rows, columns = np.divmod(np.arange(144), 12)
    order = np.lexsort((columns, rows, rows**2 + columns**2))[1 : _NUM_BITS + 1]
    return rows[order], columns[order]


@cache
def _mirror_signs() -> Floats:
    """Return what each frequency is multiplied with when the image is mirrored: odd columns change their sign."""
    return np.where(_frequencies()[1] % 2, -1, 1).astype(np.float32)


def _spectra(pages: Pages) -> tuple[Floats, Floats]:
    """Return the lowest frequencies (N, 64) of thumbnails, of length 1, and the contrast (N,) of their edges."""
    rows, columns = _frequencies()
    numbers = np.arange(12)[:, None], 2 * np.arange(_COARSE) + 1
    cosines = np.cos(np.pi * numbers[0] * numbers[1] / (2 * _COARSE)).astype(np.float32)
    spectra = np.empty((len(pages), _NUM_BITS), np.float32)
    contrasts = np.empty(len(pages), np.float32)
    # Each pixel of the small copy is a mean of neighbours, and so is each cosine of those that belong to it.
    cosines = np.repeat(cosines, SIDE // _COARSE, axis=1) / np.float32(SIDE // _COARSE)
    for start in range(0, len(pages), _CHUNK):
        part = slice(start, start + _CHUNK)
        images = pages.read(part).astype(np.float32)
        spectra[part] = (cosines @ images @ cosines.T)[:, rows, columns]
        contrasts[part] = np.sqrt(np.square(np.diff(images[:, ::4])).mean(axis=(1, 2)))
    return spectra / np.maximum(np.linalg.norm(spectra, axis=1, keepdims=True), 1e-6), contrasts


def _coarse(thumbnails: Images) -> Floats:
    """Reduce thumbnails (N, S, S) to (N, 32, 32), each pixel the mean of those it replaces."""
    number, side, _ = thumbnails.shape
    factor = side // _COARSE
    small: Floats = thumbnails.reshape(number, _COARSE, factor, _COARSE, factor).mean(axis=(2, 4), dtype=np.float32)
    return small


# The index.


def _candidates(spectra: Floats, others: Floats, has_content: NDArray[np.bool_], radius: int) -> tuple[Places, Places]:
    """Return pairs (i < j) of images with similar hashes and lowest frequencies; j is looked up among `others`.

    Args:
        spectra: (N, 64) of the images.
        others: (N, 64) of the images, or of their mirror images.
        has_content: (N,) images that are not blank.
        radius: bits by which a part of the hashes may differ.
    """
    hashes = perceptual_hashes(spectra)
    wanted = hashes if others is spectra else perceptual_hashes(others)
    number, found = len(hashes), [np.empty(0, np.int64)]
    for part in range(_NUM_PARTS):
        keys, wanted_keys = ((values >> np.uint64(part * _PART_BITS)).astype(np.uint16) for values in (hashes, wanted))
        for i, j in _joined(keys, wanted_keys, _masks(radius)):
            near = (np.bitwise_count(hashes[i] ^ wanted[j]) <= _MOST_BITS) & (i < j)
            found.append(np.unique(i[near] * number + j[near]))
            if sum(map(len, found)) > _MOST_AT_ONCE:
                found = [_without_crowds(np.concatenate(found), hashes, wanted)]
    i, j = np.divmod(_without_crowds(np.concatenate(found), hashes, wanted), max(1, number))
    kept = has_content[i] & has_content[j]
    for start in range(0, len(i), _BLOCK):
        few = slice(start, start + _BLOCK)
        kept[few] &= np.einsum("nk,nk->n", spectra[i[few]], others[j[few]]) > _LEAST_BLURRED
    return i[kept], j[kept]


def _without_crowds(pairs: Places, hashes: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> Places:
    """Return different pairs, numbered i * N + j, in order: of each i those with the most similar hashes."""
    pairs = np.unique(pairs)
    i, j = np.divmod(pairs, max(1, len(hashes)))
    # By image, then by the bits that differ, then by place: frames that follow at once come first.
    order = np.lexsort((j, np.bitwise_count(hashes[i] ^ wanted[j]), i))
    _, first = np.unique(i, return_index=True)
    rank = np.arange(len(pairs)) - np.repeat(first, np.diff(first, append=len(pairs)))
    return np.sort(pairs[order[rank < _CROWD]])


@cache
def _masks(radius: int) -> list[int]:
    """Return every 16-bit number with at most so many bits set."""
    return [
        sum(1 << bit for bit in bits) for size in range(radius + 1) for bits in combinations(range(_PART_BITS), size)
    ]


def _joined(keys: NDArray[np.uint16], wanted: NDArray[np.uint16], masks: list[int]) -> Iterator[tuple[Places, Places]]:
    """Yield pairs, all i < j among them, such that `wanted[j]` is `keys[i]` with the bits of a mask changed."""
    number = len(keys)
    order = np.argsort(wanted, kind="stable")
    ends = np.searchsorted(wanted[order], np.arange(2**_PART_BITS), side="right")
    # Place of an image among all, sorted by key, then by index.
    place_of = wanted[order].astype(np.int64) * number + order
    starts = np.searchsorted(wanted[order], np.arange(2**_PART_BITS), side="left")
    has_crowd = (ends - starts).max(initial=0) > _CROWD
    for mask, block in product(masks, range(0, number, _BLOCK)):
        images = np.arange(block, min(block + _BLOCK, number))
        key = (keys[images] ^ np.uint16(mask)).astype(np.int64)
        # Where few share a key, all of them are looked at: those that come before an image are dropped faster so.
        begin = np.searchsorted(place_of, key * number + images, side="right") if has_crowd else starts[key]
        counts = np.minimum(ends[key] - begin, _CROWD)
        offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        yield np.repeat(images, counts), order[np.repeat(begin, counts) + offsets]


# Comparison on the pixels.


def _confirmed(pages: Pages, first: Places, second: Places, cut: float, *, is_mirrored: bool) -> NearCopies:
    """Return the pairs whose aligned edges agree."""
    similarity = np.zeros(len(first), np.float32)
    for start in range(0, len(first), _PAIRS):
        part = slice(start, start + _PAIRS)
        ones, others = (pages.read(places[part]) for places in (first, second))
        similarity[part] = similarities(ones, others[:, :, ::-1] if is_mirrored else others)
    kept = similarity >= cut
    return NearCopies(first[kept], second[kept], similarity[kept], np.full(int(kept.sum()), is_mirrored), cut)


def _cut(pages: Pages, with_content: Places) -> float:
    """Return the similarity from which a pair is a copy, given how similar unrelated images are."""
    rng = np.random.default_rng(0)
    first, second = rng.permutation(with_content)[: 2 * _NUM_UNRELATED][: len(with_content) // 2 * 2].reshape(2, -1)
    if len(first) < 2:
        return LEAST_SIMILARITY
    unrelated = similarities(pages.read(first), pages.read(second), all_aligned=True)
    # By the lowest quarter, because up to half of the pairs drawn may show one scene.
    low, high = np.quantile(unrelated, [0.08, 0.25])
    deviation = (high - low) / (_BELOW_A_TWELFTH - _BELOW_A_QUARTER)
    return max(LEAST_SIMILARITY, float(high + (_BELOW_A_QUARTER + _DEVIATIONS) * deviation))


def similarities(ones: Images, others: Images, *, all_aligned: bool = False) -> Floats:
    """Return the similarity of pairs of thumbnails: the correlation of their edges after alignment, at most 1.

    Args:
        ones: uint8 (M, S, S)
        others: uint8 (M, S, S)
        all_aligned: also align pairs that are hopeless, whose similarity is 0 otherwise.
    """
    fine = ones.astype(np.float32), others.astype(np.float32)
    coarse = _coarse(ones), _coarse(others)
    unmoved = np.tile(np.array([1, 0, 1, 0], np.float32), (len(ones), 1))
    similarity: Floats = (_edge_correlation(*coarse, unmoved) + _edge_correlation(*fine, unmoved)) * np.float32(0.5)
    # Most copies are no crops, and need no alignment; nor do the frames of a scene, which may be very many.
    left = np.flatnonzero(similarity < LEAST_SIMILARITY)
    if len(left):
        rough, views = _roughly_aligned(*(images[left] for images in coarse))
        hopeful = (rough > _LEAST_ROUGHLY) | all_aligned
        similarity[left[~hopeful]] = 0
        left, views = left[hopeful], views[hopeful]
    if len(left):
        one, other = (images[left] for images in coarse)
        views = _aligned(one, other, views, 6)
        of_coarse = _edge_correlation(one, other, views)
        one, other = (images[left] for images in fine)
        similarity[left] = (of_coarse + _edge_correlation(one, other, _aligned(one, other, views, 2))) / 2
    return similarity


_CROPS = [(1.0, 0.0, 0.0)] + [(side, y, x) for side in (0.95, 0.9) for y in (0, 0.5, 1) for x in (0, 0.5, 1)]
"""Side of a crop, and its place from 0 (top, left) to 1, to begin an alignment with."""


def _roughly_aligned(ones: Floats, others: Floats) -> tuple[Floats, Floats]:
    """Return the best correlation of edges over some crops of either image, and the view it is reached at.

    A view (scale and shift of rows, scale and shift of columns) says which point of the second image shows the same as
    a point of the first; both count from 0 to 1.
    """
    best, views = np.full(len(ones), -1, np.float32), np.zeros((len(ones), 4), np.float32)
    for side, top, left in _CROPS:
        shifts = top * (1 - side), left * (1 - side)
        of_other = np.tile(np.array([side, shifts[0], side, shifts[1]], np.float32), (len(ones), 1))
        of_one = np.tile(np.array([1, -shifts[0], 1, -shifts[1]], np.float32) / np.float32(side), (len(ones), 1))
        for view in (of_other, of_one)[: 1 if side == 1 else 2]:
            reached = _edge_correlation(ones, others, view)
            better = reached > best
            best[better], views[better] = reached[better], view[better]
    return best, views


def _seen(images: Floats, views: Floats) -> tuple[Floats, Floats]:
    """Return what views show of images (M, S, S), interpolated, and where they show something: 1, elsewhere 0."""
    side = images.shape[1]
    middles = (np.arange(side, dtype=np.float32) + 0.5) / side
    weights, inside = [], []
    for scale, shift in ((views[:, 0], views[:, 1]), (views[:, 2], views[:, 3])):
        place = (scale[:, None] * middles + shift[:, None]) * side - 0.5
        inside.append((place >= -0.5) & (place <= side - 0.5))
        # (M, S, S): the share of each source row in each row that is seen.
        distance = np.abs(np.clip(place, 0, side - 1)[:, :, None] - np.arange(side, dtype=np.float32))
        weights.append(np.maximum(0, 1 - distance))
    return weights[0] @ images @ weights[1].transpose(0, 2, 1), (inside[0][:, :, None] & inside[1][:, None, :]).astype(
        np.float32
    )


def _edge_correlation(ones: Floats, others: Floats, views: Floats) -> Floats:
    """Return the correlation of the differences of neighbours, where both images show something."""
    seen, mask = _seen(others, views)
    dot = np.zeros(len(ones), np.float32)
    squares = np.full((2, len(ones)), 1e-6, np.float32)
    for axis in (1, 2):
        both = np.minimum(*_neighbours(mask, axis))
        edges = [np.subtract(*_neighbours(images, axis)) * both for images in (ones, seen)]
        dot += np.einsum("nij,nij->n", *edges)
        squares += np.stack([np.einsum("nij,nij->n", edge, edge) for edge in edges])
    correlation: Floats = dot / np.sqrt(squares[0] * squares[1])
    return correlation


def _neighbours(images: Floats, axis: int) -> tuple[Floats, Floats]:
    """Return all rows or columns but the first, and all but the last."""
    return (images[:, 1:], images[:, :-1]) if axis == 1 else (images[:, :, 1:], images[:, :, :-1])


def _aligned(ones: Floats, others: Floats, views: Floats, steps: int) -> Floats:
    """Improve views by least squares: the view is moved against what still differs (Gauss-Newton).

    Brightness and contrast are taken out of both images first.
    """
    side = ones.shape[1]
    middles = (np.arange(side, dtype=np.float32) + 0.5) / side
    best, best_views = _edge_correlation(ones, others, views), views
    for _ in range(steps):
        seen, mask = _seen(others, views)
        target, now = _standardized(ones, mask), _standardized(seen, mask)
        slopes = [slope * mask * side for slope in np.gradient(now, axis=(1, 2))]
        change = np.stack([slopes[0] * middles[:, None], slopes[0], slopes[1] * middles, slopes[1]], axis=1).reshape(
            len(ones), 4, -1
        )
        left = ((target - now) * mask).reshape(len(ones), -1, 1)
        normal = change @ change.transpose(0, 2, 1) + 0.1 * np.eye(4, dtype=np.float32)
        move = np.linalg.solve(normal, change @ left)[:, :, 0]
        views = views + np.clip(move, -0.03, 0.03)
        views[:, ::2] = np.clip(views[:, ::2], 0.8, 1.25)
        views[:, 1::2] = np.clip(views[:, 1::2], -0.25, 0.25)
        reached = _edge_correlation(ones, others, views)
        best_views = np.where((reached > best)[:, None], views, best_views)
        best = np.maximum(reached, best)
    return best_views


def _standardized(images: Floats, mask: Floats) -> Floats:
    """Give images mean 0 and standard deviation 1 where the mask is 1."""
    number = mask.sum(axis=(1, 2), keepdims=True)
    centred = (images - (images * mask).sum(axis=(1, 2), keepdims=True) / number) * mask
    deviation = np.sqrt(np.square(centred).sum(axis=(1, 2), keepdims=True) / number)
    standardized: Floats = centred / np.maximum(deviation, 1e-3)
    return standardized
