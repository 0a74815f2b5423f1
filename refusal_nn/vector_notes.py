"""What stands beside the vectors of a file: their layers, positions and site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from refusal_nn.vector_names import LAYERS, POSITIONS, SITES, place_in, wholes


class Notes(NamedTuple):
    """own: the layer that a name or a record gives; layers: those that a list beside them gives.
    elsewhere: they are of a part of a block, not of the stream between blocks."""

    own: int | None = None
    layers: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    site: str | None = None
    elsewhere: bool = False


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
    key = str(key).lower()
    return bool((LAYERS.search(key) or POSITIONS.search(key)) and wholes(value))


def notes_in(held: Mapping[object, object], above: Notes) -> Notes:
    """The notes in a mapping; what it does not say holds as said above it."""
    found = above
    for key, value in held.items():
        key = str(key).lower()
        if SITES.search(key) and isinstance(value, str):
            found = named(found, value)
        elif POSITIONS.search(key):
            found = found._replace(positions=tuple(p for p in wholes(value) if p < 0))
        elif LAYERS.search(key) and isinstance(value, np.ndarray):
            found = found._replace(layers=wholes(value) or found.layers)
        # One number under layers is how many there are.
        elif LAYERS.search(key) and "layers" not in key and wholes(value):
            found = found._replace(own=wholes(value)[0])
    return found
