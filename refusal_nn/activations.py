"""What a capture returns, and the check that it is finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from refusal_nn.errors import NotFinite
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


NAMED = 5


def require_finite(
    finite: Tensor,
    rows: Sequence[int],
    model: TracedModel,
    names: Sequence[str] | None = None,
    what: str = "activations",
) -> None:
    """finite: (layer, row) or (row,). names: of all prompts; without, they have numbers. Raises
    NotFinite that names the first layer, the prompts, the precision and what to do."""
    if finite.all():
        return
    where = ""
    if finite.dim() == 2:
        layer = int((~finite).any(1).nonzero()[0])
        where, finite = f" after block {layer}", finite[layer]
    bad = [rows[i] for i in (~finite).nonzero()[:, 0].tolist()]
    called = ", ".join(names[row] if names else f"number {row + 1}" for row in bad[:NAMED])
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    dtype = str(model.dtype).removeprefix("torch.")
    remedy = {
        "float16": "run again with DTYPE=bfloat16 or DTYPE=float32",
        "float32": "its weights are at fault: fetch the model again, or take another",
    }.get(dtype, "run again with DTYPE=float32")
    raise NotFinite(
        f"{model.name}: {what}{where} are not finite in {dtype}, of prompts {called}{more}; "
        f"nothing was made of them; {remedy}"
    )
