"""Does a direction separate two classes on prompts it has not seen? Cross-fitted, null refitted.

An interval is 95 % and two-sided throughout. p-values are never 0: a permutation p is at least
1 / (draws + 1), and a parametric one is given by its logarithm.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from refusal_nn import crossfit
from refusal_nn.estimates import (
    SMALLEST_P,
    Estimate,
    auroc,
    auroc_interval,
    cohens_d,
    log10_p,
    overlap_count,
    overlap_range,
    spearman,
    wilson,
)

__all__ = [
    "Estimate",
    "auroc",
    "auroc_interval",
    "cohens_d",
    "crossfit_projections",
    "log10_p",
    "overlap_count",
    "overlap_range",
    "permutation_p",
    "spearman",
    "validate_layers",
    "wilson",
]


def permutation_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """One-sided (1 + #{null >= observed}) / (draws + 1); null has the draws on its last axis."""
    return (1 + (null >= observed[..., None]).sum(-1)) / (null.shape[-1] + 1)


def validate_layers(
    harmful: np.ndarray,
    harmless: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    folds: int = 5,
    permutations: int = 200,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Does the difference in means separate the classes at each layer? One row per layer, in-sample
    beside cross-fitted.

    harmful, harmless: (layer, prompt, d_model). clusters: (n_harmful + n_harmless,) ints, harmful
    first; matched pairs and near-duplicates share one, and no fold divides one. Raises ValueError
    on shapes, NaN, or fewer than two clusters a class.

    cohens_d_crossfit estimates the expected d, on fresh prompts, of a direction fitted on
    (folds - 1) / folds of these. Its interval is the delete-a-cluster jackknife's with every
    direction refitted; auroc's is the wider of that and Newcombe's. p_permutation and p_familywise
    refit under permuted labels, the same permutation at all layers, the latter against the maximum
    over layers; both compare Welch's t of the held-out scores, which orders as d does where the
    classes are of one size. valid: p_familywise < .01 and d_low > .5. valid_in_sample: the
    validation study's rule, which noise passes.
    """
    x, labels, clusters, folds = _checked(harmful, harmless, clusters, folds)
    rng = np.random.default_rng(seed)
    base = crossfit.observed(labels, clusters, folds, rng)
    null = crossfit.permuted(base, clusters, permutations, rng)
    left_out = crossfit.jackknifed(base, clusters, 200, rng)
    rows, t, null_t = [], np.empty(len(x)), np.empty((len(x), permutations))
    for layer, states in enumerate(x):
        g = crossfit.gram(states)
        t[layer] = crossfit.welch_t(crossfit.held_out_scores(g, base), base)[0]
        null_t[layer] = crossfit.welch_t(crossfit.held_out_scores(g, null), null)
        rows.append(
            _in_sample(layer, states[labels], states[~labels])
            | _cross_fitted(g, base, left_out, clusters)
        )
    p, p_family = permutation_p(t, null_t), permutation_p(t, null_t.max(0)[None])
    for row, alone, together in zip(rows, p, p_family, strict=True):
        row |= {"p_permutation": float(alone), "p_familywise": float(together)}
        row["valid"] = bool(together < 0.01 and row["d_low"] > 0.5)
    return rows


def crossfit_projections(
    harmful: np.ndarray,
    harmless: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    folds: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """The held-out projections behind validate_layers, same folds for the same seed: (layer,
    prompt), harmful first."""
    x, labels, clusters, folds = _checked(harmful, harmless, clusters, folds)
    base = crossfit.observed(labels, clusters, folds, np.random.default_rng(seed))
    return np.stack([crossfit.held_out_scores(crossfit.gram(states), base)[0] for states in x])


def _checked(
    harmful: np.ndarray, harmless: np.ndarray, clusters: np.ndarray | None, folds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    harmful, harmless = np.asarray(harmful), np.asarray(harmless)
    if harmful.ndim != 3 or harmless.ndim != 3 or harmful.shape[::2] != harmless.shape[::2]:
        raise ValueError(
            f"expected two (layer, prompt, d_model) arrays, got {harmful.shape} and "
            f"{harmless.shape}"
        )
    x = np.concatenate([harmful, harmless], axis=1)
    finite = np.isfinite(x).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(
            f"activations are not finite at layers {np.flatnonzero(~finite).tolist()}; use "
            "float32 or bfloat16"
        )
    labels = np.arange(x.shape[1]) < harmful.shape[1]
    clusters = np.arange(labels.size) if clusters is None else np.asarray(clusters)
    if clusters.shape != labels.shape:
        raise ValueError(
            f"expected {labels.size} cluster numbers, harmful first, got shape {clusters.shape}"
        )
    fewest = min(len(np.unique(clusters[labels])), len(np.unique(clusters[~labels])))
    if fewest < 2 or folds < 2:
        raise ValueError(
            f"cross-fitting needs two clusters a class and two folds, got {fewest} and {folds}"
        )
    return x, labels, clusters, min(folds, fewest)


def _in_sample(layer: int, harmful: np.ndarray, harmless: np.ndarray) -> dict[str, object]:
    harmful, harmless = harmful.astype(np.float64), harmless.astype(np.float64)
    direction = harmful.mean(0) - harmless.mean(0)
    magnitude = float(np.linalg.norm(direction))
    unit = direction / magnitude if magnitude > 0 else direction
    p, q = harmful @ unit, harmless @ unit
    d, dof = cohens_d(p, q), p.size + q.size - 2
    pooled = math.sqrt((p.size * p.var() + q.size * q.var()) / dof * (1 / p.size + 1 / q.size))
    t = float(p.mean() - q.mean()) / pooled if pooled > 0 else 0.0
    log_p = log10_p(t, dof)
    flat = "no direction" if magnitude == 0 else "constant classes" if pooled == 0 else "ok"
    return {
        "layer": layer,
        "magnitude": magnitude,
        "harmful_mean_proj": float(p.mean()),
        "harmless_mean_proj": float(q.mean()),
        "t_statistic": t,
        "p_value": max(10.0**log_p, SMALLEST_P),
        "cohens_d": d,
        "valid": False,
        "log10_p": log_p,
        "valid_in_sample": log_p < -2 and abs(d) > 0.5,
        "overlap_count": overlap_count(p, q),
        "overlap_range": overlap_range(p, q),
        "top1_coordinate_share": float((unit**2).max()),
        "status": flat,
        "n_harmful": p.size,
        "n_harmless": q.size,
    }


def _cross_fitted(
    g: np.ndarray,
    base: crossfit.Design,
    left_out: crossfit.Design,
    clusters: np.ndarray,
) -> dict[str, object]:
    scores = crossfit.held_out_scores(g, base)
    refitted = crossfit.held_out_scores(g, left_out)
    d, area = (
        float(crossfit.effect_size(scores, base)[0]),
        float(crossfit.pairwise_auroc(scores, base)[0]),
    )
    reach = float(stats.t.ppf(0.975, len(refitted) - 1))
    d_half = reach * crossfit.jackknife_error(crossfit.effect_size(refitted, left_out))
    area_half = reach * crossfit.jackknife_error(crossfit.pairwise_auroc(refitted, left_out))
    labels = base.labels[0]
    low, high = auroc_interval(
        area, len(np.unique(clusters[labels])), len(np.unique(clusters[~labels]))
    )
    return {
        "cohens_d_crossfit": d,
        "d_low": d - d_half,
        "d_high": d + d_half,
        "auroc_crossfit": area,
        "auroc_low": max(0.0, min(low, area - area_half)),
        "auroc_high": min(1.0, max(high, area + area_half)),
        "overlap_range_crossfit": overlap_range(scores[0, labels], scores[0, ~labels]),
    }
