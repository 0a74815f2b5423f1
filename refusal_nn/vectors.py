"""Directions by layer, one direction, or a basis, as others published them: where in the stream
they were read, and how that is known."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from refusal_nn.errors import InputError
from refusal_nn.plain_text import visible
from refusal_nn.vector_names import POST, PRE

ASSUMED = "assumed"
# A layer beyond is another kind of number, or damage.
MOST_LAYERS = 4096
# Rounding of a difference that is 0, as a share of the others' length.
ROUNDING = 1e-4


class Vectors(NamedTuple):
    """rows: (pos, row, d_model) float64, 0 where a layer has no direction. layers: the layer of
    each row; empty for one direction of no layer, and for a basis; counted: by place in the file.
    positions: negative, from the end; empty where the file does not tell them. site: resid_pre or
    resid_post, the stream before or after block i; known: how that is known, in words. part: what
    the file calls them, if it holds more. name: the file's."""

    rows: np.ndarray
    layers: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    site: str = ""
    is_basis: bool = False
    known: str = "the file says so"
    counted: bool = False
    assumed_positions: bool = False
    part: str = ""
    name: str = ""

    def at_position(self, position: int | None = None) -> tuple[np.ndarray, int | None]:
        """(row, d_model) of one position, by default the last, and that position; None where the
        file does not tell it. Raises InputError."""
        if position is not None and position not in self.positions:
            there = ", ".join(map(str, sorted(self.positions, reverse=True)))
            raise InputError(
                f"{self.name} has no position {position}: choose --position from {there}"
                if there
                else f"{self.name} does not tell of what position it is: leave --position out"
            )
        if not self.positions:
            return self.rows[-1], None
        position = max(self.positions) if position is None else position
        return self.rows[self.positions.index(position)], position

    def table(self, position: int | None = None) -> np.ndarray:
        """(layer, d_model) from layer 0 on, 0 where a layer has no direction. Raises InputError
        for a basis and for one direction of no layer."""
        if not self.layers:
            what = "a basis" if self.is_basis else "one direction of no layer"
            raise InputError(f"{self.name} holds {what}, not one by layer; AGAINST= takes it")
        rows, _ = self.at_position(position)
        found = np.zeros((1 + max(self.layers), rows.shape[1]))
        found[list(self.layers)] = rows
        return found

    def said(self, position: int | None = None) -> str:
        """What the file was taken for, in words; position: which of several was taken."""
        part = f"its {visible(self.part)[:80]}, " if self.part else ""
        if self.is_basis:
            return f"{part}a basis of rank {self.rows.shape[1]}"
        if not self.layers:
            return f"{part}one direction, of no layer"
        first, final = min(self.layers), max(self.layers)
        words = f"{part}layers {first} to {final}" if first != final else f"{part}layer {first}"
        if final - first >= len(self.layers):
            words += f" ({len(self.layers)} of them)"
        words += " (numbered by place)" if self.counted else ""
        if self.positions:
            positions = ", ".join(map(str, self.positions))
            words += f", position{'s' * (len(self.positions) > 1)} {positions}"
            words += f" ({ASSUMED})" if self.assumed_positions else ""
        several = position is not None and len(self.positions) > 1
        taken = f"; position {position} is taken" if several else ""
        return f"{words}, {self.site} ({self.known}){taken}"


def checked(found: Vectors, path: Path) -> Vectors:
    """With its site. Raises InputError where the numbers are no directions, or of no layers."""
    if not np.isfinite(found.rows).all():
        raise InputError(f"{path}: the directions are not finite")
    if not found.rows.any():
        raise InputError(f"{path}: the directions are all zero")
    if found.layers and not 0 <= min(found.layers) <= max(found.layers) <= MOST_LAYERS:
        there = f"{min(found.layers)} to {max(found.layers)}"
        raise InputError(f"{path} names layers {there}; they count from 0")
    found = found._replace(name=str(path))
    if found.site or not found.layers:
        return found
    site, known = _assumed(found)
    return found._replace(site=site, known=known)


def of_hidden_states(found: Vectors, n_layers: int) -> Vectors:
    """As what enters the blocks where the file does not tell its site and has one row more than
    the model has layers: hidden_states, the embedding first."""
    assumed = found.known.startswith(ASSUMED)
    if assumed and found.layers == tuple(range(n_layers + 1)):
        return found._replace(site=PRE, known="one row more than layers: hidden_states")
    return found


def _assumed(found: Vectors) -> tuple[str, str]:
    """Where directions were read whose file does not say: at a token of the template, what enters
    block 0 is the same for every prompt, so that a difference in means is 0 there."""
    lengths = np.linalg.norm(found.rows, axis=-1).max(0)
    there = dict(zip(found.layers, lengths > ROUNDING * np.median(lengths), strict=True))
    if 0 in there:
        site, has = (POST, "one") if there[0] else (PRE, "none")
        return site, f"{ASSUMED}: layer 0 has {has}"
    if len(there) > 1 and list(there) == list(range(1, 1 + len(there))):
        return PRE, f"{ASSUMED}: they begin at layer 1"
    return POST, ASSUMED
