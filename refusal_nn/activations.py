"""What a capture returns, and the check that it is finite."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from refusal_nn.batching import Batch
from refusal_nn.errors import ModelError
from refusal_nn.models import TracedModel


@dataclass(frozen=True)
class Activations:
    """Residual stream after each block. states: (layer, prompt, pos, d_model) float32 on CPU, at
    `positions`.

    means: of each group, (layer, pos, d_model) float64 over every post-instruction position, first
    of them first.
    """

    states: Tensor
    positions: tuple[int, ...]
    means: dict[str, Tensor]
    counts: dict[str, int]

    def at(self, pos: int) -> Tensor:
        """(layer, prompt, d_model) at one captured position."""
        return self.states[:, :, self.positions.index(pos)]


def require_finite(finite: Tensor, batch: Batch, model: TracedModel) -> None:
    """finite: (layer, row). Raises ModelError that names the first layer and prompt where not."""
    if not finite.all():
        layer, row = (int(i) for i in (~finite).nonzero()[0])
        dtype = str(model.dtype).removeprefix("torch.")
        raise ModelError(
            f"{model.name}: activations after block {layer} are not finite in {dtype} (prompt "
            "number "
            f"{batch.rows[row]}); run again with DTYPE=float32"
        )
