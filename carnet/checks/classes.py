"""Checks of classes: missing, empty, tiny, of unequal size, or with names that may mean one class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from carnet.checks.findings import Example, Finding
from carnet.data.samples import LabeledImages, Listing
from carnet.data.scan_notes import NO_LABEL, UNEQUAL_RATIO, same_names
from carnet.metrics import wilson_interval
from carnet.text import counted

FEW_IMAGES = 10
"""A class with fewer training images is tiny."""
_TYPO_LENGTH, _TYPO_SHARE = 5, 0.2
"""Shortest name that is taken for a misspelt one, and the most images it may have, as a share of the other class's."""


def check_classes(listing: Listing, images: LabeledImages, valid_fraction: float) -> Iterator[Finding]:
    """Find classes that are missing, empty, tiny or of unequal size.

    Args:
        listing: the data as it was listed, with its empty classes.
        images: the data.
        valid_fraction: fraction that training would hold out if there is no `valid`.
    """
    first = "all" if images.is_flat else "train"
    present = {split: {name for name, paths in by_class.items() if paths} for split, by_class in listing.splits.items()}
    empty = sorted({name for by_class in listing.splits.values() for name in by_class} - set().union(*present.values()))
    if empty:
        yield Finding.of("class-empty", [Example(repr(name)) for name in empty])
    if first not in present:
        return
    missing, extra = [], []
    for split in (one for one in present if one != first):
        missing += [Example(f"{name!r} has none in {split}") for name in sorted(present[first] - present[split])]
        extra += [Example(f"{name!r} is in {split}") for name in sorted(present[split] - present[first])]
    if extra:
        yield Finding.of("class-extra", extra)
    if missing:
        yield Finding.of("class-missing", missing)
    sizes = {name: number for name, number in images.counts(first).items() if name in present[first]}
    yield from _about_sizes(sizes, images, valid_fraction)


def _about_sizes(sizes: Mapping[str, int], images: LabeledImages, valid_fraction: float) -> Iterator[Finding]:
    held_out = images.counts("valid") if "valid" in images.splits else {}
    tiny = []
    for name, number in sorted(sizes.items(), key=lambda item: item[1]):
        if number < FEW_IMAGES:
            evaluated = held_out.get(name, 0) if held_out else min(number - 1, max(1, round(valid_fraction * number)))
            low = wilson_interval(evaluated, evaluated)[0] if evaluated else 0.0
            known = (
                f"even if all are right, its recall is only known to be between {100 * low:.0f}% and 100%"
                if evaluated
                else "nothing is known of its recall"
            )
            left = number if held_out else number - evaluated
            about = f"{name!r} has {counted(left, 'image')} to train on and {evaluated} to evaluate with: {known}"
            tiny.append(Example(about))
    if tiny:
        yield Finding.of("class-tiny", tiny, rule=f"fewer than {FEW_IMAGES} images to train on; 95% Wilson intervals")
    few = {
        name: number
        for name, number in held_out.items()
        if 0 < number < FEW_IMAGES and sizes.get(name, 0) >= FEW_IMAGES
    }
    if few:
        low = wilson_interval(max(few.values()), max(few.values()))[0]
        about = (
            f"{counted(len(few), 'class', 'classes')} with at most {counted(max(few.values()), 'image')} in valid: "
            f"even if all are right, the recall is only known to be between {100 * low:.0f}% and 100%"
        )
        yield Finding("class-few-valid", len(few), (Example(about),), rule=f"fewer than {FEW_IMAGES} images in valid")
    largest = max(sizes, key=lambda name: sizes[name], default="")
    small = [name for name, number in sizes.items() if sizes[largest] > UNEQUAL_RATIO * number]
    if small:
        rule = f"{largest!r} with {sizes[largest]:,} images has more than {UNEQUAL_RATIO} times as many"
        smallest_first = sorted(small, key=lambda name: sizes[name])
        examples = [Example(f"{name!r} has {counted(sizes[name], 'image')}") for name in smallest_first]
        yield Finding.of("class-imbalance", examples, rule=rule)


def check_class_names(images: LabeledImages) -> Iterator[Finding]:
    """Find names that may mean the same class, or no class."""
    sizes = dict.fromkeys(images.classes, 0)
    for split in images.splits:
        for name, number in images.counts(split).items():
            sizes[name] += number
    alike = [
        Example(f"{' and '.join(map(repr, names))}: case, blanks, hyphens or the form of a letter")
        for names in same_names(images.classes)
    ]
    alike += [
        Example(
            f"{one!r} ({counted(sizes[one], 'image')}) and {other!r} ({counted(sizes[other], 'image')}): one letter"
        )
        for one, other in _typos(sizes)
    ]
    if alike:
        yield Finding.of("class-alike", alike)
    unlabeled = [name for name in images.classes if name.casefold() in NO_LABEL]
    if unlabeled:
        examples = [Example(f"{name!r} has {counted(sizes[name], 'image')}") for name in unlabeled]
        yield Finding.of("class-no-label", examples)


def _typos(sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return pairs (misspelt, name) of names that differ in one letter, of which one has far fewer images."""
    # Two names differ in at most one letter if both give the same when a letter is left out, or one gives the other.
    shortened: dict[str, set[str]] = defaultdict(set)
    for name in sizes:
        if len(name) >= _TYPO_LENGTH:
            for variant in (name, *(name[:at] + name[at + 1 :] for at in range(len(name)))):
                shortened[variant.casefold()].add(name)
    pairs = set()
    for names in shortened.values():
        for one in names:
            for other in names:
                is_rare = sizes[one] <= _TYPO_SHARE * sizes[other]
                if one != other and is_rare and _differ_in_one_letter(one.casefold(), other.casefold()):
                    pairs.add((one, other))
    return sorted(pairs)


def _differ_in_one_letter(one: str, other: str) -> bool:
    """Return whether one letter is changed, added, left out or exchanged with the next; digits number things."""
    start = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    rest, of_other = one[start:], other[start:]
    if any(letter.isdigit() for letter in rest[:1] + of_other[:1]):
        return False
    swapped = rest[:2] == of_other[:2][::-1] and rest[2:] == of_other[2:]
    return one != other and (rest[1:] == of_other[1:] or rest == of_other[1:] or rest[1:] == of_other or swapped)
