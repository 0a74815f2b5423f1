"""Directions that separate two classes of activations, and how like each other they are. Pure.

Every estimator has one signature: harmful, harmless (layer, prompt, d_model) -> (layer, d_model),
float64, raw scale. Arrays or CPU tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# A coordinate is massive where its mean size exceeds so many times the layer's median one.
MASSIVE = 50.0
# The published bounds of select_candidate: nats, log-odds, share of the layers.
MAX_KL, MIN_INDUCE, DROP_LAST = 0.1, 0.0, 0.2


def difference_in_means(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Mean harmful minus mean harmless activation, float64 sums (Arditi et al. 2024, eq. 2)."""
    return _mean(harmful) - _mean(harmless)


def masked_difference_in_means(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Difference in means, the massive coordinates set to 0; found class-blind, on harmless."""
    size = np.abs(_mean(harmless))
    massive = size > MASSIVE * np.median(size, axis=-1, keepdims=True)
    return np.where(massive, 0.0, difference_in_means(harmful, harmless))


def standardised_difference_in_means(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Difference in means, each coordinate divided by its standard deviation within classes."""
    variances = [np.asarray(x).var(-2, dtype=np.float64) for x in (harmful, harmless)]
    within = np.sqrt((variances[0] + variances[1]) / 2)
    raw = difference_in_means(harmful, harmless)
    varies = within > 1e-12 * within.max(-1, keepdims=True)
    return np.divide(raw, within, out=np.zeros_like(raw), where=varies)


def winsorised_difference_in_means(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Difference in means after clipping each coordinate to its class's 5th and 95th percentile."""

    def clipped(x: np.ndarray) -> np.ndarray:
        return np.clip(x, *np.quantile(x, (0.05, 0.95), axis=-2, keepdims=True))

    return difference_in_means(clipped(np.asarray(harmful)), clipped(np.asarray(harmless)))


def _mean(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).mean(-2, dtype=np.float64)


def unit(directions: np.ndarray) -> np.ndarray:
    """Rows divided by their norm; a zero row stays zero."""
    norms = np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.divide(
        directions, norms, out=np.zeros_like(directions, dtype=np.float64), where=norms > 0
    )


def top1_coordinate_share(directions: np.ndarray) -> np.ndarray:
    """Share of each direction's squared length in its largest coordinate: 1 / d_model if even, near
    1 if massive."""
    return (unit(directions) ** 2).max(-1)


class Similarity(NamedTuple):
    """layers: those with a direction (a zero one has no cosine). cosine: (layer, layer) among
    them."""

    layers: list[int]
    cosine: np.ndarray
    participation_ratio: float
    late_half_mean: float
    late_half_mean_off_diagonal: float


def layer_similarity(directions: np.ndarray) -> Similarity:
    """Cosines between the directions (layer, d_model) of all layers; the comparison study's heatmap
    and its summaries.

    Late half: layers from n // 2 on, in the numbering given. Participation ratio: (Σ s²)² / Σ s⁴ of
    the singular values of the stacked unit directions, not centred: 1 if all layers share one
    direction, their number if none do.
    """
    norms = np.linalg.norm(directions, axis=-1)
    # A layer whose prompts all have the same state leaves rounding error, not a direction.
    layers = [i for i, norm in enumerate(norms) if norm > 1e-10 * norms.max()]
    units = unit(directions)[layers]
    cosine = units @ units.T
    energy = np.linalg.svd(units, compute_uv=False) ** 2
    late = [i for i, layer in enumerate(layers) if layer >= len(directions) // 2]
    block = cosine[np.ix_(late, late)]
    off = block[~np.eye(len(late), dtype=bool)]
    return Similarity(
        layers,
        cosine,
        float(energy.sum() ** 2 / (energy**2).sum()) if layers else 0.0,
        float(block.mean()) if late else 0.0,
        float(off.mean()) if len(late) > 1 else float(len(late)),  # a layer is like itself
    )


def split_half_cosine(
    harmful: np.ndarray,
    harmless: np.ndarray,
    clusters: np.ndarray,
    *,
    splits: int = 20,
    seed: int = 0,
) -> np.ndarray:
    """Cosine between difference-in-means directions of two random halves of the clusters, mean over
    splits: (layer,).

    clusters: (n_harmful + n_harmless,), harmful first. It bounds the cosine to expect between
    layers with one direction.
    """
    rng = np.random.default_rng(seed)
    numbers = np.unique(clusters)
    total = np.zeros(harmful.shape[0])
    done = 0
    for _ in range(splits):
        first = np.isin(clusters, rng.permutation(numbers)[: numbers.size // 2])
        masks = [(half[: harmful.shape[1]], half[harmful.shape[1] :]) for half in (first, ~first)]
        if all(h.any() and s.any() for h, s in masks):
            a, b = (unit(difference_in_means(harmful[:, h], harmless[:, s])) for h, s in masks)
            total += (a * b).sum(-1)
            done += 1
    return total / max(done, 1)


def full_sample_reliability(half: np.ndarray) -> np.ndarray:
    """Reliability of the full-sample direction from its split-half cosine (Spearman and Brown
    1910): 2 r / (1 + r), >= 0."""
    r = np.clip(half, 0, 1)
    return 2 * r / (1 + r)


def select_candidate(
    rows: Iterable[Mapping[str, float]],
    n_layers: int,
    max_kl: float = MAX_KL,
    min_induce: float = MIN_INDUCE,
    drop_last: float = DROP_LAST,
) -> Mapping[str, float] | None:
    """The direction that bypasses refusal best among those that do little else; None if all do more
    (Arditi et al. 2024, appendix C).

    rows: layer, pos; ablated and added: mean refusal score on harmful prompts with the direction
    ablated, on harmless with it added; kl on harmless, nats. Layers in the file's own index, the
    last `drop_last` of n_layers left out. Rows with a NaN are dropped. Of equals, the first.
    """
    fit = _passing(rows, n_layers, max_kl, min_induce, drop_last)
    return min(fit, key=lambda row: row["ablated"], default=None)


def _passing(
    rows: Iterable[Mapping[str, float]],
    n_layers: int,
    max_kl: float,
    min_induce: float,
    drop_last: float,
) -> list[Mapping[str, float]]:
    deepest = int(n_layers * (1.0 - drop_last))
    return [
        row
        for row in rows
        if row["layer"] < deepest
        and row["kl"] <= max_kl
        and row["added"] >= min_induce
        and not math.isnan(row["ablated"])
    ]


def eligible(rows: Sequence[Mapping[str, object]], n_layers: int) -> list[dict[str, object]]:
    """The rows that select_candidate chooses among, in our own numbering.

    The rule counts blocks by what enters them: resid_pre of block l is our layer l - 1.
    """
    numbers = ("ablated", "added", "kl")
    usable = [
        {**row, "layer": row["layer"] + 1}
        for row in rows
        if row["norm"] is not None and row["norm"] > 0 and None not in (row[k] for k in numbers)
    ]
    passing = _passing(usable, n_layers, MAX_KL, MIN_INDUCE, DROP_LAST)
    return [{**row, "layer": row["layer"] - 1} for row in passing]


def choose(rows: Sequence[Mapping[str, object]], n_layers: int) -> dict[str, object] | None:
    """select_candidate on rows in our own numbering."""
    return min(eligible(rows, n_layers), key=lambda row: row["ablated"], default=None)
