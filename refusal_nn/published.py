"""Directions that others published, read without running anything in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from refusal_nn.errors import InputError


def read_directions(path: Path, position: int = -1) -> np.ndarray:
    """One direction per layer, (layer, d_model) float64, from a safetensors file's only tensor.

    The tensor is (layer, d_model), or (pos, layer, d_model) of which `position` (negative, from the
    end) is taken. Layers stay numbered as in the file. Raises InputError.
    """
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: only .safetensors files are read; pickled tensors (.pt, .pkl) can run code, "
            "convert them first"
        )
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            tensor = file.get_tensor(names[0]).double().numpy() if len(names) == 1 else None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from None
    if tensor is None or tensor.ndim not in (2, 3):
        raise InputError(
            f"{path}: expected one tensor of (layer, d_model) or (pos, layer, d_model), found "
            f"{', '.join(names)}"
        )
    if tensor.ndim == 3 and not -len(tensor) <= position < 0:
        raise InputError(
            f"{path} has {len(tensor)} positions: choose --position from -1 to {-len(tensor)}"
        )
    found = tensor[position] if tensor.ndim == 3 else tensor
    if not np.isfinite(found).all() or not found.any():
        raise InputError(f"{path}: the directions are not finite, or all zero")
    return found
