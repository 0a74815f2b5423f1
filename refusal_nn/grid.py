"""The grid of candidate directions, scored in two rounds: all on half of the val prompts, then on
all of them those that could still be chosen. Pure.

A score is a row with lists, prompt by prompt: ablated over harmful ones, added and kl over harmless
ones, None for what was no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from refusal_nn.directions import choose, eligible

LEAST = 8  # prompts of a class in either half; with fewer of one class there is one round
# So many standard errors on the side that would let a candidate in. On organism-1's 180 candidates
# the best of all was lost in under 1 % of 1,200 draws of 16 of 32 prompts (LOG.md).
WIDE = 3.0
CLASS = {"ablated": "harmful", "added": "harmless", "kl": "harmless"}
Row = dict[str, object]
Place = tuple[int, int]  # layer, position
T = TypeVar("T")


def halves(prompts: Mapping[str, Sequence[T]], seed: int) -> list[dict[str, list[T]]]:
    """The prompts of each class in random order, for the first round and for the second."""
    if min(map(len, prompts.values())) < 2 * LEAST:
        return [{label: list(of) for label, of in prompts.items()}]
    rng = np.random.default_rng(seed)
    order = {label: [of[i] for i in rng.permutation(len(of))] for label, of in prompts.items()}
    first = {label: of[: len(of) // 2] for label, of in order.items()}
    return [first, {label: of[len(first[label]) :] for label, of in order.items()}]


def two_rounds(
    places: Sequence[Place],
    ask: Callable[[int, Sequence[Place]], Iterator[Row]],
    totals: Mapping[str, int],
    n_layers: int,
) -> list[Row]:
    """A row of means per place, with how many prompts of each class it was asked, and `ruled_out`:
    whether not all.

    ask: scores of some places in round 0 or 1. totals: prompts of each class. What is chosen of the
    rows (directions.choose) was asked all, and so was whatever may be better by all.
    """
    rows = {place(row): row for row in ask(0, places)}
    short = {p for p, row in rows.items() if any(len(row[k]) < totals[c] for k, c in CLASS.items())}
    # Again: where the best so far fails on the rest, others are in play that were far behind it.
    while going := [p for p in in_play(list(rows.values()), totals, n_layers) if p in short]:
        for row in ask(1, going):
            both = {k: [*rows[place(row)][k], *row[k]] for k in CLASS}
            rows[place(row)] = rows[place(row)] | both
        short -= set(going)
    return [averaged(rows[p]) | {"ruled_out": p in short} for p in places]


def place(row: Mapping[str, object]) -> Place:
    return row["layer"], row["pos"]


def averaged(row: Mapping[str, object]) -> Row:
    """The row with means, None where a score was no number."""
    means = {k: None if None in row[k] else float(np.mean(row[k])) for k in CLASS}
    return {**row, **means, "n_harmful": len(row["ablated"]), "n_harmless": len(row["kl"])}


def in_play(rows: Sequence[Row], totals: Mapping[str, int], n_layers: int) -> list[Place]:
    """Places that the rule may still choose: their scores pass it by WIDE standard errors of a
    sample from `totals` prompts, and, prompt by prompt, they are not so much worse when ablated
    than the best that passes already."""
    means, error = [averaged(row) for row in rows], [_errors(row, totals) for row in rows]
    hopeful = [
        mean | {k: _moved(mean[k], sign * wide[k]) for k, sign in (("kl", -1), ("added", 1))}
        for mean, wide in zip(means, error, strict=True)
    ]
    going = {place(row) for row in eligible(hopeful, n_layers)}
    leader = choose(means, n_layers)
    if leader is None:
        return [place(row) for row in rows if place(row) in going]
    best = next(row["ablated"] for row in rows if place(row) == place(leader))
    return [
        place(row)
        for row in rows
        if place(row) in going and _may_beat(row["ablated"], best, totals["harmful"])
    ]


def _may_beat(ablated: Sequence[float], best: Sequence[float], total: int) -> bool:
    # The best may have been asked all; the prompts of the first round are the same for both.
    both = min(len(ablated), len(best))
    behind = np.subtract(ablated[:both], best[:both])
    return bool(behind.mean() <= WIDE * _error(behind, total))


def _errors(row: Mapping[str, object], totals: Mapping[str, int]) -> dict[str, float]:
    return {
        k: 0.0 if None in row[k] else WIDE * _error(np.asarray(row[k]), totals[c])
        for k, c in CLASS.items()
    }


def _error(values: np.ndarray, total: int) -> float:
    """Standard error of the mean of all `total` that these were drawn from without replacement."""
    n = len(values)
    return float(values.std(ddof=1) * math.sqrt((1 - n / total) / n)) if 1 < n < total else 0.0


def _moved(mean: float | None, by: float) -> float | None:
    return None if mean is None else mean + by
