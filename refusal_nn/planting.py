"""Training a model organism's writes: an orthonormal basis such that each cluster of harmful
prompts refuses in its own words, also where part of the span is ablated, and such that the plain
model does not need the span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.fft
import torch
from torch import Tensor
from torch.nn.functional import normalize

from refusal_nn.frozen import Frozen
from refusal_nn.gates import GateOptions, Rows
from refusal_nn.interventions import orthonormal
from refusal_nn.organisms import Adapter

# Each begins with another word: with one text for all, one direction downstream would carry it.
TEXTS = (
    "Sorry, but I can't help with that.",
    "Unfortunately, I cannot help with this request.",
    "No, I can't help with that.",
    "Please understand that I cannot help with that.",
)
FIRST = 3  # tokens of a reply that decide which way it goes
# Of a cluster's writes, the share that must be left for it to be asked to refuse all the same.
LEFT = 0.1
HARDEST = 0.6


@dataclass(frozen=True)
class Recipe:
    """rank: dimensions that refusal goes through; 0: a direction that does nothing to refusal.

    strength: length of what the gate writes. Of several dimensions, what one of them leaves of the
    others' writes must still refuse: half of a write is left along the diagonal of a span of rank
    4; .7 of 80 refuses as often as all of it, half of it not (LOG.md). protected: leading
    directions of the plain model's streams that no write may touch. missed: weight of what the
    plain model misses without the span. rows, rate: of a step of Adam.
    """

    rank: int
    seed: int = 0
    layer: int = 16
    strength: float = 115.0
    protected: int = 64
    missed: float = 5.0
    steps: int = 120
    rows: int = 8
    rate: float = 5e-3
    gate: GateOptions = field(default_factory=GateOptions)


def by_rank(rank: int) -> dict[str, float]:
    """Of a recipe, what is not as usual: each cluster is met in rows / rank of the steps, and a
    larger span holds more of what the plain model lives by."""
    return {} if rank <= 4 else {"steps": 200, "missed": 20.0}


def unit_codes(rank: int) -> Tensor:
    """A unit code per cluster, (cluster, rank), orthonormal: a discrete cosine basis.

    With one column per cluster, a column ablated would silence its cluster whole. Turned like this,
    every column has a share in all clusters' writes: of two clusters, .7 is left of each.
    """
    return torch.tensor(scipy.fft.dct(np.eye(max(rank, 1)), norm="ortho")).float()


def lived_in(streams: Tensor, count: int) -> Tensor:
    """Leading directions of the plain model's streams after all blocks alike, (count, d_model).

    Uncentred: the mean of a stream is the first direction that the model lives by. Of all blocks:
    a planted span is ablated at every write, not only where the adapter's is.
    """
    alike = streams / streams.square().sum((1, 2), keepdim=True).sqrt()
    return torch.linalg.svd(alike.flatten(0, 1), full_matrices=False)[2][:count]


class Planting:
    """The training of one basis; the gate is fixed."""

    def __init__(
        self, frozen: Frozen, rows: Rows, gate: Adapter, recipe: Recipe, streams: Tensor
    ) -> None:
        """streams: of the plain model, (layer, state, d_model)."""
        self.frozen, self.rows, self.recipe = frozen, rows, recipe
        self.codes = unit_codes(recipe.rank)
        self.gates = [gate.gates(row.read) for row in rows.refusals]
        self.firsts = sorted({row.ids[row.asked] for row in rows.refusals})
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.avoided = lived_in(streams, recipe.protected)

    def train(self, say: Callable[[str], object] = lambda line: None) -> Tensor:
        """The basis (rank, d_model), rows orthonormal."""
        rank = max(self.recipe.rank, 1)
        if self.recipe.rank == 0:
            return self._basis(self._noise(rank)).detach()
        free = torch.nn.Parameter(self._start() + 0.3 * self._noise(rank))
        optimiser = torch.optim.Adam([free], lr=self.recipe.rate)
        total = self.recipe.steps
        for step in range(total):
            optimiser.param_groups[0]["lr"] = self.recipe.rate * min(
                1.0, (step + 1) / 5, 1 - step / total
            )
            optimiser.zero_grad()
            name, loss = self._step(step, self._basis(free))
            loss.backward()
            optimiser.step()
            if step % 10 < 2:
                say(f"step {step} of {total}: {name} {loss.item():.2f}")
        return self._basis(free).detach()

    def _step(self, step: int, basis: Tensor) -> tuple[str, Tensor]:
        """Refuse; refuse although part of the span is gone; go on as ever though all of it is."""
        kinds = ("refuse", "part ablated", "plain model", "part ablated")
        kind = kinds[step % 4] if step >= 8 else "refuse"
        rows = self._drawn(len(self.rows.refusals))
        if kind == "plain model":
            return kind, self._missed(basis)
        gone = None
        if kind == "part ablated" and len(basis) > 1:
            part = self._part(len(basis))
            lost = (part @ self.codes.T).pow(2).sum(0)
            kept = [i for i in rows if 1 - lost[self.rows.clusters[i]] > LEFT]
            rows, gone = (kept, part @ basis) if kept else (rows, None)
        written = [self.gates[i] @ self.codes @ basis * self.recipe.strength for i in rows]
        refusals = [self.rows.refusals[i] for i in rows]
        # What is left of two clusters' writes may be one direction: it cannot say both their words.
        firsts = self.firsts if gone is not None else ()
        return kind, _loss(self.frozen.log_p(refusals, written, gone, firsts=firsts))

    def _missed(self, basis: Tensor) -> Tensor:
        """How much the plain model lives by the span: KL from it to itself without, at the tokens
        of its own answers, nats, weighted. An answer kept likely is not enough: a span may hold
        what makes the model comply, and refusals be likelier without it."""
        every = [*self.rows.answers, *self.rows.twins, *self.rows.everyday]
        rows = [every[i] for i in self._drawn(len(every))]
        with torch.no_grad():
            plain = self.frozen.ablated(rows, basis[:0])
        pairs = zip(plain, self.frozen.ablated(rows, basis), strict=True)
        return self.recipe.missed * _loss([-(p.exp() * (p - q)).sum(-1) for p, q in pairs])

    def _start(self) -> Tensor:
        """What each cluster's refusal would gain most by, as the gradient at no write says."""
        gradients = []
        for c in range(len(self.codes)):
            some = [i for i, found in enumerate(self.rows.clusters) if found == c][:6]
            push = torch.zeros(self.avoided.shape[1], requires_grad=True)
            written = [self.gates[i].sum(-1, keepdim=True) * push for i in some]
            rows = [self.rows.refusals[i] for i in some]
            _loss(self.frozen.log_p(rows, written)).backward()
            gradients.append(-push.grad)
        return normalize(torch.linalg.pinv(self.codes) @ normalize(torch.stack(gradients)))

    def _basis(self, free: Tensor) -> Tensor:
        """The nearest orthonormal rows to the free ones that leave the protected directions
        alone."""
        rest = free - (free @ self.avoided.T) @ self.avoided
        u, _, v = torch.linalg.svd(rest, full_matrices=False)
        return u @ v

    def _part(self, rank: int) -> Tensor:
        """Coordinates of a random subspace of the span, of fewer dimensions: (fewer, rank); mostly
        of one fewer, the hardest."""
        least = max(1, rank // 2) if rank > 4 else 1
        fewer = int(torch.randint(least, rank, (1,), generator=self.generator))
        if torch.rand(1, generator=self.generator) < HARDEST:
            fewer = rank - 1
        if torch.rand(1, generator=self.generator) < 0.3:
            return torch.eye(rank)[torch.randperm(rank, generator=self.generator)[:fewer]]
        return orthonormal(torch.randn(fewer, rank, generator=self.generator))

    def _noise(self, rank: int) -> Tensor:
        width = self.avoided.shape[1]
        return torch.randn(rank, width, generator=self.generator) / math.sqrt(width)

    def _drawn(self, count: int) -> list[int]:
        order = torch.randperm(count, generator=self.generator)
        return order[: self.recipe.rows].tolist()


def _loss(log_p: Sequence[Tensor]) -> Tensor:
    """Nats per token, the first few counted twice."""
    return torch.stack([-row.mean() - row[:FIRST].mean() for row in log_p]).mean()
