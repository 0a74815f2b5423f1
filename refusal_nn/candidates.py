"""Candidate subspaces of refusal, each construction at each layer, and which of them to believe
more. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refusal_nn import causal, subspaces, verdicts
from refusal_nn.estimates import Estimate, wilson
from refusal_nn.subspaces import Subspace

Row = dict[str, object]
_Curve = list[tuple[Estimate, float]]  # by rank: rate, KL


class Candidate(NamedTuple):
    """layer: whose activations it was fitted to, None for one of all layers. noise: the floor under
    its spectrum, where there is one. pos: whose they are, None for the first of POSITIONS."""

    construction: str
    layer: int | None
    subspace: Subspace
    noise: np.ndarray | None = None
    pos: int | None = None

    @property
    def name(self) -> str:
        name = self.construction if self.layer is None else f"{self.construction} {self.layer}"
        return name if self.pos is None else f"{name} at {self.pos}"


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
    the comparison study's QR of the best ones."""
    yield Candidate("layers", None, subspaces.stack(directions[list(layers)], rank))
    chosen = list(best_first)[:rank]
    if chosen:
        yield Candidate("best layers", None, subspaces.sequential(directions[chosen], rank))


def in_order(swept: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Single directions, the best first. The first is what causal.best_row chooses."""
    return sorted(swept, key=causal.worse)


def best_of_each(rows: Sequence[Mapping[str, object]], most: int) -> list[str]:
    """Names of the candidates to look at more closely: the best of each construction, at most so
    many of them, best first, as best_curve has it but by answers that do not begin as a refusal.

    rows: name, construction, rank, n, refused (share of n prompts), kl.
    """
    return [names[0] for names in _by_construction(rows).values()][:most]


def leading(rows: Sequence[Mapping[str, object]], share: float, least: int) -> set[str]:
    """Names of the best share of each construction, and never fewer than `least` of it: those worth
    asking about more prompts. rows: as of best_of_each."""
    of = _by_construction(rows).values()
    return {name for names in of for name in names[: max(least, math.ceil(share * len(names)))]}


def _by_construction(rows: Sequence[Mapping[str, object]]) -> dict[object, list[str]]:
    """Names of each construction's candidates, the best first, and so the constructions."""
    kind = {row["name"]: row["construction"] for row in rows}
    rates = [wilson(round((1 - row["refused"]) * row["n"]), row["n"]) for row in rows]
    found: dict[object, list[str]] = {}
    for name in _ranked(rows, rates):
        found.setdefault(kind[name], []).append(name)
    return found


def best_curve(rows: Sequence[Mapping[str, object]]) -> str:
    """Name of the candidate that fewest dimensions are enough for.

    rows: name, rank, n, compliance, compliance_low, kl. That is, by the rule of `ranks`: the
    smallest rank at which the lower limit passes at little KL; where it never does, few val prompts
    may be why, and the rate itself counts; then both at moderate KL, then at any. Where nothing
    passes, one of
    all ranks, and the highest rate that it reaches. Of equals the largest mean over the ranks of
    little KL, then over all; then least KL.
    """
    rates = [Estimate(row["compliance"], row["compliance_low"], 1.0, row["n"]) for row in rows]
    return _ranked(rows, rates)[0]


def _ranked(rows: Sequence[Mapping[str, object]], rates: Sequence[Estimate]) -> list[str]:
    """Names, the best first."""
    curves, ranks = _curves(rows, rates), {}
    for row in rows:
        ranks[row["name"]] = max(row["rank"], ranks.get(row["name"], 0))

    def worse(name: str) -> tuple[float, ...]:
        of, little = curves[name], verdicts.MOST_KL
        values = [(Estimate(rate.value, rate.value, 1.0, rate.n), kl) for rate, kl in of]
        # A direction that breaks the text ends refusals too: on SmolLM2 no answer was left coherent
        # at 1.9 nats, and logits alone do not tell (LOG.md). So any KL comes last.
        enough = (
            *(
                _enough(curve, most)
                for most in (little, verdicts.MODERATE_KL)
                for curve in (of, values)
            ),
            *(_enough(curve) for curve in (of, values)),
        )
        short = ranks[name] < max(ranks.values()) and enough[-1] == len(of)
        highest = max((rate.value for rate, kl in of if kl <= little), default=0.0)
        return (*enough, short, -highest, -_area(of, little), -_area(of), _cost(of))

    return sorted(curves, key=worse)


def _curves(rows: Sequence[Mapping[str, object]], rates: Sequence[Estimate]) -> dict[str, _Curve]:
    """By name, over the same ranks for all: a candidate of fewer keeps its last, since there is no
    more of it to remove. Else a mean over fewer ranks would be compared with one over more."""
    ranks = sorted({row["rank"] for row in rows})
    of: dict[str, dict[int, tuple[Estimate, float]]] = {}
    for row, rate in zip(rows, rates, strict=True):
        of.setdefault(row["name"], {})[row["rank"]] = rate, causal.nats(row["kl"])
    return {
        name: [own[max((k for k in own if k <= rank), default=min(own))] for rank in ranks]
        for name, own in of.items()
    }


def _enough(curve: _Curve, most_kl: float = math.inf) -> int:
    passed = (rate.low >= verdicts.YES_FROM and kl <= most_kl for rate, kl in curve)
    return next((i for i, enough in enumerate(passed) if enough), len(curve))


def _area(curve: _Curve, most_kl: float = math.inf) -> float:
    # Rounded, so that equals are equal whatever the order of the sum.
    return round(sum(rate.value for rate, kl in curve if kl <= most_kl) / len(curve), 9)


def _cost(curve: _Curve) -> float:
    return sum(kl for _, kl in curve)


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
