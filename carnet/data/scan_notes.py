"""Notes of a scan: what the user should know about names, leaks, labels and sizes before training."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from carnet.data.samples import LabeledImages, Sample
from carnet.data.scanned import ScannedImages
from carnet.text import counted, first_few

UNEQUAL_RATIO = 10
"""Sizes of the largest and the smallest class beyond which they are very unequal."""
_FEW_VALID = 100
"""With fewer validation images, the 95% interval of an accuracy is wider than 20 points."""
NO_LABEL = frozenset(("nan", "<na>", "nat", "null", "none", "n/a", "#n/a", "undefined"))
"""What programs write for a missing label, in lower case."""


def same_names(classes: Iterable[str]) -> list[list[str]]:
    """Return groups of names that differ only in case, spaces, hyphens or the form of a letter."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        # Without case, spaces, hyphens and invisible characters.
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        plain = [c for c in folded if not c.isspace() and c not in "_-" and unicodedata.category(c) != "Cf"]
        alike["".join(plain)].append(name)
    return [names for plain, names in alike.items() if plain and len(names) > 1]


def about_names(data: LabeledImages) -> list[str]:
    """Return notes on classes whose names may mean the same class, or no class."""
    groups = [" and ".join(map(repr, names)) for names in same_names(data.classes)]
    notes = []
    if groups:
        what = "the names of some classes differ only in case, spaces or the form of a letter"
        notes.append(f"{what}: {first_few(groups)}; if they are one class, give them one name")
    for name in data.classes:
        if name.casefold() in NO_LABEL:
            number = counted(sum(data.counts(split)[name] for split in data.splits), "image")
            notes.append(f"{number} of a class {name!r}, which often means a missing label; leave them out if it does")
    return notes


def about_content(scanned: ScannedImages) -> list[str]:
    """Return notes on what makes an accuracy less meaningful than it seems."""
    data, notes = scanned.data, []
    train, valid = data.counts("train"), data.counts("valid")
    missing = [name for name, count in valid.items() if not count]
    if scanned.held_out and missing:
        notes.append(f"too few images to validate {counted(len(missing), 'class', 'classes')}: {first_few(missing)}")
    for split in ("valid", "test"):
        if leaked := scanned.leaked(split):
            classes = Counter(data.classes[sample.label] for sample in leaked)
            listing = ", ".join(f"{name} ({count})" for name, count in classes.most_common(5))
            notes.append(f"{counted(len(leaked), 'image')} of {split} in train as well, byte for byte: {listing}")
        if near := scanned.near_leaked(split):
            names = first_few([data.relative(sample) for sample in near])
            what = (
                f"{counted(len(near), 'image')} of {split} {'is a near copy' if len(near) == 1 else 'are near copies'}"
            )
            notes.append(
                f"{what} of images in train (saved again, cropped or mirrored): {names}; carnet check shows them"
            )
    num_valid = sum(valid.values())
    if not scanned.held_out and num_valid < _FEW_VALID and sum(train.values()) > 10 * num_valid:
        # Half the width of a 95% interval at an accuracy of 50%, where it is widest.
        points = 98 / math.sqrt(num_valid)
        notes.append(
            f"{counted(num_valid, 'image')} in valid measure an accuracy to about ±{points:.0f} points only; without "
            "a valid folder, a fifth of train is held out"
        )
    return [*notes, *_about_conflicts(scanned), *_about_sizes(train)]


def _about_conflicts(scanned: ScannedImages) -> list[str]:
    """Return notes on photos under two labels."""
    data, notes = scanned.data, []
    conflicts = [group for group in scanned.duplicates if len({sample.label for sample in group}) > 1]
    if conflicts:
        listing = "; ".join(" = ".join(data.relative(sample) for sample in group) for group in conflicts[:3])
        notes.append(f"{counted(len(conflicts), 'image')} under two classes: {listing}")
    near, first = scanned.near or {}, dict[str, Sample]()
    for sample in data.samples:
        first.setdefault(scanned.facts[sample.path].sha256, sample)
    pairs = [
        (first[one], first[other])
        for one in first
        for other in sorted(near.get(one, ()))
        if one < other and other in first and first[one].label != first[other].label
    ]
    if pairs:
        listing = "; ".join(" = ".join(data.relative(sample) for sample in pair) for pair in pairs[:2])
        notes.append(
            f"{counted(len(pairs), 'pair')} of near copies under two classes: {listing}; carnet check shows them"
        )
    return notes


def _about_sizes(counts: Mapping[str, int]) -> list[str]:
    """Return a note on classes of very unequal size."""
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[largest] <= UNEQUAL_RATIO * counts[smallest]:
        return []
    ratio = f"{largest!r} has {counts[largest] / max(1, counts[smallest]):.0f} times the images of {smallest!r}"
    return [
        f"{ratio}: look at macro recall beside accuracy, which large classes decide; --balance gives small classes "
        "more weight, and is off because it costs accuracy"
    ]
