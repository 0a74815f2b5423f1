"""Does a prompt's projection on the direction predict what the model does with it? Pure.

Experiments 1a (severity) and 1b (refusal) of the validation study, on prompts that the direction
has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from refusal_nn.causal import rate
from refusal_nn.estimates import Estimate, auroc, auroc_interval, spearman

Row = dict[str, object]
BINS = 5
LEAST = 2  # of each outcome, for an AUROC


class Asked(NamedTuple):
    """Prompts asked of the clean model. projections: (layer, prompt), on unit directions of fit
    prompts. The others (prompt,): refused, harmful, severity (NaN where none), split."""

    projections: np.ndarray
    refused: np.ndarray
    harmful: np.ndarray
    severity: np.ndarray
    split: np.ndarray

    def only(self, chosen: np.ndarray) -> Asked:
        return Asked(self.projections[:, chosen], *(x[chosen] for x in self[1:]))


def predicts_refusal(projection: np.ndarray, refused: np.ndarray) -> Estimate | None:
    """AUROC of projection (prompt,) for refusal with Newcombe's interval; None with fewer than two
    of either outcome."""
    m, n = int(refused.sum()), int((~refused).sum())
    if min(m, n) < LEAST:
        return None
    value = auroc(projection[refused], projection[~refused])
    return Estimate(value, *auroc_interval(value, m, n), m + n)


def by_layer(asked: Asked) -> list[Row]:
    """A row per layer: AUROC for refusal over all prompts and within harmful ones alone, and
    Spearman's rho with severity."""
    harmful = asked.only(asked.harmful)
    rated = asked.only(~np.isnan(asked.severity))
    return [
        {"layer": layer}
        | _columns("auroc", predicts_refusal(asked.projections[layer], asked.refused))
        | _columns("auroc_harmful", predicts_refusal(harmful.projections[layer], harmful.refused))
        | _columns("spearman", _graded(rated, layer), "spearman_severity")
        for layer in range(len(asked.projections))
    ]


def _graded(rated: Asked, layer: int) -> Estimate | None:
    return spearman(rated.projections[layer], rated.severity) if rated.severity.size > 3 else None


def _columns(name: str, found: Estimate | None, value: str | None = None) -> Row:
    value = value or name
    if found is None:
        return {value: "", f"{name}_low": "", f"{name}_high": "", f"{name}_n": 0}
    return {
        value: found.value,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
        f"{name}_n": found.n,
    }


class Calibration(NamedTuple):
    """probability: of refusal, of each prompt asked. about: how good it is on test, None where it
    cannot be said."""

    probability: np.ndarray
    about: Row | None


def calibrate(projection: np.ndarray, refused: np.ndarray, val: np.ndarray) -> Calibration:
    """Logistic regression of refusal on projection, fitted on val (ridge, so that separable classes
    leave it finite), measured on the other prompts.

    All (prompt,); val: boolean. brier: mean squared error of the probability; brier_constant: of
    val's rate alone, which a useful projection beats. slope: of a logistic regression of the
    outcome on the log-odds, 1 if calibrated (Cox 1958). NaN probabilities where val has one outcome
    only.
    """
    test = ~val
    if len(np.unique(refused[val])) < 2 or not test.any():
        return Calibration(np.full(len(projection), np.nan), None)
    x = (projection - projection[val].mean())[:, None] / (projection[val].std() or 1.0)
    fitted = LogisticRegression().fit(x[val], refused[val])
    p = fitted.predict_proba(x)[:, 1]
    truth = refused[test]
    about = {
        "n_val": int(val.sum()),
        "n": int(test.sum()),
        "brier": float(np.mean((p[test] - truth) ** 2)),
        "brier_constant": float(np.mean((refused[val].mean() - truth) ** 2)),
        "slope": _slope(p[test], truth),
        "bins": _bins(p[test], truth),
    }
    return Calibration(p, about)


def _slope(p: np.ndarray, truth: np.ndarray) -> float | None:
    if len(np.unique(truth)) < 2 or np.ptp(p) < 1e-9:
        return None
    p = np.clip(p, 1e-6, 1 - 1e-6)
    log_odds = np.log(p / (1 - p))[:, None]
    return float(LogisticRegression(C=1e6).fit(log_odds, truth).coef_[0, 0])


def _bins(p: np.ndarray, truth: np.ndarray) -> list[Row]:
    """Prompts in bins of equal number, by probability."""
    found = []
    for members in np.array_split(np.argsort(p, kind="stable"), BINS):
        if members.size:
            edges = {"low": float(p[members].min()), "high": float(p[members].max())}
            about = {"n": int(members.size), "predicted": float(p[members].mean())}
            found.append(edges | about | rate(truth[members].tolist(), "refused"))
    return found


def low_projecting(rows: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Harmful prompts below the harmless ones' 95th percentile, lowest first: ambiguous, or
    missed?"""
    harmless = [row["projection"] for row in rows if row["class"] == "harmless"]
    harmful = sorted(
        (row for row in rows if row["class"] == "harmful"), key=lambda row: row["projection"]
    )
    if not harmless:
        return []
    limit = float(np.quantile(harmless, 0.95))
    return [row for row in harmful if row["projection"] < limit]
