"""Directions and whole runs that others published, read without running anything in the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refusal_nn.errors import InputError
from refusal_nn.names import is_file, is_folder
from refusal_nn.plain_text import visible
from refusal_nn.vector_files import read_held
from refusal_nn.vector_forms import vectors_in
from refusal_nn.vector_names import PRE as THEIRS
from refusal_nn.vector_names import place_in
from refusal_nn.vectors import Vectors, checked

# A run folder of andyrdt/refusal_direction: each file where its pipeline writes it, or flat.
MEANS = ("generate_directions/mean_diffs.pt", "mean_diffs.pt", "mean_diffs.safetensors")
GRID = ("select_direction/direction_evaluations.json", "direction_evaluations.json")
CHOICE, VECTOR = ("direction_metadata.json",), ("direction.pt",)
SCORES = {"refusal_score": "ablated", "steering_score": "added", "kl_div_score": "kl"}
# The least cosine of a direction with itself in another precision.
SAME = 0.999

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


def read_directions(path: Path, position: int | None = None) -> np.ndarray:
    """One direction per layer, (layer, d_model) float64 from layer 0 on, numbered as in the file, 0
    where it has none: of a run folder's mean_diffs or of a file that read_vectors reads. Of several
    positions `position` (negative, from the end; by default the last) is taken. Raises InputError.
    """
    return read_vectors(path).table(position)


def read_vectors(path: Path) -> Vectors:
    """Directions by layer, one direction, or a basis: what a run folder's mean_diffs or a file in
    any of the forms of docs/exports.md holds, and where in the stream it was read. Raises
    InputError."""
    path = directions_file(path)
    held, about = read_held(path)
    beside = _beside(path)
    try:
        found = vectors_in(held, beside | dict(about))
    except ValueError as error:
        words = visible(str(error)).replace("\n", "\\n")
        raise InputError(f"{path} holds no directions that can be told: {words}") from None
    lone = place_in(path.stem).layer
    if found.layers or found.is_basis or lone is None:
        return checked(found._replace(known="as its name has it") if beside else found, path)
    # vec_layer_13.pt
    return checked(found._replace(layers=(lone,)), path)


def _beside(path: Path) -> Row:
    """What is known of a file by its name in the published pipeline."""
    if path.name in [Path(name).name for name in MEANS]:
        return {"site": THEIRS}
    choice = _in(path.parent, CHOICE) if path.name == VECTOR[0] else None
    return {} if choice is None else {"site": THEIRS, **_choice(choice)}


def directions_file(path: Path) -> Path:
    """The file itself, or a run folder's mean_diffs. Raises InputError where it has none."""
    if not is_folder(path):
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
    directions = None if means is None else read_vectors(means).rows
    rows = [] if grid is None else _grid(grid)
    chosen = None if choice is None else _choice(choice)
    run = PublishedRun(directions, rows, chosen)
    if directions is not None:
        _check(folder, run, vector)
    return run


def _in(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if is_file(folder / name)), None)


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
    one = read_vectors(vector).rows.ravel()
    row = run.directions[run.chosen["pos"], run.chosen["layer"]]
    # Some publish its unit vector.
    if one.size != row.size or one @ row < SAME * np.linalg.norm(one) * np.linalg.norm(row):
        raise InputError(f"{vector} is not the direction at the pos and layer that were chosen")
