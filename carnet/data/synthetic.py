"""The built-in data set: ten kinds of things, drawn by code.

It needs no download and no fonts, so a first training run works on any machine. Every picture is a pure
function of (seed, split, class, index): the same versions of numpy and Pillow draw the same files, and a
larger data set contains the pictures of a smaller one.

Colour, place, size and mirroring do not depend on the class, so that only the shape tells it.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from carnet.data.drawing import THINGS, Array, Canvas, Colour, Paints, Pen, direction, disc
from carnet.files import patiently

CLASSES: tuple[str, ...] = tuple(sorted(THINGS))
Faults = dict[str, list[dict[str, str]]]

PICTURE_SIZE = 96
"""Side of a picture, in pixels."""
_SUPERSAMPLING = 4
_GREY_SHARE = 0.08
_STREAMS = {"train": 0, "valid": 1, "planted": 2}
_PAPER, _NIGHT = (250, 246, 238), (34, 32, 44)
_PALETTES = (
    "264653 2a9d8f e9c46a f4a261 e76f51",
    "3d405b 84a59d f7ede2 f6bd60 f28482",
    "003049 d62828 f77f00 fcbf49 eae2b7",
    "22223b 4a4e69 9a8c98 c9ada7 f2e9e4",
    "283618 606c38 fefae0 dda15e bc6c25",
    "023047 219ebc 8ecae6 ffb703 fb8500",
    "6d6875 b5838d e5989b ffb4a2 ffe5d9",
    "3a3a5c 8f7fc0 cdb4db ffafcc bde0fe",
    "1d3557 457b9d a8dadc f1faee e63946",
    "5f0f40 9a031e fb8b24 f2e8cf 0f4c5c",
    "2d6a4f 52b788 b7e4c7 ffe8d6 cb997e",
)


@dataclass(frozen=True)
class SyntheticSummary:
    """What `write_dataset` wrote.

    `num_train` and `num_valid` count files, planted ones included. The tuples name the planted files by
    their path relative to the root, with forward slashes; `duplicates` names the copies, not the originals.
    """

    num_train: int
    num_valid: int
    unreadable: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    mislabelled: tuple[str, ...] = ()


def draw_image(label: int, rng: Generator, size: int = PICTURE_SIZE) -> Image.Image:
    """Draw one picture of class `CLASSES[label]`, `size` x `size` pixels; about one in twelve is grey.

    All chance comes from `rng`. Returns a picture of mode "RGB" or "L".
    Raises ValueError for a label outside 0..9 or a size below 16 pixels.
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label must be between 0 and {len(CLASSES) - 1}, not {label}.")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, not {size}.")
    side = size * _SUPERSAMPLING
    tones = _palette(rng)
    tones[1] = _blend(tones[0], tones[1], rng.uniform(0.1, 0.5))  # else no colour stands out everywhere
    picture = _backdrop(rng, side, tones)
    canvas = ImageDraw.Draw(picture)
    _clutter(canvas, rng, side, tones)
    for _ in range(rng.integers(0, 3)):
        _stray_part(canvas, rng, side, tones)
    share = rng.uniform(0.58, 0.92)
    reach, centre = side * share / 2, side / 2 * (1 + rng.uniform(-1.0, 1.0, 2) * (1.06 - share))
    _draw_thing(canvas, CLASSES[label], rng, centre=centre, reach=reach, paints=_paints(rng, tones))
    if rng.random() < 0.25:
        _occlude(canvas, rng, centre, reach, tones[int(rng.integers(len(tones)))])
    return _photograph(picture.reduce(_SUPERSAMPLING), rng)


def _palette(rng: Generator) -> list[Colour]:
    """The five colours of a palette in random order, each slightly off so that no exact value recurs."""
    chosen = np.frombuffer(bytes.fromhex(_PALETTES[rng.integers(len(_PALETTES))]), np.uint8).reshape(5, 3)
    shifted = np.clip(rng.permutation(chosen) + rng.integers(-14, 15, chosen.shape), 0, 255)
    return [(red, green, blue) for red, green, blue in shifted.tolist()]


def _blend(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _ground(tones: Sequence[Colour]) -> Colour:
    """The middle colour of the backdrop, which runs between the first two tones."""
    return _blend(tones[0], tones[1], 0.5)


def _contrast(first: Colour, second: Colour) -> float:
    """How far apart two colours look, brightness above all: from 0 to about 255."""
    apart = np.subtract(first, second)
    return float(0.7 * abs(apart @ (0.3, 0.59, 0.11)) + 0.1 * np.abs(apart).sum())


def _paints(rng: Generator, tones: Sequence[Colour]) -> Paints:
    """Colours that stand out from the backdrop, mostly of the same palette."""
    ground, needed = _ground(tones), rng.uniform(55, 85)
    colours = [*tones[2:], *_palette(rng), _PAPER, _NIGHT]
    strong = [colour for colour in colours if _contrast(colour, ground) > needed]  # paper or night at least
    body = strong[0]
    visible = [colour for colour in colours if _contrast(colour, ground) > 25]
    accent = next((colour for colour in visible if _contrast(colour, body) > 40), _blend(body, ground, 0.4))
    style = rng.random()
    if style < 0.2:  # a line drawing: the backdrop shows through, and only the ink stands out
        ink = max(strong, key=lambda colour: _contrast(colour, ground))
        return Paints(_blend(ground, body, 0.15), _blend(ground, body, 0.3), ink, True)
    ink = max(_PAPER, _NIGHT, key=lambda colour: _contrast(colour, body))
    return Paints(body, accent, ink, style < 0.6)


def _backdrop(rng: Generator, side: int, tones: Sequence[Colour]) -> Image.Image:
    """A soft gradient in two directions between the first two tones."""
    shares = rng.uniform(0.0, 1.0, (3, 3, 1))
    knots = np.array(tones[0]) * (1 - shares) + np.array(tones[1]) * shares
    return Image.fromarray(knots.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def _muted(rng: Generator, tones: Sequence[Colour]) -> Colour:
    """Some tone mixed into the backdrop, so that clutter stays behind the thing."""
    return _blend(_ground(tones), tones[int(rng.integers(len(tones)))], rng.uniform(0.15, 0.45))


def _clutter(canvas: Canvas, rng: Generator, side: int, tones: Sequence[Colour]) -> None:
    """Stripes, blobs, splinters or nothing over the whole backdrop, and a few lines across it."""
    kind = rng.integers(4)
    if kind == 0:
        _stripes(canvas, rng, side, _muted(rng, tones))
    elif kind == 1:
        for x, y in rng.uniform(0, side, (rng.integers(4, 14), 2)):
            disc(canvas, x, y, side * rng.uniform(0.03, 0.22), _muted(rng, tones))
    elif kind == 2:
        for middle in rng.uniform(0, side, (rng.integers(3, 9), 2)):
            corners = middle + rng.uniform(-0.3, 0.3, (rng.integers(3, 6), 2)) * side
            canvas.polygon(corners.ravel().tolist(), fill=_muted(rng, tones))
    for ends in rng.uniform(0, side, (rng.integers(0, 5), 4)):
        canvas.line(ends.tolist(), fill=_muted(rng, tones), width=round(side * rng.uniform(0.008, 0.03)))


def _stripes(canvas: Canvas, rng: Generator, side: int, colour: Colour) -> None:
    angle, period = rng.uniform(0, np.pi), side * rng.uniform(0.08, 0.25)
    dx, dy = side * direction(angle)
    for offset in np.arange(-side, side, period):
        x, y = side / 2 + offset * direction(angle + np.pi / 2)
        canvas.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=round(period * 0.45))


def _stray_part(canvas: Canvas, rng: Generator, side: int, tones: Sequence[Colour]) -> None:
    """A piece of some thing, cut off by the border, so that a single detail does not give the class."""
    centre = side * (0.5 + rng.uniform(0.5, 0.62) * direction(rng.uniform(0, 2 * np.pi)))
    paints = Paints(_muted(rng, tones), _muted(rng, tones), _muted(rng, tones), False)
    name, reach = str(rng.choice(CLASSES)), side * rng.uniform(0.12, 0.24)
    _draw_thing(canvas, name, rng, centre=centre, reach=reach, paints=paints)


def _draw_thing(
    canvas: Canvas,
    name: str,
    rng: Generator,
    *,
    centre: Array,
    reach: float,
    paints: Paints,
) -> None:
    """Draw a thing mirrored half of the time, turned by up to 25 degrees, slightly stretched and slanted."""
    turn = np.radians(rng.uniform(-25, 25))
    rotation = np.stack([direction(turn), direction(turn + np.pi / 2)], axis=1)
    stretch = np.array([(rng.uniform(0.85, 1.1), rng.uniform(-0.12, 0.12)), (0.0, rng.uniform(0.85, 1.1))])
    mirror = np.diag((rng.choice((-1.0, 1.0)), 1.0))
    pen = Pen(canvas, reach * rotation @ stretch @ mirror, centre, rng.uniform(0.04, 0.09), *paints)
    THINGS[name](pen, rng)


def _occlude(canvas: Canvas, rng: Generator, centre: Array, reach: float, colour: Colour) -> None:
    """Hide a small part of the thing behind a blob or a bar."""
    x, y = centre + rng.uniform(-0.7, 0.7, 2) * reach
    if rng.random() < 0.5:
        disc(canvas, x, y, reach * rng.uniform(0.15, 0.3), colour)
        return
    dx, dy = 4 * reach * direction(rng.uniform(0, np.pi))
    width = round(reach * rng.uniform(0.1, 0.22))
    canvas.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=width)


def _photograph(picture: Image.Image, rng: Generator) -> Image.Image:
    """What a cheap camera does: blur, more or less contrast and light, noise, and sometimes no colour."""
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * picture.width / 96))
    contrast, light, noise = rng.uniform(0.7, 1.1), rng.uniform(-20, 20), rng.uniform(0, 7)
    pixels = (np.asarray(picture, np.float32) - 128) * contrast + 128 + light
    pixels += noise * rng.standard_normal(pixels.shape, np.float32)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return picture.convert("L") if rng.random() < _GREY_SHARE else picture


def draw_contact_sheet(columns: int = 10, rows: int = 4, size: int = PICTURE_SIZE, seed: int = 0) -> Image.Image:
    """One column per class in the order of `CLASSES`, starting again after the tenth.

    The pictures are the first training pictures of the data set with the same seed and size. Returns an RGB
    picture, `columns` * `size` by `rows` * `size` pixels and a white gutter around each.
    Raises ValueError if `columns` or `rows` is below 1.
    """
    if columns < 1 or rows < 1:
        raise ValueError(f"A contact sheet needs at least one column and one row, not {columns} x {rows}.")
    gutter = max(1, size // 24)
    step = size + gutter
    sheet = Image.new("RGB", (columns * step + gutter, rows * step + gutter), "white")
    for column in range(columns):
        again, label = divmod(column, len(CLASSES))
        for row in range(rows):
            rng = _image_rng(seed, "train", label, again * rows + row + 1)
            sheet.paste(draw_image(label, rng, size), (gutter + column * step, gutter + row * step))
    return sheet


def _image_rng(seed: int, stream: str, label: int, index: int) -> Generator:
    return np.random.default_rng(np.random.SeedSequence((seed, _STREAMS[stream], label, index)))


def _file_name(split: str, label: int, index: int) -> str:
    return f"{split}/{CLASSES[label]}/{CLASSES[label]}_{index:04d}.jpg"


def _jpeg(seed: int, stream: str, label: int, index: int, size: int) -> bytes:
    content = BytesIO()
    draw_image(label, _image_rng(seed, stream, label, index), size).save(content, "JPEG", quality=90)
    return content.getvalue()


def write_dataset(
    root: Path,
    *,
    train_per_class: int = 120,
    valid_per_class: int = 30,
    size: int = PICTURE_SIZE,
    seed: int = 0,
    dirty: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSummary:
    """Write root/{train,valid}/<class>/<class>_0001.jpg and so on, each picture `size` x `size` pixels.

    With `dirty`, also plant the faults that real folders have, under names that do not give them away, and
    list them in root/planted.json: 3 unreadable files, 4 exact duplicates, 6 mislabelled pictures.
    `progress` is called with the number of files done and the number of all files.

    `root` appears whole or not at all. Raises FileExistsError, and changes nothing, if `root` exists and is
    not an empty folder; ValueError if a count is below 1 (below 2 for training pictures when `dirty`), if
    `size` is below 16 or if `seed` is negative.
    """
    if train_per_class < (2 if dirty else 1) or valid_per_class < 1:
        raise ValueError(f"Too few pictures per class: {train_per_class} train, {valid_per_class} valid.")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} already exists and is not an empty folder.")
    counts = {"train": train_per_class, "valid": valid_per_class}
    faults, planted = _plant(counts, size, seed) if dirty else ({}, {})
    extra = Counter(name.split("/")[0] for name in planted)
    num_train, num_valid = (counts[split] * len(CLASSES) + extra[split] for split in ("train", "valid"))
    root = root.resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        staged = Path(scratch) / root.name
        files = chain(_clean_files(counts, size, seed), planted.items())
        for done, (name, content) in enumerate(files, start=1):
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(content)
            if progress is not None:
                progress(done, num_train + num_valid)
        if dirty:
            (staged / "planted.json").write_text(json.dumps(faults, indent=2) + "\n", encoding="utf-8")
        if root.exists():
            root.rmdir()  # Windows renames no folder onto another, not even onto an empty one
        patiently(lambda: staged.rename(root))
    paths = {kind: tuple(fault["path"] for fault in group) for kind, group in faults.items()}
    return SyntheticSummary(num_train, num_valid, **paths)


def _clean_files(counts: dict[str, int], size: int, seed: int) -> Iterator[tuple[str, bytes]]:
    for split, count in counts.items():
        for label in range(len(CLASSES)):
            for index in range(1, count + 1):
                yield _file_name(split, label, index), _jpeg(seed, split, label, index, size)


def _plant(counts: dict[str, int], size: int, seed: int) -> tuple[Faults, dict[str, bytes]]:
    """The faults by kind, as planted.json lists them, and the content of the planted files by name."""
    rng = _image_rng(seed, "planted", 0, 0)
    labels = rng.permutation(len(CLASSES)).tolist()
    files: dict[str, bytes] = {}

    def add(split: str, label: int, content: bytes) -> str:
        index = counts[split] + 1
        while _file_name(split, label, index) in files:
            index += 1
        files[_file_name(split, label, index)] = content
        return _file_name(split, label, index)

    picture = _jpeg(seed, "planted", labels[0], 1, size)
    broken = {"truncated": picture[: len(picture) // 2], "empty": b"", "text": b"This is not a picture.\n"}
    unreadable = [
        {"path": add("train", label, content), "fault": fault}
        for label, (fault, content) in zip(labels[:3], broken.items(), strict=True)
    ]

    first, second = (rng.permutation(counts["train"])[:2] + 1).tolist()
    duplicates = []
    for kind, label, index, split, filed_as in (
        ("within_class", labels[3], first, "train", labels[3]),
        ("within_class", labels[3], second, "train", labels[3]),
        ("across_splits", labels[4], first, "valid", labels[4]),
        ("across_classes", labels[5], second, "train", labels[6]),
    ):
        copy = add(split, filed_as, _jpeg(seed, "train", label, index, size))
        duplicates.append({"path": copy, "copy_of": _file_name("train", label, index), "kind": kind})

    mislabelled = []
    for filed_as, drawn_as in zip(labels[4:], [*labels[5:], labels[0]], strict=True):
        path = add("train", filed_as, _jpeg(seed, "planted", drawn_as, 2, size))
        mislabelled.append({"path": path, "filed_as": CLASSES[filed_as], "drawn_as": CLASSES[drawn_as]})
    return {"unreadable": unreadable, "duplicates": duplicates, "mislabelled": mislabelled}, files
