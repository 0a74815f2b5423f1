"""Candidate subspaces of refusal, each construction at each layer, and which of them to believe
more. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refusal_nn import subspaces, verdicts
from refusal_nn.subspaces import Subspace

Row = dict[str, object]


class Candidate(NamedTuple):
    """layer: whose activations it was fitted to, None for one of all layers. noise: the floor under
    its spectrum, where there is one."""

    construction: str
    layer: int | None
    subspace: Subspace
    noise: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.construction if self.layer is None else f"{self.construction} {self.layer}"


class States(NamedTuple):
    """Activations at one position of prompts that the model refuses and answers: harmful, harmless
    (layer, prompt, d_model); categories of the harmful ones, "" for none."""

    harmful: np.ndarray
    harmless: np.ndarray
    categories: np.ndarray


def at_layer(states: States, layer: int, rank: int, seed: int) -> Iterator[Candidate]:
    """The constructions that one layer's activations give."""
    harmful, harmless = states.harmful[layer], states.harmless[layer]
    scale = subspaces.coordinate_scale(harmless)
    rows = min(len(harmful), len(harmless))
    noise = subspaces.noise_spectrum(harmless, rows, rank, seed, scale)
    found = subspaces.prompt_differences(harmful, harmless, rank, scale)
    yield Candidate("prompts", layer, found, noise)
    if len(set(states.categories.tolist())) > 1:
        found = subspaces.group_differences(harmful, harmless, states.categories, rank, scale)
        yield Candidate("categories", layer, found)
    found = subspaces.cluster_differences(harmful, harmless, rank, seed, scale=scale)
    yield Candidate("clusters", layer, found)


def over_layers(
    directions: np.ndarray, layers: Sequence[int], best_first: Sequence[int], rank: int
) -> Iterator[Candidate]:
    """The constructions of the directions (layer, d_model) of all `layers` together: their SVD, and
    seed 000's QR of the best ones."""
    yield Candidate("layers", None, subspaces.stack(directions[list(layers)], rank))
    chosen = list(best_first)[:rank]
    if chosen:
        yield Candidate("best layers", None, subspaces.sequential(directions[chosen], rank))


def powers(up_to: int) -> list[int]:
    """1, 2, 4, … below up_to, and up_to."""
    return [*(1 << i for i in range((up_to - 1).bit_length())), up_to]


def best_of_each(rows: Sequence[Mapping[str, object]], most: int) -> list[str]:
    """Names of the candidates to look at more closely: the best of each construction, at most so
    many of them, best first.

    rows: name, construction, refused (share whose answer begins as a refusal), kl, over several
    ranks. The score is the mean share not refused, over the ranks of little KL; of equals, the one
    of least KL.
    """
    by_name: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    gained = {
        name: sum((1 - r["refused"]) * (r["kl"] <= verdicts.MOST_KL) for r in of) / len(of)
        for name, of in by_name.items()
    }
    cost = {
        name: float(np.nan_to_num(sum(r["kl"] for r in of), nan=np.inf))
        for name, of in by_name.items()
    }
    ordered = sorted(by_name, key=lambda name: (-round(gained[name], 9), cost[name]))
    first: dict[object, str] = {}
    for name in ordered:
        first.setdefault(by_name[name][0]["construction"], name)
    return list(first.values())[:most]


def best_curve(rows: Sequence[Mapping[str, object]]) -> str:
    """Name of the candidate whose coherent compliance rises earliest: the largest mean over the
    ranks, those of much KL counting nothing unless all are.

    rows: name, compliance, kl.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    gentle = any(row["kl"] <= verdicts.MOST_KL for row in rows)

    def area(name: str) -> tuple[float, float]:
        of = [row for row in rows if row["name"] == name]
        counted = [r["compliance"] for r in of if not gentle or r["kl"] <= verdicts.MOST_KL]
        return sum(counted) / len(of), -sum(r["kl"] for r in of)

    return max(names, key=area)


def spectrum_rows(candidates: Sequence[Candidate]) -> Iterator[Row]:
    """A row per component: its singular value, its share, and the noise floor under it."""
    for found in candidates:
        values = found.subspace.spectrum
        about = {
            "construction": found.construction,
            "layer": "" if found.layer is None else found.layer,
            "effective_rank": subspaces.effective_rank(values),
            "entropy_rank": subspaces.entropy_rank(values),
        }
        shares = values**2 / (values**2).sum()
        for i in range(min(len(values), 4 * found.subspace.rank)):
            floor = found.noise[i] if found.noise is not None and i < len(found.noise) else ""
            part = {"component": i + 1, "singular_value": values[i], "share": shares[i]}
            yield about | part | {"noise": floor}


def angle_rows(bases: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """Principal angles between every two of the bases (rank, d_model), degrees."""
    names = list(bases)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            for j, degrees in enumerate(subspaces.principal_angles(bases[a], bases[b])):
                yield {"a": a, "b": b, "component": j + 1, "degrees": float(degrees)}
