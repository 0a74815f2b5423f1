"""Which arms are worth more prompts? A race: a few prompts for all, more for those still in play.
Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from scipy.stats import hypergeom

ALPHA = 0.05
FIRST = 8  # prompts; with fewer, nothing could be told of thirty arms
T = TypeVar("T")


class Standing(NamedTuple):
    """successes of n prompts asked, and the harm done, of which less is better."""

    successes: int
    n: int
    harm: float


def heats(items: Sequence[T]) -> list[list[T]]:
    """The items cut into parts that are each spread over the order given: a quarter, as many again,
    the rest; fewer parts where a quarter is less than FIRST."""
    parts = [list(items[0::4]), list(items[2::4]), list(items[1::2])]
    while len(parts) > 1 and len(parts[0]) < FIRST:
        parts[:2] = [parts[0] + parts[1]]
    return [part for part in parts if part]


def ruled_out(
    standings: Mapping[str, Standing], comparisons: int, most_harm: float, alpha: float = ALPHA
) -> set[str]:
    """Names of arms with fewer successes, by more than chance, than the leader among the harmless
    (harm at most most_harm); where none is, than the leader of all.

    comparisons: arms times looks of the whole race. One-sided Fisher tests at alpha / comparisons:
    that an arm no worse than all others is ever ruled out has a chance of at most alpha (union
    bound over arms and looks; on the same prompts, which go together, it is less).
    """
    gentle = [s for s in standings.values() if s.harm <= most_harm] or list(standings.values())
    if not gentle:
        return set()
    leader = max(gentle, key=lambda s: s.successes / s.n)
    return {
        name
        for name, s in standings.items()
        if s is not leader and fisher_p(leader, s) < alpha / comparisons
    }


def fisher_p(better: Standing, worse: Standing) -> float:
    """One-sided p of Fisher's exact test that `better` has the higher rate."""
    total, successes = better.n + worse.n, better.successes + worse.successes
    return float(hypergeom.sf(better.successes - 1, total, successes, better.n))
