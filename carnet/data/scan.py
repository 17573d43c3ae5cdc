"""Look inside every image before training: can it be decoded, is it odd, does it stand there twice?"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from carnet.data.samples import LabeledImages, Sample, hold_out
from carnet.errors import DataError, ImageError, UnreadableImagesError
from carnet.files import MAX_IMAGE_BYTES, digest_of, read_file
from carnet.image_files import find_losses
from carnet.machine import each_on_threads
from carnet.preprocess import DECODER_ERRORS, decode, open_image, reason_of
from carnet.text import OnProgress, counted, first_few

_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "GIF": {".gif"},
    "BMP": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pnm", ".pbm"},
}
UNREADABLE = "unreadable"
"""In the record of a run, the split of images that were left out because they cannot be decoded."""
LOST = "part of the image data lost, cut short or zeros"
"""The oddity of images that decoders make up for."""
_FEW = 100
"""Images to validate with; fewer leave an accuracy uncertain by more than ten points."""
_SHOWN = 6
"""Of the files that are odd in one way, so many are named."""
_TWELVE_BITS = 4096
"""Values of cameras and microscopes, which files of 16 bits often hold as they are."""
_MODES = {
    "1": "black and white",
    "L": "grey",
    "P": "palette",
    "LA": "transparent",
    "RGBA": "transparent",
    "CMYK": "CMYK",
}
_NO_LABEL = frozenset(("nan", "<na>", "nat", "null", "none", "n/a", "#n/a", "undefined"))
"""What programs write where a label is missing, in small letters."""


@dataclass(frozen=True)
class ImageFacts:
    """What one file holds."""

    sha256: str
    width: int = 0
    """In pixels, as stored."""
    height: int = 0
    format: str = ""
    mode: str = ""
    """Pillow's name of the pixel format."""
    oddities: tuple[str, ...] = ()
    """What is unusual about it and was dealt with: grey, palette, transparent, animated, another extension …"""
    error: ImageError | None = None
    """Why it cannot be decoded."""


@dataclass(frozen=True)
class ScannedImages:
    """Labelled images that all can be decoded, divided into `train`, `valid` and perhaps `test`."""

    data: LabeledImages
    facts: Mapping[Path, ImageFacts]
    unreadable: tuple[Sample, ...] = ()
    """Left out with `skip_unreadable`."""
    held_out: bool = False
    """Whether `valid` was taken out of the rest by us."""
    warnings: tuple[str, ...] = field(default=())

    def leaked(self, split: str) -> tuple[Sample, ...]:
        """Images of a split that stand in `train`, byte for byte."""
        train = {self.facts[sample.path].sha256 for sample in self.data.splits["train"]}
        return tuple(s for s in self.data.splits.get(split, ()) if self.facts[s.path].sha256 in train)

    @property
    def oddities(self) -> dict[str, list[str]]:
        """What is unusual -> the files, most frequent first."""
        files: dict[str, list[str]] = defaultdict(list)
        for sample in self.data.samples:
            for oddity in self.facts[sample.path].oddities:
                files[oddity].append(self.data.relative(sample))
        return dict(sorted(files.items(), key=lambda item: -len(item[1])))

    @property
    def duplicates(self) -> list[list[Sample]]:
        """Groups of files equal byte for byte, within and across splits."""
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in self.data.samples:
            groups[self.facts[sample.path].sha256].append(sample)
        return [group for group in groups.values() if len(group) > 1]

    @property
    def content_hash(self) -> str:
        """Names the data by content: split, class, relative path and bytes of every image, in order."""
        digest = hashlib.sha256()
        for row in self.rows():
            line = "\t".join(row[column] for column in ("split", "label", "filepath", "sha256"))
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def rows(self) -> Iterable[dict[str, str]]:
        """One record per file, as `data.csv` of a run keeps it."""
        for split, samples in (*self.data.splits.items(), (UNREADABLE, self.unreadable)):
            for sample in samples:
                facts = self.facts[sample.path]
                yield {
                    "split": split,
                    "label": self.data.classes[sample.label],
                    "filepath": self.data.relative(sample),
                    "sha256": facts.sha256,
                    "width": str(facts.width),
                    "height": str(facts.height),
                    "format": facts.format,
                    "mode": facts.mode,
                    "notes": "; ".join(facts.oddities) if facts.error is None else facts.error.reason,
                }


def scan_images(
    data: LabeledImages,
    *,
    image_size: int,
    skip_unreadable: bool = False,
    valid_fraction: float = 0.2,
    seed: int = 0,
    facts: Mapping[Path, ImageFacts] | None = None,
    progress: OnProgress | None = None,
) -> ScannedImages:
    """Decode every image once, divide the data if it is not divided, and report what is odd.

    Args:
        data: as `find_images` gives it.
        image_size: the model's; JPEGs are decoded at the scale training will use.
        skip_unreadable: leave out, and count, what cannot be decoded, instead of stopping.
        valid_fraction: share held back for validation where the data has no `valid` of its own.
        seed: of that division.
        facts: what each image holds, if that is known already.
        progress: told how many images are done, of how many.

    Raises:
        UnreadableImagesError: listing every image that cannot be decoded.
        DataError: if leaving them out leaves a class without images to train on, or nothing to validate with.
    """
    if facts is None:
        facts = inspect_images([sample.path for sample in data.samples], image_size, progress)
    unreadable = tuple(sample for sample in data.samples if facts[sample.path].error is not None)
    if unreadable and not skip_unreadable:
        errors = [error for sample in unreadable if (error := facts[sample.path].error) is not None]
        raise UnreadableImagesError(errors, len(data.samples))
    splits = {
        split: tuple(sample for sample in samples if facts[sample.path].error is None)
        for split, samples in data.splits.items()
    }
    if held_out := "valid" not in splits:
        digests = {path: fact.sha256 for path, fact in facts.items()}
        pool = splits.pop("all" if data.is_flat else "train")
        train, valid = hold_out(pool, digests, fraction=valid_fraction, seed=seed)
        splits = {"train": train, "valid": valid, **splits}
    scanned = ScannedImages(replace(data, splits=splits), facts, unreadable, held_out)
    if empty := [name for name, count in scanned.data.counts("train").items() if not count]:
        raise DataError(f"no readable training image is left of {', '.join(empty[:5])}; add some, or remove the class")
    if not splits["valid"]:
        raise DataError("there are no images to validate with; add a valid split, or more images per class")
    warnings = [*data.warnings, *_about_names(scanned.data), *_about_content(scanned)]
    if held_out and not data.is_flat:
        number = counted(len(valid), "image")
        warnings.append(f"there is no valid split; {number} of the {len(pool):,} in train are held back for validation")
    return replace(scanned, warnings=tuple(warnings))


def inspect_images(
    paths: Sequence[Path], image_size: int, progress: OnProgress | None = None
) -> dict[Path, ImageFacts]:
    """Hash and decode files, on several threads."""
    return dict(zip(paths, each_on_threads(lambda path: _inspect(path, image_size), paths, progress), strict=True))


def hash_files(paths: Sequence[Path], progress: OnProgress | None = None) -> dict[Path, str]:
    """SHA-256 of each file's bytes; a file that cannot be read is left out."""

    def digest(path: Path) -> str | None:
        try:
            return digest_of(path, max_bytes=MAX_IMAGE_BYTES)
        except OSError:
            return None

    digests = zip(paths, each_on_threads(digest, paths, progress), strict=True)
    return {path: digest for path, digest in digests if digest is not None}


def _inspect(path: Path, image_size: int) -> ImageFacts:
    try:
        content = read_file(path, MAX_IMAGE_BYTES)
    except OSError as error:
        return unreadable(path, error)
    return inspect_bytes(content, path, image_size)


def unreadable(path: Path, error: OSError) -> ImageFacts:
    """What to say of a file whose bytes cannot even be read."""
    return ImageFacts("", error=ImageError(path, f"cannot be read ({error.strerror})"))


def inspect_bytes(
    content: bytes,
    path: Path,
    image_size: int,
    *,
    digest: str | None = None,
    keep: Callable[[Image.Image], None] | None = None,
) -> ImageFacts:
    """Hash and decode the content of a file.

    Args:
        content: the encoded image.
        path: what it is called.
        image_size: the model's.
        digest: its SHA-256, if that is known already.
        keep: decodes the opened image, and does something with it; None: it is decoded and forgotten.
    """
    digest = digest or hashlib.sha256(content).hexdigest()
    facts = ImageFacts(digest)
    is_cut, unended = find_losses(content)
    for given in [content] if unended is None else [unended, content]:
        try:
            with open_image(given) as image:
                facts = ImageFacts(digest, *image.size, image.format or "", image.mode, _oddities(path, image, given))
                if keep is None:
                    decode(image, path, min_side=2 * image_size)
                else:
                    keep(image)
            return replace(facts, oddities=(*facts.oddities, LOST)) if is_cut else facts
        except ImageError as error:
            facts = ImageFacts(digest, error=ImageError(path, error.reason))
        except DECODER_ERRORS as error:
            facts = ImageFacts(digest, error=ImageError(path, reason_of(error)))
        is_cut = True
    return facts


def _oddities(path: Path, image: Image.Image, content: bytes) -> tuple[str, ...]:
    if image.format == "PNG":
        # Pillow would do so to find the EXIF, and once that has failed, take what it has got for the image.
        image.load()
    odd = []
    format_name = image.format or ""
    if path.suffix.lower() not in _EXTENSIONS.get(format_name, set()):
        odd.append(f"{format_name} named {path.suffix or 'without extension'}")
    mode = _MODES.get(image.mode)
    if image.mode.startswith("I"):
        dark = np.asarray(image).max(initial=0) < _TWELVE_BITS
        mode = "16-bit and nearly black, with the lowest 4,096 of 65,536 values alone" if dark else "16-bit"
    if "transparency" in image.info:
        mode = "transparent"
    if mode is not None:
        odd.append(mode)
    # Those of a GIF or TIFF are found by going there.
    is_chain = image.format in ("GIF", "TIFF")
    if _has_second_frame(content) if is_chain else getattr(image, "n_frames", 1) > 1:
        odd.append("several frames")
    try:
        if image.getexif().get(0x0112, 1) not in (0, 1):
            odd.append("turned by its orientation tag")
    except DECODER_ERRORS:
        odd.append("damaged EXIF")
    return tuple(odd)


def _has_second_frame(content: bytes) -> bool:
    # The first is what counts, also where a later one is damaged.
    with open_image(content) as image:
        try:
            image.seek(1)
        except EOFError:
            return False
        except (*DECODER_ERRORS, Image.DecompressionBombError):
            return True
    return True


def _about_names(data: LabeledImages) -> list[str]:
    """Notes on classes that may be one, and on one that may be none."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in data.classes:
        # People take names for one that differ in capitals, blanks and what cannot be seen.
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        plain = [c for c in folded if not c.isspace() and c not in "_-" and unicodedata.category(c) != "Cf"]
        alike["".join(plain)].append(name)
    groups = [" and ".join(map(repr, names)) for plain, names in alike.items() if plain and len(names) > 1]
    notes = []
    if groups:
        what = "classes that differ only in capitals, blanks or ways of writing a letter"
        notes.append(f"{what}: {first_few(groups)}; if they are one, give them one name")
    for name in data.classes:
        if name.casefold() in _NO_LABEL:
            number = counted(sum(data.counts(split)[name] for split in data.splits), "image")
            notes.append(
                f"{number} of a class {name!r}, which programs write where a label is missing; leave them out if so"
            )
    return notes


def _about_content(scanned: ScannedImages) -> list[str]:
    """Notes on what would make an accuracy say less than it seems to."""
    data, notes = scanned.data, []
    train, valid = data.counts("train"), data.counts("valid")
    lacking = [name for name, count in valid.items() if not count]
    if scanned.held_out and lacking:
        notes.append(f"too few images to validate {len(lacking)} of the classes: {', '.join(lacking[:5])}")
    for split in ("valid", "test"):
        if leaked := scanned.leaked(split):
            classes = Counter(data.classes[sample.label] for sample in leaked)
            listing = ", ".join(f"{name} ({count})" for name, count in classes.most_common(5))
            notes.append(f"{counted(len(leaked), 'image')} of {split} in train as well, byte for byte: {listing}")
    num_valid = sum(valid.values())
    if not scanned.held_out and num_valid < _FEW and sum(train.values()) > 10 * num_valid:
        # Half the width of a 95 % interval, at worst.
        points = 98 / math.sqrt(num_valid)
        notes.append(
            f"{counted(num_valid, 'image')} in valid, by which an accuracy is known to about {points:.0f} points "
            "either way; without a valid folder, a fifth of train is held back"
        )
    conflicts = [group for group in scanned.duplicates if len({sample.label for sample in group}) > 1]
    if conflicts:
        listing = "; ".join(" = ".join(data.relative(sample) for sample in group) for group in conflicts[:3])
        notes.append(f"{counted(len(conflicts), 'image')} under two classes: {listing}")
    return notes


def describe(images: ScannedImages) -> list[str]:
    """What was found, a line each: classes, images per split, imbalance, everything odd by kind and count."""
    data = images.data
    sizes = ", ".join(f"{len(samples):,} {split}" for split, samples in data.splits.items())
    origin = " (valid held back from the rest)" if images.held_out else ""
    lines = [f"Found {counted(len(data.classes), 'class', 'classes')}, {sizes} images{origin}."]
    counts = data.counts("train")
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    share = counts[largest] / sum(counts.values())
    span = f"{counts[smallest]} ({smallest}) to {counts[largest]} ({largest})"
    lines.append(
        f"Training images per class: {counts[largest] if counts[smallest] == counts[largest] else span}; "
        f"always guessing {largest} would be right for {100 * share:.0f} % of them."
    )
    sides = [(facts.width, facts.height) for facts in images.facts.values() if facts.error is None]
    lines.append(f"Sides from {min(map(min, sides))} to {max(map(max, sides))} px.")
    if long := sum(max(side) > 2 * min(side) for side in sides):
        lines.append(
            f"{long:,} x more than twice as long as wide: with --resize crop, half of it at most is seen, the middle; "
            "with pad or stretch, all."
        )
    num_copies = sum(len(group) - 1 for group in images.duplicates)
    copies = [" = ".join(data.relative(sample) for sample in group) for group in images.duplicates]
    errors = [str(error) for sample in images.unreadable if (error := images.facts[sample.path].error)]
    kinds = [
        *((len(paths), oddity, paths) for oddity, paths in images.oddities.items()),
        (num_copies, "the same file again", copies),
        (len(errors), "left out because it cannot be read", errors),
    ]
    for number, kind, examples in kinds:
        if number:
            more = " … (all in data.csv)" if len(examples) > _SHOWN else ""
            lines.append(f"{number} x {kind}: {', '.join(examples[:_SHOWN])}{more}")
    if data.ignored:
        lines.append(f"Ignored: {counted(len(data.ignored), 'image')}, as asked.")
    if data.num_other_files or data.num_hidden:
        others, hidden = counted(data.num_other_files, "other file"), counted(data.num_hidden, "hidden file")
        lines.append(f"Passed over: {others}, {hidden}.")
    return lines + [f"Note: {warning}." for warning in images.warnings]
