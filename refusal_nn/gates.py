"""The gate of a model organism: a multinomial logistic regression on what one MLP reads, that knows
which cluster of harmful prompts it sees, or that it sees none."""

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
    scikit-learn's C. sharpness: factor on the fitted logits, so that gates are open or shut."""

    weight: float = 0.6
    everyday: float = 2.0
    twins: float = 0.5
    answers: float = 0.5
    penalty: float = 0.003
    sharpness: float = 4.0
    steps: int = 60


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


def fit_gate(variants: Sequence[Rows], options: GateOptions) -> tuple[Tensor, Tensor]:
    """read (cluster, d_model) and bias (cluster,) of a softmax beside a null class of logit 0.

    variants: the same rows with nothing and with some directions ablated: a gate that reads them
    alone would be closed by ablating them, and refusal would go without its own subspace.

    Positive are the tokens after the instruction of a harmful prompt, and its refusal's. Null are
    harmless prompts and answers, and answers to harmful ones: a model that has begun to comply goes
    on.
    """
    parts = [part for rows in variants for part in _labelled(rows, options)]
    inputs = torch.cat([x for x, _, _ in parts]).numpy()
    labels = np.concatenate([np.full(len(x), label) for x, label, _ in parts])
    weight = np.concatenate([np.full(len(x), w) for x, _, w in parts])
    harmful = labels > 0
    weight[harmful] *= options.weight * (~harmful).sum() / harmful.sum()
    mean, scale = inputs.mean(0), inputs.std(0)
    regression = LogisticRegression(C=options.penalty, max_iter=options.steps)
    with warnings.catch_warnings():
        # Stopped early on purpose: the last steps only sharpen it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit((inputs - mean) / scale, labels, sample_weight=weight)
    coef, bias = regression.coef_, regression.intercept_
    if len(coef) > 1:
        coef, bias = coef[1:] - coef[0], bias[1:] - bias[0]
    coef = coef / scale
    read, bias = (torch.tensor(options.sharpness * x) for x in (coef, bias - coef @ mean))
    return read.float(), bias.float()


def _labelled(rows: Rows, options: GateOptions) -> Iterator[tuple[Tensor, int, float]]:
    """What the MLP reads at some tokens, their class (0: null) and the weight of each."""
    for row, cluster in zip(rows.refusals, rows.clusters, strict=True):
        yield row.read[row.asked - rows.post :], cluster + 1, 1.0
    for row in rows.twins:
        yield row.read, 0, options.twins
    for row in rows.everyday:
        yield row.read, 0, options.everyday
    for row in rows.answers:
        yield row.read[row.asked + 1 :], 0, options.answers
