"""Seed 004's five findings, each as numbers that could have come out otherwise. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats
from sklearn.mixture import GaussianMixture

from refusal_nn import crossfit
from refusal_nn.estimates import auroc, auroc_interval, overlap_count, overlap_range, spearman

Row = dict[str, object]


def spread_by_layer(
    projections: np.ndarray, labels: np.ndarray, mean_norms: Sequence[float]
) -> list[Row]:
    """Seed 004's table 3.3 from in-sample projections (layer, prompt): mean, std, min, max, range
    per class, and ratios.

    mean_norms: mean |h| of each layer, against which `separation_over_norm` shows what of the
    growth is the stream's own.
    """
    rows = []
    for layer, values in enumerate(projections):
        p, q = values[labels], values[~labels]
        separation, spread = float(p.mean() - q.mean()), float(p.std() + q.std())
        of_class = {
            f"{name}_{what}": float(number)
            for name, v in (("harmful", p), ("harmless", q))
            for what, number in (
                ("mean", v.mean()),
                ("std", v.std()),
                ("min", v.min()),
                ("max", v.max()),
                ("range", np.ptp(v)),
            )
        }
        rows.append(
            {
                "layer": layer,
                **of_class,
                "mean_separation": separation,
                "overlap_count": overlap_count(p, q),
                "overlap_range": overlap_range(p, q),
                "separation_variance_ratio": separation / spread if spread > 0 else 0.0,
                "separation_over_norm": separation / mean_norms[layer]
                if mean_norms[layer] > 0
                else 0.0,
            }
        )
    return rows


def universal(rows: Sequence[Row]) -> Row:
    """Finding 1: do all layers separate the classes? By the validation study's rule and by the
    cross-fitted one."""
    return {
        "layers": len(rows),
        "valid": sum(bool(r["valid"]) for r in rows),
        "valid_in_sample": sum(bool(r["valid_in_sample"]) for r in rows),
        "not_valid": [r["layer"] for r in rows if not r["valid"]],
    }


def first_without_overlap(rows: Sequence[Row]) -> Row:
    """Finding 2: the first layer at which no prompt overlaps, by the study's rule and by the two
    honest ones; null if none."""

    def first(column: str) -> int | None:
        return next((int(r["layer"]) for r in rows if r[column] == 0), None)

    rules = ("overlap_count", "overlap_range", "overlap_range_crossfit")
    return {
        rule: {"first_layer": first(rule), "layers": [r["layer"] for r in rows if r[rule] == 0]}
        for rule in rules
    }


def gradient(
    scores: np.ndarray, labels: np.ndarray, severity: Sequence[int | None], seed: int
) -> Row:
    """Finding 3: graded or binary? Held-out projections (prompt,) of one layer, within the harmful
    class.

    severity: 1-5 or None, of the harmful prompts. A mixture counts as two groups if its BIC is
    better by more than 10 and its components are apart (Ashman's D > 2): skew alone also favours
    two components.
    """
    known = [i for i, s in enumerate(severity) if s not in (None, "")]
    rho = spearman(scores[labels][known], np.array([severity[i] for i in known], dtype=float))
    mixtures = {
        name: _mixture(scores[chosen], seed)
        for name, chosen in (("harmful", labels), ("harmless", ~labels))
    }
    two = mixtures["harmful"]["two_groups"]
    # rho with n = 0 has the interval [-1, 1]: no severity, no evidence of grading.
    groups = "two groups within harmful" if two else "one group, not graded with severity"
    reading = "graded with severity" if rho.low > 0 else groups
    return {"spearman_severity": rho._asdict(), "mixture": mixtures, "reading": reading}


def _mixture(values: np.ndarray, seed: int) -> Row:
    spread = values.std()
    if len(values) < 10 or spread == 0:
        return {"n": len(values), "bic_one_minus_two": 0.0, "ashman_d": 0.0, "two_groups": False}
    x = ((values - values.mean()) / spread)[:, None]
    one, two = (
        GaussianMixture(k, n_init=5 if k > 1 else 1, random_state=seed, reg_covar=1e-3).fit(x)
        for k in (1, 2)
    )
    gain = float(one.bic(x) - two.bic(x))
    apart = float(abs(np.diff(two.means_[:, 0])[0]) / np.sqrt(two.covariances_.mean()))
    return {
        "n": len(values),
        "bic_one_minus_two": gain,
        "ashman_d": apart,
        "two_groups": bool(gain > 10 and apart > 2),
    }


def build_up(rows: Sequence[Row], spread: Sequence[Row]) -> Row:
    """Finding 4: does separation build up? Spearman of layer and cross-fitted d up to the peak, and
    ratios at both ends."""
    d = np.array([r["cohens_d_crossfit"] for r in rows])
    peak = int(d.argmax())
    return {
        "peak_layer": peak,
        "spearman_layer_d_up_to_peak": spearman(np.arange(peak + 1), d[: peak + 1])._asdict(),
        "d_first": float(d[0]),
        "d_peak": float(d[peak]),
        "d_last": float(d[-1]),
        "ratio_first": spread[0]["separation_variance_ratio"],
        "ratio_peak": spread[peak]["separation_variance_ratio"],
        "separation_over_norm_first": spread[0]["separation_over_norm"],
        "separation_over_norm_peak": spread[peak]["separation_over_norm"],
        "separation_over_norm_last": spread[-1]["separation_over_norm"],
    }


def outliers(scores: np.ndarray, labels: np.ndarray, ids: Sequence[str]) -> Row:
    """Finding 5: prompts on the wrong side of the midpoint, by held-out projection (prompt,), the
    most extreme first."""

    def listed(wrong: np.ndarray, order: np.ndarray) -> list[Row]:
        return [{"id": ids[i], "projection": float(scores[i])} for i in order if wrong[i]]

    return {
        "harmful_below_midpoint": listed(labels & (scores < 0), np.argsort(scores, kind="stable")),
        "harmless_above_midpoint": listed(
            ~labels & (scores > 0), np.argsort(-scores, kind="stable")
        ),
    }


def on_fresh_prompts(
    direction: np.ndarray, harmful: np.ndarray, harmless: np.ndarray, clusters: np.ndarray
) -> Row:
    """d and AUROC of prompts (prompt, d_model) the direction has never seen, with jackknife
    intervals over clusters."""
    labels = np.arange(len(harmful) + len(harmless)) < len(harmful)
    if min(len(np.unique(clusters[chosen])) for chosen in (labels, ~labels)) < 2:
        raise ValueError("an interval needs two clusters of each class")
    scores = np.concatenate([harmful, harmless]).astype(np.float64) @ direction
    everything = crossfit.Design(
        labels[None], np.zeros((1, labels.size), dtype=int), np.ones((1, labels.size))
    )
    left_out = crossfit.jackknifed(everything, clusters, labels.size, np.random.default_rng(0))
    d = float(crossfit.effect_size(scores[None], everything)[0])
    draws = crossfit.effect_size(np.repeat(scores[None], len(left_out.labels), 0), left_out)
    half = float(stats.t.ppf(0.975, len(draws) - 1)) * crossfit.jackknife_error(draws)
    area = auroc(scores[labels], scores[~labels])
    low, high = auroc_interval(
        area, len(np.unique(clusters[labels])), len(np.unique(clusters[~labels]))
    )
    return {
        "n_harmful": len(harmful),
        "n_harmless": len(harmless),
        "cohens_d": d,
        "d_low": d - half,
        "d_high": d + half,
        "auroc": area,
        "auroc_low": low,
        "auroc_high": high,
    }
