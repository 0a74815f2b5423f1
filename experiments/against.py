"""Bases and directions of other runs, or published ones, that AGAINST= names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from refusal_nn import files
from refusal_nn.errors import InputError
from refusal_nn.names import is_file, user_path

if TYPE_CHECKING:
    import numpy as np


class Other(NamedTuple):
    """rows: (rank, d_model), a basis; or (layer, d_model), a direction per layer."""

    name: str
    rows: np.ndarray
    by_layer: bool

    def at(self, layer: int) -> np.ndarray:
        """The basis, or the direction of the layer nearest to this one that has any, (1, d)."""
        if not self.by_layer:
            return self.rows
        there = [i for i, row in enumerate(self.rows) if row.any()]
        return self.rows[[min(there, key=lambda i: abs(i - layer))]]


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


def read(text: str, d_model: int) -> list[Other]:
    """What AGAINST= names. Raises InputError where it cannot be read or has another width."""
    found: list[Other] = []
    for path in paths(text):
        name = f"{path.resolve().parent.parent.name}/{path.stem}"
        if name in [other.name for other in found]:
            name = str(path)
        other = Other(name, *_rows(path))
        if other.rows.shape[1] != d_model:
            raise InputError(
                f"AGAINST={path} is {other.rows.shape[1]} wide, this model {d_model}: angles need "
                "equal widths"
            )
        found.append(other)
    return found


def _rows(path: Path) -> tuple[np.ndarray, bool]:
    """Rows of a file of this stage, as many as the rank found, or of published directions."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    from refusal_nn.published import read_directions

    if path.suffix == ".pt":
        # These count layers by what enters them: row i + 1 is the stream after block i.
        return read_directions(path)[1:], True
    try:
        with safe_open(path, "pt") as file:
            names, about = (
                set(file.keys()),
                json.loads((file.metadata() or {}).get("refusal_nn", "{}")),
            )
            rows = file.get_tensor("basis").double().numpy() if "basis" in names else None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"AGAINST={path} cannot be read as safetensors: {error}") from None
    if rows is None:
        return read_directions(path), True
    if rows.ndim != 2 or not np.isfinite(rows).all() or not rows.any():
        raise InputError(f"AGAINST={path}: its basis is no finite (rank, d_model) array")
    return rows[: about.get("rank") or len(rows)], False
