"""Names in the figure of a comparison, and what a table is made of."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from carnet.metrics import wilson_interval
from carnet.report.comparison import (
    STYLES,
    _draw_point,
    _draw_runs,
    _scale_latency,
    _time_to,
    draw_comparison,
    mean_run,
    spread_out,
)


def run(seconds: list[float], top1: list[float], label: str = "a") -> dict[str, Any]:
    return {"label": label, "seconds": seconds, "valid_top1": top1}


def row(label: str, top1: float, interval: tuple[float, float], milliseconds: float) -> dict[str, Any]:
    return {"label": label, "top1": top1, "top1_ci95": interval, "latency_ms": {"onnx_p50": milliseconds}}


def test_the_mean_ends_where_runs_end_on_average() -> None:
    """One run took twice as long, for other work on the machine, and came as far."""
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


@pytest.mark.parametrize("number", range(2, 400, 7))
def test_a_network_that_is_always_right_or_always_wrong_has_its_place(number: int) -> None:
    for right in (0, number):
        low, high = wilson_interval(right, number)
        assert low <= right / number <= high
        _draw_point(Figure().subplots(), row("a", right / number, (low, high), 1.0), STYLES[0])


def test_the_figure_shows_what_it_was_given() -> None:
    rows = [row("slow", 0.8, (0.7, 0.9), 40.0), row("fast", 1.0, (0.9, 1.0), 1.0)]
    runs = [run([1, 2], [0.5, 0.8], "slow"), run([3, 4], [0.5, 0.8], "slow"), run([1], [1.0], "fast")]
    png, svg = draw_comparison(rows, runs)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (1950, 780)
    assert b"<?xml" in svg[:10]
    figure = Figure()
    axes = figure.subplots()
    assert _draw_runs(axes, runs[:2], STYLES[0]) == (3.0, pytest.approx(80))
    thin, other, mean = (line.get_xydata() for line in axes.lines)
    assert np.array_equal(thin, [[1, 50], [2, 80]])
    assert np.array_equal(other, [[3, 50], [4, 80]])
    assert np.allclose(mean, [[2, 50], [3, 80]])
    _scale_latency(axes, [40.0, 1.0])
    assert axes.get_xscale() == "log"
    _scale_latency(figure.subplots(), [2.0, 1.0])
    # Without any latency there is an axis all the same.
    draw_comparison([{**rows[0], "latency_ms": {}}], runs[:2])


def test_colours_are_told_apart_in_grey() -> None:
    greys = sorted(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour, *_ in STYLES)
    assert all(above - below > 0.05 for below, above in pairwise(greys))
    assert len({str(dashes) for _, dashes, _ in STYLES}) == len({mark for *_, mark in STYLES}) == len(STYLES)


def test_times_that_not_all_runs_reached() -> None:
    assert _time_to({"seconds": 65.0, "runs": 3}, 3) == "1 min 05 s"
    assert _time_to({"seconds": 65.0, "runs": 2}, 3) == "1 min 05 s (in 2 of 3 runs)"
    assert _time_to({"seconds": None, "runs": 0}, 3) == "never"


def test_names_that_are_apart_stay() -> None:
    assert spread_out([80.0, 10.0, 50.0], gap=5) == [80, 10, 50]


def test_names_that_would_cover_each_other_move_alike() -> None:
    assert spread_out([50.0, 50.0, 20.0], gap=4) == [48, 52, 20]
    # Pushing two apart pushes the third along.
    assert spread_out([50.0, 51.0, 55.0], gap=6) == pytest.approx([46, 52, 58])
    assert spread_out([], gap=1) == []


@given(st.lists(st.floats(0, 100), max_size=8), st.floats(0.1, 20))
def test_neighbours_differ_by_the_gap_and_keep_their_order(values: list[float], gap: float) -> None:
    moved = spread_out(values, gap)
    order = sorted(range(len(values)), key=lambda place: values[place])
    heights = [moved[place] for place in order]
    assert all(above - below >= gap - 1e-9 for below, above in pairwise(heights))
    assert sum(moved) == pytest.approx(sum(values), abs=1e-6)
