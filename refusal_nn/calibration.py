"""What the instrument says of models whose truth is known: a row per model, then who is taken for
what, how often it is right, and how far the subspaces found lie from the planted ones. Pure.

A row's `planted` is the rank as text, `many` for one above the ranks that are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from refusal_nn import ranks, verdicts
from refusal_nn.estimates import Estimate, wilson

Row = dict[str, object]
Rows = Sequence[Mapping[str, object]]

ANALYTIC, ORGANISM = "analytic", "organism"
NONE, MANY = "0", "many"
# Quantities, in the order of the tables. A false positive is what must be rare, the rest frequent.
EXACT, COVERS = "rank exact", "interval covers"
ONE, NOT_ONE = "single YES", "single not YES"
FALSE = "false positive"
# Asked of analytic models, whose truth is exact; an organism's is what its training aimed at.
LEAST, MOST = 0.95, 0.05
ANGLES = {
    "mean angle to the planted subspace": "angle_mean",
    "largest angle to the planted subspace": "angle_max",
    "angle of the single direction": "direction_angle",
}


def row(kind: str, planted: str, seed: int, verdict: Mapping[str, object], seconds: float) -> Row:
    """A model's row, of its verdict.json."""
    single, found = verdict["single_direction"], verdict["rank"]
    known = verdict.get("planted", {})
    angles = known.get("angles", [])
    return {
        "kind": kind,
        "planted": planted,
        "seed": seed,
        "single": single["verdict"],
        "verdict": found["verdict"],
        **{name: found.get(name) for name in ("rank", "low", "high")},
        "label": found["label"],
        **{name: verdict.get(name) for name in ("construction", "layer")},
        # Below the planted rank there are fewer angles, and to part of a subspace.
        "angle_mean": float(np.mean(angles)) if angles else None,
        "angle_max": max(angles, default=None),
        "direction_angle": next(iter(known.get("direction_angle", [])), None),
        "seconds": seconds,
    }


def reported(row: Mapping[str, object]) -> str:
    """The verdict on the rank, as a column of the confusion table."""
    names = {ranks.RANK: f"rank {row['rank']}", ranks.NOT_ACCESSIBLE: "not accessible"}
    return names.get(row["verdict"], row["verdict"])


def confusion(rows: Rows) -> Iterator[Row]:
    """A row per planted rank and verdict on it that occurred; n is of the planted rank."""
    for (kind, planted), of in _groups(rows).items():
        said = [reported(row) for row in of]
        for name in sorted(set(said)):
            about = {"kind": kind, "planted": planted, "reported": name}
            yield about | {"count": said.count(name), "n": len(said)}


def summary(rows: Rows) -> Iterator[Row]:
    """A row per rate, Wilson's interval beside it. bar: what is required of analytic models."""
    for (kind, planted), of in _groups(rows).items():
        for quantity, (holds, bar) in _quantities(planted).items():
            rate = wilson(sum(map(holds, of)), len(of))
            about = {"kind": kind, "planted": planted, "quantity": quantity}
            yield about | rate._asdict() | {"bar": bar if kind == ANALYTIC else None}


def missed(rates: Rows) -> list[str]:
    """In words, the rates that are not as required."""
    return [
        f"{r['quantity']} of {r['kind']} models of planted rank {r['planted']}: "
        f"{Estimate(r['value'], r['low'], r['high'], r['n']).percent()}, "
        f"{100 * r['bar']:.0f} % at {'most' if r['quantity'] == FALSE else 'least'} is required"
        for r in rates
        if r["bar"] is not None
        and (r["value"] > r["bar"] if r["quantity"] == FALSE else r["value"] < r["bar"])
    ]


def angles(rows: Rows) -> Iterator[Row]:
    """A row per median angle to the planted subspace, degrees, over the models that have one."""
    for (kind, planted), of in _groups(rows).items():
        for quantity, column in ANGLES.items():
            values = [row[column] for row in of if row[column] not in (None, "")]
            if values:
                about = {"kind": kind, "planted": planted, "quantity": quantity}
                yield about | median(values)._asdict()


def median(values: Sequence[float]) -> Estimate:
    """The median with the distribution-free 95 % interval of order statistics; for fewer than six
    values, which have none, from the least to the largest."""
    ordered, n = np.sort(np.asarray(values, dtype=np.float64)), len(values)
    below = max(int(stats.binom.ppf(0.025, n, 0.5)) - 1, 0)
    return Estimate(float(np.median(ordered)), ordered[below], ordered[n - 1 - below], n)


def _quantities(planted: str) -> dict[str, tuple[Callable[[Mapping[str, object]], bool], float]]:
    """What is asked of models of one planted rank: whether it holds of a row, and the bar."""
    if planted == NONE:
        return {FALSE: (lambda row: row["verdict"] != verdicts.UNTESTABLE, MOST)}
    if planted == MANY:
        return {FALSE: (lambda row: _one(row) or row["verdict"] == ranks.RANK, MOST)}
    k = int(planted)
    single = (ONE, _one) if k == 1 else (NOT_ONE, lambda row: not _one(row))
    return {
        EXACT: (lambda row: row["verdict"] == ranks.RANK and row["rank"] == k, LEAST),
        COVERS: (lambda row: (row["low"] or math.inf) <= k <= (row["high"] or 0), LEAST),
        single[0]: (single[1], LEAST),
    }


def _one(row: Mapping[str, object]) -> bool:
    return row["single"] == verdicts.YES


def _groups(rows: Rows) -> dict[tuple[str, str], list[Mapping[str, object]]]:
    """Rows by kind and planted rank, analytic first, by rank, many last."""
    found: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for row in sorted(rows, key=lambda row: (row["kind"], len(row["planted"]), row["planted"])):
        found.setdefault((row["kind"], row["planted"]), []).append(row)
    return found
