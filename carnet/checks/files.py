"""Checks of files: what cannot be decoded, what is unusual about them, and their names."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator

from carnet.checks.data import CheckedData
from carnet.checks.findings import Example, Finding
from carnet.data.scan import DAMAGED_EXIF, LOST, ROTATED, SEVERAL_FRAMES
from carnet.text import first_few

LARGE_PIXELS = 24_000_000
"""An image with more pixels takes noticeable time to decode."""
_KIND_OF = {LOST: "half-lost", ROTATED: "rotated", SEVERAL_FRAMES: "animated", DAMAGED_EXIF: "damaged-exif"}
_RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_DRIVE = re.compile(r"^[A-Za-z]:/")
_RESERVED_CHARACTERS = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_MOST_BYTES = 255
"""Of a name, on most file systems."""


def check_content(data: CheckedData) -> Iterator[Finding]:
    """Find files that cannot be decoded, or are unusual."""
    found: dict[str, list[Example]] = defaultdict(list)
    for split, sample in data:
        facts, place = data.facts[sample.path], data.place
        if facts.error is not None:
            kind = "truncated" if "truncated" in facts.error.reason else "unreadable"
            found[kind].append(Example(facts.error.reason, (place(split, sample),)))
            continue
        for oddity in facts.oddities:
            kind = _KIND_OF.get(oddity) or ("wrong-extension" if " named " in oddity else "color-mode")
            found[kind].append(Example(oddity, (place(split, sample),)))
        if facts.width * facts.height > LARGE_PIXELS:
            found["large"].append(Example(f"{facts.width} x {facts.height} px", (place(split, sample),)))
    for kind, examples in found.items():
        rule = f"more than {LARGE_PIXELS / 1e6:.0f} million pixels" if kind == "large" else ""
        yield Finding.of(kind, examples, rule=rule)


def check_names(data: CheckedData) -> Iterator[Finding]:
    """Find names of files and folders that another system refuses, or takes for one another."""
    examples = []
    same: dict[str, list[str]] = defaultdict(list)
    known: dict[str, str] = {}
    for split, sample in data:
        name = data.images.relative(sample)
        # Files outside of DATA are named by their whole path, on Windows with a drive.
        parts = tuple(_DRIVE.sub("", name).strip("/").split("/"))
        # Folders come again with each file in them.
        known |= {part: _why_unportable(part) for part in parts if part not in known}
        if reasons := [reason for part in parts if (reason := known[part])]:
            examples.append(Example(reasons[0], (data.place(split, sample),)))
        same[unicodedata.normalize("NFC", name).casefold()].append(name)
    for names in same.values():
        if len(set(names)) > 1:
            examples.append(Example(f"differ only in case or Unicode form: {first_few(sorted(set(names)))}"))
    if examples:
        yield Finding.of("unportable-name", examples)


def _why_unportable(name: str) -> str:
    """Return why a file or folder cannot have this name on some system, or nothing."""
    if found := _RESERVED_CHARACTERS.search(name):
        return f"{found[0]!r} is not allowed on Windows"
    if _RESERVED_NAMES.fullmatch(name):
        return f"{name!r} is a device on Windows"
    if name.endswith((".", " ")):
        return "Windows drops a full stop or blank at the end"
    if len(name.encode("utf-8", "surrogatepass")) > _MOST_BYTES:
        return f"longer than {_MOST_BYTES} bytes"
    if any(0xDC80 <= ord(character) <= 0xDCFF for character in name):
        return "not UTF-8"
    return ""
