"""Inspect every image before training: which cannot be decoded, which are unusual, and which occur twice."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from carnet.data.samples import LabeledImages, Sample, UnlabeledImages, hold_out
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
UNREADABLE, UNLABELED = "unreadable", "unlabeled"
"""The splits that `data.csv` of a run gives to images that were skipped because they cannot be decoded, and to images
without labels, whose paths count from their own folder."""
LOST = "part of the image data lost, cut short or zeros"
"""The oddity of an image in which the decoder fills in for lost data."""
_FEW_VALID = 100
"""With fewer validation images, the 95% interval of an accuracy is wider than 20 points."""
_TWELVE_BITS = 4096
"""Number of values that cameras and microscopes give, which are often stored in 16 bits as they are."""
_MODES = {"1": "black and white", "L": "grey", "P": "palette", "CMYK": "CMYK"} | dict.fromkeys(
    ("LA", "RGBA"), "transparent"
)
_NO_LABEL = frozenset(("nan", "<na>", "nat", "null", "none", "n/a", "#n/a", "undefined"))
"""What programs write for a missing label, in lower case."""


@dataclass(frozen=True)
class ImageFacts:
    """What one file holds.

    Attributes:
        sha256: hash of the file's bytes; "" if they cannot be read.
        width: in pixels, as stored.
        height: in pixels, as stored.
        format: Pillow's name of the file format.
        mode: Pillow's name of the pixel format.
        oddities: what is unusual about the image and was dealt with, such as a palette or a wrong extension.
        error: why it cannot be decoded; None if it can.
    """

    sha256: str
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    oddities: tuple[str, ...] = ()
    error: ImageError | None = None


@dataclass(frozen=True)
class ScannedImages:
    """Labelled images that can all be decoded, split into `train`, `valid` and perhaps `test`.

    Attributes:
        data: the images.
        facts: what each file holds.
        unreadable: images that were skipped because they cannot be decoded.
        held_out: whether `valid` was held out of the other images by `scan_images`.
        warnings: what the user should know.
        unlabeled: images that a teacher names; none of them is a labelled image as well. None: there are none.
        unreadable_unlabeled: those of them that were skipped because they cannot be decoded.
    """

    data: LabeledImages
    facts: Mapping[Path, ImageFacts]
    unreadable: tuple[Sample, ...] = ()
    held_out: bool = False
    warnings: tuple[str, ...] = ()
    unlabeled: UnlabeledImages | None = None
    unreadable_unlabeled: tuple[Path, ...] = ()

    @property
    def ignored(self) -> tuple[str, ...]:
        """The images that the ignore list names, as a run records them."""
        return self.data.ignored + (() if self.unlabeled is None else self.unlabeled.ignored)

    @property
    def num_unlabeled(self) -> int:
        """Number of images without labels."""
        return 0 if self.unlabeled is None else len(self.unlabeled.paths)

    @property
    def num_images(self) -> dict[str, int]:
        """Number of images of each split, those without labels last if there are some."""
        numbers = {split: len(samples) for split, samples in self.data.splits.items()}
        return numbers | ({UNLABELED: self.num_unlabeled} if self.unlabeled else {})

    @property
    def num_unreadable(self) -> int:
        """Number of images that were skipped because they cannot be decoded."""
        return len(self.unreadable) + len(self.unreadable_unlabeled)

    def leaked(self, split: str) -> tuple[Sample, ...]:
        """Return the images of a split that are byte for byte in `train` as well."""
        train = {self.facts[sample.path].sha256 for sample in self.data.splits["train"]}
        return tuple(s for s in self.data.splits.get(split, ()) if self.facts[s.path].sha256 in train)

    @property
    def oddities(self) -> dict[str, list[str]]:
        """Files by what is unusual about them, the most frequent oddity first."""
        files: dict[str, list[str]] = defaultdict(list)
        unlabeled = () if self.unlabeled is None else self.unlabeled.paths
        for path in (*(sample.path for sample in self.data.samples), *unlabeled):
            for oddity in self.facts[path].oddities:
                files[oddity].append(self.data.relative(path))
        return dict(sorted(files.items(), key=lambda item: -len(item[1])))

    @property
    def duplicates(self) -> list[list[Sample]]:
        """Groups of files that are equal byte for byte, within and across splits."""
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in self.data.samples:
            groups[self.facts[sample.path].sha256].append(sample)
        return [group for group in groups.values() if len(group) > 1]

    @property
    def content_hash(self) -> str:
        """Hash of the split, class, relative path and bytes of every image, in order."""
        digest = hashlib.sha256()
        for row in self.rows():
            line = "\t".join(row[column] for column in ("split", "label", "filepath", "sha256"))
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def rows(self) -> Iterable[dict[str, str]]:
        """Yield one record for each file, with the columns of a run's `data.csv`."""
        for split, samples in (*self.data.splits.items(), (UNREADABLE, self.unreadable)):
            for sample in samples:
                yield self._row(split, self.data.classes[sample.label], self.data.relative(sample), sample.path)
        if self.unlabeled is not None:
            for split, paths in ((UNLABELED, self.unlabeled.paths), (UNREADABLE, self.unreadable_unlabeled)):
                for path in paths:
                    yield self._row(split, "", path.relative_to(self.unlabeled.root).as_posix(), path)

    def _row(self, split: str, label: str, name: str, path: Path) -> dict[str, str]:
        facts = self.facts[path]
        return {
            "split": split,
            "label": label,
            "filepath": name,
            **{key: str(getattr(facts, key)) for key in ("sha256", "width", "height", "format", "mode")},
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
    unlabeled: UnlabeledImages | None = None,
    progress: OnProgress | None = None,
) -> ScannedImages:
    """Decode every image once, hold out validation images if there are none, and note what is unusual.

    Args:
        data: the images, as `find_images` returns them.
        image_size: input size of the model; JPEGs are decoded at the scale that training will use.
        skip_unreadable: skip and count images that cannot be decoded, instead of raising an error.
        valid_fraction: fraction to hold out for validation if the data has no split `valid`.
        seed: seed of that division.
        facts: what each file holds, if it is known already.
        unlabeled: images without labels.
        progress: called with the number of images inspected and of all images.

    Raises:
        UnreadableImagesError: naming every image that cannot be decoded.
        DataError: if a class has no training image left, there is no image to validate with, or none of the images
            without labels is left.
    """
    without_label = () if unlabeled is None else unlabeled.paths
    paths = [*(sample.path for sample in data.samples), *without_label]
    if facts is None:
        facts = inspect_images(paths, image_size, progress)
    unreadable = tuple(sample for sample in data.samples if facts[sample.path].error is not None)
    errors = [error for path in paths if (error := facts[path].error) is not None]
    if errors and not skip_unreadable:
        raise UnreadableImagesError(errors, len(paths))
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
        warnings.append(f"there is no valid split; {number} of the {len(pool):,} in train are held out for validation")
    if unlabeled is not None:
        scanned = _with_unlabeled(scanned, unlabeled, warnings)
    return replace(scanned, warnings=tuple(warnings))


def _with_unlabeled(scanned: ScannedImages, unlabeled: UnlabeledImages, warnings: list[str]) -> ScannedImages:
    """Add the images without labels that are no labelled images as well; add to `warnings` which are left out.

    Raises:
        DataError: if none is left.
    """
    facts = scanned.facts
    warnings += unlabeled.warnings
    in_split = {
        facts[sample.path].sha256: split for split, samples in scanned.data.splits.items() for sample in samples
    }
    unreadable = tuple(path for path in unlabeled.paths if facts[path].error is not None)
    kept: dict[str, Path] = {}
    left_out: dict[str, list[Path]] = defaultdict(list)
    for path in unlabeled.paths:
        if facts[path].error is not None:
            continue
        digest = facts[path].sha256
        if split := in_split.get(digest, UNLABELED if digest in kept else ""):
            left_out[split].append(path)
        else:
            kept[digest] = path
    for split, paths in left_out.items():
        where = "among them already" if split == UNLABELED else f"in {split} as well"
        names = first_few([path.relative_to(unlabeled.root).as_posix() for path in paths])
        warnings.append(f"{counted(len(paths), 'image')} without label left out, byte for byte {where}: {names}")
    if not kept:
        raise DataError(f"no image of --unlabeled {unlabeled.root} is left; name other images, or leave it out")
    return replace(
        scanned,
        unlabeled=replace(unlabeled, paths=tuple(kept.values())),
        unreadable_unlabeled=unreadable,
    )


def inspect_images(
    paths: Sequence[Path], image_size: int, progress: OnProgress | None = None
) -> dict[Path, ImageFacts]:
    """Hash and decode files on several threads."""

    def inspect(path: Path) -> ImageFacts:
        try:
            content = read_file(path, MAX_IMAGE_BYTES)
        except OSError as error:
            return unreadable(path, error)
        return inspect_bytes(content, path, image_size)

    return dict(zip(paths, each_on_threads(inspect, paths, progress), strict=True))


def hash_files(paths: Sequence[Path], progress: OnProgress | None = None) -> dict[Path, str]:
    """Return the SHA-256 of each file; a file that cannot be read is left out."""

    def digest(path: Path) -> str | None:
        try:
            return digest_of(path, max_bytes=MAX_IMAGE_BYTES)
        except OSError:
            return None

    digests = zip(paths, each_on_threads(digest, paths, progress), strict=True)
    return {path: digest for path, digest in digests if digest is not None}


def unreadable(path: Path, error: OSError) -> ImageFacts:
    """Return the facts of a file whose bytes cannot be read."""
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
        path: name of the file.
        image_size: input size of the model.
        digest: SHA-256 of the content, if it is known already.
        keep: called with the opened image, to decode and keep it; None: it is decoded and dropped.
    """
    digest = digest or hashlib.sha256(content).hexdigest()
    facts = ImageFacts(digest)
    is_cut, without_end = find_losses(content)
    for given in [content] if without_end is None else [without_end, content]:
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
    odd = []
    format_name = image.format or ""
    if format_name == "PNG":
        # Pillow would decode it to find the EXIF, and if that failed, pass off what it has decoded as the image.
        image.load()
    if path.suffix.lower() not in _EXTENSIONS.get(format_name, set()):
        odd.append(f"{format_name} named {path.suffix or 'without extension'}")
    if "transparency" in image.info:
        odd.append("transparent")
    elif image.mode.startswith("I"):
        is_dark = np.asarray(image).max(initial=0) < _TWELVE_BITS
        odd.append("16-bit and nearly black, using only the lowest 4,096 of 65,536 values" if is_dark else "16-bit")
    elif image.mode in _MODES:
        odd.append(_MODES[image.mode])
    # GIF and TIFF count their frames by reading each one.
    has_chain = format_name in ("GIF", "TIFF")
    if _has_second_frame(content) if has_chain else getattr(image, "n_frames", 1) > 1:
        odd.append("several frames")
    try:
        if image.getexif().get(0x0112, 1) not in (0, 1):
            odd.append("turned by its orientation tag")
    except DECODER_ERRORS:
        odd.append("damaged EXIF")
    return tuple(odd)


def _has_second_frame(content: bytes) -> bool:
    # Only the first frame is used, so a damaged later one is no error.
    with open_image(content) as image:
        try:
            image.seek(1)
        except EOFError:
            return False
        except (*DECODER_ERRORS, Image.DecompressionBombError):
            return True
    return True


def _about_names(data: LabeledImages) -> list[str]:
    """Return notes on classes whose names may mean the same class, or no class."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in data.classes:
        # Without case, spaces, hyphens and invisible characters.
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        plain = [c for c in folded if not c.isspace() and c not in "_-" and unicodedata.category(c) != "Cf"]
        alike["".join(plain)].append(name)
    groups = [" and ".join(map(repr, names)) for plain, names in alike.items() if plain and len(names) > 1]
    notes = []
    if groups:
        what = "the names of some classes differ only in case, spaces or the form of a letter"
        notes.append(f"{what}: {first_few(groups)}; if they are one class, give them one name")
    for name in data.classes:
        if name.casefold() in _NO_LABEL:
            number = counted(sum(data.counts(split)[name] for split in data.splits), "image")
            notes.append(f"{number} of a class {name!r}, which often means a missing label; leave them out if it does")
    return notes


def _about_content(scanned: ScannedImages) -> list[str]:
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
    num_valid = sum(valid.values())
    if not scanned.held_out and num_valid < _FEW_VALID and sum(train.values()) > 10 * num_valid:
        # Half the width of a 95% interval at an accuracy of 50%, where it is widest.
        points = 98 / math.sqrt(num_valid)
        notes.append(
            f"{counted(num_valid, 'image')} in valid measure an accuracy to about ±{points:.0f} points only; without "
            "a valid folder, a fifth of train is held out"
        )
    conflicts = [group for group in scanned.duplicates if len({sample.label for sample in group}) > 1]
    if conflicts:
        listing = "; ".join(" = ".join(data.relative(sample) for sample in group) for group in conflicts[:3])
        notes.append(f"{counted(len(conflicts), 'image')} under two classes: {listing}")
    return notes
