"""Bases and directions of other runs, or published ones, that AGAINST= names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from refusal_nn import files
from refusal_nn.errors import InputError
from refusal_nn.names import is_file, user_path

if TYPE_CHECKING:
    import numpy as np


class Other(NamedTuple):
    """rows: (rank, d_model), a basis; or (row, d_model), directions of the stream after the blocks
    of `layers`, which is empty for a basis and for one direction of no layer. taken: what the file
    was taken for, in words."""

    name: str
    rows: np.ndarray
    layers: tuple[int, ...] = ()
    taken: str = ""

    def at(self, layer: int) -> np.ndarray:
        """The basis, or the direction of the layer nearest to this one, (1, d_model)."""
        if not self.layers:
            return self.rows
        nearest = min(range(len(self.rows)), key=lambda i: abs(self.layers[i] - layer))
        return self.rows[[nearest]]


def paths(text: str) -> list[Path]:
    """Of AGAINST=; of a published run folder its directions. Raises InputError where one is no
    file."""
    from refusal_nn.published import directions_file

    found = [directions_file(user_path(p.strip())) for p in text.split(",") if p.strip()]
    for path in found:
        if not is_file(path):
            raise InputError(f"AGAINST={text}: {path} is no file")
    return found


def stamps(text: str) -> list[object]:
    """What decides the files named by AGAINST=: their contents. Raises InputError."""
    # A make that has nothing to do asks this too, and shall not wait for numpy.
    return [files.sha256(path) for path in paths(text)] if text else []


def read(text: str, d_model: int, n_layers: int) -> list[Other]:
    """What AGAINST= names. Raises InputError where it cannot be read, or is of a model of another
    width or of more layers."""
    found: list[Other] = []
    for path in paths(text):
        name = f"{path.resolve().parent.parent.name}/{path.stem}"
        if name in [other.name for other in found]:
            name = str(path)
        found.append(_read(path, name, d_model, n_layers))
    return found


def _read(path: Path, name: str, d_model: int, n_layers: int) -> Other:
    from refusal_nn.published import read_vectors
    from refusal_nn.vector_names import PRE
    from refusal_nn.vectors import of_hidden_states

    vectors = of_hidden_states(read_vectors(path), n_layers)
    rows, position = vectors.at_position()
    taken = f"AGAINST={path} was taken for {vectors.said(position)}"
    if rows.shape[1] != d_model:
        raise InputError(f"{taken}; it is {rows.shape[1]} wide, this model {d_model}: no angles")
    if not vectors.layers:
        return Other(name, rows, (), taken)
    if vectors.counted and len(rows) not in (n_layers, n_layers + 1):
        raise InputError(f"{taken}; this model has {n_layers} layers: of which are they?")
    # What enters block i + 1 is the stream after block i.
    after = [i - (vectors.site == PRE) for i in vectors.layers]
    there = [k for k, i in enumerate(after) if i >= 0 and rows[k].any()]
    if not there or max(after[k] for k in there) >= n_layers:
        raise InputError(f"{taken}; this model has layers 0 to {n_layers - 1}")
    return Other(name, rows[there], tuple(after[k] for k in there), taken)
