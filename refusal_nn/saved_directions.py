"""Directions in files of this package: what their metadata says, and reading them back for a model
that they belong to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from refusal_nn.errors import InputError
from refusal_nn.files import write_tensors
from refusal_nn.runs import versions

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel

FORMAT = 1
ORIGIN = ("model", "revision", "dtype", "seed", "template_sha256", "prompt_set_sha256")
# A commit or a hash of weights says which they are, whatever the model is called; else both count.
IDENTIFIES = re.compile(r"[0-9a-f]{40}|sha256:[0-9a-f]{64}")


class Direction(NamedTuple):
    """vector: (d_model,) float32, raw scale, towards harmful, in the stream after block `layer` at
    token position `pos`. about: the file's metadata."""

    vector: Tensor
    layer: int
    pos: int
    about: dict[str, object]

    @property
    def basis(self) -> Tensor:
        """The unit direction, (1, d_model), as DirectionalAblation takes it."""
        return (self.vector / self.vector.norm())[None]


def write_directions(
    path: Path,
    directions: Tensor,
    origin: Mapping[str, object],
    *,
    layers: Sequence[int],
    positions: Sequence[int],
    tokens: Sequence[str],
    n: Mapping[str, int],
    **more: object,
) -> None:
    """`directions` (layer, d_model), of one position, or (layer, pos, d_model): raw differences in
    means of the fit prompts, for those layers and positions, with all that is needed to use them
    elsewhere. origin: the stage's manifest. n: prompts per class. more: what else to say."""
    about = {
        "format": FORMAT,
        **{k: origin[k] for k in ORIGIN},
        "site": "resid_post",
        "layer_convention": "layer i is the residual stream after block i, from 0",
        "scale": "raw difference in means, harmful minus harmless",
        "split": "fit",
        "n": dict(n),
        "d_model": directions.shape[-1],
        "layers": list(layers),
        "positions": list(positions),
        "tokens": list(tokens),
        "packages": versions(),
    }
    write_tensors(path, {"directions": directions}, about | more)


def write_sites(model: TracedModel) -> list[str]:
    """Names, below transformers' base model, of the modules whose outputs are added to the stream:
    embedding, each attention's and each MLP's write, in forward order."""
    family, decoder = model.family, model.module.get_submodule(model.family.base)
    # Beside an image encoder the decoder lies deeper than the base model.
    inside = model.module.base_model.named_modules()
    path = next(name for name, module in inside if module is decoder)
    blocks = [
        f"{family.blocks}.{i}.{write}"
        for i in range(model.n_layers)
        for write in (family.attention_write, family.mlp_write)
    ]
    return [f"{path}.{name}".removeprefix(".") for name in (family.embedding, *blocks)]


def adds_positions(model: TracedModel) -> bool:
    """Whether the stream begins with the token's embedding and another of its position, as in
    GPT-2, rather than with the token's alone."""
    parts = dict(model.module.get_submodule(model.family.base).named_children())
    tables = [name for name, part in parts.items() if isinstance(part, torch.nn.Embedding)]
    return model.family.embedding not in tables and len(tables) > 1


def load_direction(
    path: str | Path,
    model: TracedModel | None = None,
    *,
    layer: int | None = None,
    pos: int | None = None,
) -> Direction:
    """The direction in a file that select or validate wrote; of several, the one of `layer` and
    `pos`. With `model`, only if it was fitted on that model. Raises InputError."""
    tensor, about = _read(Path(path))
    layer = _one_of(path, "layer", about["layers"], layer)
    pos = _one_of(path, "pos", about["positions"], pos)
    rows = tensor.reshape(len(about["layers"]), len(about["positions"]), -1)
    vector = rows[about["layers"].index(layer), about["positions"].index(pos)]
    if not vector.isfinite().all() or not vector.any():
        raise InputError(f"{path}: there is no direction at layer {layer}, pos {pos}")
    found = Direction(vector, layer, pos, about)
    if model is not None:
        _check(path, found, model)
    return found


def _read(path: Path) -> tuple[Tensor, dict[str, object]]:
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("refusal_nn", "{}"))
            tensor = file.get_tensor("directions") if "directions" in file.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from None
    if tensor is None or not _ours(about):
        raise InputError(
            f"{path} is no direction file of format {FORMAT}, as `make select` and `make validate` "
            "write; read_directions reads published ones"
        )
    cells = len(about["layers"]) * len(about["positions"]) * about["d_model"]
    if tensor.shape[-1:] != (about["d_model"],) or tensor.numel() != cells:
        raise InputError(f"{path}: a tensor of {tuple(tensor.shape)} is not what its metadata says")
    return tensor.to(torch.float32), about


def _ours(about: object) -> bool:
    """Whether metadata say all that reading a direction needs."""
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return False
    kinds = {"layers": list, "positions": list, "d_model": int, "model": str, "revision": str}
    return all(isinstance(about.get(name), kind) for name, kind in kinds.items())


def _one_of(path: str | Path, name: str, there: Sequence[int], asked: int | None) -> int:
    if asked is None and len(there) == 1:
        return there[0]
    if asked not in there:
        raise InputError(f"{path} has several: choose {name}= from {', '.join(map(str, there))}")
    return asked


def _check(path: str | Path, found: Direction, model: TracedModel) -> None:
    """Raises InputError where the direction was fitted on another model."""
    about = found.about
    if len(found.vector) != model.d_model or found.layer >= model.n_layers:
        raise InputError(
            f"{path} is {len(found.vector)} wide at layer {found.layer}; {model.name} has width "
            f"{model.d_model} and layers 0 to {model.n_layers - 1}"
        )
    theirs, ours = str(about["revision"]), model.revision
    known = about["model"] == model.name or IDENTIFIES.search(theirs)
    if theirs != ours or not known:
        raise InputError(
            f"{path} was fitted on {about['model']} ({theirs}), this is {model.name} ({ours}): run "
            "`make select` on this model, or load the file without model= to look at it"
        )
