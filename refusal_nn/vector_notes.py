"""What stands beside the vectors of a file: their layers, positions and site."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from refusal_nn.vector_names import (
    LAYERS,
    MOVED,
    POSITIONS,
    POST,
    SITES,
    is_list,
    place_in,
    spelt,
    whole,
    wholes,
)


class Notes(NamedTuple):
    """own: the layer that a name or a record gives; layers: those of a list called that; others:
    lists under other names that speak of layers. moved: rows are counted from elsewhere.
    elsewhere: they are of a part of a block, not of the stream between blocks."""

    own: int | None = None
    layers: tuple[int, ...] = ()
    others: tuple[tuple[int, ...], ...] = ()
    positions: tuple[int, ...] = ()
    site: str | None = None
    moved: bool = False
    elsewhere: bool = False

    def of(self, n: int) -> tuple[int, ...]:
        """The layers that lists give to n vectors; empty where none does. Raises ValueError where
        lists differ."""
        if len(self.layers) == n:
            return self.layers
        # In an order of all layers by some merit, 0 to n - 1, nothing is numbered.
        fit = {o for o in self.others if len(set(o)) == n and sorted(o) != list(range(n))}
        if len(fit) > 1:
            raise ValueError(f"{len(fit)} lists beside its {n} vectors name different layers")
        return fit.pop() if fit else self.layers


def named(notes: Notes, name: object) -> Notes:
    """With what a key or a hook's name says of what is below it."""
    place = place_in(name)
    return notes._replace(
        own=notes.own if place.layer is None else place.layer,
        site=place.site or notes.site,
        elsewhere=notes.elsewhere or place.elsewhere,
    )


def is_note(key: object, value: object) -> bool:
    """Whether this part of a mapping is about the vectors, and none of them."""
    key = spelt(key)
    return bool(("layer" in key or POSITIONS.search(key)) and wholes(value))


def notes_in(held: Mapping[object, object], above: Notes) -> Notes:
    """The notes in a mapping; what it does not say holds as said above it."""
    found = above
    for key, value in held.items():
        found = _noted(found, spelt(key), value)
    keys = {str(key) for key in held}
    # lm-evaluation-harness steers outputs of modules; activation-steering, as repeng, of blocks.
    by_form = {"steering_vector", "action"} <= keys or {"model_type", "directions"} <= keys
    return found._replace(site=found.site or POST) if by_form else found


def _noted(notes: Notes, key: str, value: object) -> Notes:
    numbers = wholes(value)
    if POSITIONS.search(key):
        return notes._replace(positions=tuple(p for p in numbers if p < 0))
    if MOVED.search(key) and numbers not in ((), (0,)):
        return notes._replace(moved=True)
    if LAYERS.search(key) and numbers and is_list(value):
        return notes._replace(layers=numbers)
    # One number under layers is how many there are.
    if LAYERS.search(key) and "layers" not in key and whole(value) is not None:
        return notes._replace(own=numbers[0])
    if SITES.search(key) and isinstance(value, str):
        return named(notes, value)
    if re.search(r"layer|hook|module", key):
        return _other(notes, numbers if is_list(value) else (), value)
    return notes


def _other(notes: Notes, numbers: tuple[int, ...], value: object) -> Notes:
    """Lists under other names: of numbers, or of the names of hooks and modules."""
    names = value if isinstance(value, list) else []
    if isinstance(value, str) and value.startswith("["):
        names = re.findall(r"['\"]([^'\"]+)['\"]", value)
    places = [place_in(name) for name in names if isinstance(name, str)]
    if places:
        numbers = tuple(p.layer for p in places if p.layer is not None)
        notes = notes._replace(elsewhere=notes.elsewhere or any(p.elsewhere for p in places))
    return notes._replace(others=(*notes.others, numbers)) if numbers else notes
