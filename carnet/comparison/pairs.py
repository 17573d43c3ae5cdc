"""Two networks at a time: which is better, by how much, and how sure is that."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from carnet.comparison.groups import Group
from carnet.significance import difference_of_single_runs, difference_over_seeds, enough, holm

SURE = 0.05
"""Differences that chance would make less often than this count as differences."""
_SMALL = 0.001
"""How much smaller a p-value is says nothing to anybody."""


def judge_pairs(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every two networks: their difference, its interval, and a sentence; p-values are adjusted for their number."""
    both = list(itertools.combinations(groups, 2))
    pairs = [_pair(one, other, SURE / len(both)) for one, other in both]
    for pair, adjusted in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_value_adjusted"] = adjusted
        pair["sentence"] = _sentence(pair, len(pairs))
    return pairs


def _pair(one: Group, other: Group, alarm: float) -> dict[str, Any]:
    number, seeds = one.correct.shape[1], sorted((len(one.runs), len(other.runs)))
    if seeds[1] > 1:
        found = difference_over_seeds(one.correct, other.correct)
    else:
        found = difference_of_single_runs(one.correct[0], other.correct[0])
    images, more_seeds = enough(found, number, seeds[0], alarm)
    return {
        "one": one.label,
        "other": other.label,
        "images": number,
        "seeds": [len(one.runs), len(other.runs)],
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
    alone, several = (" of this pair alone", f", adjusted for {num_pairs} pairs") if num_pairs > 1 else ("", "")
    sure = f"95 % interval{alone} {low:+.1f} to {high:+.1f}; {_p(pair['p_value_adjusted'])}{several}"
    points = f"{abs(100 * pair['difference']):.1f} points"
    if pair["p_value_adjusted"] < SURE:
        return f"{better} is better than {worse}, by {points} ({sure}).{_of_few_seeds(pair)}"
    apart = f"These runs cannot tell {pair['one']} and {pair['other']} apart: they differ by {points} ({sure})."
    return f"{apart} {_what_would(pair)}"


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value >= _SMALL else f"p below {_SMALL:g}"


def _of_few_seeds(pair: dict[str, Any]) -> str:
    """What a single run leaves open."""
    match sorted(pair["seeds"]):
        case [1, 1]:
            return " That is so of these two runs; other seeds were not tried."
        case [1, _]:
            single = pair["one"] if pair["seeds"][0] == 1 else pair["other"]
            return f" {single} has one run, which is taken to vary with the seed as the other does."
        case _:
            return ""


def _what_would(pair: dict[str, Any]) -> str:
    images, seeds = pair["enough_images"], pair["enough_seeds"]
    ways = [] if images is None else [f"{images - pair['images']:,} more images"]
    if pair["seeds"] == [1, 1]:
        # How much seeds differ cannot be told from one of each.
        if not ways:
            return "More than one seed of each would say more."
        return f"If the difference is what it seems, about {ways[0]} would; so may more seeds."
    if seeds is not None:
        one, other = pair["seeds"]
        ways.append(f"{seeds - one:,} more seeds" if one == other else f"{seeds:,} seeds of each")
    if not ways:
        return "Only more images and more seeds together would, if there is a difference at all."
    return f"If the difference is what it seems, about {' or '.join(ways)} would."
