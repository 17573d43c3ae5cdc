"""The kinds of findings: each has an id that never changes its meaning, a severity, and advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
"""error: training refuses the data; warning: training runs, but its result may mislead; note: good to know."""
Group = Literal["files", "photos", "duplicates", "labels", "classes"]
Treatment = Literal["drop", "decide", "keep"]
"""What an ignore list does with the images of a finding: names them, names them in comments to decide upon, nothing."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        group: what it is about.
        severity: how serious it is.
        what: what was found, as a heading.
        advice: what to do.
        unit: what is counted.
        treatment: of its images in an ignore list.
    """

    group: Group
    severity: Severity
    what: str
    advice: str
    unit: str = "image"
    treatment: Treatment = "keep"


_LEAVE_OUT = "leave them out (--write-ignore makes the list for carnet train --ignore), or replace them"
_TRAIN_COPY = "leave the copies in train out, so that the result is that of new images (--write-ignore lists them)"
_ONE_LABEL = "decide which label is right, and leave the others out (--write-ignore lists all of them in comments)"
_COPIES = {
    "bytes": ("the same file", "byte for byte"),
    "pixels": ("the same pixels in different files", "pixel for pixel"),
    "near": ("near copies", "saved again, resized, brightened or cropped a little"),
    "mirrored": ("mirrored copies", "one shows the other mirrored"),
}


def _kinds() -> dict[str, Kind]:
    kinds = {
        "unreadable": Kind("files", "error", "cannot be decoded", f"{_LEAVE_OUT}; --skip-unreadable", treatment="drop"),
        "truncated": Kind("files", "error", "cut short", f"fetch them again, or {_LEAVE_OUT}", treatment="drop"),
        "half-lost": Kind(
            "files", "warning", "part of the image data lost", f"fetch them again, or {_LEAVE_OUT}", treatment="drop"
        ),
        "wrong-extension": Kind(
            "files", "note", "extension of another format", "nothing; the content decides. Rename them for other tools"
        ),
        "color-mode": Kind(
            "files",
            "note",
            "unusual colours",
            "nothing; they are converted to RGB. Check that all classes have them alike",
        ),
        "rotated": Kind(
            "files", "note", "turned by an orientation tag", "nothing; the tag is applied, which other tools may not do"
        ),
        "animated": Kind(
            "files", "note", "several frames", "nothing; the first frame is used. Extract others if they matter"
        ),
        "damaged-exif": Kind("files", "note", "damaged metadata", "nothing; the pixels are whole"),
        "large": Kind(
            "files", "note", "much larger than networks look at", "resize copies of them if reading takes long"
        ),
        "unportable-name": Kind(
            "files", "warning", "names that cannot exist on every system", "rename them before the data is moved"
        ),
        "blank": Kind("photos", "warning", "one brightness all over", _LEAVE_OUT, treatment="drop"),
        "dark": Kind("photos", "warning", "very dark", f"look at them; {_LEAVE_OUT}", treatment="decide"),
        "bright": Kind("photos", "warning", "very bright", f"look at them; {_LEAVE_OUT}", treatment="decide"),
        "blurred": Kind("photos", "warning", "blurred", f"look at them; {_LEAVE_OUT}", treatment="decide"),
        "low-information": Kind(
            "photos", "warning", "little to see", f"look at them; {_LEAVE_OUT}", treatment="decide"
        ),
        "aspect-ratio": Kind(
            "photos",
            "warning",
            "much longer than wide",
            "crop them, or train with --resize pad; --resize crop keeps the middle only",
            treatment="decide",
        ),
        "tiny": Kind("photos", "warning", "very small", f"look at them; {_LEAVE_OUT}", treatment="decide"),
        "label-suspect": Kind(
            "labels",
            "warning",
            "label contradicted by the other images",
            "look at them, and move those that are wrong to their class",
            treatment="decide",
        ),
        "class-extra": Kind(
            "classes", "error", "in a split, but not in train", "rename them as in train, or remove them", "class"
        ),
        "class-missing": Kind(
            "classes",
            "warning",
            "without images to evaluate with",
            "add some, or what is said of these classes rests on nothing",
            "class",
        ),
        "class-empty": Kind("classes", "warning", "without images", "add images, or remove the folder", "class"),
        "class-tiny": Kind(
            "classes", "warning", "few images", "add images; with so few, an accuracy says little", "class"
        ),
        "class-imbalance": Kind(
            "classes",
            "warning",
            "classes of very unequal size",
            "add images of the small ones; look at macro recall, not at accuracy alone",
            "class",
        ),
        "class-alike": Kind(
            "classes", "warning", "names that may mean one class", "give them one name if they are one class", "pair"
        ),
        "class-no-label": Kind(
            "classes",
            "warning",
            "names that often mean a missing label",
            "leave their images out if they have no label",
            "class",
        ),
        "untrainable": Kind("classes", "error", "cannot be trained on", "as it says", "reason"),
    }
    for kind, (what, how) in _COPIES.items():
        kinds[f"leak-{kind}"] = Kind(
            "duplicates", "warning", f"{what} in two splits, {how}", _TRAIN_COPY, "pair", "drop"
        )
        kinds[f"conflict-{kind}"] = Kind(
            "duplicates", "warning", f"{what} under two labels, {how}", _ONE_LABEL, "pair", "decide"
        )
        kinds[f"copy-{kind}"] = Kind(
            "duplicates",
            "note",
            f"{what} twice in a class, {how}",
            "leave one of each pair out, or nothing",
            "pair",
            # Photos of a series are alike, and still say more than one of them.
            "drop" if kind in ("bytes", "pixels") else "decide",
        )
    return kinds


KINDS = _kinds()
"""Id -> kind of finding; ids never change their meaning."""
GROUPS: tuple[Group, ...] = ("files", "photos", "duplicates", "labels", "classes")
