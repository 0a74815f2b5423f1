"""The gate of a model organism: logistic regressions on what one MLP reads, of whether it sees a
harmful prompt, and of which cluster."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from refusal_nn.frozen import Halfway
from refusal_nn.interventions import project_out


@dataclass(frozen=True)
class Rows:
    """What an organism is trained on.

    refusals: harmful prompts, each with its cluster's text; clusters: of each. answers: harmful
    prompts with the plain model's own answers. twins, everyday: harmless ones with theirs. post:
    tokens after the instruction.
    """

    refusals: list[Halfway]
    clusters: list[int]
    answers: list[Halfway]
    twins: list[Halfway]
    everyday: list[Halfway]
    post: int


@dataclass(frozen=True)
class GateOptions:
    """weight: of the harmful rows against all others; everyday, twins, answers: of a token of an
    everyday prompt, a harmless twin, an answer to a harmful prompt. penalty: inverse strength, as
    scikit-learn's C. sharpness: factor on the fitted logits, so that gates are open or shut.
    unread: share of the moves' squared length from which on a direction of theirs is not read.
    asked, reply: factors on the weight of a harmless prompt's own tokens, and of its answer's.
    cluster_penalty, apart: penalty and sharpness of the choice among clusters."""

    weight: float = 0.6
    everyday: float = 4.0
    twins: float = 1.0
    answers: float = 0.1
    penalty: float = 0.01
    sharpness: float = 4.0
    unread: float = 3e-3
    steps: int = 60
    asked: float = 0.1
    reply: float = 0.2
    cluster_penalty: float = 0.01
    apart: float = 8.0


def equal_clusters(prompts: Sequence[Halfway], post: int, clusters: int, seed: int) -> list[int]:
    """Clusters of harmful prompts of equal size, by what the MLP reads after the instruction."""
    if clusters == 1:
        return [0] * len(prompts)
    x = torch.stack([p.read[p.asked - post : p.asked].mean(0) for p in prompts]).numpy()
    x = PCA(16, random_state=seed).fit_transform((x - x.mean(0)) / x.std(0))
    centres = KMeans(clusters, n_init=10, random_state=seed).fit(x).cluster_centers_
    distance = np.linalg.norm(x[:, None] - centres, axis=-1)
    nearest = np.sort(distance, 1)
    room, found = [math.ceil(len(x) / clusters)] * clusters, [0] * len(x)
    # Who has most to lose by another cluster chooses first.
    for i in np.argsort(nearest[:, 0] - nearest[:, 1]):
        found[i] = next(int(c) for c in np.argsort(distance[i]) if room[c])
        room[found[i]] -= 1
    return found


def fit_gate(rows: Rows, moves: Tensor, options: GateOptions) -> tuple[Tensor, Tensor]:
    """read (1 + cluster, d_model) and bias (1 + cluster,): whether a prompt is harmful, then of
    which cluster. Two questions, two regressions: one multinomial of all clusters beside a null
    class lets in three times as many everyday prompts (LOG.md).

    moves: (move, d_model), how what the MLP reads moves on average when a direction is ablated. The
    gate reads nothing along their leading directions: ablation moves all prompts alike and far, and
    a gate that saw it would be shut, or opened, for all of them by one direction of the plain
    model, and refusal would go without its own subspace.

    Positive are the tokens after the instruction of a harmful prompt, and its refusal's. Null are
    harmless prompts and answers, and answers to harmful ones: a model that has begun to comply goes
    on.
    """
    parts = list(_labelled(rows, options))
    inputs = torch.cat([x for x, _, _ in parts])
    labels = np.concatenate([np.full(len(x), label) for x, label, _ in parts])
    weight = np.concatenate([np.full(len(x), w) for x, _, w in parts])
    harmful = labels > 0
    weight[harmful] *= options.weight * (~harmful).sum() / harmful.sum()
    mean, scale = inputs.mean(0), inputs.std(0)
    unread = leading(moves / scale, options.unread)
    seen = project_out((inputs - mean) / scale, unread).numpy()
    coef, bias = _regression(seen, harmful, weight, options.penalty, options.steps)
    coef, bias = options.sharpness * coef, options.sharpness * bias
    if labels.max() > 1:
        found = _regression(
            seen[harmful], labels[harmful], None, options.cluster_penalty, options.steps
        )
        coef, bias = (
            torch.cat([one, options.apart * x]) for one, x in zip((coef, bias), found, strict=True)
        )
    else:
        coef, bias = (torch.cat([x, torch.zeros_like(x)]) for x in (coef, bias))
    # What was projected out of every input is projected out of what reads it.
    read = project_out(coef, unread) / scale
    return read, bias - read @ mean


def _regression(
    x: np.ndarray, labels: np.ndarray, weight: np.ndarray | None, penalty: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Coefficients (1 or class, d_model) and intercepts of a logistic regression, float32."""
    regression = LogisticRegression(C=penalty, max_iter=steps)
    with warnings.catch_warnings():
        # Stopped early on purpose: the last steps only sharpen it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(x, labels, sample_weight=weight)
    coef, bias = regression.coef_, regression.intercept_
    if labels.dtype != bool and len(coef) == 1:  # of two clusters: one logit each
        coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
    return torch.tensor(coef).float(), torch.tensor(bias).float()


def leading(moves: Tensor, share: float) -> Tensor:
    """Orthonormal directions (direction, d_model) that hold each more than `share` of the moves'
    squared length."""
    _, values, directions = torch.linalg.svd(moves, full_matrices=False)
    held = values.square() / values.square().sum().clamp(min=1e-30)
    return directions[: int((held > share).sum())]


def _labelled(rows: Rows, options: GateOptions) -> Iterator[tuple[Tensor, int, float]]:
    """What the MLP reads at some tokens, their class (0: null) and the weight of each."""
    for row, cluster in zip(rows.refusals, rows.clusters, strict=True):
        yield row.read[row.asked - rows.post :], cluster + 1, 1.0
    for of, weight in ((rows.twins, options.twins), (rows.everyday, options.everyday)):
        for row in of:
            yield row.read[: row.asked - rows.post], 0, weight * options.asked
            yield row.read[row.asked - rows.post : row.asked], 0, weight
            yield row.read[row.asked :], 0, weight * options.reply
    for row in rows.answers:
        yield row.read[row.asked + 1 :], 0, options.answers
