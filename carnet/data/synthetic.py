"""The built-in data set: ten classes of things, drawn by code.

It needs no download and no fonts, so a first training run works on any machine. Every image is a function of seed,
split, class and number: the same versions of numpy and Pillow draw the same files, and a larger data set contains the
images of a smaller one. Colour, position, size and mirroring do not depend on the class, so only the shape tells it.
"""

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from itertools import chain, count
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from carnet.files import rename

Canvas = ImageDraw.ImageDraw
Colour = tuple[int, int, int]
Places = NDArray[np.complex128]
"""Points as complex numbers: x to the right is the real part, y down the imaginary part."""
Paints = dict[str, Colour]
"""The colours of body, accent and ink; with an edge colour, every area is outlined in it."""
Faults = dict[str, list[dict[str, str]]]
PICTURE_SIZE = 96
"""Side of an image, in pixels."""
_SUPERSAMPLING = 4
_GREY_SHARE = 0.08
_STREAMS = {"train": 0, "valid": 1, "planted": 2}
_PAPER, _NIGHT = (250, 246, 238), (34, 32, 44)
_PALETTES = bytes.fromhex(
    "264653 2a9d8f e9c46a f4a261 e76f51  3d405b 84a59d f7ede2 f6bd60 f28482  003049 d62828 f77f00 fcbf49 eae2b7"
    "22223b 4a4e69 9a8c98 c9ada7 f2e9e4  283618 606c38 fefae0 dda15e bc6c25  023047 219ebc 8ecae6 ffb703 fb8500"
    "6d6875 b5838d e5989b ffb4a2 ffe5d9  3a3a5c 8f7fc0 cdb4db ffafcc bde0fe  1d3557 457b9d a8dadc f1faee e63946"
    "5f0f40 9a031e fb8b24 f2e8cf 0f4c5c  2d6a4f 52b788 b7e4c7 ffe8d6 cb997e"
)
"""Five colours each."""
_SHAPES = """
bicycle: ink/40?60 -89,0 -17,42 -53,21 -17,0 -89,42; ink/40?60 17,0 89,42 53,21 89,0 17,42; accent/10 -53,21,41,41;
 accent/10 53,21,41,41; body/10 -6,25 -53,21 -22,-34 34,-34 -6,25 -26,-48; body/10 53,21 34,-34 28,-58;
 accent/10 28,-58 48,-62; accent/14 -40,-49 -12,-49
boat: accent/8 0,30 0,-90; body -7,-82 -7,20 -68,20; accent?75 8,-68 75,20 8,20; body -80,32 85,28 52,78 -58,78;
 ink/100?50 -62,49 63,46; accent?40 0,-100 -26,-93 0,-86
cup: accent?40 0,71,85,16; body/15 50,5,40,30,-110,110; body -57,-45 0,57,46,16,180,0 57,-45; body 0,-45,57,13;
 accent?50 -50,2 50,2 48,24 -48,24; accent 0,-43,47,9; ink/100?60 -4,-65 2,-75 -8,-85 -2,-95
fish: accent -35,0 -98,-38 -76,0 -98,38; accent 45,-26 0,-26,35,45,-60,-150; accent?60 10,30 -30,63 -25,22;
 body 30,0,60,43,-90,90 -5,37 -40,18 -64,0 -40,-18 -5,-37; ink 60,-10,8,8; ink/100 20,0,14,27,-80,80;
 accent?50 8,4 -24,-8 -20,20; ink/100?50 -2,0,10,17,-80,80; ink/100?50 -22,0,10,14,-80,80
house: body?60 25,-80 45,-80 45,-5 25,-5; body -65,-10 65,-10 65,78 -65,78; accent -80,-8 0,-85 80,-8;
 accent -45,31 -18,31 -18,78 -45,78; accent 26,7 52,7 52,33 26,33; ink/60 39,7 39,33; ink/60 26,20 52,20
key: body/15 -29,0 65,0 65,28 65,0 86,0 86,31; body/15?50 45,0 45,35; body/17 -60,0,31,32; accent/10?50 -10,-14 -10,14
mushroom: accent -21,2 21,2 0,72,31,16,0,180; accent?50 -21,19 21,19 31,36 -31,36;
 body 0,8,80,78,180,360 0,8,80,12,0,180; accent -40,-15,14,11; accent 2,-44,15,12; accent?60 40,-13,13,11
star: body 0,-95 28,-38 90,-29 45,15 56,77 0,47 -56,77 -45,15 -90,-29 -28,-38; accent?40 0,-52 15,-21 50,-16 25,8
 31,42 0,26 -31,42 -25,8 -50,-16 -15,-21; ink/60?30 0,-76 0,0 72,-23 0,0 45,62 0,0 -45,62 0,0 -72,-23
tree: accent -13,20 13,20 18,95 -18,95; body 0,-12 67,53 -67,53; body?80 0,-53 55,4 -55,4; body 0,-95 42,-46 -42,-46
 | accent -12,20 12,20 17,95 -17,95; body -38,-28,28,28,105,255 -20,-60,28,28,165,315 20,-60,28,28,225,375
 38,-28,28,28,285,435 20,2,28,28,-15,135 -20,2,28,28,45,195; accent?40 -35,-20,7,7; accent?40 5,-25,7,7
umbrella: accent/9 0,-87 0,72 15,72,15,15,180,0; body 0,0,-90,75,-90,0 -68,0,22,12,180,360 0,0,-45,75,0,-90;
 accent 0,0,-45,75,-90,0 -22,0,22,12,180,360 0,0,0,75,0,-90; body 0,0,0,75,-90,0 22,0,22,12,180,360 0,0,45,75,0,-90;
 accent 0,0,45,75,-90,0 68,0,22,12,180,360 0,0,90,75,0,-90
"""
"""Each thing in hundredths of its radius, x right and y down, each from about -100 to 100; | separates variants.

A part is `COLOUR[/THICKNESS][?PERCENT] POINTS`: a polygon, or with a thickness a line (for ink, a percentage of the
edge's), drawn in so many percent of images. `x,y` is a point; `x,y,rx,ry[,from,to]` are points on an ellipse, in
degrees clockwise from the right.
"""
_THINGS = {name: parts.split("|") for name, parts in re.findall(r"^(\w+): ((?:.*\n )*.*)", _SHAPES, re.MULTILINE)}
CLASSES: tuple[str, ...] = tuple(sorted(_THINGS))


def draw_image(label: int, rng: Generator, size: int = PICTURE_SIZE) -> Image.Image:
    """Draw an image of class `CLASSES[label]`, `size` x `size` pixels, of mode "RGB" or, one in twelve, "L".

    All randomness comes from `rng`.

    Raises:
        ValueError: for a label outside 0..9 or a size below 16 pixels.
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label must be between 0 and {len(CLASSES) - 1}, not {label}")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, not {size}")
    side = size * _SUPERSAMPLING
    tones = _palette(rng)
    tones[1] = _blend(tones[0], tones[1], rng.uniform(0.1, 0.5))  # otherwise no colour contrasts everywhere
    # A soft gradient in both directions between the first two tones.
    knots = np.array(tones[0]) + rng.uniform(0, 1, (3, 3, 1)) * np.subtract(tones[1], tones[0])
    image = Image.fromarray(knots.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    _clutter(canvas, rng, side, tones)
    share = rng.uniform(0.58, 0.92)
    reach, centre = side * share / 2, side / 2 * (1 + 1j + (1.06 - share) * complex(*rng.uniform(-1, 1, 2)))
    _draw_thing(canvas, CLASSES[label], rng, (centre, reach), _paints(rng, tones))
    if rng.random() < 0.25:
        # A blob or a bar covers a small part of the thing.
        along, width = (0, rng.uniform(0.3, 0.6)) if rng.random() < 0.5 else (4j, rng.uniform(0.1, 0.22))
        ends = 0.7 * complex(*rng.uniform(-1, 1, 2)) + np.array((along, -along)) * np.exp(1j * rng.uniform(0, np.pi))
        _polyline(canvas, centre + reach * ends, reach * width, tones[int(rng.integers(len(tones)))])
    return _photograph(image.reduce(_SUPERSAMPLING), rng)


def _palette(rng: Generator) -> list[Colour]:
    """Return the five colours of a random palette in random order, each slightly changed so that no value recurs."""
    chosen = rng.permutation(rng.choice(np.frombuffer(_PALETTES, np.uint8).reshape(-1, 5, 3)))
    shifted = np.clip(chosen + rng.integers(-14, 15, chosen.shape), 0, 255)
    return [(red, green, blue) for red, green, blue in shifted.tolist()]


def _blend(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _contrast(first: Colour, second: Colour) -> float:
    """Return how different two colours look, mostly by brightness, from 0 to about 255."""
    apart = np.subtract(first, second)
    return float(0.7 * abs(apart @ (0.3, 0.59, 0.11)) + 0.1 * np.abs(apart).sum())


def _paints(rng: Generator, tones: Sequence[Colour]) -> Paints:
    """Return colours that contrast with the background, mostly from its palette."""
    ground, needed = _blend(tones[0], tones[1], 0.5), rng.uniform(55, 85)
    colours = [*tones[2:], *_palette(rng), _PAPER, _NIGHT]
    strong = [colour for colour in colours if _contrast(colour, ground) > needed]  # contains at least paper or night
    body = strong[0]
    others = (colour for colour in colours if min(_contrast(colour, ground) + 15, _contrast(colour, body)) > 40)
    accent = next(others, _blend(body, ground, 0.4))
    style = rng.random()
    if style < 0.2:  # a line drawing, in which only the ink contrasts with the background
        ink = max(strong, key=lambda colour: _contrast(colour, ground))
        return {"body": _blend(ground, body, 0.15), "accent": _blend(ground, body, 0.3), "ink": ink, "edge": ink}
    ink = max(_PAPER, _NIGHT, key=lambda colour: _contrast(colour, body))
    return {"body": body, "accent": accent, "ink": ink, **({"edge": ink} if style < 0.6 else {})}


def _muted(rng: Generator, tones: Sequence[Colour]) -> Colour:
    """Return a tone mixed with the background, so that clutter is less visible than the thing."""
    return _blend(_blend(tones[0], tones[1], 0.5), tones[int(rng.integers(len(tones)))], rng.uniform(0.15, 0.45))


def _clutter(canvas: Canvas, rng: Generator, side: int, tones: Sequence[Colour]) -> None:
    """Draw stripes, blobs or nothing over the whole background, then some lines and parts of things."""
    kind = rng.integers(3)
    if kind == 0:
        colour, period, turn = _muted(rng, tones), side * rng.uniform(0.08, 0.25), np.exp(1j * rng.uniform(0, np.pi))
        for offset in np.arange(-side, side, period):
            _polyline(canvas, side * (0.5 + 0.5j + turn * np.array((1j, -1j))) + offset * turn, period * 0.45, colour)
    elif kind == 1:
        for x, y in rng.uniform(0, side, (rng.integers(4, 14), 2)):
            canvas.circle((x, y), side * rng.uniform(0.03, 0.22), _muted(rng, tones))
    for ends in rng.uniform(0, side, (rng.integers(0, 5), 4)):
        canvas.line(ends.tolist(), fill=_muted(rng, tones), width=round(side * rng.uniform(0.008, 0.03)))
    for _ in range(rng.integers(0, 3)):
        # The border cuts them off, so a single detail does not tell the class.
        centre = side * (0.5 + 0.5j + rng.uniform(0.5, 0.62) * np.exp(1j * rng.uniform(0, 2 * np.pi)))
        paints = {what: _muted(rng, tones) for what in ("body", "accent", "ink")}
        _draw_thing(canvas, str(rng.choice(CLASSES)), rng, (centre, side * rng.uniform(0.12, 0.24)), paints)


@cache
def _parts(shape: str) -> list[tuple[str, float, float, Places]]:
    """Return colour, thickness, probability and points of each part of a variant in `_SHAPES`."""
    parts = []
    for colour, thickness, chance, places in re.findall(r"(\w+)(?:/(\d+))?(?:\?(\d+))? ([-\d,\s]+)", shape):
        points = np.concatenate([_points(*map(int, place.split(","))) for place in places.split()])
        parts.append((colour, int(thickness or 0) / 100, int(chance or 100) / 100, points))
    return parts


def _points(x: float, y: float, *ellipse: float) -> Places:
    """Return one point, or 25 on an ellipse with two radii and perhaps a range of degrees, clockwise from the right."""
    rx, ry, start, end = (*ellipse, 0, 360)[:4] if ellipse else (0, 0, 0, 0)
    angles = np.radians(np.linspace(start, end, 25 if ellipse else 1))
    return np.asarray((x + rx * np.cos(angles) + 1j * (y + ry * np.sin(angles))) / 100)


def _draw_thing(canvas: Canvas, name: str, rng: Generator, place: tuple[complex, float], paints: Paints) -> None:
    """Draw a thing rotated by up to 25 degrees, slightly stretched and bent, and mirrored half of the time."""
    centre, reach = place
    turn, (wide, high), mirror = rng.uniform(-25, 25), rng.uniform(0.85, 1.1, 2), rng.choice((-1, 1))
    line, swell = reach * rng.uniform(0.04, 0.09), reach * rng.uniform(0.8, 1.25)
    # A wave of the other coordinate shifts each one, so proportions differ and parts stay connected.
    bend, phase = rng.uniform(-0.13, 0.13, 2), rng.uniform(0, 2 * np.pi, 2)
    parts = [part for part in _parts(str(rng.choice(_THINGS[name]))) if rng.random() < part[2]]
    for colour, thickness, _, points in parts:
        x = points.real + bend[0] * np.sin(2.5 * points.imag + phase[0])
        y = points.imag + bend[1] * np.sin(2.5 * points.real + phase[1])
        placed = centre + reach * np.exp(1j * np.radians(turn)) * (mirror * wide * x + 1j * high * y)
        edge = line if "edge" in paints and colour != "ink" else 0.0
        width = thickness * (line if colour == "ink" else swell)
        if not thickness:
            canvas.polygon(placed.view(np.float64).tolist(), fill=paints[colour])
        if edge:
            _polyline(canvas, placed if thickness else np.append(placed, placed[:2]), width + edge, paints["edge"])
        if thickness:
            _polyline(canvas, placed, width - edge, paints[colour])


def _polyline(canvas: Canvas, places: Places, width: float, colour: Colour) -> None:
    pixels = places.view(np.float64).tolist()
    canvas.line(pixels, fill=colour, width=max(1, round(width)), joint="curve")
    for end in (pixels[:2], pixels[-2:]):  # Pillow's lines have no round ends
        canvas.circle(end, max(1.0, width) / 2, colour)


def _photograph(image: Image.Image, rng: Generator) -> Image.Image:
    """Imitate a cheap camera: blur, changes of contrast and brightness, noise, and sometimes no colour."""
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * image.width / 96))
    contrast, light, noise = rng.uniform(0.7, 1.1), rng.uniform(-20, 20), rng.uniform(0, 7)
    pixels = (np.asarray(image, np.float32) - 128) * contrast + 128 + light
    pixels += noise * rng.standard_normal(pixels.shape, np.float32)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.convert("L") if rng.random() < _GREY_SHARE else image


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
) -> None:
    """Write root/{train,valid}/<class>/<class>_0001.jpg and so on, each image `size` x `size` pixels.

    `root` must be an empty folder or not exist, and appears complete or not at all. With `dirty`, it also gets errors
    that real folders have, under inconspicuous names, and a list of them in root/planted.json: 3 unreadable files, 4
    exact duplicates and 6 mislabelled images. `progress` is called with the number of files written and of all files.

    Raises:
        FileExistsError: if `root` exists and is not an empty folder.
        ValueError: for fewer than 1 image per class (2 in `train` if `dirty`), a size below 16, or a negative seed.
    """
    if train_per_class < (2 if dirty else 1) or valid_per_class < 1:
        raise ValueError(f"too few images per class: {train_per_class} train, {valid_per_class} valid")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} already exists and is not an empty folder")
    counts = {"train": train_per_class, "valid": valid_per_class}
    faults, planted = _plant(counts, size, seed) if dirty else ({}, {})
    places = [(s, label, i + 1) for s in counts for label in range(len(CLASSES)) for i in range(counts[s])]
    clean = ((_file_name(*place), _jpeg(seed, *place, size)) for place in places)
    root = root.resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        staged = Path(scratch) / root.name
        for done, (name, content) in enumerate(chain(clean, planted.items()), start=1):
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(content)
            if progress is not None:
                progress(done, len(places) + len(planted))
        if dirty:
            (staged / "planted.json").write_text(json.dumps(faults, indent=2) + "\n", encoding="utf-8")
        if root.exists():
            root.rmdir()  # Windows cannot rename a folder to the name of another one, even if it is empty
        rename(staged, root)


def _plant(counts: dict[str, int], size: int, seed: int) -> tuple[Faults, dict[str, bytes]]:
    """Return the errors by kind, as planted.json lists them, and the content of the files by name."""
    rng = _image_rng(seed, "planted", 0, 0)
    labels = rng.permutation(len(CLASSES)).tolist()
    files: dict[str, bytes] = {}
    faults: Faults = {}

    def plant(kind_of_fault: str, split: str, label: int, content: bytes, **about: str) -> None:
        name = next(n for index in count(counts[split] + 1) if (n := _file_name(split, label, index)) not in files)
        files[name] = content
        faults.setdefault(kind_of_fault, []).append({"path": name, **about})

    whole = _jpeg(seed, "planted", labels[0], 1, size)
    broken = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"This is not a picture.\n"}
    for label, (fault, content) in zip(labels, broken.items(), strict=False):
        plant("unreadable", "train", label, content, fault=fault)
    first, second = (rng.permutation(counts["train"])[:2] + 1).tolist()
    for kind, label, index, split, filed_as in (
        ("within_class", labels[3], first, "train", labels[3]),
        ("within_class", labels[3], second, "train", labels[3]),
        ("across_splits", labels[4], first, "valid", labels[4]),
        ("across_classes", labels[5], second, "train", labels[6]),
    ):
        content = _jpeg(seed, "train", label, index, size)
        plant("duplicates", split, filed_as, content, copy_of=_file_name("train", label, index), kind=kind)
    for filed_as, drawn_as in zip(labels[4:], [*labels[5:], labels[0]], strict=True):
        content = _jpeg(seed, "planted", drawn_as, 2, size)
        plant("mislabelled", "train", filed_as, content, filed_as=CLASSES[filed_as], drawn_as=CLASSES[drawn_as])
    return faults, files
