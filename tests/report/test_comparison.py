"""The figure of a comparison with its labels, and the tables."""

from __future__ import annotations

import csv
import io
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from carnet.metrics import wilson_interval
from carnet.report.comparison import (
    STYLES,
    draw_comparison,
    draw_runs,
    mean_run,
    set_scale,
    table_of,
    write_labels,
)


def run(seconds: list[float], top1: list[float], label: str = "a") -> dict[str, Any]:
    return {"label": label, "seconds": seconds, "valid_top1": top1}


def row(label: str, top1: float, interval: tuple[float, float], milliseconds: float) -> dict[str, Any]:
    return {"label": label, "top1": top1, "top1_ci95": interval, "latency_ms": {"onnx_p50": milliseconds}}


def test_the_mean_ends_where_runs_end_on_average() -> None:
    """One run took twice as long, because of other work on the machine."""
    seconds, accuracy = mean_run([run([10, 20, 30], [0.1, 0.5, 0.7]), run([20, 40, 60], [0.3, 0.5, 0.9])])
    assert seconds.tolist() == [15, 30, 45]
    assert accuracy.tolist() == pytest.approx([0.2, 0.5, 0.8])


def test_the_mean_of_runs_with_unequal_numbers_of_epochs() -> None:
    seconds, accuracy = mean_run(
        [run([10, 20, 30], [0.1, 0.2, 0.3]), run([5, 10, 15, 20, 25], [0.3, 0.4, 0.5, 0.6, 0.7])]
    )
    assert (len(seconds), seconds[-1], accuracy[-1]) == (5, 27.5, pytest.approx(0.5))
    assert accuracy[2] == pytest.approx((0.2 + 0.5) / 2)
    seconds, accuracy = mean_run([run([10], [0.4])])
    assert (seconds.tolist(), accuracy.tolist()) == ([10], [0.4])


def test_a_network_that_is_always_right_or_always_wrong_is_drawn() -> None:
    answers = [(right, number) for number in (2, 9, 51, 393) for right in (0, number)]
    rows = [row(f"{answer}", answer[0] / answer[1], wilson_interval(*answer), 1.0) for answer in answers]
    assert all(low <= row["top1"] <= high for row in rows for low, high in [row["top1_ci95"]])
    assert draw_comparison(rows, [run([1.0], [row["top1"]], row["label"]) for row in rows])


def test_the_figure_shows_what_it_was_given() -> None:
    rows = [row("slow", 0.8, (0.7, 0.9), 40.0), row("fast", 1.0, (0.9, 1.0), 1.0)]
    runs = [run([1, 2], [0.5, 0.8], "slow"), run([3, 4], [0.5, 0.8], "slow"), run([1], [1.0], "fast")]
    png, svg = draw_comparison(rows, runs)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (1950, 780)
    assert b"<?xml" in svg[:10]
    figure = Figure()
    axes = figure.subplots()
    assert draw_runs(axes, runs[:2], STYLES[0]) == (3.0, pytest.approx(80))
    thin, other, mean = (line.get_xydata() for line in axes.lines)
    assert np.array_equal(thin, [[1, 50], [2, 80]])
    assert np.array_equal(other, [[3, 50], [4, 80]])
    assert np.allclose(mean, [[2, 50], [3, 80]])
    # Without any latency, accuracy over time takes the whole figure.
    _, alone = draw_comparison([{**rows[0], "latency_ms": {}}], runs[:2])
    assert (svg.count(b'id="axes_'), alone.count(b'id="axes_')) == (2, 1)
    # A single epoch shows as a point.
    point = Figure().subplots()
    assert draw_runs(point, runs[2:], STYLES[1]) == (1.0, 100.0)
    assert point.lines[-1].get_marker() == STYLES[1][2]


def test_colours_are_told_apart_in_grey() -> None:
    greys = sorted(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour, *_ in STYLES)
    assert all(above - below > 0.05 for below, above in pairwise(greys))
    assert len({str(dashes) for _, dashes, _ in STYLES}) == len({mark for *_, mark in STYLES}) == len(STYLES)


def boxes(axes: Axes) -> dict[str, Bbox]:
    return {text.get_text(): text.get_window_extent() for text in axes.texts}


def written(points: dict[str, tuple[float, float]], *lines: tuple[list[float], list[float]]) -> Axes:
    """Return axes from 0 to 100 in both directions, with lines, and with a label at each point."""
    axes = Figure(figsize=(8, 5)).subplots()
    for line in lines:
        axes.plot(*line)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    write_labels(axes, list(points), list(points.values()), STYLES[: len(points)])
    return axes


def offset(axes: Axes, name: str) -> float:
    (text,) = (text for text in axes.texts if text.get_text() == name)
    return float(text.get_position()[1])


def test_a_label_that_covers_nothing_stays_at_its_point() -> None:
    axes = written({"a": (50, 80), "b": (50, 10), "c": (50, 50)})
    assert [offset(axes, name) for name in "abc"] == [0, 0, 0]


def test_of_labels_that_would_cover_each_other_the_best_stays() -> None:
    axes = written({"worst": (50, 49), "best": (50, 51), "middle": (50, 50)})
    assert offset(axes, "worst") < offset(axes, "middle") < offset(axes, "best") == 0
    # At the bottom there is no room below.
    axes = written({"low": (50, 2), "lower": (50, 1)})
    assert all(box.y0 >= axes.bbox.y0 for box in boxes(axes).values())


@given(st.lists(st.tuples(st.floats(0, 80), st.floats(0, 100)), max_size=5))
@settings(max_examples=30)
def test_labels_do_not_overlap(points: list[tuple[float, float]]) -> None:
    axes = written({f"network {place}": point for place, point in enumerate(points)})
    placed = list(boxes(axes).values())
    assert len(placed) == len(points)
    assert not any(one.overlaps(other) for one, other in combinations(placed, 2))


def test_a_label_avoids_the_line_of_a_slower_network() -> None:
    """The fast network ends early; the line of the slow one continues at the same height."""
    line = [0.0, 100.0], [50.0, 50.0]
    axes = written({"fast": (20, 50)}, line)
    assert not boxes(axes)["fast"].count_contains(axes.transData.transform([(x, 50) for x in range(100)]))


def test_networks_that_are_far_apart_in_time_have_a_logarithmic_axis() -> None:
    axes = Figure().subplots()
    set_scale(axes, [30.0, 10.0], begin=1.0, room=0.2)
    assert (axes.get_xscale(), axes.get_xlim()) == ("linear", (0, 36))
    set_scale(axes, [1000.0, 10.0], begin=1.0, room=0.5)
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((1, 1000**1.5))


def table_row(label: str, **values: Any) -> dict[str, Any]:
    shares = ("top1", "macro_recall", "top5", "final_top1", "final_top5", "calibration_error")
    numbers = ("params", "macs", "weights_bytes", "activations_bytes", "seconds", "seconds_per_epoch")
    unknown = ("peak_memory_bytes", "peak_device_bytes", "top1_spread", "top5_spread")
    return {
        **{"label": label, "trained_otherwise": "", "seeds": [0], "top1_ci95": [0.4, 0.6], "top1_of_each": [0.5]},
        **dict.fromkeys(shares, 0.5),
        **dict.fromkeys(numbers, 9.0),
        **dict.fromkeys(unknown),
        **{"latency_ms": {}, "seconds_to": {}},
        **values,
    }


def test_the_table_for_spreadsheets_starts_no_formula() -> None:
    """A label of flags begins with two hyphens, which a spreadsheet would compute; negative numbers stay numbers."""
    changed = "--lr 0.1 (was 0.02), --init =a;@b (was none)"
    rows = [table_row("carnet_s", below=-1.5), table_row("carnet_s #2", below=-1.5, trained_otherwise=changed)]
    first, second = csv.DictReader(io.StringIO(table_of(rows)[1]))
    assert (first["trained_otherwise"], second["below"]) == ("", "-1.5")
    assert second["trained_otherwise"] == "'--lr 0.1 (was 0.02), --init =a;'@b (was none)"


def test_the_table_for_people() -> None:
    all_of_them, some, none = ({"seconds": 65.0, "runs": runs} for runs in (3, 2, 0))
    rows = [
        table_row("a", seeds=[0, 1, 2], seconds_to={"80%": all_of_them, "90%": some}, top1_spread=0.0123),
        table_row("b", seeds=[0, 1, 2], seconds_to={"80%": all_of_them, "90%": none}, peak_device_bytes=2.5e9),
    ]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_of(rows)[0].splitlines()]
    assert lines[0] == ["", "a", "b"]
    table = {name: cells for name, *cells in lines}
    assert table["top-1"] == ["50.0%"] * 2
    assert table["spread over seeds"] == ["1.2", ""]
    assert table["peak memory in training"] == ["", "GPU 2.50 GB"]
    assert table["time to 80%"] == ["1 min 05 s"] * 2
    assert table["time to 90%"] == ["1 min 05 s (in 2 of 3 runs)", "never"]
    assert table["latency in PyTorch, median"] == ["not measured"] * 2
