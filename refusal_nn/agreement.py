"""Do two judges agree, and did an intervention change a rate? Paired labels in, estimates out.

The units are prompts throughout; intervals are 95 % and two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from refusal_nn.estimates import SMALLEST_P, Z95, Estimate

# Agresti and Coull (1998): four further observations mend the normal interval of one proportion.
IMAGINED = 4


class Change(NamedTuple):
    """How many units went from no to yes and from yes to no, and McNemar's exact two-sided p."""

    changed_up: int
    changed_down: int
    p: float
    log10_p: float


def wilson_rate(rate: float, n: float) -> Estimate:
    """Wilson's score interval (1927) in closed form, for a rate that need not be a whole number of
    successes, such as a mean over controls.

    (rate + z²/2n ± z sqrt(rate (1 - rate)/n + z²/4n²)) / (1 + z²/n). The same as estimates.wilson
    where rate * n is whole. Raises ValueError for n < 1 or a rate outside [0, 1].
    """
    if not (n >= 1 and 0 <= rate <= 1):
        raise ValueError(f"expected a rate in [0, 1] of at least one prompt, got {rate} of {n}")
    shrunk, centre = 1 + Z95**2 / n, rate + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2))
    # At 0 and 1 a limit is the rate itself; rounding puts it beside.
    low = (centre - half) / shrunk if rate > 0 else 0.0
    high = (centre + half) / shrunk if rate < 1 else 1.0
    return Estimate(float(rate), low, high, int(n))


def cohens_kappa(a: Sequence[Hashable | None], b: Sequence[Hashable | None]) -> Estimate:
    """Agreement of two judges beyond chance (Cohen 1960): (p_o - p_e) / (1 - p_e), at most 1.

    a, b: a label per item; an item that either judge left None is left out, and n counts the rest.
    The interval is the wider of two, clipped to [-1, 1]: kappa ± 1.96 s.e. with the large-sample
    s.e. of Fleiss, Cohen and Everitt (1969), and the same on the table with four further items
    spread evenly over its cells. The first alone has no width where judges agree on everything, and
    at n = 30 covers as little as 8 % where labels are one-sided; the wider covers 93 % there, and
    86 % at n = 10.
    Where kappa is undefined, no item or one label only from both judges, 0 with [-1, 1]. Raises
    ValueError on sequences of unequal length.
    """
    judged = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    places = {label: i for i, label in enumerate(dict.fromkeys(x for xy in judged for x in xy))}
    if len(places) < 2:
        return Estimate(0.0, -1.0, 1.0, len(judged))
    table = np.zeros((len(places), len(places)))
    for x, y in judged:
        table[places[x], places[y]] += 1
    kappa, error = _kappa(table)
    centre, widened = _kappa(table + IMAGINED / table.size)
    low = min(kappa - Z95 * error, centre - Z95 * widened)
    high = max(kappa + Z95 * error, centre + Z95 * widened)
    return Estimate(kappa, max(low, -1.0), min(high, 1.0), len(judged))


def kappa_in_words(found: Estimate) -> str:
    """As `0.83 [0.76, 0.90] (n=100)`; an undefined one is no agreement of 0."""
    if found[:3] == (0.0, -1.0, 1.0):
        return f"not defined, one label throughout (n={found.n})"
    return str(found)


def _kappa(table: np.ndarray) -> tuple[float, float]:
    """Kappa of a square table of counts and its standard error away from kappa = 0: Fleiss, Cohen
    and Everitt (1969, Psychol. Bull. 72:323)."""
    n = table.sum()
    p = table / n
    rows, columns, agreed = p.sum(1), p.sum(0), np.diag(p)
    chance = float(rows @ columns)
    kappa = (float(agreed.sum()) - chance) / (1 - chance)
    on = (agreed * (1 - (rows + columns) * (1 - kappa)) ** 2).sum()
    # A cell (i, j) is weighted by column i's and row j's margins, not by its own.
    weights = (columns[:, None] + rows[None, :]) ** 2
    off = (1 - kappa) ** 2 * ((p * weights).sum() - (agreed * np.diag(weights)).sum())
    variance = on + off - (kappa - chance * (1 - kappa)) ** 2
    return kappa, math.sqrt(max(float(variance), 0.0) / n) / (1 - chance)


def mcnemar(before: ArrayLike, after: ArrayLike) -> Change:
    """Exact two-sided binomial test that as many paired units changed up as down (McNemar 1947).

    before, after: (prompt,) of booleans. p = min(1, 2 P(X <= min(up, down))), X binomial with 1/2
    among the changed units; 1 where none changed. p is floored at 1e-300, its logarithm is exact.
    """
    before, after = _paired(before, after)
    up, down = int((after > before).sum()), int((after < before).sum())
    below = stats.binom.logpmf(np.arange(min(up, down) + 1), up + down, 0.5)
    log10_p = min(0.0, float((special.logsumexp(below) + math.log(2)) / math.log(10)))
    return Change(up, down, max(10.0**log10_p, SMALLEST_P), log10_p)


def paired_rate_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Rate of a minus rate of b on the same prompts; Newcombe's method 10 (1998, Statist. Med.
    17:2635).

    a, b: (prompt,) of booleans. Square-and-add of Wilson limits with the correlation phi, whose
    numerator, where positive, is lessened by n/2 and not below 0; phi is 0 where a rate is 0 or 1.
    """
    a, b = _paired(a, b)
    n = len(a)
    both, neither = float((a * b).sum()), float(((1 - a) * (1 - b)).sum())
    cross = both * neither - float((a > b).sum()) * float((a < b).sum())
    cross = max(cross - n / 2, 0.0) if cross > 0 else cross
    spread = float(a.sum() * (1 - a).sum() * b.sum() * (1 - b).sum())
    phi = cross / math.sqrt(spread) if spread > 0 else 0.0
    return _square_and_add(wilson_rate(float(a.mean()), n), wilson_rate(float(b.mean()), n), phi)


def rate_over_controls(target: ArrayLike, controls: ArrayLike) -> Estimate:
    """Rate under the intervention minus the mean rate under its matched controls, same prompts.

    target: (prompt,) of booleans; controls: (control, prompt) of booleans. Square-and-add (MOVER:
    Zou and Donner 2008, Statist. Med. 27:1693) of two Wilson intervals, the controls' with their
    mean rate m on as many units as there are prompts. This is conservative twice: a prompt's mean
    over controls varies by m (1 - m) at most, and no credit is taken for the usual positive
    correlation of both arms over prompts. Unlike an interval from the spread of the differences it
    keeps its width where all of them are equal. It speaks of these controls on fresh prompts, not
    of other controls: with 100 prompts, and controls whose rates have an s.d. of ten points, it
    covers the mean over all such controls 97 % of the time with eight of them, 89 % with three.
    """
    target, controls = _zeros_and_ones(target, 1), _zeros_and_ones(controls, 2)
    if controls.shape[1] != target.size:
        raise ValueError(f"controls have {controls.shape[1]} prompts, the target {target.size}")
    rate, mean = float(target.mean()), float(controls.mean())
    return _square_and_add(wilson_rate(rate, target.size), controls_rate(mean, target.size), 0.0)


def controls_rate(mean: float, prompts: int) -> Estimate:
    """The mean rate under matched controls, with the interval that rate_over_controls takes it
    with: prompts are the units, however many controls each met."""
    return wilson_rate(mean, prompts)


def unpaired_rate_difference(a: Estimate, b: Estimate) -> Estimate:
    """Rate a minus rate b, of different prompts, from their Wilson intervals (Newcombe 1998,
    Statist. Med. 17:873, method 10); n is the smaller."""
    return _square_and_add(a, b, 0.0)._replace(n=min(a.n, b.n))


def _square_and_add(p: Estimate, q: Estimate, phi: float) -> Estimate:
    """p - q, from each one's distance to its limits and their correlation phi."""

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x**2 - 2 * phi * x * y + y**2, 0.0))

    difference = p.value - q.value
    low = difference - reach(p.value - p.low, q.high - q.value)
    high = difference + reach(p.high - p.value, q.value - q.low)
    return Estimate(difference, low, high, p.n)


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _zeros_and_ones(a, 1), _zeros_and_ones(b, 1)
    if a.size != b.size:
        raise ValueError(f"paired outcomes must be equally many, got {a.size} and {b.size}")
    return a, b


def _zeros_and_ones(x: ArrayLike, axes: int) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != axes or x.size == 0:
        raise ValueError(f"expected {axes} axes and at least one outcome, got shape {x.shape}")
    if not np.isin(x, (0, 1)).all():
        raise ValueError("outcomes are 0 or 1; leave out prompts without a judgement first")
    return x
