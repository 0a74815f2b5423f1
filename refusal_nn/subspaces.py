"""Subspaces that hold the difference between two classes, their rank and their angles. Pure.

Activations are (prompt, d_model), arrays or CPU tensors. With `scale`, as from coordinate_scale,
they are divided by it to be decomposed, and the basis is brought back to the space that is ablated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from refusal_nn.directions import unit

NEGLIGIBLE = 1e-6  # of the largest singular value: what is below is float32 rounding
WIDEST = 3.0  # times the median scale, the most that a coordinate is multiplied by on the way back


@dataclass(frozen=True, eq=False)
class Subspace:
    """basis: (rank, d_model) orthonormal rows, leading first, with the difference in means positive
    (without classes the mean row; either damped by `scale` as the basis is). spectrum: all singular
    values of the rows it was fitted to, descending."""

    basis: np.ndarray
    spectrum: np.ndarray
    construction: str

    def __post_init__(self) -> None:
        basis = _matrix(self.basis, "basis")
        if not np.allclose(basis @ basis.T, np.eye(len(basis)), rtol=0, atol=1e-6):
            raise ValueError("the rows of the basis are not orthonormal within 1e-6")
        object.__setattr__(self, "basis", basis)

    @property
    def rank(self) -> int:
        return self.basis.shape[0]

    @property
    def d_model(self) -> int:
        return self.basis.shape[1]

    def first(self, k: int) -> Subspace:
        """The subspace of the k leading rows: what the same construction gives at rank k."""
        if not 1 <= k <= self.rank:
            raise ValueError(f"no first {k} of {self.rank} rows; choose from 1 to {self.rank}")
        return replace(self, basis=self.basis[:k])


def stack(directions: ArrayLike, rank: int) -> Subspace:
    """Leading subspace of the layers' directions (layer, d_model), each at unit length, uncentred;
    zero ones are left out. Its rank is at most the dimension they span."""
    units = _units(directions)
    return _fit(units, rank, units.mean(0), 1.0, "stack")


def sequential(directions: ArrayLike, rank: int) -> Subspace:
    """Gram-Schmidt on the directions (layer, d_model) in the order given, as the comparison study
    does. One in the span of those before it, to 1e-6 of its length, is left out. spectrum: as for
    stack."""
    units = _units(directions)
    basis = np.empty((0, units.shape[1]))
    for row in units:
        rest = row - (basis @ row) @ basis
        rest = rest - (basis @ rest) @ basis  # one pass leaves rounding error where little is left
        length = np.linalg.norm(rest)
        if length > NEGLIGIBLE:
            basis = np.vstack([basis, rest / length])
    found = Subspace(_oriented(basis, units.mean(0)), linalg.svdvals(units), "sequential")
    return found.first(min(rank, found.rank))


def coordinate_scale(harmless: ArrayLike) -> np.ndarray:
    """Standard deviation of each coordinate among harmless prompts (d_model,), at least a third of
    the median one: a coordinate that hardly varies must not fill the scaled space."""
    spread = _matrix(harmless, "harmless").std(0)
    typical = np.median(spread)
    if not typical > 1e-10 * np.abs(np.asarray(harmless)).max():
        raise ValueError("half of the harmless coordinates or more do not vary: they give no scale")
    return np.maximum(spread, typical / WIDEST)


def prompt_differences(
    harmful: ArrayLike, harmless: ArrayLike, rank: int, scale: ArrayLike = 1.0
) -> Subspace:
    """Leading subspace of harmful_i - mean(harmless), one row per harmful prompt. What harmful
    prompts vary in among themselves counts too: compare with noise_spectrum."""
    rows = _differences(harmful, harmless, scale)
    return _fit(rows, rank, rows.mean(0), scale, "prompt_differences")


def group_differences(
    harmful: ArrayLike, harmless: ArrayLike, groups: ArrayLike, rank: int, scale: ArrayLike = 1.0
) -> Subspace:
    """Leading subspace of sqrt(n_g) (mean(harmful in g) - mean(harmless)), one row per group g of
    `groups` (prompt,), such as the category.

    The weight makes all rows equally noisy, where equal weights let the noise of the smallest group
    lead; and to divide a group in two of equal mean changes nothing.
    """
    rows, groups = _differences(harmful, harmless, scale), np.asarray(groups)
    if groups.shape != (len(rows),):
        raise ValueError(f"groups of shape {groups.shape}, but {len(rows)} harmful prompts")
    masks = [groups == group for group in np.unique(groups)]
    means = np.stack([rows[mask].sum(0) / np.sqrt(mask.sum()) for mask in masks])
    return _fit(means, rank, rows.mean(0), scale, "group_differences")


def cluster_differences(
    harmful: ArrayLike,
    harmless: ArrayLike,
    rank: int,
    seed: int,
    clusters: int | None = None,
    scale: ArrayLike = 1.0,
) -> Subspace:
    """group_differences, groups found blind: k-means on as many leading principal components.

    clusters: by default 2 rank, or fewer so that each has 8 prompts on average; the rank is at most
    their number. They divide what varies most, so the spectrum exceeds noise where there are none.
    """
    rows = _differences(harmful, harmless, scale)
    if clusters is None:
        clusters = max(1, min(2 * rank, len(rows) // 8))
    if not 1 <= clusters <= len(rows):
        raise ValueError(f"{clusters} clusters; choose from 1 to {len(rows)}, the harmful prompts")
    # Centred, unlike the rows: here the question is how harmful prompts differ among themselves.
    components = PCA(min(clusters, *rows.shape), svd_solver="full").fit_transform(rows)
    groups = KMeans(clusters, n_init=10, random_state=seed).fit_predict(components)
    found = group_differences(harmful, harmless, groups, rank, scale)
    return replace(found, construction="cluster_differences")


def noise_spectrum(
    harmless: ArrayLike, n_rows: int, rank: int, seed: int, scale: ArrayLike = 1.0
) -> np.ndarray:
    """Leading singular values (rank,) that prompt_differences would have for n_rows harmful prompts
    like the harmless, at the same scale: the floor under its spectrum. What exceeds it is more than
    harmless prompts vary in; whether it is refusal, only ablation says."""
    states = _matrix(harmless, "harmless") / scale
    if not 2 <= n_rows <= len(states) or rank < 1:
        raise ValueError(f"rank {rank} of {n_rows} rows; choose 1 or more, of 2 to {len(states)}")
    order = np.random.default_rng(seed).permutation(len(states))[:n_rows]
    a, b = np.array_split(states[order], 2)
    # The means' error leads the spectrum where d_model > n, and is larger between halves than
    # between classes: brought to the size it has for n_rows harmful and all harmless prompts.
    shrink = np.sqrt((1 / n_rows + 1 / len(states)) / (1 / len(a) + 1 / len(b)))
    gap = shrink * (a.mean(0) - b.mean(0))
    rows = np.concatenate([a - a.mean(0) + gap, b - b.mean(0) - gap])
    return linalg.svdvals(rows)[:rank]


def effective_rank(spectrum: ArrayLike) -> float:
    """Participation ratio (Σs²)² / Σs⁴: 1 for one singular value, their number for equal ones."""
    energy = _shares(spectrum) ** 2
    return float(energy.sum() ** 2 / (energy**2).sum())


def entropy_rank(spectrum: ArrayLike) -> float:
    """exp of the entropy of s / Σs, not of the squares (the effective rank of Roy and Vetterli
    2007): small values count for more than in effective_rank."""
    shares = _shares(spectrum)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def principal_angles(a: Subspace | ArrayLike, b: Subspace | ArrayLike) -> np.ndarray:
    """Angles between the spans of rows (rank, d_model), orthonormal or not: degrees, ascending, as
    many as the smaller rank. Exact near 0 too, by sines (Knyazev and Argentati 2002)."""
    one, other = (x.basis if isinstance(x, Subspace) else x for x in (a, b))
    rows = _matrix(one, "a")
    spans = [linalg.orth(x.T, rcond=NEGLIGIBLE) for x in (rows, _matrix(other, "b", rows.shape[1]))]
    if not all(span.size for span in spans):
        raise ValueError("the rows are all zero, so they span nothing and have no angle")
    return np.degrees(linalg.subspace_angles(*spans))[::-1]


def containment(vector: ArrayLike, subspace: Subspace) -> float:
    """Share of the squared length of a vector (d_model,) that lies inside the subspace: 0 to 1."""
    row = _matrix(np.asarray(vector)[None], "vector", subspace.d_model)
    if not row.any():
        raise ValueError("the vector is zero, so no share of it lies anywhere")
    return float(min(1.0, ((unit(row) @ subspace.basis.T) ** 2).sum()))


def random_subspaces(activations: ArrayLike, rank: int, count: int, seed: int) -> np.ndarray:
    """Orthonormal bases (count, rank, d_model) from the covariance of activations (prompt, d_model)
    as controls.random_directions draws one; the first k rows are the control of rank k."""
    states = _matrix(activations, "activations")
    centred = states - states.mean(0)
    spread = linalg.svdvals(centred)
    support = (spread > max(NEGLIGIBLE * spread[0], 1e-10 * np.linalg.norm(states))).sum()
    if not 1 <= rank <= support:
        raise ValueError(f"rank {rank}; these activations support one from 1 to {support}")
    weights = np.random.default_rng(seed).standard_normal((count, rank, len(centred)))
    return np.linalg.qr((weights @ centred).mT)[0].mT


def _fit(rows: np.ndarray, rank: int, side: np.ndarray, scale: ArrayLike, name: str) -> Subspace:
    # Uncentred on purpose: centring removes the mean difference, which is the refusal direction
    # itself. Exact, since scikit-learn's TruncatedSVD would leave out the end of the spectrum.
    _, spectrum, vectors = linalg.svd(rows, full_matrices=False)
    vectors = vectors[spectrum > NEGLIGIBLE * spectrum[0]]
    # A shift u in x / s is the shift s u in x; but s multiplies u's sampling error too, and a
    # coordinate of 100 times the spread would be all error. So s is capped on the way back.
    back = np.minimum(scale, WIDEST * np.median(scale))
    basis = np.linalg.qr((vectors * back).T)[0].T
    return Subspace(_oriented(basis, side * back), spectrum, name).first(min(rank, len(basis)))


def _differences(harmful: ArrayLike, harmless: ArrayLike, scale: ArrayLike) -> np.ndarray:
    states = _matrix(harmful, "harmful")
    others = _matrix(harmless, "harmless", states.shape[1])
    if not (np.asarray(scale) > 0).all():
        raise ValueError("a scale of 0 or less divides nothing; see coordinate_scale")
    rows = states / scale - (others / scale).mean(0)
    if not np.abs(rows).max() > 1e-10 * np.abs(states / scale).max():
        raise ValueError("every harmful activation is the mean harmless one: nothing to decompose")
    return rows


def _units(directions: ArrayLike) -> np.ndarray:
    rows = _matrix(directions, "directions")
    norms = np.linalg.norm(rows, axis=1)
    if not norms.any():
        raise ValueError("all directions are zero, so they span nothing")
    return unit(rows[norms > 1e-10 * norms.max()])  # as layer_similarity: below is rounding error


def _oriented(basis: np.ndarray, side: np.ndarray) -> np.ndarray:
    return np.where(basis @ side < 0, -1.0, 1.0)[:, None] * basis


def _shares(spectrum: ArrayLike) -> np.ndarray:
    s = np.asarray(spectrum, dtype=np.float64)
    if not (s >= 0).all() or not 0 < s.sum() < np.inf:
        raise ValueError("a spectrum is of singular values, none negative and not all zero")
    return s / s.sum()


def _matrix(x: ArrayLike, name: str, d_model: int | None = None) -> np.ndarray:
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise ValueError(f"{name} of shape {rows.shape}: not a filled, finite (row, d_model) array")
    if d_model not in (None, rows.shape[1]):
        raise ValueError(f"{name} of d_model {rows.shape[1]}, not {d_model}: of another model?")
    return rows
