"""What a scan found, in lines for people."""

from __future__ import annotations

from carnet.data.scanned import ScannedImages
from carnet.text import counted

_MAX_EXAMPLES = 6


def describe(images: ScannedImages) -> list[str]:
    """Return lines that say what was found: classes, images per split, imbalance, oddities with counts, warnings."""
    data = images.data
    sizes = ", ".join(f"{number:,} {split}" for split, number in images.num_images.items())
    origin = " (valid held out of the rest)" if images.held_out else ""
    counts = data.counts("train")
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    span = f"{counts[smallest]} ({smallest}) to {counts[largest]} ({largest})"
    sides = [(facts.width, facts.height) for facts in images.facts.values() if facts.error is None]
    lines = [
        f"Found {counted(len(data.classes), 'class', 'classes')}, {sizes} images{origin}.",
        f"Training images per class: {counts[largest] if counts[smallest] == counts[largest] else span}; "
        f"always guessing {largest} would be right for {counts[largest] / sum(counts.values()):.0%} of them.",
        f"Sides from {min(map(min, sides))} to {max(map(max, sides))} px.",
    ]
    if long := sum(max(side) > 2 * min(side) for side in sides):
        lines.append(
            f"{long:,} x more than twice as long as wide: --resize crop keeps at most half of each, the middle; "
            "pad and stretch keep all."
        )
    num_copies = sum(len(group) - 1 for group in images.duplicates)
    copies = [" = ".join(data.relative(sample) for sample in group) for group in images.duplicates]
    skipped = (*(sample.path for sample in images.unreadable), *images.unreadable_unlabeled)
    errors = [str(error) for path in skipped if (error := images.facts[path].error)]
    kinds = [
        *((len(paths), oddity, paths) for oddity, paths in images.oddities.items()),
        (num_copies, "the same file again", copies),
        (len(errors), "left out because it cannot be read", errors),
    ]
    for number, kind, examples in kinds:
        if number:
            more = " … (all in data.csv)" if len(examples) > _MAX_EXAMPLES else ""
            lines.append(f"{number} x {kind}: {', '.join(examples[:_MAX_EXAMPLES])}{more}")
    if images.ignored:
        lines.append(f"Ignored: {counted(len(images.ignored), 'image')}, as asked.")
    listed = [data] if images.unlabeled is None else [data, images.unlabeled]
    num_others, num_hidden = (sum(getattr(one, name) for one in listed) for name in ("num_other_files", "num_hidden"))
    if num_others or num_hidden:
        others, hidden = counted(num_others, "other file"), counted(num_hidden, "hidden file")
        lines.append(f"Skipped: {others}, {hidden}.")
    return lines + [f"Note: {warning}." for warning in images.warnings]
