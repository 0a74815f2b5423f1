"""Directions by layer, one direction, or a basis, as others published them: where in the stream
they were read, and how that is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from refusal_nn.errors import InputError
from refusal_nn.vector_names import POST, PRE

ASSUMED = "assumed"
# Formats whose numbers count what leaves a block: llama.cpp's and repeng's, activation-steering's.
POST_BY_FORMAT = (".gguf", ".svec")


@dataclasses.dataclass(frozen=True)
class Vectors:
    """rows: (pos, row, d_model) float64, 0 where a layer has no direction. layers: the layer of
    each row; empty for one direction of no layer, and for a basis. positions: negative, from the
    end; empty where the file does not tell them. site: resid_pre or resid_post, the stream before
    or after block i; known: how that is known, in words. name: the file's."""

    rows: np.ndarray
    layers: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    site: str = ""
    is_basis: bool = False
    known: str = "the file says so"
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

    def said(self) -> str:
        """What the file was taken for, in words."""
        if self.is_basis:
            return f"a basis of rank {self.rows.shape[1]}"
        if not self.layers:
            return "one direction, of no layer"
        first, final = min(self.layers), max(self.layers)
        words = f"layers {first} to {final}" if first != final else f"layer {first}"
        if first != final and final - first >= len(self.layers):
            words += f" ({len(self.layers)} of them)"
        positions = ", ".join(map(str, self.positions))
        if positions:
            words += f", position{'s' * (len(self.positions) > 1)} {positions}"
        return f"{words}, {self.site} ({self.known})"


def checked(found: Vectors, path: Path) -> Vectors:
    """With its site. Raises InputError where the numbers are no directions."""
    if not np.isfinite(found.rows).all() or not found.rows.any():
        raise InputError(f"{path}: the directions are not finite, or all zero")
    found = dataclasses.replace(found, name=str(path))
    if found.site or not found.layers:
        return found
    site, known = _assumed(found, path.suffix.lower())
    return dataclasses.replace(found, site=site, known=known)


def of_hidden_states(found: Vectors, n_layers: int) -> Vectors:
    """As what enters the blocks where the file does not tell its site and has one row more than
    the model has layers: hidden_states, the embedding first."""
    assumed = found.known.startswith(ASSUMED)
    if assumed and found.layers == tuple(range(n_layers + 1)):
        return dataclasses.replace(found, site=PRE, known="one row more than layers: hidden_states")
    return found


def _assumed(found: Vectors, suffix: str) -> tuple[str, str]:
    """Where directions were read whose file does not say: at a token of the template, what enters
    block 0 is the same for every prompt, so that a difference in means is 0 there."""
    if suffix in POST_BY_FORMAT:
        return POST, "as its format has it"
    there = dict(zip(found.layers, found.rows.any((0, 2)), strict=True))
    if 0 in there:
        site, has = (POST, "one") if there[0] else (PRE, "none")
        return site, f"{ASSUMED}: layer 0 has {has}"
    if len(there) > 1 and list(there) == list(range(1, 1 + len(there))):
        return PRE, f"{ASSUMED}: they begin at layer 1"
    return POST, ASSUMED
