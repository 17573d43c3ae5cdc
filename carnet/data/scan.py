"""Inspect every image before training: which cannot be decoded, which are unusual, and which occur twice."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from carnet.data.samples import LabeledImages, groups_of, hold_out
from carnet.data.scan_notes import about_content, about_names
from carnet.data.scanned import ImageFacts, ScannedImages
from carnet.data.unlabeled import UnlabeledImages
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
LOST = "part of the image data lost, cut short or zeros"
"""The oddity of an image in which the decoder fills in for lost data."""
ROTATED, SEVERAL_FRAMES, DAMAGED_EXIF = "turned by its orientation tag", "several frames", "damaged EXIF"
"""Other oddities; the rest are wrong extensions, and colours that are not RGB."""
_TWELVE_BITS = 4096
"""Number of values that cameras and microscopes give, which are often stored in 16 bits as they are."""
_MODES = {"1": "black and white", "L": "grey", "P": "palette", "CMYK": "CMYK"} | dict.fromkeys(
    ("LA", "RGBA"), "transparent"
)


@dataclass(frozen=True)
class Earlier:
    """How a run that is resumed divided its images, which another version or machine might do otherwise.

    Attributes:
        held_out: content hashes of the images that it held out; None: it held out none.
        left_out: of the images without labels that it left out as near copies; None: they are not known.
        ignored: paths of the images without labels that it ignored, inside their folder; None: another ignore list is
            given now.
    """

    held_out: Collection[str] | None = None
    left_out: Collection[str] | None = None
    ignored: Sequence[str] | None = None


def scan_images(
    data: LabeledImages,
    *,
    image_size: int,
    skip_unreadable: bool = False,
    valid_fraction: float = 0.2,
    seed: int = 0,
    facts: Mapping[Path, ImageFacts] | None = None,
    near: Mapping[str, frozenset[str]] | None = None,
    earlier: Earlier | None = None,
    unlabeled: UnlabeledImages | None = None,
    near_unlabeled: Mapping[str, frozenset[str]] | None = None,
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
        near: content hash of a labelled image -> those of its near copies, which stay on one side when images are held
            out; None: they are not known.
        earlier: how a run that is resumed divided them; None: it is a new run.
        unlabeled: images without labels.
        near_unlabeled: content hash -> those of its near copies, also among images without labels, which are left out
            if they are near copies of an image that is evaluated; None: they are not known.
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
        pool = splits.pop("all" if data.is_flat else "train")
        digests = {path: fact.sha256 for path, fact in facts.items()}
        if earlier is None or earlier.held_out is None:
            groups = groups_of(near or {})
            train, valid = hold_out(pool, digests, fraction=valid_fraction, seed=seed, groups=groups)
        else:
            train = tuple(sample for sample in pool if digests[sample.path] not in earlier.held_out)
            valid = tuple(sample for sample in pool if digests[sample.path] in earlier.held_out)
        splits = {"train": train, "valid": valid, **splits}
    scanned = ScannedImages(replace(data, splits=splits), facts, unreadable, held_out, near=near)
    if empty := [name for name, count in scanned.data.counts("train").items() if not count]:
        raise DataError(f"no readable training image is left of {', '.join(empty[:5])}; add some, or remove the class")
    if not splits["valid"]:
        raise DataError("there are no images to validate with; add a valid split, or more images per class")
    warnings = [*data.warnings, *about_names(scanned.data), *about_content(scanned)]
    if held_out and not data.is_flat:
        number = counted(len(valid), "image")
        warnings.append(f"there is no valid split; {number} of the {len(pool):,} in train are held out for validation")
    if unlabeled is not None:
        if earlier is not None and earlier.left_out is not None:
            copies = set(earlier.left_out)
        elif near_unlabeled is not None:
            copies = _copies_of_evaluated(scanned, near_unlabeled)
        else:
            copies = set()
            warnings.append("images without labels may be near copies of others; to tell, thumbnails need room")
        scanned = _with_unlabeled(scanned, unlabeled, copies, warnings)
    return replace(scanned, warnings=tuple(warnings))


def _copies_of_evaluated(scanned: ScannedImages, near: Mapping[str, frozenset[str]]) -> set[str]:
    """Return the contents that are near copies of images which are evaluated."""
    splits = scanned.data.splits
    evaluated = {scanned.facts[one.path].sha256 for name in splits if name != "train" for one in splits[name]}
    return {content for content, others in near.items() if not evaluated.isdisjoint(others)}


def _with_unlabeled(
    scanned: ScannedImages, unlabeled: UnlabeledImages, copies: Collection[str], warnings: list[str]
) -> ScannedImages:
    """Add the images without labels that are no labelled images as well; add to `warnings` which are left out.

    So are near copies of images that are evaluated, whose content hashes are `copies`.

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
    near_copies: list[Path] = []
    left_out: dict[str, list[Path]] = defaultdict(list)
    for path in unlabeled.paths:
        if facts[path].error is not None:
            continue
        digest = facts[path].sha256
        if split := in_split.get(digest):
            left_out[f"byte for byte in {split} as well"].append(path)
        elif digest in kept:
            left_out["byte for byte among them already"].append(path)
        elif digest in copies:
            near_copies.append(path)
        else:
            kept[digest] = path
    if near_copies:
        left_out["near copies of images that are evaluated (saved again, cropped or mirrored)"] = near_copies
    for why, paths in left_out.items():
        names = first_few([path.relative_to(unlabeled.root).as_posix() for path in paths])
        warnings.append(f"{counted(len(paths), 'image')} without label left out, {why}: {names}")
    if not kept:
        raise DataError(f"no image of --unlabeled {unlabeled.root} is left; name other images, or leave it out")
    return replace(
        scanned,
        unlabeled=replace(unlabeled, paths=tuple(kept.values())),
        unreadable_unlabeled=unreadable,
        near_copies_unlabeled=tuple(near_copies),
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
        odd.append(SEVERAL_FRAMES)
    try:
        if image.getexif().get(0x0112, 1) not in (0, 1):
            odd.append(ROTATED)
    except DECODER_ERRORS:
        odd.append(DAMAGED_EXIF)
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
