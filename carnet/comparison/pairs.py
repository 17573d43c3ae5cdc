"""Two networks at a time: which is better, by how much, and how sure is that."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from carnet.comparison.groups import Group
from carnet.significance import difference_of_single_runs, difference_over_seeds, enough, holm

SURE = 0.05
"""Differences that chance would make less often than this count as differences."""


def judge_pairs(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every two networks: their difference, its interval, and a sentence; p-values are adjusted for their number."""
    pairs = [_pair(one, other) for one, other in itertools.combinations(groups, 2)]
    for pair, adjusted in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_value_adjusted"] = adjusted
        pair["sentence"] = _sentence(pair, len(pairs))
    return pairs


def _pair(one: Group, other: Group) -> dict[str, Any]:
    number, seeds = one.correct.shape[1], min(len(one.runs), len(other.runs))
    if seeds > 1:
        found = difference_over_seeds(one.correct, other.correct)
    else:
        found = difference_of_single_runs(one.correct[0], other.correct[0])
    images, more_seeds = enough(found, number, seeds)
    return {
        "one": one.label,
        "other": other.label,
        "images": number,
        "seeds": seeds,
        "difference": found.mean,
        "ci95": [found.low, found.high],
        "p_value": found.p_value,
        "enough_images": images,
        "enough_seeds": more_seeds,
    }


def _sentence(pair: dict[str, Any], num_pairs: int) -> str:
    """What a pair comes to, for someone who has to choose."""
    better, worse, sign = pair["one"], pair["other"], 1
    if pair["difference"] < 0:
        better, worse, sign = worse, better, -1
    low, high = sorted(100 * sign * end for end in pair["ci95"])
    interval = f"95 % interval {low:+.1f} to {high:+.1f}"
    points = f"{abs(100 * pair['difference']):.1f} points"
    several = f", adjusted for {num_pairs} pairs" if num_pairs > 1 else ""
    if pair["p_value_adjusted"] < SURE:
        sure = f"p = {pair['p_value_adjusted']:.2g}{several}"
        single = "" if pair["seeds"] > 1 else " That is so of these two runs; other seeds were not tried."
        return f"{better} is better than {worse}, by {points} ({interval}; {sure}).{single}"
    apart = f"These runs cannot tell {pair['one']} and {pair['other']} apart: they differ by {points} ({interval})."
    return f"{apart} {_what_would(pair)}"


def _what_would(pair: dict[str, Any]) -> str:
    images, seeds = pair["enough_images"], pair["enough_seeds"]
    ways = []
    if images is not None and images > pair["images"]:
        ways.append(f"{images - pair['images']:,} more images")
    if pair["seeds"] == 1:
        # How much seeds differ cannot be told from one of each.
        if not ways:
            return "More than one seed of each would say more."
        return f"If the difference is what it seems, about {ways[0]} would; so may more seeds."
    if seeds is not None and seeds > pair["seeds"]:
        ways.append(f"{seeds - pair['seeds']:,} more seeds")
    if not ways:
        return "Only more images and more seeds together would, if there is a difference at all."
    return f"If the difference is what it seems, about {' or '.join(ways)} would."
