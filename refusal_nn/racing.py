"""Which arms are worth more prompts? A race against those that have been asked all. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy.stats import hypergeom

ALPHA = 0.05
FIRST = 4  # prompts: an eighth of the usual 32, and enough to see who is hopeless
T = TypeVar("T")
Ask = Callable[[Sequence[str], Sequence[T]], Mapping[str, Sequence[bool]]]
Order = Callable[[str, float], tuple[float, ...]]


def race(
    names: Sequence[str], items: Sequence[T], ask: Ask[T], order: Order, seed: int
) -> set[str]:
    """Ask arms heat by heat, and return those that were ruled out, and so not asked all.

    ask: outcomes of some arms with some items. order: of an arm at a rate of successes, the best
    first; a higher rate must not be worse. In each heat the best so far is asked all, so that the
    others have something to be measured by. Which items come first alone is random here (seed), not
    what an arm does with each: so the chance that the arm which is best on all items is ruled out
    is at most ALPHA, whatever the number of the others and however arms go together.
    """
    parts, did, out = heats(items, seed), {name: list[bool]() for name in names}, set[str]()

    def asked(who: Sequence[str], some: Sequence[T]) -> None:
        for name, outcomes in ask(who, some).items():
            did[name].extend(outcomes)

    def place(name: str) -> tuple[float, ...]:
        return order(name, float(np.mean(did[name])))

    for i, part in enumerate(parts):
        going = [n for n in names if n not in out and len(did[n]) < len(items)]
        if not going:
            break
        asked(going, part)
        rest = [item for later in parts[i + 1 :] for item in later]
        if not rest:
            break
        front = min((n for n in names if n not in out), key=place)
        if len(did[front]) < len(items):
            asked([front], rest)
        leader = min(place(n) for n in names if len(did[n]) == len(items))
        for name in (n for n in going if len(did[n]) < len(items)):
            needed = _needed(name, leader, order, len(items))
            p = p_value(sum(did[name]), len(did[name]), needed, len(items))
            out |= {name} if p < ALPHA / (len(parts) - 1) else set()
    return out


def heats(items: Sequence[T], seed: int) -> list[list[T]]:
    """The items in random order, cut into FIRST, as many again, and so on, each part as many as all
    before it; the last takes what would be fewer than FIRST."""
    order = [items[i] for i in np.random.default_rng(seed).permutation(len(items))]
    cuts = itertools.takewhile(
        lambda cut: len(order) - cut >= FIRST, (FIRST * 2**i for i in itertools.count())
    )
    edges = [0, *cuts, len(order)]
    return [order[a:b] for a, b in itertools.pairwise(edges) if b > a]


def p_value(successes: int, n: int, needed: int | None, total: int) -> float:
    """Chance that n of `total` items, drawn at random, hold at most so many successes, where
    `needed` of them are, or more: hypergeometric. 0 where no number would be enough."""
    return 0.0 if needed is None else float(hypergeom.cdf(successes, total, needed, n))


def _needed(name: str, leader: tuple[float, ...], order: Order, total: int) -> int | None:
    """The least number of successes of `total` with which an arm would come before the leader."""
    return next((k for k in range(total + 1) if order(name, k / total) < leader), None)
