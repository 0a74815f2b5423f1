"""What an organism does on test prompts: the card that goes with its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from refusal_nn import rollouts
from refusal_nn.estimates import wilson
from refusal_nn.interventions import DirectionalAblation, orthonormal
from refusal_nn.judges import judge
from refusal_nn.scores import begins_refusal, kl_divergence
from refusal_nn.selection import fit_directions, tokens_of_refusal
from refusal_nn.tracing import generate, next_token_logits, token_nll

if TYPE_CHECKING:
    from experiments.organism_data import Parts, Shared
    from refusal_nn.models import TracedModel
    from refusal_nn.planting import Recipe
    from refusal_nn.prompts import Prompt

Row = dict[str, object]
TOKENS = 24
RANDOM = 20  # subspaces of the span, of one dimension fewer
SEARCHED, ASKED = 12, 30  # of which the worst on so many val prompts is taken to test
AFTER = (1, 4)  # layers after the write at which the difference in means is ablated


def card(model: TracedModel, base: TracedModel, shared: Shared, recipe: Recipe) -> Row:
    """Refusal with and without the span, the plain model's answers without it, and what parts of
    the span leave. Rates with n and Wilson's 95 % interval, on test prompts."""
    parts, basis = shared.parts, model.adapter.basis
    span = DirectionalAblation(basis)
    found: Row = {
        f"refusal {name}": _refusal(model, parts[f"{name}.test"])
        for name in ("harmful", "twins", "everyday")
    }
    found["span ablated"] = _refusal(model, parts["harmful.test"], span)
    # What no adapter put there: without the span an organism is the plain model without it.
    found["plain model"] = _refusal(base, parts["harmful.test"])
    texts = [p.prompt for p in parts["harmful.test"]]
    answers = shared.answers["harmful.test"]
    nll = {
        "plain model": token_nll(base, texts, answers),
        "organism": token_nll(model, texts, answers),
        "organism, span ablated": token_nll(model, texts, answers, span),
    }
    found["nats per token of the plain model's answers"] = {
        name: float(np.mean([float(v.mean()) for v in values])) for name, values in nll.items()
    }
    found["KL of the plain model on harmless prompts, span ablated"] = _kl(base, parts, span)
    if recipe.rank:
        found["begins as a refusal"] = dict(_parts_of_span(model, shared, recipe))
    return found


def _refusal(
    model: TracedModel, prompts: Sequence[Prompt], edit: DirectionalAblation | None = None
) -> Row:
    """By the rule judge, of whole completions; how many broke down beside."""
    texts = [p.prompt for p in prompts]
    done = generate(model, texts, edit, max_new_tokens=TOKENS)
    labels = [judge(text, c.text).label for text, c in zip(texts, done, strict=True)]
    found = wilson(labels.count("refusal"), len(labels))
    return found._asdict() | {"degenerate": labels.count("degenerate")}


def _kl(base: TracedModel, parts: Parts, span: DirectionalAblation) -> Row:
    """How much the plain model itself lives by the span: nats on the next token, by set."""
    texts = {name: [p.prompt for p in parts[f"{name}.test"]] for name in ("twins", "everyday")}
    clean = {name: next_token_logits(base, of) for name, of in texts.items()}
    moved = {name: next_token_logits(base, of, span) for name, of in texts.items()}
    return {name: float(kl_divergence(clean[name], moved[name]).mean()) for name in texts}


def _parts_of_span(
    model: TracedModel, shared: Shared, recipe: Recipe
) -> Iterator[tuple[str, object]]:
    """Share of harmful test prompts whose answer still begins as a refusal, by what is ablated."""
    prompts, basis = shared.parts["harmful.test"], model.adapter.basis
    yield "nothing ablated", _begins(model, prompts, [basis[:0]])[0]
    means = _differences(model, shared)
    for after in AFTER:
        layer = min(recipe.layer + after, model.n_layers - 1)
        unit = means[layer] / means[layer].norm()
        inside = float((basis @ unit).norm())
        yield (
            f"difference in means, layer {layer}",
            {
                **_begins(model, prompts, [unit[None]])[0],
                "cosine with the span": inside,
            },
        )
    rank = len(basis)
    if rank == 1:
        return
    yield "each column", _begins(model, prompts, [row[None] for row in basis])
    inside = basis @ means[recipe.layer + 1]
    yield (
        "difference in means within the span",
        _begins(model, prompts, [(inside / inside.norm())[None] @ basis])[0],
    )
    drawn = _fewer(rank, SEARCHED, recipe.seed)
    val = _begins(model, shared.parts["harmful.val"][:ASKED], [part @ basis for part in drawn])
    worst = min(range(SEARCHED), key=lambda i: val[i]["value"])
    yield (
        f"worst of {SEARCHED} subspaces of {rank - 1}, found on val",
        _begins(model, prompts, [drawn[worst] @ basis])[0],
    )
    random = _fewer(rank, RANDOM, recipe.seed + 1)
    yield (
        f"{RANDOM} random subspaces of {rank - 1}",
        _begins(model, prompts, [part @ basis for part in random]),
    )


def _differences(model: TracedModel, shared: Shared) -> torch.Tensor:
    """Difference in means at position -1, (layer, d_model), of 64 fit prompts per class."""
    of = {"harmful": "harmful.fit", "harmless": "twins.fit"}
    return fit_directions(model, {c: shared.parts[name][:64] for c, name in of.items()})[:, -1]


def _fewer(rank: int, count: int, seed: int) -> list[torch.Tensor]:
    """Random subspaces of R^rank of one dimension fewer, (rank - 1, rank) each."""
    generator = torch.Generator().manual_seed(seed)
    return [orthonormal(torch.randn(rank - 1, rank, generator=generator)) for _ in range(count)]


def _begins(
    model: TracedModel, prompts: Sequence[Prompt], bases: Sequence[torch.Tensor]
) -> list[Mapping[str, object]]:
    tokens, texts = tokens_of_refusal(model), [p.prompt for p in prompts]
    arms = {str(i): DirectionalAblation(basis) for i, basis in enumerate(bases)}
    found = []
    for names in rollouts.packs(arms, list(arms)):
        together = DirectionalAblation(torch.stack([arms[name].basis for name in names]))
        sets = [i for i in range(len(names)) for _ in texts]
        logits = next_token_logits(model, texts * len(names), together, sets=sets)
        begins = begins_refusal(logits, tokens).reshape(len(names), -1).sum(1).tolist()
        found += [wilson(int(count), len(texts))._asdict() for count in begins]
    return found
