"""The bases that the subspace stage compares: fitted, screened by logits, written with their
spectra and angles."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from experiments import causes, progress
from experiments.against import Other
from experiments.bench import Bench
from refusal_nn import candidates, files, planted, rollouts, selection, subspaces
from refusal_nn.candidates import Candidate, States
from refusal_nn.effects import effects
from refusal_nn.errors import InputError
from refusal_nn.models import TracedModel

# Of these shares of the depth: embeddings hold words, and the last blocks the next token.
DEPTHS = (0.1, 0.8)
FINALISTS = 3
# Every basis is asked about so few prompts of each class, this share of each construction's about
# all. More than half of the work fell to bases nowhere near the best.
FIRST_ROUND, SHARE, LEAST = 8, 0.1, 3
ITERATIVE, ITERATIONS = "iterative", 4
# Of each basis where no rank was found; directions beyond the rank would only compare noise.
ANGLES = 4


def fitted(args: argparse.Namespace, bench: Bench, swept: Sequence[causes.Row]) -> list[Candidate]:
    """Every construction at every candidate layer and position, those of all layers at a position,
    and the iterative one."""
    # Random subspaces of the same rank are drawn from what harmless prompts vary in.
    rank = min(args.max_rank, bench.harmless.shape[1] - 1)
    ordered, exact = candidates.in_order(swept), causes.load(args)
    layers, (kept, states) = _layers(args, bench), _states(bench, exact)
    found = []
    for pos, at in states.items():
        there = [layer for layer in layers if bench.has_direction(layer, pos)]
        if not there:
            continue
        own = [c for layer in there for c in candidates.at_layer(at, layer, rank, args.seed)]
        best_first = list(dict.fromkeys(row["layer"] for row in ordered if row["pos"] == pos))
        directions = bench.found.directions[:, pos].double().numpy()
        own += candidates.over_layers(directions, there, best_first, rank)
        first = pos == causes.first_position(args)
        found += own if first else [c._replace(pos=pos) for c in own]
    return [*found, _iterated(exact, kept, ordered[0], min(rank, ITERATIONS))]


def _iterated(
    model: TracedModel, kept: Mapping[str, Sequence[object]], best: causes.Row, rank: int
) -> Candidate:
    """From the sweep's best direction on: at rank 1 it is that direction, on the same prompts."""
    place = (best["layer"], best["pos"])
    rows = selection.iterate_directions(model, kept, *place, rank).double().numpy()
    spectrum = np.ones(len(rows))  # it has no singular values: each direction was fitted anew
    return Candidate(ITERATIVE, best["layer"], subspaces.Subspace(rows, spectrum, ITERATIVE))


def _layers(args: argparse.Namespace, bench: Bench) -> list[int]:
    """Those asked for or usual, where harmful and harmless prompts differ at all."""
    n, pos = bench.model.n_layers, causes.first_position(args)
    usual = range(min(max(1, int(DEPTHS[0] * n)), n - 1), max(2, int(DEPTHS[1] * n)))
    wanted = causes.layers(args.layers, bench.model) or [i for i in usual if i < n]
    there = [layer for layer in wanted if bench.has_direction(layer, pos)]
    if not there:
        raise InputError(f"LAYERS={args.layers}: all prompts have one state at layers {wanted}")
    return there


def _states(bench: Bench, model: TracedModel) -> tuple[dict[str, list[object]], dict[int, States]]:
    """Fit prompts that the model refuses and answers, and their captured activations by position,
    the first of POSITIONS first."""
    fit, tokens = bench.found.parts["fit"], bench.rollout.refusal_tokens
    kept, _ = selection.filter_by_refusal(model, fit, tokens)
    captured = bench.captured
    row = {(r["label"], r["id"]): i for i, r in enumerate(captured.table)}
    rows = {c: [row[c, p.id] for p in prompts] for c, prompts in kept.items()}
    categories = np.array([p.category or "" for p in kept["harmful"]])
    first, found = causes.first_position(bench.args), {}
    for pos in sorted(captured.positions, key=lambda pos: (pos != first, -pos)):
        of = {c: captured.states[:, i, captured.positions.index(pos)] for c, i in rows.items()}
        found[pos] = States(of["harmful"], of["harmless"], categories)
    return kept, found


def screened(bench: Bench, found: Sequence[Candidate], folder: Path) -> list[Candidate]:
    """The best candidate of each construction, by logits alone on val, and the iterative one, whose
    first row is the single direction; candidates.csv says why, and screened.csv of those that a
    few prompts were enough to rule out."""
    most = bench.args.val
    if most > FIRST_ROUND:
        few = list(_scores(bench, found, FIRST_ROUND))
        files.write_csv(folder / "screened.csv", few)
        kept = candidates.leading(few, SHARE, LEAST)
        found = [c for c in found if c.name in kept]
    rows = list(_scores(bench, found, most))
    files.write_csv(folder / "candidates.csv", rows)
    chosen = candidates.best_of_each(rows, FINALISTS)
    return [
        *sorted((c for c in found if c.name in chosen), key=lambda c: chosen.index(c.name)),
        *(c for c in found if c.construction == ITERATIVE and c.name not in chosen),
    ]


def _scores(bench: Bench, found: Sequence[Candidate], most: int) -> Iterator[causes.Row]:
    """A row per candidate and rank: how many of at most so many val prompts are still refused, and
    KL. Every rank: one dimension more than is needed may break what was enough."""
    texts = {
        label: [p.prompt for p in selection.evenly(of, most)]
        for label, of in (
            ("harmful", bench.found.refused("val")),
            ("harmless", bench.found.answered("val")),
        )
    }
    places = {
        f"{c.name} rank {k}": (c, k)
        for k in range(1, bench.args.max_rank + 1)
        for c in found
        if k <= c.subspace.rank
    }
    arms = {name: bench.span(c.subspace.basis[:k]) for name, (c, k) in places.items()}
    with progress.bar(f"bases, {most} prompts", len(arms)) as advance:
        for names in rollouts.packs(arms, list(arms)):
            unit = rollouts.fingerprint(arms, names, (names, texts))
            if unit not in bench.journal.done:
                rows = _effects(bench, [arms[n] for n in names], texts)
                bench.journal.add(unit, rows)
            advance(len(names))
            for name, row in zip(names, bench.journal.done[unit], strict=True):
                candidate, k = places[name]
                about = {"name": candidate.name, "construction": candidate.construction}
                yield {**about, "layer": _blank(candidate.layer), "rank": k, **row}


def _effects(
    bench: Bench, arms: Sequence[object], texts: Mapping[str, list[str]]
) -> list[causes.Row]:
    tokens = bench.rollout.refusal_tokens
    of = {
        label: effects(bench.model, arms, asked, tokens, bench.clean_logits(asked))
        for label, asked in texts.items()
    }
    refused, score = of["harmful"].begins.mean(1), of["harmful"].refusal.mean(1)
    kl, n = of["harmless"].kl.mean(1), len(texts["harmful"])
    return [
        {"n": n, "refused": float(r), "refusal_score": float(s), "kl": float(x)}
        for r, s, x in zip(refused, score, kl, strict=True)
    ]


def _blank(layer: int | None) -> object:
    return "" if layer is None else layer


def write(
    folder: Path,
    bench: Bench,
    found: Sequence[Candidate],
    finalists: Sequence[Candidate],
    best: Candidate,
    verdict: Mapping[str, object],
    others: Sequence[Other],
) -> causes.Row:
    """spectrum.csv, angles.csv, basis.safetensors and bases.safetensors; returns what is known of a
    planted truth."""
    rank, place = verdict["rank"]["rank"] or ANGLES, verdict["single_direction"]["best"]
    files.write_csv(folder / "spectrum.csv", list(candidates.spectrum_rows(finalists)))
    bases = {c.name: c.subspace.basis[:rank] for c in finalists}
    near = [c for c in found if c.construction == best.construction and c.name not in bases]
    bases |= {c.name: c.subspace.basis[:rank] for c in sorted(near, key=_distance(best))[:4]}
    bases["direction"] = bench.vector(place["layer"], place["pos"])[None].double().cpu().numpy()
    truth = planted_basis(bench)
    if truth is not None:
        bases["planted"] = truth
    layer = place["layer"] if best.layer is None else best.layer
    bases |= {other.name: other.at(layer) for other in others}
    rows = list(candidates.angle_rows(bases))
    files.write_csv(folder / "angles.csv", rows)
    about = {"construction": best.construction, "layer": best.layer, "scale": "orthonormal rows"}
    tensors = {c.name: torch.tensor(c.subspace.basis).float() for c in finalists}
    files.write_tensors(folder / "bases.safetensors", tensors, about)
    about |= {"rank": verdict["rank"]["rank"]}
    files.write_tensors(folder / "basis.safetensors", {"basis": tensors[best.name]}, about)
    return {} if truth is None else {"planted": _known(rows, best, len(truth))}


def _distance(best: Candidate) -> Callable[[Candidate], tuple[int, str]]:
    return lambda c: (abs((c.layer or 0) - (best.layer or 0)), c.name)


def planted_basis(bench: Bench) -> np.ndarray | None:
    """The subspace that this model is known to refuse through, if it is."""
    name, adapter = bench.model.name, bench.model.adapter
    if adapter is not None:
        return adapter.basis.double().numpy()
    if name.startswith("planted-"):
        basis = planted.truth(*planted.parse(name)).basis
        return basis.double().numpy() if len(basis) else None
    return None


def _known(rows: Sequence[Mapping[str, object]], best: Candidate, rank: int) -> causes.Row:
    """Angles between the planted subspace and what was found, degrees."""

    def of(name: str) -> list[float]:
        return [row["degrees"] for row in rows if (row["a"], row["b"]) == (name, "planted")]

    return {"rank": rank, "angles": of(best.name), "direction_angle": of("direction")}
