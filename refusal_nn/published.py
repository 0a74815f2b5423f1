"""Directions and whole runs that others published, read without running anything in the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from refusal_nn.errors import InputError
from refusal_nn.names import is_file, is_folder

# A run folder of andyrdt/refusal_direction: each file where its pipeline writes it, or flat.
MEANS = ("generate_directions/mean_diffs.pt", "mean_diffs.pt", "mean_diffs.safetensors")
GRID = ("select_direction/direction_evaluations.json", "direction_evaluations.json")
CHOICE, VECTOR = ("direction_metadata.json",), ("direction.pt",)
SCORES = {"refusal_score": "ablated", "steering_score": "added", "kl_div_score": "kl"}
# What torch.load raises on a file that is none of its own, or holds more than tensors.
UNREADABLE = (OSError, UnpicklingError, EOFError, RuntimeError, ValueError, TypeError)
UNREADABLE += (KeyError, IndexError, AttributeError, SafetensorError)
OURS, THEIRS = "resid_post", "resid_pre"

Row = dict[str, object]


class PublishedRun(NamedTuple):
    """directions: (pos, layer, d_model) float64, layers counted by what enters them (resid_pre);
    None where the folder lacks them. grid: scores by pos and layer under the names of candidates;
    empty where it lacks them. chosen: the pos and layer published, None if not there."""

    directions: np.ndarray | None
    grid: list[Row]
    chosen: Row | None

    @property
    def n_layers(self) -> int:
        if self.directions is not None:
            return self.directions.shape[1]
        return 1 + max(row["layer"] for row in self.grid)


def read_directions(path: Path, position: int = -1) -> np.ndarray:
    """One direction per layer, (layer, d_model) float64, from a .safetensors or .pt file's only
    tensor, from a .pt file's {layer: (d_model,)}, or from a run folder's mean_diffs.

    The tensor is (layer, d_model), or (pos, layer, d_model) of which `position` (negative, from the
    end) is taken. Layers stay numbered as in the file. Raises InputError.
    """
    path = directions_file(path)
    tensor = _tensor(path)
    if tensor.ndim == 3 and not -len(tensor) <= position < 0:
        raise InputError(
            f"{path} has {len(tensor)} positions: choose --position from -1 to {-len(tensor)}"
        )
    found = tensor[position] if tensor.ndim == 3 else tensor
    if not np.isfinite(found).all() or not found.any():
        raise InputError(f"{path}: the directions are not finite, or all zero")
    return found


def site_of(path: Path) -> str:
    """Where a file's directions were read: what our own metadata say, else resid_pre, as the
    published ones are. Raises InputError where it cannot be read."""
    if path.suffix != ".safetensors":
        return THEIRS
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {}).get("refusal_nn", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from None
    return about.get("site", THEIRS) if isinstance(about, dict) else THEIRS


def directions_file(path: Path) -> Path:
    """The file itself, or a run folder's mean_diffs. Raises InputError where it has none."""
    if not is_folder(path) or path.suffix == ".safetensors":
        return path
    found = _in(path, MEANS)
    if found is None:
        raise InputError(f"{path} is no run folder with directions: none of {', '.join(MEANS)}")
    return found


def read_run(folder: Path) -> PublishedRun:
    """A run folder of the published pipeline. Raises InputError where it holds neither directions
    nor scores, or what does not fit together."""
    means, grid, choice, vector = (_in(folder, names) for names in (MEANS, GRID, CHOICE, VECTOR))
    if means is None and grid is None:
        raise InputError(f"{folder} is no run folder: none of {', '.join((*MEANS, *GRID))}")
    directions = None if means is None else _tensor(means)
    if directions is not None and (directions.ndim != 3 or not np.isfinite(directions).all()):
        raise InputError(f"{means}: expected finite (pos, layer, d_model)")
    rows = [] if grid is None else _grid(grid)
    chosen = None if choice is None else _choice(choice)
    run = PublishedRun(directions, rows, chosen)
    if directions is not None:
        _check(folder, run, vector)
    return run


def _in(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if is_file(folder / name)), None)


def _tensor(path: Path) -> np.ndarray:
    """The only tensor of a file, (layer, d_model) or (pos, layer, d_model), float64."""
    if path.suffix not in (".safetensors", ".pt"):
        raise InputError(
            f"{path}: only .safetensors, and .pt as tensors alone, are read; other pickles can run "
            "code, convert them to .safetensors first"
        )
    try:
        found = _safe(path) if path.suffix == ".safetensors" else _weights_only(path)
    except UNREADABLE as error:
        how = "safetensors" if path.suffix == ".safetensors" else "tensors alone (.safetensors is)"
        raise InputError(f"{path} cannot be read as {how}: {_reason(error)}") from None
    if len(found) != 1 or next(iter(found.values())).ndim not in (2, 3):
        raise InputError(
            f"{path}: expected one tensor of (layer, d_model) or (pos, layer, d_model), found "
            f"{', '.join(found)}"
        )
    return next(iter(found.values()))


def _safe(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "pt") as file:
        held = {name: file.get_tensor(name).double().numpy() for name in file.keys()}  # noqa: SIM118
    # select writes (layer, pos, d_model).
    ours = site_of(path) == OURS
    return {k: v.swapaxes(0, 1) if ours and v.ndim == 3 else v for k, v in held.items()}


def _weights_only(path: Path) -> dict[str, np.ndarray]:
    """torch.load refuses, unrun, whatever is not a tensor in a plain container."""
    import torch

    held = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(held, torch.Tensor):
        return {"tensor": held.double().numpy()}
    if not isinstance(held, Mapping) or sorted(held) != list(range(len(held))) or not held:
        raise ValueError(f"it holds a {type(held).__name__}, not a tensor or layers from 0")
    rows = np.stack([held[i].double().flatten().numpy() for i in range(len(held))])
    # Unit vectors of a layer at which all prompts have one state: 0/0 there, no direction here.
    rows[np.isnan(rows).all(1)] = 0
    return {"layers": rows}


def _reason(error: Exception) -> str:
    """In one line; torch's own advises to load the file without weights_only."""
    if isinstance(error, UnpicklingError):
        return "it holds more than tensors, which could run code, or is damaged"
    return str(error).partition("\n")[0]


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None


def _grid(path: Path) -> list[Row]:
    names = {"position": "pos", "layer": "layer", **SCORES}
    try:
        rows = [{ours: row[theirs] for theirs, ours in names.items()} for row in _json(path)]
        numbers = all(isinstance(x, int | float) for row in rows for x in row.values())
    except (TypeError, KeyError) as error:
        raise InputError(f"{path}: expected a list of rows with {', '.join(names)}") from error
    if not rows or not numbers:
        raise InputError(f"{path}: expected rows of numbers with {', '.join(names)}")
    return rows


def _choice(path: Path) -> Row:
    held = _json(path)
    if not isinstance(held, dict) or not all(
        isinstance(held.get(k), int) for k in ("pos", "layer")
    ):
        raise InputError(f"{path}: expected whole numbers pos and layer")
    return {"pos": held["pos"], "layer": held["layer"]}


def _check(folder: Path, run: PublishedRun, vector: Path | None) -> None:
    """Raises InputError where grid, choice or direction.pt are not of these directions."""
    positions, layers, _ = run.directions.shape
    places = [*run.grid, *([run.chosen] if run.chosen else [])]
    if not all(-positions <= p["pos"] < 0 <= p["layer"] < layers for p in places):
        raise InputError(
            f"{folder}: scores or choice beyond its {positions} positions and {layers} layers"
        )
    if run.chosen is None or vector is None:
        return
    try:
        [one] = _weights_only(vector).values()
    except UNREADABLE as error:
        raise InputError(f"{vector} cannot be read as a tensor alone: {_reason(error)}") from None
    row = run.directions[run.chosen["pos"], run.chosen["layer"]]
    if one.size != row.size or not np.allclose(one.ravel(), row, rtol=1e-2, atol=1e-2 * row.std()):
        raise InputError(f"{vector} is not the direction at the pos and layer that were chosen")
