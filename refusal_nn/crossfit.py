"""Cross-fitted separation along the difference in means, at the cost of Gram matrices.

A direction fitted and scored on the same prompts separates anything: with n prompts per class of
pure noise the in-sample Cohen's d is about sqrt(2 r / n), r the participation ratio of the
covariance. Here a prompt is only ever scored by a direction that has not seen its cluster, and both
the null and the interval refit the direction in every draw.

With X (prompt, d_model) and G = X Xᵀ, a difference in means is w = Xᵀ a for a weight per prompt a,
so that X w = G a and |w|² = aᵀ G a. A refit costs n², not n · d_model, and all refits are one
matrix product.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Design:
    """Which prompt plays which part in B analyses at once: labels, folds and weights, each (draw,
    prompt).

    labels: True for harmful. folds: the fold in which the prompt is held out. weights: 0 where the
    draw leaves the prompt out.
    """

    labels: np.ndarray
    folds: np.ndarray
    weights: np.ndarray

    @functools.cached_property
    def fits(self) -> list[Fit]:
        """Of each fold; every layer's are the same."""
        return [self._without(fold) for fold in range(self.folds.max() + 1)]

    def _without(self, fold: int) -> Fit:
        train = self.weights * (self.folds != fold)
        classes = train * self.labels, train * ~self.labels
        totals = [w.sum(1, keepdims=True) for w in classes]
        harmful, harmless = (
            np.divide(w, n, out=np.zeros_like(w), where=n > 0)
            for w, n in zip(classes, totals, strict=True)
        )
        usable = (totals[0] > 0) & (totals[1] > 0)
        middle = (harmful + harmless) / 2
        return Fit(harmful - harmless, middle, usable[:, 0], self.folds == fold)


@dataclass(frozen=True)
class Fit:
    """Directions fitted on all folds but one, as weights of the prompts: difference in means and
    midpoint (draw, prompt); usable (draw,): both classes were there; held_out (draw, prompt)."""

    difference: np.ndarray
    middle: np.ndarray
    usable: np.ndarray
    held_out: np.ndarray


def observed(
    labels: np.ndarray, clusters: np.ndarray, folds: int, rng: np.random.Generator
) -> Design:
    """The analysis itself (one draw): clusters dealt out to folds, no cluster divided, every kind
    spread evenly.

    Kinds are clusters that hold both classes, only harmful prompts, only harmless ones. Larger
    clusters are dealt first.
    """
    fold_of = np.empty(labels.size, dtype=int)
    load = np.zeros((folds, 2))
    for members in _clusters_by_kind(labels, clusters, rng):
        counts = np.array([labels[members].sum(), (~labels[members]).sum()])
        fold = int(np.argmin(load @ counts))
        fold_of[members], load[fold] = fold, load[fold] + counts
    return Design(labels[None], fold_of[None], np.ones((1, labels.size)))


def _clusters_by_kind(
    labels: np.ndarray, clusters: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    members = _members(clusters)
    shuffled = [members[i] for i in rng.permutation(len(members))]
    return sorted(shuffled, key=lambda m: (labels[m].mean() in (0, 1), labels[m].any(), -m.size))


def permuted(base: Design, clusters: np.ndarray, draws: int, rng: np.random.Generator) -> Design:
    """The design with labels permuted: within every cluster that holds both classes, and the rest
    as whole clusters.

    Fold and label travel together between whole clusters, so a permuted analysis is the observed
    one on reordered data, which is what makes the p-value exact.
    """
    labels, folds = np.repeat(base.labels, draws, 0), np.repeat(base.folds, draws, 0)
    members = _members(clusters)
    is_pure = np.array([len(np.unique(base.labels[0, m])) == 1 for m in members])
    pure = [m for m, whole in zip(members, is_pure, strict=True) if whole]
    if pure:
        rows, first = np.concatenate(pure), np.array([m[0] for m in pure])
        owner = np.repeat(np.arange(len(pure)), [m.size for m in pure])
        source = first[rng.permuted(np.tile(np.arange(len(pure)), (draws, 1)), axis=1)][:, owner]
        labels[:, rows], folds[:, rows] = base.labels[0, source], base.folds[0, source]
    mixed = [m for m, whole in zip(members, is_pure, strict=True) if not whole]
    if mixed:
        rows = np.concatenate(mixed)
        owner = np.repeat(np.arange(len(mixed)), [m.size for m in mixed])
        # Integer part: the cluster; fraction: a random key. Sorting shuffles inside clusters only.
        order = np.argsort(owner + rng.random((draws, rows.size)), axis=1)
        labels[np.arange(draws)[:, None], rows[order]] = base.labels[0, rows]
    return Design(labels, folds, np.ones(labels.shape))


def jackknifed(base: Design, clusters: np.ndarray, groups: int, rng: np.random.Generator) -> Design:
    """The design with one group of clusters left out per draw; every cluster alone where `groups`
    allows."""
    members = _members(clusters)
    parts = np.array_split(rng.permutation(len(members)), min(groups, len(members)))
    weights = np.ones((len(parts), base.labels.shape[1]))
    for draw, part in enumerate(parts):
        weights[draw, np.concatenate([members[i] for i in part])] = 0
    return Design(
        np.repeat(base.labels, len(parts), 0), np.repeat(base.folds, len(parts), 0), weights
    )


def jackknife_error(draws: np.ndarray) -> float:
    """Standard error from leave-one-group-out values (Efron and Stein 1981): sqrt((G - 1) / G Σ
    (value - mean)²)."""
    return float(np.sqrt((draws.size - 1) / draws.size * ((draws - draws.mean()) ** 2).sum()))


def _members(clusters: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(clusters, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)


def gram(states: np.ndarray) -> np.ndarray:
    """(prompt, d_model) -> (prompt, prompt) float64 inner products about the grand mean, to which
    no score is sensitive."""
    centred = states.astype(np.float64)
    centred -= centred.mean(0)
    return centred @ centred.T


def held_out_scores(g: np.ndarray, design: Design) -> np.ndarray:
    """Projection of every prompt on the unit difference in means of the other folds, minus that
    fit's midpoint: (draw, prompt).

    g: (prompt, prompt) Gram matrix. Where the other folds have no difference in means, or lack a
    class, the score is 0.
    """
    scores, least = np.zeros(design.labels.shape), 1e-12 * np.sqrt(np.trace(g))
    for fit in design.fits:
        along = fit.difference @ g
        norm = np.sqrt(np.maximum(np.einsum("dp,dp->d", fit.difference, along), 0))
        midpoint = np.einsum("dp,dp->d", fit.middle, along)
        usable = fit.usable & (norm > least)
        scale = np.divide(1, norm, out=np.zeros_like(norm), where=usable)
        along -= midpoint[:, None]
        along *= scale[:, None]
        np.copyto(scores, along, where=fit.held_out)
    return scores


def effect_size(scores: np.ndarray, design: Design) -> np.ndarray:
    """Cohen's d of held-out scores, one per draw: difference of class means over the root mean
    class variance (ddof 1)."""
    difference, variances, _ = _moments(scores, design)
    return difference / np.maximum(np.sqrt(variances.mean(0)), _floor(scores))


def welch_t(scores: np.ndarray, design: Design) -> np.ndarray:
    """Welch's t of held-out scores, one per draw.

    It orders draws as d does when classes are of one size; when they are not, permuting d itself
    rejects too often where the smaller class varies more (Chung and Romano 2013).
    """
    difference, variances, counts = _moments(scores, design)
    return difference / np.maximum(np.sqrt((variances / counts).sum(0)), _floor(scores))


def _moments(scores: np.ndarray, design: Design) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of class means (draw,); variances and counts of both classes (class, draw)."""
    means, variances, counts = [], [], []
    for chosen in (design.labels, ~design.labels):
        w = design.weights * chosen
        n = np.maximum(w.sum(1), 2)
        mean = (w * scores).sum(1) / n
        means.append(mean)
        variances.append((w * (scores - mean[:, None]) ** 2).sum(1) / (n - 1))
        counts.append(n)
    return means[0] - means[1], np.array(variances), np.array(counts)


def _floor(scores: np.ndarray) -> np.ndarray:
    # It turns "no spread at all" into a huge finite number; validate_layers names that case in
    # its status column.
    return np.maximum(1e-12 * np.abs(scores).max(1), 1e-300)


def pairwise_auroc(scores: np.ndarray, design: Design) -> np.ndarray:
    """AUROC of held-out scores, one per draw, ties counted half; prompts of weight 0 are left
    out."""
    # A left-out harmful prompt at -inf wins no comparison and a left-out harmless one at +inf loses
    # none.
    absent = np.where(design.labels, -np.inf, np.inf)
    ranks = rankdata(np.where(design.weights > 0, scores, absent), axis=1)
    m = design.labels.sum(1)
    wins = (ranks * design.labels).sum(1) - m * (m + 1) / 2
    present = design.weights > 0
    return wins / ((design.labels & present).sum(1) * (~design.labels & present).sum(1))
