"""The script that compares training steps of two commits."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest
import step_parts
import steps_in_turns
import torch
from steps_in_turns import OTHER, PLAIN, PRESENT, compare, in_turns

TINY = argparse.Namespace(
    model="carnet_n", image_size=32, batch_size=4, steps=2, rounds=1, precision="fp32", commit="HEAD",
    compiled=False, plain=True,
)  # fmt: skip


def test_every_step_has_a_turn_in_each_round() -> None:
    order: list[str] = []
    found = in_turns({name: lambda name=name: order.append(name) or [1.0, 2.0] for name in "ab"}, 2)
    assert order == ["a", "b", "b", "a"]
    assert found == {"a": [1.0, 2.0, 1.0, 2.0], "b": [1.0, 2.0, 1.0, 2.0]}


def test_steps_learn_and_are_repeatable() -> None:
    losses = []
    for _ in range(2):
        take = steps_in_turns.our_step(TINY, compiled=False)
        losses.append([take(number) for number in range(3)])
    assert losses[0] == losses[1]
    plain = steps_in_turns.published_step(TINY, compiled=False)
    assert all(map(math.isfinite, [plain(0), *losses[0]]))


@pytest.mark.slow
@pytest.mark.skipif(not (Path(__file__).parents[2] / ".git").exists(), reason="needs the repository")
def test_a_commit_against_itself() -> None:
    numbers = compare(TINY, gflops=100.0)
    assert set(numbers["milliseconds"]) == {PRESENT, OTHER, PLAIN}
    assert {name: len(values) for name, values in numbers["seconds"].items()} == {PRESENT: 2, OTHER: 2, PLAIN: 2}
    assert numbers["share_of_matrix_rate"][PRESENT] > 0


def test_parts_of_a_step_agree() -> None:
    times = [
        step_parts.in_turns(part, ways, rounds=1)
        for parts in (step_parts.pointwise(4, 8, 6), step_parts.stem())
        for part, ways in parts.items()
    ]
    assert all(value > 0 for found in times for value in found.values())
    with pytest.raises(AssertionError, match="sum"):
        step_parts.in_turns("sum", {"right": lambda: torch.ones(2), "wrong": lambda: torch.zeros(2)}, rounds=1)
