"""Compliance by rank: a candidate's nested ablations, the rows of its curve, random subspaces
beside them, and what the rank rule reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments import causes
from experiments.bench import Bench
from refusal_nn import causal, ranks, subspaces, verdicts
from refusal_nn.candidates import Candidate
from refusal_nn.estimates import wilson
from refusal_nn.splits import near_duplicate_clusters

# A prompt meets so many random subspaces of each rank, in rotation.
TURNS = 2


def nested(bench: Bench, candidate: Candidate) -> dict[str, object]:
    """The candidate's nested ablations, by name."""
    return {
        f"{candidate.name} rank {k}": bench.span(candidate.subspace.basis[:k])
        for k in range(1, candidate.subspace.rank + 1)
    }


def rows_of(
    split: str, found: Candidate, rows: Sequence[causes.Row], kl: Mapping[str, float]
) -> list[causes.Row]:
    """A row per rank: rates, the paired increment over one dimension fewer, KL."""
    by_arm = causal.grouped(rows, "arm")
    names = [f"{found.name} rank {k + 1}" for k in range(found.subspace.rank)]
    complied = [[causal.complied(row) for row in by_arm[name]] for name in names]
    about = {"split": split, "name": found.name, "construction": found.construction}
    about["layer"] = "" if found.layer is None else found.layer
    return [
        {
            **about,
            "rank": k + 1,
            **causal.summarise(by_arm[name]),
            # As any number that is missing: None, an empty cell. It passes no gate.
            "kl": kl[name] if math.isfinite(kl[name]) else None,
            **limits("increment", added),
        }
        for k, (name, added) in enumerate(zip(names, ranks.increments(complied), strict=True))
    ]


def limits(name: str, estimate: object) -> causes.Row:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def random_spans(
    bench: Bench, best: Candidate, up_to: int
) -> tuple[list[np.ndarray], list[causes.Row]]:
    """Compliance (turn, prompt) of the test prompts under random subspaces of each rank, drawn from
    harmless prompts' covariance at the basis's layer, and the completions."""
    layer = bench.model.n_layers // 2 if best.layer is None else best.layer
    count, seed = bench.args.controls, bench.args.seed + layer
    bases = subspaces.random_subspaces(bench.harmless[layer], up_to, count, seed)
    prompts, found, drawn = bench.found.refused("test"), [], []
    turns = min(TURNS, count)
    for k in range(1, up_to + 1):
        arms = {f"random {i} rank {k}": bench.span(basis[:k]) for i, basis in enumerate(bases)}
        asked = causes.in_rotation(prompts, list(arms), turns)
        rows = bench.roll(arms, asked, f"random subspaces of rank {k}")
        by_id = causal.grouped(rows, "id")
        complied = [[causal.complied(row) for row in by_id[p.id]] for p in prompts]
        found.append(np.array(complied).T)
        drawn += rows
    return found, drawn


def ruled(
    bench: Bench,
    table: Sequence[causes.Row],
    rows: Sequence[causes.Row],
    controls: np.ndarray,
) -> ranks.Curve:
    """What the rank rule reads, from the rows of each rank's arm on test and of the curve."""
    before, test = bench.found.baseline["test.harmful"], bench.found.parts["test"]
    refused = sum(row["label"] == "refusal" for row in before)
    # Of all test prompts: two may be near-duplicates by way of a third that was not refused.
    clusters = zip(test, near_duplicate_clusters(test), strict=True)
    number = {(p.label, p.id): cluster for p, cluster in clusters}
    arms = list(causal.grouped(rows, "arm").values())
    return ranks.Curve(
        np.array([[causal.complied(row) for row in arm] for arm in arms]),
        np.array([number[p.label, p.id] for p in bench.found.refused("test")]),
        np.array([row["kl"] for row in table], dtype=np.float64),
        controls,
        wilson(refused, len(before)),
        _second(arms),
    )


def _second(arms: Sequence[Sequence[causes.Row]]) -> np.ndarray:
    """Compliance (rank, prompt) by the judge model, of prompts that it judged at every rank; by
    logits where there are none, as for the single direction."""
    whole = [of for of in zip(*arms, strict=True) if len(causal.complied_by_model(of)) == len(of)]
    if whole:
        return np.array([causal.complied_by_model(of) for of in whole]).T
    return np.array([[causal.complied_by_logits(row) for row in arm] for arm in arms])


def reconciled(found: ranks.RankVerdict, single: str) -> ranks.RankVerdict:
    """The rank beside the single direction's verdict, a reason added where they seem to differ.

    That direction is one subspace of rank 1: where it is enough, no other basis can show that more
    dimensions are needed, or that none are enough.
    """
    enough, one = single == verdicts.YES, found.rank == 1
    if enough and not one and found.verdict != ranks.UNTESTABLE:
        kept = found.verdict if found.verdict == ranks.RANK else ranks.UNDETERMINED
        said = "the single direction is enough by itself, so rank 1 is not ruled out"
        return found._replace(verdict=kept, low=1, reasons=(*found.reasons, said))
    if one and found.verdict == ranks.RANK and single in (verdicts.NO, verdicts.PARTIAL):
        said = "the single direction is not enough, the first of this basis is: another direction"
        return found._replace(reasons=(*found.reasons, said))
    return found
