"""Fit, validation and test prompts: disjoint also up to near-duplicates, stratified by category,
seeded."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Sequence

from refusal_nn.errors import InputError
from refusal_nn.prompts import LABELS, Prompt, words

# Of N prompts a class: 160, 60 and 100 of 320. Directions are fitted on fit, choices made on val,
# numbers reported on test.
SHARES = {"fit": 0.5, "val": 0.1875, "test": 0.3125}
NEAR = 0.6


def near_duplicate_clusters(prompts: Sequence[Prompt]) -> list[int]:
    """A cluster number per prompt: twins of one pair, and prompts whose word sets have Jaccard
    similarity >= .6, share one."""
    return list(_clusters(tuple((p.prompt, p.pair) for p in prompts)))


@functools.lru_cache(maxsize=16)
def _clusters(prompts: tuple[tuple[str, str | None], ...]) -> tuple[int, ...]:
    """Remembered, since every stage splits the same prompts."""
    parent = list(range(len(prompts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    pairs: dict[str, int] = {}
    postings: dict[str, list[int]] = defaultdict(list)
    bags = [frozenset(words(text)) for text, _ in prompts]
    for i, (_, pair) in enumerate(prompts):
        if pair is not None:
            parent[root(i)] = root(pairs.setdefault(pair, i))
        shared: dict[int, int] = defaultdict(int)
        for word in bags[i]:
            for j in postings[word]:
                shared[j] += 1
            postings[word].append(i)
        for j, common in shared.items():
            if common >= NEAR * (len(bags[i]) + len(bags[j]) - common):
                parent[root(i)] = root(j)
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(root(i), len(numbers)) for i in range(len(prompts)))


def split(prompts: Sequence[Prompt], n: int, seed: int) -> dict[str, list[Prompt]]:
    """Up to n prompts of each class dealt into fit, val and test in the shares above; no cluster is
    divided.

    Clusters come category by category in turn, shuffled by `seed`; each goes where its category
    lags most behind the shares. A cluster that no split has room for is left out. Each split is in
    a fixed order: harmful first, by id.
    """
    quotas = {c: _quotas(min(n, sum(p.label == c for p in prompts))) for c in LABELS}
    room = {name: {label: quotas[label][name] for label in LABELS} for name in SHARES}
    chosen: dict[str, list[Prompt]] = {name: [] for name in SHARES}
    dealt: dict[object, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SHARES, 0))
    for kind, members in _in_turn(prompts, seed):
        need = {label: sum(p.label == label for p in members) for label in LABELS}
        fits = [s for s in SHARES if all(need[label] <= room[s][label] for label in LABELS)]
        if not fits:
            continue
        so_far = sum(dealt[kind].values()) + len(members)
        best = max(fits, key=lambda s: SHARES[s] * so_far - dealt[kind][s])
        dealt[kind][best] += len(members)
        chosen[best] += members
        for label in LABELS:
            room[best][label] -= need[label]
    return {
        name: sorted(rows, key=lambda p: (LABELS.index(p.label), p.id))
        for name, rows in chosen.items()
    }


def require_enough(fit: Sequence[Prompt]) -> None:
    """Raises InputError if a direction cannot be cross-fitted on these prompts."""
    clusters = near_duplicate_clusters(fit)
    for label in LABELS:
        found = len({c for c, p in zip(clusters, fit, strict=True) if p.label == label})
        if found < 2:
            raise InputError(
                f"only {found} independent {label} prompts to fit a direction on (near-duplicates "
                "count as one, half of N is for fitting); give more, or more varied ones"
            )


def _quotas(available: int) -> dict[str, int]:
    """How many of `available` prompts go to each split: they add up, and fit gets two at least."""
    fit = max(min(2, available), round(SHARES["fit"] * available))
    val = max(round((SHARES["fit"] + SHARES["val"]) * available) - fit, 0)
    return {"fit": fit, "val": val, "test": available - fit - val}


def _in_turn(prompts: Sequence[Prompt], seed: int) -> list[tuple[tuple[str, str], list[Prompt]]]:
    clusters: dict[int, list[Prompt]] = defaultdict(list)
    for prompt, number in zip(prompts, near_duplicate_clusters(prompts), strict=True):
        clusters[number].append(prompt)
    queues: dict[tuple[str, str], list[list[Prompt]]] = defaultdict(list)
    for members in clusters.values():
        kind = "both" if len({p.label for p in members}) == 2 else members[0].label
        queues[kind, members[0].category or ""].append(members)
    rng = random.Random(seed)
    for key in sorted(queues):
        rng.shuffle(queues[key])
    longest = max(len(queue) for queue in queues.values())
    return [
        (key, queues[key][i])
        for i in range(longest)
        for key in sorted(queues)
        if i < len(queues[key])
    ]


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """sha256 over ids, texts and classes, in order of id."""
    rows = sorted((p.id, p.prompt, p.label) for p in prompts)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
