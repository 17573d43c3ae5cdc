"""Ten kinds of things, each drawn by a pen that is placed, turned and coloured elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import ImageDraw

Canvas = ImageDraw.ImageDraw
Colour = tuple[int, int, int]
Array = NDArray[np.float64]


class Paints(NamedTuple):
    """The colours of one thing; `outlined` edges every area with ink."""

    body: Colour
    accent: Colour
    ink: Colour
    outlined: bool


@dataclass(frozen=True)
class Pen:
    """Draws in units of the thing: x right and y down, each from about -1 to 1.

    Everything is a polygon or a polyline, because Pillow's own ellipses cannot be turned.
    """

    canvas: Canvas
    matrix: Array
    origin: Array
    line: float
    body: Colour
    accent: Colour
    ink: Colour
    outlined: bool

    def area(self, points: ArrayLike, colour: Colour) -> None:
        """Fill a polygon: points (N, 2)."""
        corners = np.asarray(points)
        self.canvas.polygon(self._pixels(corners), fill=colour)
        if self.outlined:
            self._polyline(np.vstack([corners, corners[:2]]), self.line, self.ink)

    def stroke(self, points: ArrayLike, weight: float = 1.0) -> None:
        """Draw a line through points (N, 2), `weight` times as thick as this pen's outlines."""
        self._polyline(points, self.line * weight, self.ink)

    def tube(self, points: ArrayLike, thickness: float, colour: Colour) -> None:
        """Draw a thick line through points (N, 2), outlined where this pen outlines."""
        if self.outlined:
            self._polyline(points, thickness + self.line, self.ink)
            thickness -= self.line
        self._polyline(points, thickness, colour)

    def _pixels(self, points: ArrayLike) -> list[tuple[float, float]]:
        placed = np.asarray(points) @ self.matrix.T + self.origin
        return [(x, y) for x, y in placed.tolist()]

    def _polyline(self, points: ArrayLike, thickness: float, colour: Colour) -> None:
        pixels, scale = self._pixels(points), float(np.sqrt(abs(np.linalg.det(self.matrix))))
        width = max(1.0, thickness * scale)
        self.canvas.line(pixels, fill=colour, width=round(width), joint="curve")
        for x, y in (pixels[0], pixels[-1]):  # Pillow ends its lines bluntly
            disc(self.canvas, x, y, width / 2, colour)


def disc(canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
    """Fill a circle, in pixels."""
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _arc(x: float, y: float, rx: float, ry: float, span: tuple[float, float] = (0.0, 360.0)) -> Array:
    """25 points on an ellipse, of shape (25, 2); `span` is in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(*span, 25))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def direction(angle: float) -> Array:
    """The unit vector at an angle in radians."""
    return np.array((np.cos(angle), np.sin(angle)))


def _box(left: float, top: float, right: float, bottom: float) -> Array:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _bicycle(pen: Pen, rng: Generator) -> None:
    radius, reach = rng.uniform(0.36, 0.46), rng.uniform(0.5, 0.56)
    tyre, frame = rng.uniform(0.07, 0.12), rng.uniform(0.08, 0.12)
    hub, spokes = 0.62 - radius, rng.choice([0, 2, 3])
    for x in (-reach, reach):
        for angle in np.arange(spokes) * 180 / max(spokes, 1) + 30:
            pen.stroke(_arc(x, hub, radius, radius, (angle, angle + 180))[[0, -1]], 0.4)
        pen.tube(_arc(x, hub, radius, radius), tyre, pen.accent)
    top = hub - rng.uniform(0.5, 0.6)
    rear, front, crank = (-reach, hub), (reach, hub), (-0.06, hub + 0.04)
    seat, head, bar = (-0.22, top), (0.34, top), (0.28, top - 0.24)
    pen.tube([rear, seat, crank, rear], frame, pen.body)
    pen.tube([seat, head, crank], frame, pen.body)
    pen.tube([front, head, bar], frame, pen.body)
    pen.tube([bar, (rng.uniform(0.42, 0.52), top - rng.uniform(0.18, 0.3))], frame, pen.accent)
    pen.tube([seat, (-0.26, top - 0.14)], frame, pen.body)
    pen.tube([(-0.4, top - 0.15), (-0.12, top - 0.15)], frame * 1.4, pen.accent)


def _boat(pen: Pen, rng: Generator) -> None:
    deck, keel, mast = rng.uniform(0.25, 0.4), rng.uniform(0.7, 0.85), rng.uniform(-0.1, 0.15)
    stern, bow, boom = -rng.uniform(0.7, 0.9), rng.uniform(0.75, 0.95), deck - rng.uniform(0.08, 0.16)
    pen.tube([(mast, deck), (mast, -0.9)], 0.08, pen.accent)
    pen.area([(mast - 0.07, -0.82), (mast - 0.07, boom), (stern + 0.12, boom)], pen.body)
    if rng.random() < 0.75:
        pen.area([(mast + 0.08, -0.68), (bow - 0.1, boom), (mast + 0.08, boom)], pen.accent)
    slope = rng.uniform(0.25, 0.4)
    pen.area([(stern, deck), (bow, deck - 0.04), (bow - slope, keel), (stern + 0.22, keel)], pen.body)
    if rng.random() < 0.5:
        pen.stroke([(stern + 0.18, deck + 0.17), (bow - 0.22, deck + 0.14)])
    if rng.random() < 0.4:
        pen.area([(mast, -1.0), (mast - 0.26, -0.93), (mast, -0.86)], pen.accent)


def _cup(pen: Pen, rng: Generator) -> None:
    top, bottom = -rng.uniform(0.35, 0.55), rng.uniform(0.55, 0.75)
    wide, narrow, rim = rng.uniform(0.52, 0.62), rng.uniform(0.36, 0.56), rng.uniform(0.1, 0.17)
    middle, inset = (top + bottom) / 2, (wide + narrow) / 2 - 0.02
    if rng.random() < 0.4:
        pen.area(_arc(0.0, bottom + 0.06, 0.85, 0.16), pen.accent)
    handle = _arc(0.5, middle - 0.05, rng.uniform(0.35, 0.45), rng.uniform(0.26, 0.34), (-110, 110))
    pen.tube(handle, 0.15, pen.body)
    pen.area([(-wide, top), *_arc(0.0, bottom - 0.08, narrow, 0.16, (180, 0)), (wide, top)], pen.body)
    if rng.random() < 0.5:
        pen.area(_box(-inset, middle - 0.08, inset, middle + rng.uniform(0.06, 0.18)), pen.accent)
    pen.area(_arc(0.0, top, wide, rim), pen.body)
    pen.area(_arc(0.0, top + 0.02, wide - 0.1, rim - 0.04), pen.accent)
    rise = np.linspace(0, 1, 9)
    for x in np.linspace(-0.25, 0.25, rng.choice([0, 0, 2, 3])):
        pen.stroke(np.stack([x + 0.05 * np.sin(rise * 6), top - 0.2 - 0.3 * rise], axis=1))


def _fish(pen: Pen, rng: Generator) -> None:
    height, tail, fork = rng.uniform(0.36, 0.5), rng.uniform(0.32, 0.46), rng.uniform(0.7, 0.82)
    pen.area([(-0.35, 0.0), (-0.98, -tail), (-fork, 0.0), (-0.98, tail)], pen.accent)
    pen.area([(0.45, -height * 0.6), *_arc(0.0, -height * 0.6, 0.35, 0.5, (-60, -150))], pen.accent)
    if rng.random() < 0.6:
        pen.area([(0.1, height * 0.7), (-0.3, height + 0.2), (-0.25, height * 0.5)], pen.accent)
    along = np.linspace(0, 1, 25)
    back = np.stack([along * 1.5 - 0.6, -height * np.abs(np.sin(np.pi * along**1.5)) ** 0.8], axis=1)
    pen.area([*back, *(back * (1, -1))[-2:0:-1]], pen.body)
    pen.area(_arc(0.6, -0.1, 0.08, 0.08), pen.ink)
    pen.stroke(_arc(0.2, 0.0, 0.14, height * 0.62, (-80, 80)))
    if rng.random() < 0.5:
        pen.area([(0.12, 0.04), (-0.2, -0.08), (-0.16, 0.2)], pen.accent)
        return
    for x in (0.0, -0.2):
        pen.stroke(_arc(x, 0.0, 0.1, height * 0.4, (-80, 80)))


def _house(pen: Pen, rng: Generator) -> None:
    half, eaves, base = rng.uniform(0.55, 0.75), rng.uniform(-0.2, 0.05), rng.uniform(0.7, 0.85)
    overhang, peak, ridge = rng.uniform(0.08, 0.22), -rng.uniform(0.75, 0.95), rng.uniform(-0.12, 0.12)
    if rng.random() < 0.6:
        pen.area(_box(half - 0.4, peak + 0.05, half - 0.2, eaves), pen.body)
    pen.area(_box(-half, eaves - 0.02, half, base), pen.body)
    pen.area([(-half - overhang, eaves), (ridge, peak), (half + overhang, eaves)], pen.accent)
    door, width, height = rng.uniform(0.1, 0.3) - half, rng.uniform(0.24, 0.3), rng.uniform(0.42, 0.52)
    pen.area(_box(door, base - height, door + width, base), pen.accent)
    x, y, pane = half - rng.uniform(0.22, 0.3), eaves + rng.uniform(0.24, 0.32), rng.uniform(0.11, 0.15)
    pen.area(_box(x - pane, y - pane, x + pane, y + pane), pen.accent)
    pen.stroke([(x, y - pane), (x, y + pane)], 0.6)
    pen.stroke([(x - pane, y), (x + pane, y)], 0.6)


def _key(pen: Pen, rng: Generator) -> None:
    radius, thick = rng.uniform(0.26, 0.36), rng.uniform(0.13, 0.19)
    squash, end = rng.uniform(0.85, 1.2), rng.uniform(0.85, 0.95)
    for step in range(rng.integers(2, 4)):
        x = end - 0.05 - step * 0.2
        pen.tube([(x, 0.0), (x, rng.uniform(0.22, 0.4))], thick * 0.9, pen.body)
    pen.tube([(radius - 0.6, 0.0), (end, 0.0)], thick, pen.body)
    pen.tube(_arc(-0.6, 0.0, radius, radius * squash), thick * 1.1, pen.body)
    if rng.random() < 0.5:
        collar = radius - rng.uniform(0.35, 0.47)
        pen.tube([(collar, -0.14), (collar, 0.14)], 0.1, pen.accent)


def _mushroom(pen: Pen, rng: Generator) -> None:
    brim, dome, bulge = rng.uniform(0.0, 0.15), rng.uniform(0.65, 0.9), rng.uniform(0.06, 0.18)
    wide, neck, foot = rng.uniform(0.7, 0.9), rng.uniform(0.16, 0.26), rng.uniform(0.24, 0.38)
    pen.area([(-neck, brim - 0.05), (neck, brim - 0.05), *_arc(0.0, 0.72, foot, 0.16, (0, 180))], pen.accent)
    if rng.random() < 0.5:
        high, low, hem = brim + 0.12, brim + 0.28, neck + 0.1
        pen.area([(-neck, high), (neck, high), (hem, low), (-hem, low)], pen.accent)
    pen.area([*_arc(0.0, brim, wide, dome, (180, 360)), *_arc(0.0, brim, wide, bulge, (0, 180))], pen.body)
    spots = [(-0.5, -0.29), (0.03, -0.67), (0.5, -0.27), (-0.05, -0.13)]
    for x, y in spots[: rng.integers(2, 5)]:
        size = rng.uniform(0.08, 0.15)
        pen.area(_arc(x * wide, brim + y * dome, size * 1.2, size), pen.accent)


def _star(pen: Pen, rng: Generator) -> None:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, rng.uniform(0.88, 1.0, 10), rng.uniform(0.38, 0.56))
    outline = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    pen.area(outline, pen.body)
    decoration = rng.integers(3)
    if decoration == 0:
        pen.area(outline * rng.uniform(0.45, 0.65), pen.accent)
    elif decoration == 1:
        for tip in outline[::2]:
            pen.stroke([tip * 0, tip * 0.8], 0.6)


def _tree(pen: Pen, rng: Generator) -> None:
    half = rng.uniform(0.09, 0.16)
    pen.area([(-half, 0.2), (half, 0.2), (half * 1.4, 0.95), (-half * 1.4, 0.95)], pen.accent)
    if rng.random() < 0.5:
        tiers = int(rng.integers(2, 5))
        drop = rng.uniform(1.4, 1.55) / tiers
        for tier in reversed(range(tiers)):
            wide = rng.uniform(0.58, 0.75) * (0.45 + 0.55 * (tier + 1) / tiers)
            tip, base = tier * drop * 0.85 - 0.95, (tier + 1) * drop - 0.95
            pen.area([(0.0, tip), (wide, base), (-wide, base)], pen.body)
        return
    angles = np.linspace(0, 2 * np.pi, 73)
    bumps, turn, swell = rng.integers(5, 9), rng.uniform(0, np.pi), rng.uniform(0.06, 0.14)
    radii = 1 + swell * np.abs(np.sin(bumps / 2 * angles + turn))
    wide, tall = rng.uniform(0.56, 0.72), rng.uniform(0.56, 0.7)
    crown = np.stack([wide * radii * np.cos(angles), tall * radii * np.sin(angles) - 0.28], axis=1)
    pen.area(crown, pen.body)
    for x, y in rng.uniform((-0.4, -0.65), (0.4, 0.1), (rng.choice([0, 0, 5, 8]), 2)):
        pen.area(_arc(x, y, 0.07, 0.07), pen.accent)


def _umbrella(pen: Pen, rng: Generator) -> None:
    rim, dome, wide = rng.uniform(-0.1, 0.1), rng.uniform(0.65, 0.85), rng.uniform(0.8, 0.98)
    thick, hook, sag = rng.uniform(0.07, 0.11), rng.uniform(0.12, 0.18), rng.uniform(0.08, 0.16)
    handle = [(0.0, rim - dome - 0.12), (0.0, 0.72), *_arc(hook, 0.72, hook, hook, (180, 0))]
    pen.tube(handle, thick, pen.accent)
    edges = np.linspace(-wide, wide, rng.integers(4, 7))
    for panel, (left, right) in enumerate(pairwise(edges)):
        scallop = _arc((left + right) / 2, rim, (right - left) / 2, sag, (180, 360))
        ribs = [_arc(0.0, rim, edge, dome, (0, -90)) for edge in (left, right)]
        pen.area([*ribs[0][::-1], *scallop, *ribs[1]], pen.accent if panel % 2 else pen.body)


THINGS: dict[str, Callable[[Pen, Generator], None]] = {
    "bicycle": _bicycle,
    "boat": _boat,
    "cup": _cup,
    "fish": _fish,
    "house": _house,
    "key": _key,
    "mushroom": _mushroom,
    "star": _star,
    "tree": _tree,
    "umbrella": _umbrella,
}
