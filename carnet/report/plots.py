"""Pictures: what goes in, how training went, how sure answers are (PNG), and what was taken for what (SVG)."""

from __future__ import annotations

import io
import math
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Literal

import numpy as np
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
"""One value per epoch, of training and of validation."""

INK, MUTED, RULE = "#1d2329", "#5c666e", "#d9dcd8"
# Of training and validation: apart in hue and, for a grey printer, in lightness and width.
COLOURS = "#c87a38", "#1b4f72"

_COLUMNS, _COLUMN_WIDTH = 4, 130
"""Of images of a batch; the width in points."""
_TILE_WIDTH, _TILE_HEIGHT, _TILE_GAP = 300, 330, 12
"""Pixels of the place of an image and its name, and between two images."""
MAX_CLASSES_WITH_COUNTS = 25
MAX_CLASSES_WITH_NAMES = 60
MAX_NAME_WIDTH = 150
"""Pixels; a longer name is cut on the axis and whole on hover."""
SLANT = 60
"""Degrees of the columns' names; less would let them overlap at the smallest cells that have names."""


def draw_curves(history: History, *, title: str = "") -> bytes:
    """Draw loss and accuracy over the epochs, for training and validation.

    Args:
        history: one row per epoch with `epoch`, `train_loss`, `valid_loss`, and as shares from 0 to 1
            `train_top1` and `valid_top1`. A value that is missing or not finite is a gap.
        title: stands above both panels.

    Returns:
        A PNG file, 1650 x 690 pixels.

    Raises:
        ValueError: without epochs.
    """
    if not history:
        raise ValueError("there are no epochs to draw")
    # Without pyplot, which keeps global state and may want a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=150, facecolor="white")
    figure.subplots_adjust(left=0.055, right=0.895, top=0.82 if title else 0.89, bottom=0.13, wspace=0.44)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    losses = _column(history, "train_loss"), _column(history, "valid_loss")
    accuracies = 100 * _column(history, "train_top1"), 100 * _column(history, "valid_top1")
    epochs = _column(history, "epoch")
    _draw_panel(loss_axes, epochs, losses, title="Loss", limits=_loss_limits(losses), number="{:#.3g}")
    _draw_panel(
        accuracy_axes,
        epochs,
        accuracies,
        title="Accuracy",
        limits=_accuracy_limits(accuracies),
        number="{:.1f} %",
    )
    accuracy_axes.yaxis.set_major_formatter("{x:g} %")
    best = best_epoch(history)
    if best is not None:
        _mark_best(loss_axes, accuracy_axes, epochs, best, float(accuracies[1][best]))
    if title:
        shown = displayable(title)
        figure.text(0.055, 0.965, shown, fontsize=14, color=INK, va="top", parse_math=False)
    return rendered(figure)


def draw_batch(images: Images, names: Sequence[str]) -> bytes:
    """Draw training images as they go in, each under the name of its class.

    Args:
        images: uint8 (N, S, S, C), as many as shall be seen.
        names: N of them.

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
        shown = _cut(displayable(name), _COLUMN_WIDTH, font=9)
        axes.text(left, bottom - side - 6, shown, fontsize=9, color=INK, va="bottom", parse_math=False)
    return rendered(figure)


def rendered(figure: Figure, form: Literal["png", "svg"] = "png") -> bytes:
    """A figure as a file; as PNG the same bytes each time."""
    content = io.BytesIO()
    metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    with warnings.catch_warnings():
        # A name in a script the built-in font lacks shows boxes; no reason to warn, much less to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format=form, dpi="figure", metadata=metadata)
    return content.getvalue()


def best_epoch(history: History) -> int | None:
    """Place of the epoch with the highest validation accuracy, of equal ones the lower loss; None without any."""
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
    # From 0 as long as that does not press the curves against the upper edge.
    return (0.0 if 0 <= low < 0.8 * high else low - room), high + room


def _accuracy_limits(lines: Lines) -> tuple[float, float]:
    """From 0 %, or where all are high from a full ten below them: the last few percent matter then."""
    values = np.concatenate(lines)
    lowest = 0.0 if np.isnan(values).all() else float(np.nanmin(values))
    return (10 * math.floor((lowest - 1) / 10) if lowest > 50 else 0), 100


def _draw_panel(
    axes: Axes, epochs: Values, lines: Lines, *, title: str, limits: tuple[float, float], number: str
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
    margin = max(0.5, 0.02 * float(epochs[-1] - epochs[0]))
    axes.set_xlim(float(epochs[0]) - margin, float(epochs[-1]) + margin)
    axes.set_ylim(*limits)
    thin = 0.7 if len(epochs) > 150 else 1.0
    for values, colour, width in zip(lines, COLOURS, (1.7 * thin, 2.3 * thin), strict=True):
        axes.plot(epochs, values, color=colour, linewidth=width, solid_capstyle="round", zorder=3)
        alone = _is_alone(values)
        axes.plot(epochs[alone], values[alone], "o", color=colour, markersize=width + 2.5, zorder=3)
    _label_ends(axes, lines, limits, number)


def _is_alone(values: Values) -> NDArray[np.bool_]:
    """Which values stand between two gaps, where a line would not show them."""
    there = np.concatenate([[False], np.isfinite(values), [False]])
    return np.asarray(there[1:-1] & ~there[:-2] & ~there[2:])


def _label_ends(axes: Axes, lines: Lines, limits: tuple[float, float], number: str) -> None:
    """Write each line's name and last value beside its end, moved apart where they would overlap."""
    low, high = limits
    ends = []
    for name, values, colour in zip(("train", "valid"), lines, COLOURS, strict=True):
        finite = values[np.isfinite(values)]
        if len(finite):
            height = (float(finite[-1]) - low) / (high - low)
            ends.append((height, f"{name} {number.format(finite[-1])}", colour))
    heights = [end[0] for end in ends]
    if len(ends) == 2 and abs(heights[0] - heights[1]) < (apart := 0.07):
        middle, sign = sum(heights) / 2, 1 if heights[0] > heights[1] else -1
        heights = [middle + sign * apart / 2, middle - sign * apart / 2]
    for height, (_, text, colour) in zip(heights, ends, strict=True):
        axes.text(1.015, height, text, color=colour, fontsize=10.5, va="center", transform=axes.transAxes)


def _mark_best(loss_axes: Axes, accuracy_axes: Axes, epochs: Values, best: int, accuracy: float) -> None:
    from matplotlib.patheffects import withStroke

    epoch = float(epochs[best])
    for axes in (loss_axes, accuracy_axes):
        axes.axvline(epoch, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)), zorder=2)
    (ring,) = accuracy_axes.plot([epoch], [accuracy], "o", color=COLOURS[1], markersize=7, zorder=4)
    ring.set_markerfacecolor("white")
    to_the_left = epoch > (epochs[0] + epochs[-1]) / 2
    accuracy_axes.annotate(
        f"best {accuracy:.1f} % at epoch {epoch:g}",
        (epoch, 0.04),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if to_the_left else 6, 0),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        fontsize=10,
        color=INK,
        path_effects=[withStroke(linewidth=3, foreground="white")],
        zorder=5,
    )


def draw_coverage(crossed: CrossFitted, threshold: float) -> bytes:
    """Draw how accurate answers are over the share of images that get one.

    Returns:
        A PNG file, 1650 x 690 pixels.
    """
    # Without pyplot, which keeps global state and may want a display.
    from matplotlib.figure import Figure

    thresholds, coverage, accuracy = coverage_curve(crossed.confidence, crossed.correct)
    figure = Figure(figsize=(11, 4.6), dpi=150, facecolor="white")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.075, right=0.96, top=0.93, bottom=0.14)
    axes.plot(100 * coverage, 100 * accuracy, color=COLOURS[1], linewidth=2)
    answered = float((thresholds >= threshold).mean())
    if 0 < answered < 1:
        axes.axvline(100 * answered, color=COLOURS[0], linewidth=1.2)
        axes.annotate(
            f"threshold {100 * threshold:.0f} %",
            (100 * answered, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-6, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            color=COLOURS[0],
            fontsize=11,
        )
    low = min(float(100 * accuracy.min()), 90)
    axes.set(xlim=(0, 100), ylim=(max(0, low - 5), 100.8), xlabel="images with an answer", ylabel="of these, right")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g} %")
        axis.label.set(color=MUTED, fontsize=11)
    axes.tick_params(colors=INK, length=0, labelsize=11)
    axes.grid(color=RULE, linewidth=0.8)
    axes.spines[:].set_visible(False)
    return rendered(figure)


def draw_confusion(report: EvaluationReport) -> str:
    """Draw what was taken for what, as an SVG that stands in a page or alone.

    A row is a true class, a column a predicted one. A cell is the darker, the larger its share of its row;
    right answers and mistakes differ in colour. Empty cells are left out. Up to `MAX_CLASSES_WITH_COUNTS`
    classes the cells show their counts, up to `MAX_CLASSES_WITH_NAMES` the axes show the names; hovering
    always shows both.

    Style sheets can reach the groups by the classes `confusion`, `hits`, `misses` and the texts' `on-dark`.
    """
    classes = [displayable(name) for name in report.classes]
    confusion, num = report.confusion, len(classes)
    cell = _cell_size(num)
    side = num * cell
    left, top, right, names = 26, 26, 4, ""
    if num <= MAX_CLASSES_WITH_NAMES:
        font = min(13, cell - 2)
        shown = [_cut(name, MAX_NAME_WIDTH, font) for name in classes]
        widths = [_text_width(name, font) for name in shown]
        left, top = 34 + math.ceil(max(widths)), 34 + math.ceil(max(widths) * math.sin(math.radians(SLANT)))
        # Slanted names lean out over the right edge.
        lean = math.cos(math.radians(SLANT))
        right = max(4, *(math.ceil(lean * width) - (num - k - 1) * cell for k, width in enumerate(widths)))
        names = _axis_names(classes, shown, confusion.sum(axis=1), cell, font)
    parts = (
        f'<path class="grid" d="{_grid(num, cell)}" fill="none" stroke="#8885"/>',
        names,
        _axis_titles(left, top, side),
        f'<g class="hits" fill="#1b4f72">{_cells(confusion, classes, cell, hits=True)}</g>',
        f'<g class="misses" fill="#b5482a">{_cells(confusion, classes, cell, hits=False)}</g>',
        _counts(confusion, cell) if num <= MAX_CLASSES_WITH_COUNTS else "",
    )
    body = f'<g transform="translate({left} {top})">{"".join(parts)}</g>'
    return _svg(left + side + right, top + side + 4, body)


def _svg(width: int, height: int, body: str) -> str:
    # On a narrow screen scrolling is better than numbers too small to read.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="confusion" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" style="min-width:{0.7 * width:.0f}px" role="img"'
        f' aria-label="Confusion matrix" font-family="system-ui, sans-serif" fill="currentColor">{body}</svg>'
    )


def _cell_size(num_classes: int) -> int:
    if num_classes <= 12:
        return max(46, 64 - 2 * num_classes)
    if num_classes <= MAX_CLASSES_WITH_COUNTS:
        return 32
    return 14 if num_classes <= MAX_CLASSES_WITH_NAMES else max(4, 840 // num_classes)


def _grid(num: int, cell: int) -> str:
    """The frame; lines between the cells only while the cells are large."""
    side = num * cell
    lines = [f"M0 0H{side}V{side}H0Z"]
    if num <= MAX_CLASSES_WITH_NAMES:
        lines += [f"M0 {k * cell}H{side}M{k * cell} 0V{side}" for k in range(1, num)]
    return "".join(lines)


def _cells(confusion: NDArray[np.int64], classes: Sequence[str], cell: int, *, hits: bool) -> str:
    names = [escape(name) for name in classes]
    totals = confusion.sum(axis=1).tolist()
    cells = []
    for row, column in np.argwhere(confusion).tolist():
        if (row == column) != hits:
            continue
        count = int(confusion[row, column])
        of_total = f"{count} of {totals[row]}"
        what = f"{names[row]}: {of_total} right" if hits else f"{of_total} {names[row]} called {names[column]}"
        cells.append(
            f'<rect x="{column * cell}" y="{row * cell}" width="{cell}" height="{cell}"'
            f' fill-opacity="{_opacity(count / totals[row], hits):.2g}"><title>{what}</title></rect>'
        )
    return "".join(cells)


def _opacity(share: float, is_hit: bool) -> float:
    """Never so faint that a cell could pass for an empty one; a root spreads mistakes, mostly small shares."""
    return 0.1 + 0.9 * (share if is_hit else math.sqrt(share))


def _counts(confusion: NDArray[np.int64], cell: int) -> str:
    font = min(14.0, 1.5 * cell / len(str(confusion.max())))
    totals = confusion.sum(axis=1)
    texts = []
    for row, column in np.argwhere(confusion).tolist():
        dark = _opacity(confusion[row, column] / totals[row], row == column) > 0.7
        style = ' class="on-dark" fill="#fff"' if dark else ""
        x, y = f"{(column + 0.5) * cell:g}", f"{(row + 0.5) * cell:g}"
        texts.append(f'<text x="{x}" y="{y}"{style}>{confusion[row, column]}</text>')
    # The text must not take the hover away from the cell below it.
    style = 'text-anchor="middle" dominant-baseline="central" pointer-events="none"'
    return f'<g font-size="{font:g}" {style}>{"".join(texts)}</g>'


def _axis_names(classes: Sequence[str], shown: Sequence[str], totals: NDArray[np.int64], cell: int, font: int) -> str:
    rows, columns = [], []
    for k, (name, short) in enumerate(zip(classes, shown, strict=True)):
        text = f"{escape(short)}<title>{escape(name)} ({totals[k]} images)</title>"
        faint = "" if totals[k] else ' fill-opacity=".45"'
        rows.append(f'<text x="-7" y="{(k + 0.5) * cell:g}" dominant-baseline="central"{faint}>{text}</text>')
        columns.append(f'<text transform="translate({(k + 0.6) * cell:g} -7) rotate(-{SLANT})">{text}</text>')
    return (
        f'<g font-size="{font}"><g text-anchor="end">{"".join(rows)}</g><g class="predicted">{"".join(columns)}</g></g>'
    )


def _axis_titles(left: int, top: int, side: int) -> str:
    style = 'font-size="13" fill-opacity=".65" text-anchor="middle"'
    return (
        f'<text {style} x="{side / 2:g}" y="{14 - top}">predicted</text>'
        f'<text {style} transform="translate({14 - left} {side / 2:g}) rotate(-90)">true</text>'
    )


def _cut(name: str, width: float, font: int) -> str:
    if _text_width(name, font) <= width:
        return name
    while name and _text_width(name + "…", font) > width:
        name = name[:-1]
    return name.rstrip() + "…"


def _text_width(text: str, font: int) -> float:
    """About how many pixels wide a text is; Chinese, Japanese and Korean characters are full squares."""
    return font * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.58 for c in text)
