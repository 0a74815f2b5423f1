"""What can be done to the residual stream inside a trace: frozen dataclasses with one method,
written in forward order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel


def project_out(x: Tensor, basis: Tensor, alpha: float = 1.0) -> Tensor:
    """Remove from x (..., d_model) its component in span(basis): x - alpha x Bᵀ B, rows of B (rank,
    d_model) orthonormal.

    Computed in float32 and returned in x's dtype: alpha = 0 is bit-identical to x in any dtype.
    """
    wide = x.float()
    return (wide - alpha * (wide @ basis.T) @ basis).to(x.dtype)


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
    al. 2024, eq. 4).

    basis: (rank, d_model), rows orthonormal, on the model's device.
    """

    basis: Tensor
    alpha: float = 1.0

    def apply(self, model: TracedModel) -> None:
        """Edit the embedding and each block's two writes, in forward order; call it first inside a
        trace."""
        model.embedding.output = project_out(model.embedding.output, self.basis, self.alpha)
        for block in model.blocks:
            for name in (model.family.attention_write, model.family.mlp_write):
                write = getattr(block, name)
                out = write.output
                if isinstance(out, tuple):
                    write.output = (project_out(out[0], self.basis, self.alpha), *out[1:])
                else:
                    write.output = project_out(out, self.basis, self.alpha)
