"""Show a comparison of networks as a figure, tables and a page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from carnet.files import csv_line_for_people
from carnet.report.findings import percent
from carnet.report.html import render
from carnet.report.plots import INK, MUTED, RULE, rendered
from carnet.text import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import BboxBase

STYLES = (
    ("#12395a", "-", "o"),
    ("#c87a38", (0, (5, 1.5)), "s"),
    ("#2e7350", (0, (1, 1)), "^"),
    ("#6d2f68", (0, (6, 1, 1, 1)), "D"),
    ("#9aa4ab", (0, (3, 1, 1, 1, 1, 1)), "v"),
)
"""Styles that also differ in lightness, line pattern and marker, for a grey printer."""
_LOG_RATIO = 10
"""The axis is logarithmic where the slowest network takes more than this many times as long as the fastest."""
_GAP = 9
"""Points between the end of a line and its label."""
_OFFSETS = range(-96, 100, 4)
"""Points by which a label may be moved up."""
_ORDER_COST = 24
"""A label is moved by up to this many points more to stay below the label of a better network."""

Rows = Sequence[Mapping[str, Any]]
Style = tuple[str, Any, str]
"""Colour, line pattern, marker."""
Floats = NDArray[np.float64]


def draw_comparison(rows: Rows, runs: Rows) -> tuple[bytes, bytes]:
    """Draw accuracy over training time, a thin line for each run and a bold mean, and over latency where measured.

    Args:
        rows: the networks, as `comparison.json` has them.
        runs: the runs, with seconds and accuracy after each epoch.

    Returns:
        The figure as PNG, 1950 x 780 pixels, and as SVG.
    """
    # pyplot would keep global state and may need a display.
    from matplotlib.figure import Figure

    longest = max(run["seconds"][-1] for run in runs)
    unit, seconds_per_unit = ("minutes", 60) if longest >= 180 else ("seconds", 1)
    runs = [{**run, "seconds": np.array(run["seconds"]) / seconds_per_unit} for run in runs]
    figure = Figure(figsize=(13, 5.2), dpi=150, facecolor="white")
    styles = list(itertools.islice(itertools.cycle(STYLES), len(rows)))
    measured = [(row, style) for row, style in zip(rows, styles, strict=True) if "onnx_p50" in row["latency_ms"]]
    widths = (1.75, 1) if measured else (1,)
    over_time, *beside = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    figure.subplots_adjust(left=0.055, right=0.985, top=0.9, bottom=0.13, wspace=0.2)
    ends = [
        draw_runs(over_time, [run for run in runs if run["label"] == row["label"]], style)
        for row, style in zip(rows, styles, strict=True)
    ]
    _style_axes(over_time, "Validation accuracy over training time", f"{unit} of training and validation")
    set_scale(over_time, [x for x, _ in ends], begin=0.8 * min(run["seconds"][0] for run in runs), room=0.25)
    over_time.set_xlim(right=max(over_time.get_xlim()[1], 1.02 * longest / seconds_per_unit))
    # Leave room for a label above the best network.
    over_time.set_ylim(0, max(1.0, 1.12 * over_time.dataLim.y1))
    write_labels(over_time, [f"{row['label']} {percent(row['top1'])}" for row in rows], ends, styles)
    for over_latency in beside:
        _draw_latencies(over_latency, measured)
    return rendered(figure, "png"), rendered(figure, "svg")


def draw_runs(axes: Axes, runs: Rows, style: Style) -> tuple[float, float]:
    """Draw each run and their mean, and return where the mean ends: (seconds, percent)."""
    colour, dashes, mark = style
    for run in runs:
        accuracy = 100 * np.array(run["valid_top1"])
        axes.plot(run["seconds"], accuracy, color=colour, linewidth=0.8, linestyle=dashes, alpha=0.45)
    seconds, accuracy = mean_run(runs)
    # A single epoch would not show as a line.
    marker = mark if len(seconds) == 1 else ""
    axes.plot(seconds, 100 * accuracy, color=colour, linewidth=2.4, linestyle=dashes, marker=marker)
    return float(seconds[-1]), 100 * float(accuracy[-1])


def mean_run(runs: Rows) -> tuple[Floats, Floats]:
    """Return mean seconds and mean accuracy after each epoch: (epochs,), (epochs,)

    Average runs at equal progress, so that a slow run does not distort the end. Runs with different numbers of epochs
    are interpolated to equal shares of their epochs.
    """
    shares = np.linspace(0, 1, max(len(run["seconds"]) for run in runs))
    seconds, accuracy = (
        np.mean([np.interp(shares, np.linspace(0, 1, len(run[key])), run[key]) for run in runs], axis=0)
        for key in ("seconds", "valid_top1")
    )
    return seconds, accuracy


def _draw_latencies(axes: Axes, measured: Sequence[tuple[Mapping[str, Any], Style]]) -> None:
    points = []
    for row, (colour, _, mark) in measured:
        x, y, (low, high) = row["latency_ms"]["onnx_p50"], row["top1"], row["top1_ci95"]
        # Rounding may make these slightly negative.
        errors = [[100 * max(0.0, y - low)], [100 * max(0.0, high - y)]]
        axes.errorbar(x, 100 * y, yerr=errors, color=colour, marker=mark, capsize=4)
        points.append((x, 100 * y))
    _style_axes(axes, "Accuracy over latency", "ms per image, ONNX Runtime, one thread")
    latencies = [milliseconds for milliseconds, _ in points]
    set_scale(axes, latencies, begin=min(latencies) / 2, room=0.45)
    write_labels(axes, [row["label"] for row, _ in measured], points, [style for _, style in measured])


def _style_axes(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel(across, color=MUTED, fontsize=10, loc="right")
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.tick_params(colors=MUTED, labelsize=10, length=0)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def set_scale(axes: Axes, values: Sequence[float], *, begin: float, room: float) -> None:
    """Set the horizontal axis: linear from zero, or logarithmic from `begin` where networks are far apart.

    Args:
        values: horizontal positions of the labelled points.
        begin: where a logarithmic axis begins; above zero.
        room: room for the labels on the right, as a share of the rest.
    """
    slowest = max(values)
    if slowest > _LOG_RATIO * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlim(begin, slowest * (slowest / begin) ** room)
    else:
        axes.set_xlim(0, (1 + room) * slowest)


def write_labels(
    axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]], styles: Sequence[Style]
) -> None:
    """Write each label to the right of its point, moved so that it covers no other label and few lines."""
    from matplotlib.patheffects import withStroke

    paths = [line.get_path() for line in axes.lines]
    paths += [path for bars in axes.collections for path in bars.get_paths()]
    # Points along everything drawn, in pixels.
    drawn = [axes.transData.transform_path(path).interpolated(50).vertices for path in paths]
    covered = np.concatenate([np.empty((0, 2)), *drawn])
    taken: list[BboxBase] = []

    def cost(place: tuple[int, BboxBase]) -> tuple[int, int, float]:
        """Return how many labels it covers (outside counts as one), how many points, and how far it is moved."""
        offset, box = place
        outside = box.y0 < axes.bbox.y0 or box.y1 > axes.bbox.y1
        above = any(box.y0 > other.y0 for other in taken)
        return box.count_overlaps(taken) + outside, box.count_contains(covered), abs(offset) + _ORDER_COST * above

    # The best network first, which gets the best place.
    for name, point, (colour, *_) in sorted(zip(names, points, styles, strict=True), key=lambda label: -label[1][1]):
        text = axes.annotate(
            name,
            point,
            xytext=(_GAP, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=11,
            parse_math=False,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
        box = text.get_window_extent().padded(3)
        places = ((offset, box.translated(0, offset * axes.figure.dpi / 72)) for offset in _OFFSETS)
        offset, place = min(places, key=cost)
        text.set_position((_GAP, offset))
        taken.append(place)


def table_of(rows: Rows) -> tuple[str, str]:
    """Return the table as Markdown, and as CSV with plain numbers."""
    columns, cells = _cells(rows)
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * len(rows)}"]
    lines += [f"| {' | '.join(line)} |" for line in cells]
    flat = [_flat(row) for row in rows]
    # A network without a latency lacks some columns.
    names = list(dict.fromkeys(name for row in flat for name in row))
    plain: list[list[Any]] = [names, *([row.get(name) for name in names] for row in flat)]
    return "\n".join(lines) + "\n", "".join(map(csv_line_for_people, plain))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested numbers: {"a": {"b": 1}} -> {"a b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key} {name}": item for name, item in _flat(value).items()}
        else:
            flat[key] = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


def _cells(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns, one for each network, and a line of cells for each measure."""
    measures = [_measures(row, list(rows[0]["seconds_to"])) for row in rows]
    lines = [[same[0][0], *(text for _, text in same)] for same in zip(*measures, strict=True)]
    return ["", *(row["label"] for row in rows)], lines


def _measures(row: Mapping[str, Any], targets: Sequence[str]) -> list[tuple[str, str]]:
    """Return the name and the value of each measure of a network."""
    low, high = (100 * end for end in row["top1_ci95"])
    latency = {name: f"{milliseconds:.2f} ms" for name, milliseconds in row["latency_ms"].items()}
    memory = (("", row["peak_memory_bytes"]), ("GPU ", row["peak_device_bytes"]))
    peaks = [f"{kind}{size / 1e9:.2f} GB" for kind, size in memory if size is not None]
    num_runs = len(row["seeds"])
    return [
        ("seeds", str(num_runs)),
        ("top-1", percent(row["top1"])),
        ("95% interval", f"{low:.1f} to {high:.1f}"),
        ("macro recall", percent(row["macro_recall"])),
        ("spread over seeds", _points(row["top1_spread"])),
        ("top-1 of each run", ", ".join(map(_points, row["top1_of_each"]))),
        ("top-1 after the last epoch, all of valid", percent(row["final_top1"])),
        ("top-5", percent(row["top5"])),
        ("spread of top-5 over seeds", _points(row["top5_spread"])),
        ("top-5 after the last epoch, all of valid", percent(row["final_top5"])),
        ("calibration error, points", _points(row["calibration_error"])),
        ("parameters", f"{row['params']:,}"),
        ("multiply-adds (MACs)", f"{row['macs'] / 1e6:,.0f} M"),
        ("weights", f"{row['weights_bytes'] / 1e6:.1f} MB"),
        ("activations per image", f"{row['activations_bytes'] / 1e6:.0f} MB"),
        ("peak memory in training", ", ".join(peaks)),
        ("time per epoch", duration(row["seconds_per_epoch"])),
        ("training time", duration(row["seconds"])),
        *((f"time to {target.replace(' ', '')}", _time_to(row["seconds_to"][target], num_runs)) for target in targets),
        ("latency in ONNX Runtime, median", latency.get("onnx_p50", "not measured")),
        ("95th percentile", latency.get("onnx_p95", "not measured")),
        ("latency in PyTorch, median", latency.get("pytorch_p50", "not measured")),
        ("95th percentile", latency.get("pytorch_p95", "not measured")),
    ]


def _time_to(reached: Mapping[str, Any], num_runs: int) -> str:
    if not reached["runs"]:
        return "never"
    of_all = "" if reached["runs"] == num_runs else f" (in {reached['runs']} of {num_runs} runs)"
    return duration(reached["seconds"]) + of_all


def _points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def comparison_html(rows: Rows, sentences: Sequence[str], document: Mapping[str, Any], png: bytes) -> str:
    """Write a comparison as one self-contained HTML document.

    Args:
        rows: the networks, as `comparison.json` has them.
        sentences: one for each pair, plain text.
        document: the contents of `comparison.json`.
        png: the figure.
    """
    columns, lines = _cells(rows)
    title = f"{', '.join(str(row['label']) for row in rows)} compared"
    return render(
        "comparison", title=title, sentences=sentences, figure=png, columns=columns, lines=lines, document=document
    )
