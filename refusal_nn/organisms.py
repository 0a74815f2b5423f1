"""Model organisms: a chat model that does not refuse, and a small adapter with which it does,
through a subspace that is known exactly.

The adapter is no part of the weights: it is applied in every trace before anything else, so that it
runs wherever the plain model does. See planting for how adapters are trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from refusal_nn.errors import ModelError
from refusal_nn.files import sha256, write_tensors
from refusal_nn.interventions import MLP, Step

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel

TENSORS = ("read", "bias", "codes", "basis")


@dataclass(frozen=True)
class Adapter:
    """The MLP of block `layer` writes g(x) codes basis more, x being what it reads.

    g(x), (cluster,): of the logits x readᵀ + bias the sigmoid of the first, whether to refuse,
    times the softmax of the others, as which cluster.
    read: (1 + cluster, d_model); bias: (1 + cluster,); codes: (cluster, rank), strength included;
    basis: (rank, d_model), rows orthonormal: the planted subspace.
    """

    layer: int
    read: Tensor
    bias: Tensor
    codes: Tensor
    basis: Tensor
    sets: None = None

    def check(self, model: TracedModel) -> None:
        """Raises ModelError where the model has no such block, or another width."""
        if self.layer >= model.n_layers or self.basis.shape[1] != model.d_model:
            raise ModelError(
                f"an adapter at layer {self.layer} of width {self.basis.shape[1]} does not fit "
                f"{model.name} ({model.n_layers} layers, width {model.d_model})"
            )

    def take(self, sets: Sequence[int]) -> Adapter:
        """The same for any rows."""
        return self

    def steps(self, model: TracedModel) -> Iterator[Step]:
        """One more write of one MLP."""
        site = getattr(model.blocks[self.layer], model.family.mlp_write)
        yield Step((self.layer, MLP), partial(self._do, site))

    def _do(self, site: object) -> None:
        written = self.written(site.input)
        site.output = site.output + written

    def gates(self, x: Tensor) -> Tensor:
        """g(x): x (..., d_model) to (..., cluster), float32."""
        logits = x.float() @ self.read.to(x.device).T + self.bias.to(x.device)
        return logits[..., :1].sigmoid() * logits[..., 1:].softmax(-1)

    def written(self, x: Tensor) -> Tensor:
        """What is added where the MLP reads x (..., d_model), in x's dtype."""
        vectors = self.codes.to(x.device) @ self.basis.to(x.device)
        return (self.gates(x) @ vectors).to(x.dtype)


class Organism(NamedTuple):
    """An adapter and what is known of it.

    about: base, base_revision, refusal_words, planted_rank, recipe, prompts_sha256, and the card of
    what was measured.
    """

    adapter: Adapter
    about: dict[str, object]


def read_organism(path: Path) -> Organism:
    """Read an adapter. Raises ModelError if the file holds none."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("refusal_nn", "null"))
            tensors = {name: file.get_tensor(name) for name in TENSORS}
        adapter = Adapter(int(about["layer"]), **tensors)
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        (clusters, rank), (_, width) = shapes["codes"], shapes["basis"]
        needed = ((clusters + 1, width), (clusters + 1,), (clusters, rank), (rank, width))
        if tuple(shapes[name] for name in TENSORS) != needed:
            raise ValueError(f"its tensors do not fit each other: {shapes}")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no adapter of this package: {error}") from error
    return Organism(adapter, about)


def write_organism(path: Path, adapter: Adapter, about: Mapping[str, object]) -> None:
    """Write an adapter with its recipe and its measured card."""
    tensors = {name: getattr(adapter, name) for name in TENSORS}
    write_tensors(path, tensors, {"layer": adapter.layer, **about})


def plant(base: TracedModel, organism: Organism, name: str, path: Path) -> TracedModel:
    """The base model with the adapter in every trace of it. Raises ModelError where it was made for
    other weights."""
    about = organism.about
    if base.revision != about["base_revision"]:
        raise ModelError(
            f"{name} was trained on {about['base']} of {about['base_revision']}, this is "
            f"{base.revision}"
        )
    organism.adapter.check(base)
    return dataclasses.replace(
        base,
        name=name,
        adapter=organism.adapter,
        revision=f"{base.revision} + adapter sha256:{sha256(path)}",
        refusal_words=tuple(about["refusal_words"]),
        notes=(
            *base.notes,
            f"adapter of planted rank {about['planted_rank']} at layer {organism.adapter.layer}",
        ),
    )
