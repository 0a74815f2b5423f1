"""Effect sizes and rates with their 95 % intervals. Pure: numpy and scipy in, numbers out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

Z95 = float(stats.norm.ppf(0.975))
SMALLEST_P = 1e-300  # that is written as such; log10_p says how much smaller


class Estimate(NamedTuple):
    """A number with its 95 % interval and the sample size it rests on."""

    value: float
    low: float
    high: float
    n: int

    def percent(self) -> str:
        """As `79 % [70, 86] (n=100)`."""
        return (
            f"{100 * self.value:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}] (n={self.n})"
        )

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] (n={self.n})"


def wilson(successes: int, n: int) -> Estimate:
    """Rate with Wilson's score interval (1927). Raises ValueError for n < 1."""
    result = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return Estimate(successes / n, float(result.low), float(result.high), n)


def cohens_d(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Seed 004's effect size: difference of means over the root mean of the two population
    variances; 0 without spread."""
    pooled = math.sqrt((np.var(harmful) + np.var(harmless)) / 2)
    return float(harmful.mean() - harmless.mean()) / pooled if pooled > 0 else 0.0


def auroc(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Probability that a harmful score exceeds a harmless one, ties counted half (Mann and Whitney
    1947)."""
    ranks = stats.rankdata(np.concatenate([harmful, harmless]))
    m, n = len(harmful), len(harmless)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def auroc_interval(value: float, m: int, n: int) -> tuple[float, float]:
    """Newcombe's score interval for an AUROC (2006, Statist. Med. 25:559, method 5), of positive
    width also at 1.

    m, n: independent units in each class (clusters, not prompts).
    """
    pseudo = (m + n) / 2 - 1

    def excess(theta: float) -> float:
        spread = 1 + pseudo * (1 - theta) / (2 - theta) + pseudo * theta / (1 + theta)
        return abs(value - theta) - Z95 * math.sqrt(theta * (1 - theta) * spread / (m * n))

    # `value` itself is a root of neither limit: the bracket ends just short of it, inside the
    # interval.
    short = 1e-12
    low = optimize.brentq(excess, 0.0, value - short) if value > short else 0.0
    high = optimize.brentq(excess, value + short, 1.0) if value < 1 - short else 1.0
    return float(low), float(high)


def log10_p(t: float, dof: float) -> float:
    """log10 of the two-sided p-value of Student's t, exact far below the smallest double.

    p = I_x(dof/2, 1/2) with x = dof / (dof + t²); below scipy's reach by its series (DLMF 8.17.8).
    """
    direct = stats.t.logsf(abs(t), dof)
    if np.isfinite(direct) and direct > -600:
        return float((direct + math.log(2)) / math.log(10))
    a, b = dof / 2, 0.5
    log_x = -math.log1p(t * t / dof)
    series = special.hyp2f1(a + b, 1, a + 1, math.exp(log_x))
    log_p = (
        a * log_x
        + b * math.log1p(-math.exp(log_x))
        - math.log(a)
        - special.betaln(a, b)
        + math.log(series)
    )
    return float(log_p / math.log(10))


def spearman(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Spearman's rho with Bonett and Wright's interval (2000): Fisher's z, standard error sqrt((1 +
    rho²/2) / (n - 3)).

    0 with the widest interval where one variable is constant or n < 4.
    """
    n = len(x)
    if n < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Estimate(0.0, -1.0, 1.0, n)
    rho = float(stats.spearmanr(x, y).statistic)
    z, half = (
        math.atanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12)),
        Z95 * math.sqrt((1 + rho**2 / 2) / (n - 3)),
    )
    return Estimate(rho, math.tanh(z - half), math.tanh(z + half), n)


def overlap_count(harmful: np.ndarray, harmless: np.ndarray) -> int:
    """Seed 004's rule: harmful below the harmless mean plus harmless above the harmful mean. It
    misses nearly all overlap."""
    return int((harmful < harmless.mean()).sum() + (harmless > harmful.mean()).sum())


def overlap_range(harmful: np.ndarray, harmless: np.ndarray) -> int:
    """Prompts of either class inside the other class's [min, max]: 0 only where a threshold
    separates the classes."""

    def inside(x: np.ndarray, other: np.ndarray) -> int:
        return int(((x >= other.min()) & (x <= other.max())).sum())

    return inside(harmful, harmless) + inside(harmless, harmful)


def p_in_words(p: float, digits: int) -> str:
    """As `= 0.047`, or `< 0.001` where the digits would not show it."""
    least = 10.0**-digits
    return f"< {least:.{digits}f}" if p < least else f"= {p:.{digits}f}"
