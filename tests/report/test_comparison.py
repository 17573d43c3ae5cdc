"""Names in the figure of a comparison, and what a table is made of."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carnet.report.comparison import spread_out


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
