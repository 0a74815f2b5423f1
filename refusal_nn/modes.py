"""Do models fall into two modes, one direction or distributed? Rates in, a tested statement out.
Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from refusal_nn.estimates import Estimate
from refusal_nn.verdicts import NO_UP_TO, YES_FROM

TWO_MODES, NOT_SHOWN, TOO_FEW = "TWO MODES", "NOT SHOWN", "TOO FEW"
LEAST_MODELS = 5  # with four, a split two and two is all there is to see
LEAST_IN_MODE = 2  # one model alone is an outlier
LEVEL = 0.05
SINGLE, DISTRIBUTED, BETWEEN, OPEN = "single direction", "distributed", "between", "open"


class Modes(NamedTuple):
    """by_class: models by where the interval of their rate lies, whatever their verdict. low, high:
    the two groups that the best split gives. explained: the share of the rates' variance between
    them. gap: lowest lower limit of the high group minus highest upper limit of the low one, above
    0 where the intervals separate. p: see two_modes; None for too few models."""

    verdict: str
    by_class: dict[str, list[str]]
    low: list[str]
    high: list[str]
    explained: float | None
    gap: float | None
    p: float | None


def two_modes(rates: Mapping[str, Estimate], draws: int = 20_000, seed: int = 0) -> Modes:
    """TWO MODES where the best split of the models into two groups, of at least two each, is
    cleaner than one hump would give (p < .05) and the groups' intervals do not touch.

    Null: true rates from a Beta law with one hump (a, b >= 1), each observed on its own n; the one
    under which the counts are most likely, or the flat one, whichever gives the larger p.
    Statistic: share of variance between the groups of the best split. p = (1 + #≥) / (draws + 1).
    NOT SHOWN is no proof of one mode: with few models only wide gaps can be seen.
    """
    names = sorted(rates, key=lambda name: rates[name].value)
    by_class = {kind: [] for kind in (SINGLE, BETWEEN, DISTRIBUTED, OPEN)}
    for name in names:
        by_class[classified(rates[name])].append(name)
    if len(names) < LEAST_MODELS:
        return Modes(TOO_FEW, by_class, [], [], None, None, None)
    n = np.array([rates[name].n for name in names])
    values = np.array([rates[name].value for name in names])
    explained, cut = _best_split(values)
    gap = min(rates[x].low for x in names[cut:]) - max(rates[x].high for x in names[:cut])
    rng = np.random.default_rng(seed)
    laws = [rng.beta(a, b, size=(draws, len(n))) for a, b in (_hump(values * n, n), (1.0, 1.0))]
    nulls = [_best_split(rng.binomial(n, truth) / n)[0] for truth in laws]
    p = max((1 + int((null >= explained - 1e-12).sum())) / (draws + 1) for null in nulls)
    found = TWO_MODES if p < LEVEL and gap > 0 else NOT_SHOWN
    return Modes(found, by_class, names[:cut], names[cut:], float(explained), float(gap), p)


def classified(rate: Estimate) -> str:
    """By the verdict rule's two limits: the whole interval above the one, below the other, or
    strictly between; open where it holds a limit."""
    if rate.low >= YES_FROM:
        return SINGLE
    if rate.high <= NO_UP_TO:
        return DISTRIBUTED
    return BETWEEN if rate.low > NO_UP_TO and rate.high < YES_FROM else OPEN


def _best_split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rates (..., model): the largest share of variance between two groups of at least
    LEAST_IN_MODE neighbours, and the size of the lower group."""
    x = np.sort(values, axis=-1)
    m = x.shape[-1]
    below = np.arange(LEAST_IN_MODE, m - LEAST_IN_MODE + 1)
    total = x.sum(-1, keepdims=True)
    low = np.cumsum(x, axis=-1)[..., below - 1]
    between = (low / below - (total - low) / (m - below)) ** 2 * below * (m - below) / m
    spread = ((x - total / m) ** 2).sum(-1, keepdims=True)
    # Equal rates have no spread to explain, but for rounding.
    share = np.divide(between, spread, out=np.zeros_like(between), where=spread > 1e-12)
    return share.max(-1), below[share.argmax(-1)]


def _hump(successes: np.ndarray, n: np.ndarray) -> tuple[float, float]:
    """a, b >= 1 of the Beta law of true rates under which these counts are most likely."""

    def unlikely(logs: np.ndarray) -> float:
        a, b = np.exp(logs)
        likelihood = special.betaln(a + successes, b + n - successes) - special.betaln(a, b)
        return -float(likelihood.sum())

    starts, limits = ([0.5, 0.5], [2.0, 0.5], [0.5, 2.0]), [(0.0, np.log(1e4))] * 2
    fits = [optimize.minimize(unlikely, s, method="L-BFGS-B", bounds=limits) for s in starts]
    a, b = np.exp(min(fits, key=lambda fit: fit.fun).x)
    return float(a), float(b)
