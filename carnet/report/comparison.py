"""A comparison as a figure, tables and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from carnet.progress import duration
from carnet.report.page import document as page
from carnet.report.page import facts_list, listing, picture, section, table
from carnet.report.plots import INK, MUTED, RULE, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Apart in lightness as well, in the pattern of the line and in the mark, for a grey printer.
STYLES = (
    ("#12395a", "-", "o"),
    ("#c87a38", (0, (5, 1.5)), "s"),
    ("#2e7350", (0, (1, 1)), "^"),
    ("#6d2f68", (0, (6, 1, 1, 1)), "D"),
    ("#9aa4ab", (0, (3, 1, 1, 1, 1, 1)), "v"),
)
_FAR = 10
"""So many times as slow: too far apart for an axis that begins at zero."""
_LINE = 0.055
"""Height of a name, as a share of the axis."""

Rows = Sequence[Mapping[str, Any]]
Style = tuple[str, Any, str]
"""Colour, pattern of the line, mark of a point."""
Floats = NDArray[np.float64]


def draw_comparison(rows: Rows, runs: Rows) -> tuple[bytes, bytes]:
    """Draw accuracy over seconds, a thin line for each run and the mean bold, and accuracy over latency.

    Args:
        rows: of the networks, as `comparison.json` has them.
        runs: with seconds and accuracy after each epoch.

    Returns:
        The figure as PNG, 1950 x 780 pixels, and as SVG.
    """
    # Without pyplot, which keeps global state and may want a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2), dpi=150, facecolor="white")
    over_time, over_latency = figure.subplots(1, 2, width_ratios=(1.75, 1))
    figure.subplots_adjust(left=0.055, right=0.985, top=0.9, bottom=0.13, wspace=0.2)
    styles = _styles(len(rows))
    ends = [
        _draw_runs(over_time, [run for run in runs if run["label"] == row["label"]], style)
        for row, style in zip(rows, styles, strict=True)
    ]
    measured = [(row, style) for row, style in zip(rows, styles, strict=True) if "onnx_p50" in row["latency_ms"]]
    for row, style in measured:
        _draw_point(over_latency, row, style)
    _dress(over_time, "Validation accuracy over training time", "seconds of training and validating")
    _dress(over_latency, "Accuracy over latency", "ms for an image, ONNX Runtime, one thread")
    over_time.set_xlim(left=0)
    over_time.set_ylim(bottom=0)
    # Room for the names, and for the longest run.
    over_time.set_xlim(right=max(1.2 * max(x for x, _ in ends), 1.02 * max(run["seconds"][-1] for run in runs)))
    names = [f"{row['label']} {100 * row['top1']:.1f} %" for row in rows]
    _write_names(over_time, names, ends, styles)
    points = [(row["latency_ms"]["onnx_p50"], 100 * row["top1"]) for row, _ in measured]
    _scale_latency(over_latency, [milliseconds for milliseconds, _ in points])
    _write_names(over_latency, [row["label"] for row, _ in measured], points, [style for _, style in measured])
    return rendered(figure, "png"), rendered(figure, "svg")


def _scale_latency(axes: Axes, milliseconds: Sequence[float]) -> None:
    """Leave room for the names, whose networks may be far apart, or may be none."""
    fastest, slowest = min(milliseconds, default=1.0), max(milliseconds, default=1.0)
    if slowest > _FAR * fastest:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlim(fastest / 2, slowest * (slowest / fastest) ** 0.35)
    else:
        axes.set_xlim(0, 1.45 * slowest)


def _styles(number: int) -> list[Style]:
    return [STYLES[place % len(STYLES)] for place in range(number)]


def _draw_runs(axes: Axes, runs: Rows, style: Style) -> tuple[float, float]:
    """Returns where the mean ends: seconds, per cent."""
    colour, dashes, _ = style
    for run in runs:
        axes.plot(
            run["seconds"], 100 * np.array(run["valid_top1"]), color=colour, linewidth=0.8, linestyle=dashes, alpha=0.45
        )
    seconds, accuracy = mean_run(runs)
    axes.plot(seconds, 100 * accuracy, color=colour, linewidth=2.4, linestyle=dashes)
    return float(seconds[-1]), 100 * float(accuracy[-1])


def mean_run(runs: Rows) -> tuple[Floats, Floats]:
    """Mean seconds and mean accuracy after each epoch: (epochs,), (epochs,)

    Runs are compared where they have come equally far, so that a slow one drags neither number at the end. Of runs with
    unequal numbers of epochs, that is an equal share of them.
    """
    shares = np.linspace(0, 1, max(len(run["seconds"]) for run in runs))

    def mean(key: str) -> Floats:
        alike = [np.interp(shares, np.linspace(0, 1, len(run[key])), run[key]) for run in runs]
        return np.asarray(np.mean(alike, axis=0))

    return mean("seconds"), mean("valid_top1")


def _draw_point(axes: Axes, row: Mapping[str, Any], style: Style) -> None:
    colour, _, mark = style
    x, (low, high) = row["latency_ms"]["onnx_p50"], row["top1_ci95"]
    # Nothing is below nothing, whatever is rounded.
    errors = [[100 * max(0.0, row["top1"] - low)], [100 * max(0.0, high - row["top1"])]]
    axes.errorbar(x, 100 * row["top1"], yerr=errors, color=colour, marker=mark, capsize=4)


def _write_names(
    axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]], styles: Sequence[Style]
) -> None:
    """Write each name to the right of its point; those that would cover each other stand one above the other."""
    from matplotlib.patheffects import withStroke

    low, high = axes.get_ylim()
    heights = spread_out([y for _, y in points], gap=_LINE * (high - low))
    for name, point, height, (colour, *_) in zip(names, points, heights, styles, strict=True):
        axes.annotate(
            name,
            point,
            xytext=(9, (height - point[1]) / (high - low) * axes.bbox.height * 72 / axes.figure.dpi),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=11,
            parse_math=False,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def spread_out(values: Sequence[float], gap: float) -> list[float]:
    """Move numbers apart, as little as it takes, until neighbours differ by `gap`; their order stays.

    Neighbours that are too close form a block around the mean of where they want to be, and blocks that touch become
    one.
    """
    order = sorted(range(len(values)), key=lambda place: values[place])
    blocks: list[tuple[float, int]] = []
    for number, place in enumerate(order):
        # Seen from a line that rises by `gap` for every name, all of a block want to stand at the same place.
        block = (values[place] - gap * number, 1)
        while blocks and blocks[-1][0] > block[0]:
            middle, size = blocks.pop()
            size_of_both = size + block[1]
            block = ((middle * size + block[0] * block[1]) / size_of_both, size_of_both)
        blocks.append(block)
    moved = [middle for middle, size in blocks for _ in range(size)]
    result = [0.0] * len(values)
    for number, place in enumerate(order):
        result[place] = moved[number] + gap * number
    return result


def _dress(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel(across, color=MUTED, fontsize=10, loc="right")
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.tick_params(colors=MUTED, labelsize=10, length=0)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def table_of(rows: Rows) -> tuple[str, str]:
    """The table as Markdown, and as CSV with plain numbers."""
    columns, cells = _cells(rows)
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * len(rows)}"]
    lines += [f"| {' | '.join(line)} |" for line in cells]
    content = io.StringIO()
    flat = [_flat(row) for row in rows]
    # A network that could not be measured lacks some.
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(content, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return "\n".join(lines) + "\n", content.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Nested numbers under names of their own."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key} {name}": item for name, item in _flat(value).items()}
        elif isinstance(value, list | tuple):
            flat[key] = " ".join(map(str, value))
        else:
            flat[key] = value
    return flat


def _cells(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """A column for each network, a line for each measure."""
    targets = list(rows[0]["seconds_to"])
    measures = ["seeds", "top-1", "95 % interval", "spread", "of each run", "top-1 of the last epoch, all of valid"]
    measures += ["top-5", "spread of top-5", "top-5 of the last epoch, all of valid", "calibration error, points"]
    measures += ["parameters", "multiply-accumulates", "weights", "activations of an image", "memory in training"]
    measures += ["time for an epoch", "time in all", *(f"time to {target}" for target in targets)]
    measures += ["latency in ONNX Runtime, median", "95th percentile", "latency in PyTorch, median", "95th percentile"]
    lines = [list(line) for line in zip(measures, *(_line(row, targets) for row in rows), strict=True)]
    return ["", *(row["label"] for row in rows)], lines


def _line(row: Mapping[str, Any], targets: Sequence[str]) -> list[str]:
    low, high = (100 * end for end in row["top1_ci95"])
    latency = row["latency_ms"]
    times = (row["seconds_to"][target] for target in targets)
    return [
        str(len(row["seeds"])),
        f"{100 * row['top1']:.1f} %",
        f"{low:.1f} to {high:.1f}",
        _points(row["top1_spread"]),
        ", ".join(f"{100 * top1:.1f}" for top1 in row["top1_of_each"]),
        f"{100 * row['final_top1']:.1f} %",
        f"{100 * row['top5']:.1f} %",
        _points(row["top5_spread"]),
        f"{100 * row['final_top5']:.1f} %",
        f"{100 * row['calibration_error']:.1f}",
        f"{row['params']:,}",
        f"{row['macs'] / 1e6:,.0f} M",
        f"{row['weights_bytes'] / 1e6:.1f} MB",
        f"{row['activations_bytes'] / 1e6:.0f} MB",
        _memory(row),
        duration(row["seconds_per_epoch"]),
        duration(row["seconds"]),
        *(_time_to(time, len(row["seeds"])) for time in times),
        *(
            f"{latency[name]:.2f} ms" if name in latency else "not measured"
            for name in ("onnx_p50", "onnx_p95", "pytorch_p50", "pytorch_p95")
        ),
    ]


def _time_to(reached: Mapping[str, Any], num_runs: int) -> str:
    if not reached["runs"]:
        return "never"
    of_all = "" if reached["runs"] == num_runs else f" (in {reached['runs']} of {num_runs} runs)"
    return duration(reached["seconds"]) + of_all


def _points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _memory(row: Mapping[str, Any]) -> str:
    of_process, of_device = row["peak_memory_bytes"], row["peak_device_bytes"]
    parts = [] if of_process is None else [f"{of_process / 1e9:.2f} GB"]
    return ", ".join([*parts, *([] if of_device is None else [f"GPU {of_device / 1e9:.2f} GB"])])


def comparison_html(rows: Rows, sentences: Sequence[str], document: Mapping[str, Any], png: bytes) -> str:
    """Write a comparison as one self-contained HTML document.

    Args:
        rows: of the networks, as `comparison.json` has them.
        sentences: one for each pair, plain text.
        document: what `comparison.json` says.
        png: the figure.
    """
    columns, lines = _cells(rows)
    images = document["images"]
    counts = ", ".join(f"{number:,} {split}" for split, number in images["data"].items())
    unseen = " that no run was trained on" if images["unseen"] else ""
    facts = [
        ("images", f"{counts}; judged by {images['count']:,}{unseen}"),
        ("trained on", "; ".join(dict.fromkeys(run["device"] for run in document["runs"]))),
        ("latencies on", document["machine"]),
        ("versions", ", ".join(f"{name} {number}" for name, number in document["versions"].items())),
    ]
    names = ", ".join(str(row["label"]) for row in rows)
    body = [
        listing("findings", sentences),
        section("Accuracy, time and latency", picture(png, "Accuracy over seconds, and over latency")),
        section("In numbers", table(columns, lines)),
        section("Facts", facts_list(facts)),
    ]
    return page(f"{names} compared", "".join(body))
