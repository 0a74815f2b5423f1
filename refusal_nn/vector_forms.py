"""From what a file of vectors holds to directions by layer, one direction, or a basis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refusal_nn.vector_files import Held
from refusal_nn.vector_names import BASES, MEANS, VECTORS, last
from refusal_nn.vector_notes import Notes, is_note, named, notes_in
from refusal_nn.vectors import Vectors

# A layer beyond is another kind of number, or damage.
MOST_LAYERS = 4096
# Rows of a basis in half precision still have products this near to 0 and 1.
ORTHONORMAL = 1e-2


class Entry(NamedTuple):
    """An array and what is known of it; place: its place in a list of records."""

    name: str
    array: np.ndarray
    notes: Notes
    place: int | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Of its name or record, else of the list beside it."""
        return self.notes.layers if self.notes.own is None else (self.notes.own,)


def vectors_in(held: Held, about: Mapping[str, object]) -> Vectors:
    """The directions or the basis that a file holds; about: its own metadata. Raises ValueError
    where they cannot be told from what else it holds, or their layers cannot be told."""
    entries = _meant(list(_entries(held, "", notes_in(about, Notes()))))
    if not entries:
        raise ValueError("it holds no vector")
    part = next((e.name for e in entries if e.notes.elsewhere), None)
    if part:
        raise ValueError(
            f"{part} is of a part of a block: only directions of the residual stream, between "
            "blocks, are compared"
        )
    if len(entries) > 1:
        return _from_many(entries)
    ours = about.get("layer_convention") and entries[0].name == "directions"
    return _from_ours(entries[0]) if ours else _from_one(entries[0], about)


def _entries(held: Held, name: str, notes: Notes) -> Iterator[Entry]:
    if isinstance(held, np.ndarray):
        if held.ndim and held.size:
            yield Entry(name or "tensor", held, notes)
    elif isinstance(held, Mapping):
        notes = notes_in(held, notes)
        for key, value in held.items():
            if not is_note(key, value):
                below = f"{name}.{key}" if name else str(key)
                yield from _entries(value, below, named(notes, key))
    elif isinstance(held, Sequence) and not isinstance(held, str):
        for i, value in enumerate(held):
            for entry in _entries(value, f"{name}[{i}]", notes):
                yield entry._replace(place=i)


def _meant(entries: list[Entry]) -> list[Entry]:
    """Without what only stands beside the vectors."""
    for called in (_basis_by_name, _vector_by_name, lambda name: VECTORS.search(name.lower())):
        entries = [e for e in entries if called(e.name)] or entries
    first = entries[0].array if entries else None
    if len(entries) > 1 and all(np.array_equal(e.array, first) for e in entries):
        # The same vector for many places, as a file has it that is to be applied at all of them.
        return [Entry(entries[0].name, first, Notes())]
    widths = {e.array.shape[-1] for e in entries if e.array.ndim > 1}
    # Norms and singular values beside a table.
    return [e for e in entries if e.array.ndim > 1 or e.array.shape[-1] in widths or not widths]


def _basis_by_name(name: str) -> bool:
    return bool(BASES.search(last(name)))


def _vector_by_name(name: str) -> bool:
    return bool(VECTORS.search(last(name)))


def _from_ours(entry: Entry) -> Vectors:
    """As saved_directions writes them: (layer, d_model) or (layer, pos, d_model)."""
    layers, positions, site = entry.notes.layers, entry.notes.positions, entry.notes.site
    table = entry.array.reshape(len(layers), len(positions), -1).swapaxes(0, 1)
    return _placed(table, layers, positions, site)


def _from_one(entry: Entry, about: Mapping[str, object]) -> Vectors:
    layers, positions, site = entry.layers, entry.notes.positions, entry.notes.site
    array = entry.array.reshape([n for n in entry.array.shape[:-1] if n > 1] + [-1])
    of_one = array.ndim == 2 and len(positions) == len(array) != len(layers) < 2
    if array.ndim == 1 or of_one:
        # One layer's direction, of one or several positions.
        table = array.reshape(-1, 1, array.shape[-1])
        told = positions if len(positions) == len(table) else ()
        return Vectors(table, layers if len(layers) == 1 else (), told, site or "")
    if array.ndim > 3:
        raise ValueError(f"{entry.name} has the shape {entry.array.shape}")
    basis = _basis(entry.name, array)
    if basis is not None:
        rank = about.get("rank")
        return Vectors(basis[None, : rank if isinstance(rank, int) else None], is_basis=True)
    table = array[None] if array.ndim == 2 else _positions_first(entry, array)
    counted = tuple(range(-len(table), 0)) if len(table) > 1 else ()
    told = positions if len(positions) == len(table) else counted
    return _placed(table, layers, told, site)


def _basis(name: str, array: np.ndarray) -> np.ndarray | None:
    """What is called a basis, or has orthonormal rows, as (rank, d_model); None for others."""
    if array.ndim != 2:
        return None
    tall = len(array) > array.shape[1]
    rows = array.T if tall else array
    return rows if _basis_by_name(name) or _orthonormal(rows) else None


def _orthonormal(rows: np.ndarray) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.abs(rows @ rows.T - np.eye(len(rows))).max() < ORTHONORMAL)


def _positions_first(entry: Entry, array: np.ndarray) -> np.ndarray:
    """(pos, layer, d_model), whichever way round the file has it."""
    first, second = array.shape[:2]
    layers, positions = len(entry.layers), len(entry.notes.positions)
    published = positions in (0, first) and layers in (0, second)
    turned = positions in (0, second) and layers in (0, first)
    if published and turned:
        # Nothing tells; a model has more layers than a template has tokens after the instruction.
        turned = first > second and not MEANS.search(entry.name.lower())
    return array.swapaxes(0, 1) if turned else array


def _from_many(entries: list[Entry]) -> Vectors:
    """A table of entries of a layer each."""
    arrays = [e.array.reshape(-1, e.array.shape[-1]) for e in entries]
    names = ", ".join(e.name for e in entries[:8]) + ", …" * (len(entries) > 8)
    positions = entries[0].notes.positions
    if {a.shape for a in arrays} != {(max(1, len(positions)), arrays[0].shape[1])}:
        raise ValueError(f"it holds several tensors, {names}: give a file of one only")
    layers = [_layer(e, len(entries)) for e in entries]
    told = None not in layers and len(set(layers)) == len(layers)
    rows = np.concatenate(arrays)
    if not any(e.layers for e in entries) and _orthonormal(rows):
        return Vectors(rows[None], is_basis=True)
    if not told:
        raise ValueError(f"it cannot be told which layers {names} are of: give one vector a layer")
    table = np.stack([arrays[i] for i in np.argsort(layers)], axis=1)
    sites = {e.notes.site for e in entries}
    site = sites.pop() if len(sites) == 1 else None
    return _placed(table, sorted(layers), positions, site)


def _layer(entry: Entry, among: int) -> int | None:
    """Its own, that of the list beside the entries, or its place in a list."""
    if len(entry.layers) == 1:
        return entry.layers[0]
    if entry.place is None or len(entry.layers) not in (0, among):
        return None
    return entry.layers[entry.place] if entry.layers else entry.place


def _placed(
    table: np.ndarray, layers: Sequence[int], positions: tuple[int, ...], site: str | None
) -> Vectors:
    """(pos, row, d_model) with a layer for each row. Raises ValueError."""
    # Unit vectors of a layer at which all prompts have one state: 0/0 there, no direction here.
    none = np.isnan(table).all(-1)
    table = np.where(none[..., None], 0.0, table)
    given = ~none.all(0)
    if len(layers) == given.sum() < len(given):
        table = table[:, given]
    layers = tuple(layers) or tuple(range(table.shape[1]))
    if len(layers) != table.shape[1] or len(set(layers)) < len(layers):
        raise ValueError(f"it names {len(layers)} layers beside {table.shape[1]} vectors")
    if not 0 <= min(layers) <= max(layers) <= MOST_LAYERS:
        raise ValueError(f"it names layers {min(layers)} to {max(layers)}; they count from 0")
    return Vectors(table, layers, positions, site or "")
