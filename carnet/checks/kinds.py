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


_LEAVE_OUT = "replace them, or leave them out (--write-ignore writes the list for carnet train --ignore)"
_LOOK = f"look at them (--report); {_LEAVE_OUT}"
_TRAIN_COPY = "leave out the copies in train, so that the result is about new images (--write-ignore lists them)"
_ONE_LABEL = "decide which label is right, and leave out the other image (--write-ignore lists both in comments)"
_COPIES = {
    "bytes": "in equal files",
    "pixels": "in different files of equal pixels",
    "near": "in near copies (saved again, resized, brightened or cropped a little)",
    "mirrored": "in mirrored copies",
}


def _kinds() -> dict[str, Kind]:
    kinds = {
        "unreadable": Kind(
            "files", "error", "the file cannot be decoded", f"{_LEAVE_OUT}, or add --skip-unreadable", treatment="drop"
        ),
        "truncated": Kind(
            "files",
            "error",
            "the file is cut short and cannot be decoded",
            f"fetch them again; {_LEAVE_OUT}",
            treatment="drop",
        ),
        "half-lost": Kind(
            "files",
            "warning",
            "a part of the image is lost, and the decoder fills in for it",
            f"fetch them again; {_LEAVE_OUT}",
            treatment="drop",
        ),
        "wrong-extension": Kind(
            "files",
            "note",
            "the extension names another format",
            "nothing: the content decides; other tools may need other names",
        ),
        "color-mode": Kind(
            "files",
            "note",
            "the colours are stored in an unusual way",
            "nothing: all become RGB; see that it is not one class alone",
        ),
        "rotated": Kind(
            "files",
            "note",
            "an orientation tag turns the image",
            "nothing: the tag is applied; other tools may ignore it",
        ),
        "animated": Kind("files", "note", "the file has several frames", "nothing: the first frame is used"),
        "damaged-exif": Kind("files", "note", "the metadata are damaged", "nothing: the pixels are whole"),
        "large": Kind(
            "files", "note", "the image is far larger than a network sees it", "resize it if reading takes long"
        ),
        "unportable-name": Kind(
            "files", "warning", "the name cannot exist on every system", "rename it before the data is moved"
        ),
        "blank": Kind("photos", "warning", "the image has one brightness everywhere", _LEAVE_OUT, treatment="drop"),
        "dark": Kind("photos", "warning", "the image is very dark", _LOOK, treatment="decide"),
        "bright": Kind("photos", "warning", "the image is very bright", _LOOK, treatment="decide"),
        "blurred": Kind("photos", "warning", "the image is blurred", _LOOK, treatment="decide"),
        "low-information": Kind("photos", "warning", "the image shows very little", _LOOK, treatment="decide"),
        "aspect-ratio": Kind(
            "photos",
            "warning",
            "the image is much longer than wide",
            "crop it, or train with --resize pad: --resize crop keeps the middle only",
            treatment="decide",
        ),
        "tiny": Kind("photos", "warning", "the image is very small", _LOOK, treatment="decide"),
        "label-suspect": Kind(
            "labels",
            "warning",
            "the other images contradict the label",
            "look at them (--report), and move those that are wrong to their class",
            treatment="decide",
        ),
        "class-extra": Kind(
            "classes", "error", "the class is not in train", "give it its name in train, or remove it", "class"
        ),
        "class-missing": Kind(
            "classes",
            "warning",
            "the class has no image to evaluate with",
            "add some, or nothing is known of it",
            "class",
        ),
        "class-empty": Kind(
            "classes", "warning", "the class has no image", "add images, or remove the folder", "class"
        ),
        "class-tiny": Kind(
            "classes", "warning", "the class has few images", "add images, or combine it with another class", "class"
        ),
        "class-few-valid": Kind(
            "classes",
            "note",
            "the class is evaluated with few images",
            "read the intervals, not the recalls alone",
            "class",
        ),
        "class-imbalance": Kind(
            "classes",
            "warning",
            "the class has far fewer images than the largest one",
            "add images; look at macro recall beside accuracy; see --balance of carnet train",
            "class",
        ),
        "class-alike": Kind(
            "classes", "warning", "two names may mean one class", "give both one name if they are one class", "pair"
        ),
        "class-no-label": Kind(
            "classes",
            "warning",
            "the name often means a missing label",
            "leave out its images if they have no label",
            "class",
        ),
        "untrainable": Kind(
            "classes", "error", "carnet train would refuse the data", "see its own words above", "reason"
        ),
    }
    for kind, how in _COPIES.items():
        kinds[f"leak-{kind}"] = Kind(
            "duplicates", "warning", f"one photo is in two splits, {how}", _TRAIN_COPY, "pair", "drop"
        )
        kinds[f"conflict-{kind}"] = Kind(
            "duplicates", "warning", f"one photo has two labels, {how}", _ONE_LABEL, "pair", "decide"
        )
        kinds[f"copy-{kind}"] = Kind(
            "duplicates",
            "note",
            f"one photo is twice in a class, {how}",
            "leave out one of them, or do nothing",
            "pair",
            # Photos of a series are alike, and still say more than one of them.
            "drop" if kind in ("bytes", "pixels") else "decide",
        )
    return kinds


KINDS = _kinds()
"""Id -> kind of finding; ids never change their meaning."""
GROUPS: tuple[Group, ...] = ("files", "photos", "duplicates", "labels", "classes")
