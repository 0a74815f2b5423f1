"""What can be done to the residual stream inside a trace: frozen dataclasses with one method,
written in forward order.

The vectors of an intervention are one set for all prompts, or a stack of sets with one per row of
the batch; `take` picks the sets of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel


class Intervention(Protocol):
    """sets: vectors stacked in it, None where all rows share one."""

    @property
    def sets(self) -> int | None: ...

    def check(self, model: TracedModel) -> None: ...

    def take(self, sets: Sequence[int]) -> Intervention: ...

    def apply(self, model: TracedModel) -> None: ...


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
        """Edit in forward order; call it first inside a trace."""
        if self.layers is not None:
            for layer in sorted(set(self.layers)):
                _edit(model.blocks[layer], self._ablated)
            return
        _edit(model.embedding, self._ablated)
        for block in model.blocks:
            _edit(getattr(block, model.family.attention_write), self._ablated)
            _edit(getattr(block, model.family.mlp_write), self._ablated)

    def _ablated(self, x: Tensor) -> Tensor:
        return project_out(x, self.basis, self.alpha)


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
        """Edit the block's output; call it first inside a trace."""
        _edit(model.blocks[self.layer], self._added)

    def _added(self, x: Tensor) -> Tensor:
        vector = self.vector if self.sets is None else self.vector[:, None]
        return (x.float() + self.coeff * vector).to(x.dtype)


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


def _edit(site: object, edit: Callable[[Tensor], Tensor]) -> None:
    out = site.output
    site.output = (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)


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
