"""The bases that the subspace stage compares: fitted, screened by logits, written with their
spectra and angles."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from experiments import causes
from experiments.bench import Bench
from refusal_nn import candidates, files, planted, published, rollouts, selection, subspaces
from refusal_nn.candidates import Candidate, States
from refusal_nn.errors import InputError
from refusal_nn.names import is_file, user_path

# Of these shares of the depth: embeddings hold words, and the last blocks the next token.
DEPTHS = (0.1, 0.8)
FINALISTS = 3
ITERATIONS = 4
# Prompts per class that the iterative construction captures again for each direction.
AGAIN = 64
# Directions beyond the rank looked for would only compare noise.
ANGLES = 4


def stamps(against: str) -> list[object]:
    """What decides the files named by AGAINST=: their contents. Raises InputError."""
    paths = [user_path(part) for part in against.split(",") if part]
    for path in paths:
        if not is_file(path):
            raise InputError(f"AGAINST={against}: {path} is no file")
    return [files.sha256(path) for path in paths]


def fitted(args: argparse.Namespace, bench: Bench, swept: Sequence[causes.Row]) -> list[Candidate]:
    """Every construction at every candidate layer, those of all layers, and the iterative one."""
    layers, rank = _layers(args, bench), args.max_rank
    kept, states = _states(args, bench)
    found = [c for layer in layers for c in candidates.at_layer(states, layer, rank, args.seed)]
    pos = causes.first_position(args)
    directions = bench.found.directions[:, pos].double().numpy()
    ordered = sorted(swept, key=lambda row: -row["compliance"])
    best_first = list(dict.fromkeys(row["layer"] for row in ordered if row["pos"] == pos))
    there = [layer for layer in layers if bench.has_direction(layer, pos)]
    found += candidates.over_layers(directions, there, best_first, rank)
    few = {label: selection.evenly(of, AGAIN) for label, of in kept.items()}
    rounds = min(rank, ITERATIONS)
    again = selection.iterate_directions(bench.model, few, best_first[0], pos, rounds)
    spectrum = np.ones(len(again))  # it has no singular values: each direction was fitted anew
    iterated = subspaces.Subspace(again.double().numpy(), spectrum, "iterative")
    return [*found, Candidate("iterative", best_first[0], iterated)]


def _layers(args: argparse.Namespace, bench: Bench) -> list[int]:
    n = bench.model.n_layers
    usual = range(max(1, int(DEPTHS[0] * n)), max(2, int(DEPTHS[1] * n)))
    return causes.layers(args.layers, bench.model) or list(usual)


def _states(args: argparse.Namespace, bench: Bench) -> tuple[dict[str, list[object]], States]:
    """Fit prompts that the model refuses and answers, and their captured activations."""
    fit = bench.found.parts["fit"]
    tokens = bench.rollout.refusal_tokens
    kept, _ = selection.filter_by_refusal(bench.model, fit, tokens)
    captured = bench.captured
    row = {(r["label"], r["id"]): i for i, r in enumerate(captured.table)}
    at = captured.states[:, :, captured.positions.index(causes.first_position(args))]
    of = {c: at[:, [row[c, p.id] for p in prompts]] for c, prompts in kept.items()}
    categories = np.array([p.category or "" for p in kept["harmful"]])
    return kept, States(of["harmful"], of["harmless"], categories)


def screened(bench: Bench, found: Sequence[Candidate], folder: Path) -> list[Candidate]:
    """The best candidate of each construction, by logits alone on val; candidates.csv says why."""
    rows = list(_scores(bench, found))
    files.write_csv(folder / "candidates.csv", rows)
    chosen = candidates.best_of_each(rows, FINALISTS)
    by_name = {c.name: c for c in found}
    return [by_name[name] for name in chosen]


def _scores(bench: Bench, found: Sequence[Candidate]) -> Iterator[causes.Row]:
    """A row per candidate and rank: how many val prompts are still refused, and KL."""
    texts = {
        label: [p.prompt for p in selection.evenly(of, bench.args.val)]
        for label, of in (
            ("harmful", bench.found.refused("val")),
            ("harmless", bench.found.answered("val")),
        )
    }
    places = {
        f"{c.name} rank {k}": (c, k)
        for k in candidates.powers(bench.args.max_rank)
        for c in found
        if k <= c.subspace.rank
    }
    arms = {name: bench.span(c.subspace.basis[:k]) for name, (c, k) in places.items()}
    with causes.progress("bases", len(arms)) as advance:
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
        label: rollouts.effects(bench.model, arms, asked, tokens, bench.clean_logits(asked))
        for label, asked in texts.items()
    }
    refused, score = of["harmful"].begins.mean(1), of["harmful"].refusal.mean(1)
    kl = of["harmless"].kl.mean(1)
    return [
        {"refused": float(r), "refusal_score": float(s), "kl": float(x)}
        for r, s, x in zip(refused, score, kl, strict=True)
    ]


def _blank(layer: int | None) -> object:
    return "" if layer is None else layer


def write(
    folder: Path,
    args: argparse.Namespace,
    bench: Bench,
    found: Sequence[Candidate],
    finalists: Sequence[Candidate],
    best: Candidate,
    verdict: Mapping[str, object],
) -> causes.Row:
    """spectrum.csv, angles.csv, basis.safetensors and bases.safetensors; returns what is known of a
    planted truth."""
    rank = min(verdict["rank"]["rank"] or ANGLES, ANGLES)
    files.write_csv(folder / "spectrum.csv", list(candidates.spectrum_rows(finalists)))
    bases = {c.name: c.subspace.basis[:rank] for c in finalists}
    near = [c for c in found if c.construction == best.construction and c.name not in bases]
    bases |= {c.name: c.subspace.basis[:rank] for c in sorted(near, key=_distance(best))[:4]}
    bases["direction"] = _single(bench, verdict)[None]
    truth = planted_basis(bench)
    if truth is not None:
        bases["planted"] = truth
    bases |= _against(args, best)
    rows = list(candidates.angle_rows(bases))
    files.write_csv(folder / "angles.csv", rows)
    about = {"construction": best.construction, "layer": best.layer, "scale": "orthonormal rows"}
    tensors = {c.name: torch.tensor(c.subspace.basis).float() for c in finalists}
    files.write_tensors(folder / "basis.safetensors", {"basis": tensors[best.name]}, about)
    files.write_tensors(folder / "bases.safetensors", tensors, about)
    return {} if truth is None else {"planted": _known(rows, best, len(truth))}


def _distance(best: Candidate) -> Callable[[Candidate], tuple[int, str]]:
    return lambda c: (abs((c.layer or 0) - (best.layer or 0)), c.name)


def _single(bench: Bench, verdict: Mapping[str, object]) -> np.ndarray:
    place = verdict["single_direction"]["best"]
    return bench.found.directions[place["layer"], place["pos"]].double().numpy()


def planted_basis(bench: Bench) -> np.ndarray | None:
    """The subspace that this model is known to refuse through, if it is."""
    name, adapter = bench.model.name, bench.model.adapter
    if adapter is not None:
        return adapter.basis.double().numpy()
    if name.startswith("planted-"):
        basis = planted.truth(*planted.parse(name)).basis
        return basis.double().numpy() if len(basis) else None
    return None


def _against(args: argparse.Namespace, best: Candidate) -> dict[str, np.ndarray]:
    """Bases and published directions of AGAINST=: a file's own basis, or its direction at the layer
    of the best basis. Raises InputError where the width differs."""
    found: dict[str, np.ndarray] = {}
    for part in filter(None, args.against.split(",")):
        path = user_path(part)
        with safe_open(path, "pt") as file:
            own = file.get_tensor("basis").double().numpy() if "basis" in file.keys() else None  # noqa: SIM118
        if own is None:
            directions = published.read_directions(path)
            own = directions[[min(best.layer or 0, len(directions) - 1)]]
        if own.shape[1] != best.subspace.d_model:
            raise InputError(
                f"AGAINST={part} is {own.shape[1]} wide, this model {best.subspace.d_model}: "
                "angles need equal widths"
            )
        found[f"{path.parent.parent.name}/{path.stem}"] = own
    return found


def _known(rows: Sequence[Mapping[str, object]], best: Candidate, rank: int) -> causes.Row:
    """Angles between the planted subspace and what was found, degrees."""

    def of(name: str) -> list[float]:
        return [row["degrees"] for row in rows if (row["a"], row["b"]) == (name, "planted")]

    return {"rank": rank, "angles": of(best.name), "direction_angle": of("direction")}
