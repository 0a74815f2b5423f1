"""From what a file of vectors holds to directions by layer, one direction, or a basis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refusal_nn.directions import unit
from refusal_nn.vector_files import Held
from refusal_nn.vector_names import BASES, MEANS, VECTORS, last, spelt, whole
from refusal_nn.vector_notes import Notes, is_note, named, notes_in
from refusal_nn.vectors import Vectors

# More are prompts, or steps of a training.
MOST_POSITIONS = 16
# Products of a basis' rows in half precision are this near to 0 and 1; two random unit vectors of
# 4096 coordinates are so with a chance of 5 %, three with less than 1 in 1,000.
ORTHONORMAL = 1e-3


class Entry(NamedTuple):
    """An array and what is known of it; place: its place in a list of records."""

    name: str
    array: np.ndarray
    notes: Notes
    place: int | None = None


def vectors_in(held: Held, about: Mapping[str, object]) -> Vectors:
    """The directions or the basis that a file holds; about: its own metadata. Raises ValueError
    where they cannot be told from what else it holds, or their layers cannot be told."""
    there = list(_entries(held, "", notes_in(about, Notes())))
    entries = _meant(there)
    if not entries:
        raise ValueError("it holds no vector")
    elsewhere = [e.name for e in entries if e.notes.elsewhere]
    if elsewhere:
        raise ValueError(
            f"{elsewhere[0][:80]} is of a part of a block: only directions of the residual stream, "
            "between blocks, are compared"
        )
    if len(entries) > 1:
        return _from_many(entries)
    ours = about.get("layer_convention") and entries[0].name == "directions"
    found = _from_ours(entries[0]) if ours else _from_one(entries[0], about)
    return found._replace(part=entries[0].name) if len(there) > 1 else found


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
        for i, value in enumerate(_record(held)):
            for entry in _entries(value, f"{name}[{i}]", notes):
                yield entry._replace(place=i)


def _record(held: Sequence[Held]) -> Sequence[Held]:
    """(layer, vector, …) and (hook, vector, …) as a mapping in a list. Raises ValueError for other
    lists of vectors and numbers."""
    arrays = [v for v in held if isinstance(v, np.ndarray)]
    numbers = [v for v in held if isinstance(v, int | float)]
    if len(numbers) > 8 or (arrays and numbers and not isinstance(held[0], int | float)):
        raise ValueError("it has a list of numbers and other things")
    if len(arrays) == 1 and (whole(held[0]) is not None or isinstance(held[0], str)):
        key = "hook_name" if whole(held[0]) is None else "layer"
        return [{key: held[0], "vector": arrays[0]}]
    return held


def _meant(entries: list[Entry]) -> list[Entry]:
    """Without what only stands beside the vectors."""
    entries = [e for e in entries if BASES.search(last(e.name))] or entries
    called = [e for e in entries if VECTORS.search(spelt(e.name))]
    # Of vectors by layer and their mean the former are meant.
    by_layer = [e for e in called if e.notes.own is not None]
    at_last = [e for e in called if VECTORS.search(last(e.name))]
    entries = (by_layer if len(by_layer) > 1 else at_last or called) or entries
    if len(entries) > 1 and _parallel([e.array for e in entries]):
        # The same vector for many places, as a file has it that is to be applied at all of them,
        # or a direction and its unit.
        same = len({e.notes for e in entries}) == 1
        return [entries[0] if same else Entry(entries[0].name, entries[0].array, Notes())]
    widths = {e.array.shape[-1] for e in entries if e.array.ndim > 1}
    # Norms and singular values beside a table.
    return [e for e in entries if e.array.ndim > 1 or e.array.shape[-1] in widths or not widths]


def _parallel(arrays: Sequence[np.ndarray]) -> bool:
    if len({a.shape for a in arrays}) > 1:
        return False
    units = [unit(a) for a in arrays]
    return all(np.allclose(u, units[0], atol=1e-3 / np.sqrt(u.shape[-1])) for u in units)


def _from_ours(entry: Entry) -> Vectors:
    """As saved_directions writes them: (layer, d_model) or (layer, pos, d_model)."""
    layers, positions = entry.notes.layers, entry.notes.positions
    table = entry.array.reshape(len(layers), len(positions), -1).swapaxes(0, 1)
    return _placed(table, entry.notes, layers, positions)


def _from_one(entry: Entry, about: Mapping[str, object]) -> Vectors:
    notes, positions = entry.notes, entry.notes.positions
    array = entry.array.reshape([n for n in entry.array.shape[:-1] if n > 1] + [-1])
    of_one = array.ndim == 2 and len(positions) == len(array) != len(notes.layers) < 2
    if array.ndim == 1 or of_one:
        # One layer's direction, of one or several positions.
        table = array.reshape(-1, 1, array.shape[-1])
        layers = notes.layers if notes.own is None else (notes.own,)
        told = positions if len(positions) == len(table) else ()
        return Vectors(table, layers if len(layers) == 1 else (), told, notes.site or "")
    basis = _basis(entry.name, array)
    if basis is not None:
        rank = about.get("rank")
        return Vectors(basis[None, : rank if isinstance(rank, int) else None], is_basis=True)
    _check_shape(entry, array)
    table = array[None] if array.ndim == 2 else _positions_first(entry, array)
    told = positions if len(positions) == len(table) else ()
    layers = notes.of(table.shape[1]) if notes.own is None else (notes.own,)
    return _placed(table, notes, layers, told)


def _check_shape(entry: Entry, array: np.ndarray) -> None:
    """Raises ValueError for what is no table of directions by layer."""
    shape, name = entry.array.shape, entry.name[:80]
    if array.ndim > 3:
        raise ValueError(f"{name} has the shape {shape}")
    if array.shape[-2] == array.shape[-1] or last(name) in ("weight", "coef_"):
        raise ValueError(f"{name} of shape {shape} is a matrix, not directions")
    if array.ndim < 3:
        return
    if BASES.search(last(name)) or any(_all_orthonormal(a) for a in (array, array.swapaxes(0, 1))):
        raise ValueError(f"{name} holds a basis for each layer: give a file of one")
    if min(array.shape[:2]) > MOST_POSITIONS:
        raise ValueError(f"{name} has the shape {shape}: positions are at most {MOST_POSITIONS}")


def _all_orthonormal(bases: np.ndarray) -> bool:
    there = [basis for basis in bases if np.isfinite(basis).all() and basis.any()]
    return bool(there) and all(_orthonormal(basis) for basis in there)


def _basis(name: str, array: np.ndarray) -> np.ndarray | None:
    """What is called a basis, or has orthonormal rows, as (rank, d_model); None for others."""
    if array.ndim != 2:
        return None
    tall = len(array) > array.shape[1]
    rows = array.T if tall else array
    called = BASES.search(last(name))
    return rows if called or (len(rows) < rows.shape[1] and _orthonormal(rows)) else None


def _orthonormal(rows: np.ndarray) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.abs(rows @ rows.T - np.eye(len(rows))).max() < ORTHONORMAL)


def _positions_first(entry: Entry, array: np.ndarray) -> np.ndarray:
    """(pos, layer, d_model), whichever way round the file has it."""
    first, second = array.shape[:2]
    layers, positions = len(entry.notes.layers), len(entry.notes.positions)
    published = positions in (0, first) and layers in (0, second)
    turned = positions in (0, second) and layers in (0, first)
    if published and turned:
        # Nothing tells; a model has more layers than a template has tokens after the instruction.
        turned = first > second and not MEANS.search(spelt(entry.name))
    return array.swapaxes(0, 1) if turned else array


def _from_many(entries: list[Entry]) -> Vectors:
    """A table of entries of a layer each."""
    arrays = [e.array.reshape(-1, e.array.shape[-1]) for e in entries]
    names = ", ".join(e.name[:80] for e in entries[:8]) + ", …" * (len(entries) > 8)
    positions = entries[0].notes.positions
    if {a.shape for a in arrays} != {(max(1, len(positions)), arrays[0].shape[1])}:
        raise ValueError(f"it holds several tensors, {names}: give a file of one only")
    rows, notes = np.concatenate(arrays), entries[0].notes
    layers, by_place = _layers(entries)
    if by_place and not notes.layers and _orthonormal(rows):
        return Vectors(rows[None], is_basis=True)
    if None in layers or len(set(layers)) < len(layers):
        raise ValueError(f"it cannot be told which layers {names} are of: give one vector a layer")
    order = np.argsort(layers)
    table = np.stack([arrays[i] for i in order], axis=1)
    sites = {e.notes.site for e in entries}
    notes = notes._replace(site=sites.pop() if len(sites) == 1 else None)
    return _placed(table, notes, () if by_place else sorted(layers), positions)


def _layers(entries: list[Entry]) -> tuple[list[int | None], bool]:
    """The layer of each: its own, that of the list beside them, or its place in a list; and whether
    it is by place. Raises ValueError where names and lists contradict each other."""
    n, own = len(entries), [e.notes.own for e in entries]
    listed = entries[0].notes.of(n)
    if None in own and len(listed) != n:
        places = [e.place for e in entries]
        return (places if set(own) == {None} and not listed else [None] * n), True
    if len(listed) != n or set(own) == set(listed):
        return own, False
    # layer_0, layer_1, … beside layer_names count what the list names.
    places = [e.place for e in entries] if set(own) == {None} else own
    if sorted(p for p in places if p is not None) != list(range(n)):
        raise ValueError("its names and the list beside them give different layers")
    return [listed[p] for p in places], False


def _placed(
    table: np.ndarray, notes: Notes, layers: Sequence[int], positions: tuple[int, ...]
) -> Vectors:
    """(pos, row, d_model) with a layer for each row. Raises ValueError."""
    # Unit vectors of a layer at which all prompts have one state: 0/0 there, no direction here.
    none = np.isnan(table).all(-1)
    table = np.where(none[..., None], 0.0, table)
    given = ~none.all(0)
    fit = layers or notes.of(int(given.sum()))
    if len(fit) == given.sum() < len(given):
        table, layers = table[:, given], fit
    counted = not layers
    if counted and notes.moved:
        raise ValueError("its layers are not counted from 0, and it gives no list of them")
    layers = tuple(layers) or tuple(range(table.shape[1]))
    if len(layers) != table.shape[1] or len(set(layers)) < len(layers):
        raise ValueError(f"it names {len(layers)} layers beside {table.shape[1]} vectors")
    found = Vectors(table, layers, positions, notes.site or "", counted=counted)
    if len(table) > 1 and not positions:
        return found._replace(positions=tuple(range(-len(table), 0)), assumed_positions=True)
    return found
