"""Figures: training images, curves, coverage (PNG), and the confusion matrix (SVG). Matplotlib without pyplot."""

from __future__ import annotations

import io
import math
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, Template
from numpy.typing import NDArray

from carnet.calibration import CrossFitted, coverage_curve
from carnet.evaluation import EvaluationReport
from carnet.report.findings import displayable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from carnet.preprocess import Images

History = Sequence[Mapping[str, float]]
Values = NDArray[np.float64]
Lines = tuple[Values, Values]
"""One value per epoch for training, and for validation."""

INK, MUTED, RULE = "#1d2329", "#5c666e", "#d9dcd8"
COLOURS = "#c87a38", "#1b4f72"
"""Colours of training and validation: they differ in hue and, for a grey printer, in lightness."""
_SIZE: dict[str, Any] = {"figsize": (11, 4.6), "dpi": 150, "facecolor": "white"}
"""1650 x 690 pixels."""
_COLUMNS, _NAME_WIDTH = 4, 130
"""Columns of `draw_batch`, and the width of a name in points."""
_TILE_WIDTH, _TILE_HEIGHT, _TILE_GAP = 300, 330, 12
"""Pixels of an image with its name, and between two images."""
MAX_CLASSES_WITH_COUNTS = 25
MAX_CLASSES_WITH_NAMES = 60
MAX_NAME_WIDTH = 150
"""Pixels of a name on an axis; longer ones are cut, and shown whole on hover."""
SLANT = 60
"""Degrees by which the columns' names are turned; less would let them overlap at the smallest cells with names."""


def draw_curves(history: History, *, title: str = "") -> bytes:
    """Draw loss and accuracy over the epochs, for training and validation.

    Args:
        history: one row per epoch with `epoch`, `train_loss`, `valid_loss`, and as shares from 0 to 1
            `train_top1` and `valid_top1`. A missing or non-finite value is a gap.
        title: stands above both panels.

    Returns:
        A PNG file, 1650 x 690 pixels.

    Raises:
        ValueError: without epochs.
    """
    if not history:
        raise ValueError("there are no epochs to draw")
    from matplotlib.figure import Figure

    figure = Figure(**_SIZE)
    figure.subplots_adjust(left=0.055, right=0.895, top=0.82 if title else 0.89, bottom=0.13, wspace=0.44)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    losses = _column(history, "train_loss"), _column(history, "valid_loss")
    accuracies = 100 * _column(history, "train_top1"), 100 * _column(history, "valid_top1")
    epochs = _column(history, "epoch")
    _draw_panel(loss_axes, "Loss", epochs, losses, _loss_limits(losses), number="{:#.3g}")
    _draw_panel(accuracy_axes, "Accuracy", epochs, accuracies, _accuracy_limits(accuracies), number="{:.1f}%")
    accuracy_axes.yaxis.set_major_formatter("{x:g}%")
    best = best_epoch(history)
    if best is not None:
        for axes in (loss_axes, accuracy_axes):
            axes.axvline(epochs[best], color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)), zorder=2)
        _mark_best(accuracy_axes, epochs, best, accuracies[1][best])
    if title:
        figure.text(0.055, 0.965, displayable(title), fontsize=14, color=INK, va="top", parse_math=False)
    return rendered(figure)


def best_epoch(history: History) -> int | None:
    """Return the index of the epoch with the highest validation accuracy, then the lowest loss; None without any."""
    accuracies, losses = _column(history, "valid_top1"), _column(history, "valid_loss")
    if np.isnan(accuracies).all():
        return None
    # Sorts by accuracy first; numpy puts NaN last either way.
    return int(np.lexsort((losses, -accuracies))[0])


def _column(history: History, key: str) -> Values:
    values = np.array([row.get(key, math.nan) for row in history], dtype=np.float64)
    values[~np.isfinite(values)] = math.nan
    return values


def _loss_limits(lines: Lines) -> tuple[float, float]:
    values = np.concatenate(lines)
    if np.isnan(values).all():
        return 0.0, 1.0
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
    # Begin at 0 unless that would press the curves against the upper edge.
    return (0.0 if 0 <= low < 0.8 * high else low - room), high + room


def _accuracy_limits(lines: Lines) -> tuple[float, float]:
    """Begin at 0%, or at the ten below the lowest value if all are high, where the last few percent matter."""
    values = np.concatenate(lines)
    lowest = 0.0 if np.isnan(values).all() else float(np.nanmin(values))
    return (10 * math.floor((lowest - 1) / 10) if lowest > 50 else 0), 100


def _draw_panel(
    axes: Axes, title: str, epochs: Values, lines: Lines, limits: tuple[float, float], *, number: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel("epoch", color=MUTED, fontsize=10, loc="right")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=10, length=0, pad=5)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    margin = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
    axes.set(xlim=(epochs[0] - margin, epochs[-1] + margin), ylim=limits)
    thin, ends = 0.7 if len(epochs) > 150 else 1.0, []
    for name, values, colour, width in zip(("train", "valid"), lines, COLOURS, (1.7 * thin, 2.3 * thin), strict=True):
        axes.plot(epochs, values, color=colour, linewidth=width, solid_capstyle="round", zorder=3)
        # A value between two gaps is a dot, because a line would not show it.
        finite = np.isfinite(np.pad(values, 1, constant_values=math.nan))
        alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
        axes.plot(epochs[alone], values[alone], "o", color=colour, markersize=width + 2.5, zorder=3)
        if len(last := values[finite[1:-1]][-1:]):
            ends.append([(last[0] - limits[0]) / (limits[1] - limits[0]), f"{name} {number.format(last[0])}", colour])
    # Each line's name and last value stand beside its end, moved apart where they would overlap.
    if len(ends) == 2 and abs(gap := ends[0][0] - ends[1][0]) < 0.07:
        move = (math.copysign(0.07, gap or -1) - gap) / 2
        ends[0][0], ends[1][0] = ends[0][0] + move, ends[1][0] - move
    for height, text, colour in ends:
        axes.text(1.015, height, text, color=colour, fontsize=10.5, va="center", transform=axes.transAxes)


def _mark_best(axes: Axes, epochs: Values, best: int, accuracy: float) -> None:
    from matplotlib.patheffects import withStroke

    axes.plot([epochs[best]], [accuracy], "o", color=COLOURS[1], markersize=7, markerfacecolor="white", zorder=4)
    to_the_left = epochs[best] > (epochs[0] + epochs[-1]) / 2
    axes.annotate(
        f"best {accuracy:.1f}% at epoch {epochs[best]:g}",
        (epochs[best], 0.04),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if to_the_left else 6, 0),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        fontsize=10,
        color=INK,
        path_effects=[withStroke(linewidth=3, foreground="white")],
        zorder=5,
    )


def draw_batch(images: Images, names: Sequence[str]) -> bytes:
    """Draw augmented training images, each under the name of its class.

    Args:
        images: uint8 (N, S, S, C).
        names: N class names.

    Returns:
        A PNG file, 1200 pixels wide.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(names) / _COLUMNS)
    width, height = _COLUMNS * _TILE_WIDTH, rows * _TILE_HEIGHT
    figure = Figure(figsize=(width / 150, height / 150), dpi=150, facecolor="white")
    # One pair of axes, in pixels, for all images: making sixteen of them takes longer than a training step.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.axis("off")
    side = _TILE_WIDTH - _TILE_GAP
    for place, (image, name) in enumerate(zip(images, names, strict=True)):
        row, column = divmod(place, _COLUMNS)
        left, bottom = column * _TILE_WIDTH + _TILE_GAP / 2, (row + 1) * _TILE_HEIGHT - _TILE_GAP / 2
        extent = (left, left + side, bottom, bottom - side)
        axes.imshow(image.squeeze(), "gray", aspect="auto", interpolation="nearest", vmin=0, vmax=255, extent=extent)
        shown = _cut(displayable(name), _NAME_WIDTH, font=9)
        axes.text(left, bottom - side - 6, shown, fontsize=9, color=INK, va="bottom", parse_math=False)
    return rendered(figure)


def draw_coverage(crossed: CrossFitted, threshold: float) -> bytes:
    """Draw the accuracy of confident predictions over their coverage, and mark a threshold.

    Returns:
        A PNG file, 1650 x 690 pixels.
    """
    from matplotlib.figure import Figure

    thresholds, coverage, accuracy = coverage_curve(crossed.confidence, crossed.correct)
    figure = Figure(**_SIZE)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.075, right=0.96, top=0.93, bottom=0.14)
    axes.plot(100 * coverage, 100 * accuracy, color=COLOURS[1], linewidth=2)
    confident = float((thresholds >= threshold).mean())
    if 0 < confident < 1:
        axes.axvline(100 * confident, color=COLOURS[0], linewidth=1.2)
        axes.annotate(
            f"threshold {100 * threshold:.0f}%",
            (100 * confident, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-6, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            color=COLOURS[0],
            fontsize=11,
        )
    low = min(float(100 * accuracy.min()), 90)
    axes.set(
        xlim=(0, 100), ylim=(max(0, low - 5), 100.8), xlabel="coverage", ylabel="accuracy of confident predictions"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}%")
        axis.label.set(color=MUTED, fontsize=11)
    axes.tick_params(colors=INK, length=0, labelsize=11)
    axes.grid(color=RULE, linewidth=0.8)
    axes.spines[:].set_visible(False)
    return rendered(figure)


def rendered(figure: Figure, form: Literal["png", "svg"] = "png") -> bytes:
    """Return a figure as a file; as PNG the same bytes each time."""
    content = io.BytesIO()
    metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    with warnings.catch_warnings():
        # A name in a script that the built-in font lacks shows boxes; that is no reason to warn.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format=form, dpi="figure", metadata=metadata)
    return content.getvalue()


def draw_confusion(report: EvaluationReport) -> str:
    """Draw a confusion matrix, as an SVG for a page or for itself.

    Rows are true classes, columns predicted ones. The darker a cell, the larger its share of the row; hits and misses
    differ in colour, empty cells are left out. Up to `MAX_CLASSES_WITH_COUNTS` classes the cells show their counts, up
    to `MAX_CLASSES_WITH_NAMES` the axes show names; hovering always shows both.
    """
    classes, num = [displayable(name) for name in report.classes], len(report.classes)
    totals, cell = report.confusion.sum(axis=1).tolist(), _cell_size(num)
    drawing: dict[str, Any] = {
        **{"cell": cell, "side": num * cell, "cells": _cells(report.confusion, classes, totals), "slant": SLANT},
        **{"left": 26, "top": 26, "right": 4, "names": [], "font": min(13, cell - 2), "count_font": None},
    }
    if num <= MAX_CLASSES_WITH_COUNTS:
        drawing["count_font"] = min(14.0, 1.5 * cell / len(str(report.confusion.max())))
    if num <= MAX_CLASSES_WITH_NAMES:
        shown = [_cut(name, MAX_NAME_WIDTH, drawing["font"]) for name in classes]
        drawing["names"] = list(zip(shown, classes, totals, strict=True))
        widths, angle = [_text_width(name, drawing["font"]) for name in shown], math.radians(SLANT)
        drawing["left"], drawing["top"] = 34 + math.ceil(max(widths)), 34 + math.ceil(max(widths) * math.sin(angle))
        # Slanted names lean out over the right edge.
        leaning = (math.ceil(math.cos(angle) * width) - (num - k - 1) * cell for k, width in enumerate(widths))
        drawing["right"] = max(4, *leaning)
    return _template().render(drawing)


def _cells(confusion: NDArray[np.int64], classes: Sequence[str], totals: Sequence[int]) -> list[dict[str, Any]]:
    cells = []
    for row, column in np.argwhere(confusion).tolist():
        count, kind = int(confusion[row, column]), "hits" if row == column else "misses"
        share, title = count / totals[row], f"{classes[row]}: {count} of {totals[row]} right"
        if kind == "misses":
            # The root spreads the shares of misses, which are mostly small.
            share, title = math.sqrt(share), f"{count} of {totals[row]} {classes[row]} called {classes[column]}"
        # Even the smallest share is visible.
        of_cell = {"kind": kind, "title": title, "count": count, "opacity": 0.1 + 0.9 * share}
        cells.append({"row": row, "column": column, **of_cell})
    return cells


@cache
def _template() -> Template:
    loader = PackageLoader("carnet.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("confusion.svg")


def _cell_size(num_classes: int) -> int:
    if num_classes <= 12:
        return max(46, 64 - 2 * num_classes)
    if num_classes <= MAX_CLASSES_WITH_COUNTS:
        return 32
    return 14 if num_classes <= MAX_CLASSES_WITH_NAMES else max(4, 840 // num_classes)


def _cut(name: str, width: float, font: int) -> str:
    if _text_width(name, font) <= width:
        return name
    while name and _text_width(name + "…", font) > width:
        name = name[:-1]
    return name.rstrip() + "…"


def _text_width(text: str, font: int) -> float:
    """Estimate the width of a text in pixels; Chinese, Japanese and Korean characters are full squares."""
    return font * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.58 for c in text)
