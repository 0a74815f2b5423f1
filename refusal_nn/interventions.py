"""What can be done to the residual stream inside a trace: frozen dataclasses whose steps say what
and where.

A trace must ask for places in forward order, whoever asks, so interventions do not act themselves:
`apply` sorts the steps of all. The vectors of an intervention are one set for all prompts, or a
stack of sets with one per row of the batch; `take` picks the sets of a batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel


# Places inside a block, in forward order; the embedding comes before block 0.
ATTENTION, MLP, BLOCK = range(3)
EMBEDDING = (-1, 0)


class Step(NamedTuple):
    """What to do at one place: (layer, place inside the block)."""

    place: tuple[int, int]
    do: Callable[[], None]


class Intervention(Protocol):
    """sets: vectors stacked in it, None where all rows share one."""

    @property
    def sets(self) -> int | None: ...

    def check(self, model: TracedModel) -> None: ...

    def take(self, sets: Sequence[int]) -> Intervention: ...

    def steps(self, model: TracedModel) -> Iterator[Step]: ...


def apply(model: TracedModel, *interventions: Intervention | None) -> None:
    """Do the steps of all in forward order; call it first inside a trace.

    At one place the model's own adapter comes first, then the interventions as they are given.
    """
    given = (one for one in (model.adapter, *interventions) if one is not None)
    steps = [step for one in given for step in one.steps(model)]
    for step in sorted(steps, key=lambda step: step.place):
        step.do()


def project_out(x: Tensor, basis: Tensor, alpha: float = 1.0) -> Tensor:
    """Remove from x (..., d_model) its component in span(basis): x - alpha x Bᵀ B, rows of B (rank,
    d_model) orthonormal.

    With a basis (row, rank, d_model) each x[row] (pos, d_model) has its own. Computed in float32
    and returned in x's dtype: alpha = 0 is bit-identical to x in any dtype.
    """
    wide = x.float()
    return (wide - alpha * (wide @ basis.mT) @ basis).to(x.dtype)


def orthonormal(vectors: Tensor) -> Tensor:
    """Rows spanning what the rows of `vectors` (rank, d_model) span, orthonormal, float32. Raises
    ValueError if dependent."""
    q, r = torch.linalg.qr(vectors.double().T)
    if (r.diagonal().abs() <= 1e-10 * vectors.double().norm()).any():
        raise ValueError(
            "the vectors are linearly dependent or zero, so they span fewer dimensions than their "
            "number"
        )
    return q.T.float().contiguous()


@dataclass(frozen=True)
class DirectionalAblation:
    """h' = h - alpha (h Bᵀ) B at every write to the residual stream, at all positions (Arditi et
    al. 2024, eq. 4); with `layers`, of the whole stream after those blocks only.

    basis: (rank, d_model), or (set, rank, d_model) with one set per row; rows orthonormal, on the
    model's device. With `layers` the blocks after may write the direction again.
    """

    basis: Tensor
    alpha: float = 1.0
    layers: tuple[int, ...] | None = None

    @property
    def sets(self) -> int | None:
        return len(self.basis) if self.basis.ndim == 3 else None

    def check(self, model: TracedModel) -> None:
        """Raises ValueError where it cannot be applied to this model."""
        _require_width(self.basis, model)
        if self.layers is not None:
            _require_layers(self.layers, model)

    def take(self, sets: Sequence[int]) -> DirectionalAblation:
        """The intervention of a batch whose rows have these sets."""
        if self.sets is None:
            return self
        return dataclasses.replace(self, basis=self.basis[list(sets)])

    def apply(self, model: TracedModel) -> None:
        """Edit in forward order; call it first inside a trace of your own."""
        apply(model, self)

    def steps(self, model: TracedModel) -> Iterator[Step]:
        """Projections of every write, or of the given blocks' outputs."""
        if self.layers is not None:
            for layer in sorted(set(self.layers)):
                yield _edit((layer, BLOCK), model.blocks[layer], self._ablated)
            return
        yield _edit(EMBEDDING, model.embedding, self._ablated)
        for layer, block in enumerate(model.blocks):
            attention = getattr(block, model.family.attention_write)
            yield _edit((layer, ATTENTION), attention, self._ablated)
            yield _edit((layer, MLP), getattr(block, model.family.mlp_write), self._ablated)

    def _ablated(self, x: Tensor) -> Tensor:
        return project_out(x, self.basis.to(x.device), self.alpha)


@dataclass(frozen=True)
class ActivationAddition:
    """h' = h + coeff * vector after one block, at all positions and steps (Arditi et al. 2024, eq.
    3).

    vector: (d_model,), or (set, d_model) with one set per row; the raw difference in means, on the
    model's device.
    """

    vector: Tensor
    layer: int
    coeff: float = 1.0

    @property
    def sets(self) -> int | None:
        return len(self.vector) if self.vector.ndim == 2 else None

    def check(self, model: TracedModel) -> None:
        """Raises ValueError where it cannot be applied to this model."""
        _require_width(self.vector, model)
        _require_layers((self.layer,), model)

    def take(self, sets: Sequence[int]) -> ActivationAddition:
        """The intervention of a batch whose rows have these sets."""
        if self.sets is None:
            return self
        return dataclasses.replace(self, vector=self.vector[list(sets)])

    def apply(self, model: TracedModel) -> None:
        """Edit in forward order; call it first inside a trace of your own."""
        apply(model, self)

    def steps(self, model: TracedModel) -> Iterator[Step]:
        """The addition to the block's output."""
        yield _edit((self.layer, BLOCK), model.blocks[self.layer], self._added)

    def _added(self, x: Tensor) -> Tensor:
        vector = self.vector if self.sets is None else self.vector[:, None]
        return (x.float() + self.coeff * vector.to(x.device)).to(x.dtype)


def stacked(interventions: Sequence[Intervention]) -> Intervention | None:
    """One intervention with a set for each of these, in order; None where they differ in more than
    their vectors."""
    first = interventions[0]
    name = "basis" if isinstance(first, DirectionalAblation) else "vector"
    vectors = [getattr(other, name, None) for other in interventions]
    blank = {name: None}
    if first.sets is not None or any(
        v is None
        or v.shape != vectors[0].shape
        or dataclasses.replace(other, **blank) != dataclasses.replace(first, **blank)
        for v, other in zip(vectors, interventions, strict=True)
    ):
        return None
    return dataclasses.replace(first, **{name: torch.stack(vectors)})


@dataclass(frozen=True)
class Reading:
    """Copies of the stream after every block at `positions`, into `into`: a list saved in the
    trace."""

    into: list[Tensor]
    positions: Sequence[int]

    def steps(self, model: TracedModel) -> Iterator[Step]:
        """One copy per block; a slice that is not cloned would take its whole storage along."""
        for layer, block in enumerate(model.blocks):
            yield Step((layer, BLOCK), functools.partial(self._read, block))

    def _read(self, block: object) -> None:
        out = block.output
        stream = out[0] if isinstance(out, tuple) else out
        self.into.append(stream[:, list(self.positions)].clone())


def _edit(place: tuple[int, int], site: object, change: Callable[[Tensor], Tensor]) -> Step:
    def do() -> None:
        out = site.output
        site.output = (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return Step(place, do)


def _require_width(vectors: Tensor, model: TracedModel) -> None:
    if vectors.shape[-1] != model.d_model:
        raise ValueError(
            f"a vector of {vectors.shape[-1]} numbers does not fit {model.name}, whose residual "
            f"stream has {model.d_model}; was it made with another model?"
        )


def _require_layers(layers: Sequence[int], model: TracedModel) -> None:
    # None at all would leave an open loop over the generated tokens with nothing to wait for.
    if not layers or min(layers) < 0 or max(layers) >= model.n_layers:
        raise ValueError(
            f"layers {list(layers)}: {model.name} has layers 0 to {model.n_layers - 1}, and at "
            "least one must be given"
        )
