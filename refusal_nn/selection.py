"""From prompts to candidate directions and their scores: what is refused, what direction that has
at each layer and position, and what the direction does to the next token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refusal_nn import grid
from refusal_nn.effects import effects
from refusal_nn.estimates import wilson
from refusal_nn.interventions import ActivationAddition, DirectionalAblation
from refusal_nn.models import TracedModel
from refusal_nn.prompts import LABELS, Prompt
from refusal_nn.scores import begins_refusal, refusal_score, refusal_tokens
from refusal_nn.tracing import capture, next_token_logits

Row = dict[str, object]


def tokens_of_refusal(model: TracedModel, words: Sequence[str] = ()) -> list[int]:
    """Ids of the first tokens of this model's refusals: of `words` if given, else of its own."""
    return refusal_tokens(model.template, words or model.refusal_words)


def filter_by_refusal(
    model: TracedModel, prompts: Sequence[Prompt], tokens: Sequence[int], most: int | None = None
) -> tuple[dict[str, list[Prompt]], list[Row]]:
    """Harmful prompts whose answer begins as a refusal and harmless ones whose does not, by class,
    and a row of counts per class. most: per class, evenly over the order given.

    Arditi et al. 2024 ask for a refusal score above 0; see scores.begins_refusal for why not only.
    """
    refused = _refused(model, prompts, tokens)
    kept, counts = {}, []
    for label in LABELS:
        asked = [p for p in prompts if p.label == label]
        # What is not a number is neither.
        wanted = [p for p in asked if refused.get(p.id) is (label == "harmful")]
        kept[label] = evenly(wanted, most or len(wanted))
        count = {"class": label, "n": len(asked), "found": len(wanted), "used": len(kept[label])}
        if asked:
            rate = wilson(sum(refused.get(p.id, False) for p in asked), len(asked))
            count |= {"refused": rate.value, "low": rate.low, "high": rate.high}
        counts.append(count)
    return kept, counts


def _refused(
    model: TracedModel, prompts: Sequence[Prompt], tokens: Sequence[int]
) -> dict[str, bool]:
    """By id; what gives no numbers is left out."""
    if not prompts:
        return {}
    logits = next_token_logits(model, [p.prompt for p in prompts])
    usable = refusal_score(logits, tokens).isfinite().tolist()
    begins = begins_refusal(logits, tokens).tolist()
    return {p.id: b for p, b, ok in zip(prompts, begins, usable, strict=True) if ok}


def evenly(items: Sequence[Prompt], most: int) -> list[Prompt]:
    """At most so many, spread over the order given: prompts come by id, that is by category."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def fit_directions(model: TracedModel, prompts: Mapping[str, Sequence[Prompt]]) -> Tensor:
    """Raw differences in means at every post-instruction position, (layer, pos, d_model) float32;
    the first position first, so that [:, -1] is at pos -1."""
    texts = {label: [p.prompt for p in prompts[label]] for label in LABELS}
    groups = [label for label in LABELS for _ in texts[label]]
    means = capture(model, [t for label in LABELS for t in texts[label]], groups=groups).means
    return (means["harmful"] - means["harmless"]).float()


def iterate_directions(
    model: TracedModel,
    prompts: Mapping[str, Sequence[Prompt]],
    layer: int,
    pos: int,
    rank: int,
) -> Tensor:
    """Difference in means at one place, then that of what is left when it is ablated everywhere,
    and so on: orthonormal rows (at most rank, d_model), float32, each towards harmful; fewer where
    nothing is left."""
    texts = {label: [p.prompt for p in prompts[label]] for label in LABELS}
    found = torch.empty(0, model.d_model)
    for _ in range(rank):
        edit = DirectionalAblation(found.to(model.device)) if len(found) else None
        mean = {c: capture(model, texts[c], (pos,), edit).at(pos)[layer].double() for c in LABELS}
        raw = mean["harmful"].mean(0) - mean["harmless"].mean(0)
        left = raw - (raw @ found.double().T) @ found.double()
        left = left - (left @ found.double().T) @ found.double()
        # What the ablation left of the earlier ones is rounding error.
        if left.norm() <= 1e-4 * mean["harmless"].norm(dim=1).mean():
            break
        # Not by QR, which leaves the sign open.
        found = torch.cat([found, (left / left.norm()).float()[None]])
    return found


@dataclass(frozen=True)
class Scorer:
    """Scores directions by next-token logits alone, on prompts that the clean model refuses or
    answers."""

    model: TracedModel
    tokens: Sequence[int]
    texts: Mapping[str, Sequence[str]]
    clean: Mapping[str, Tensor]

    @classmethod
    def on(
        cls, model: TracedModel, prompts: Mapping[str, Sequence[Prompt]], tokens: Sequence[int]
    ) -> Scorer:
        texts = {label: [p.prompt for p in of] for label, of in prompts.items()}
        clean = {label: next_token_logits(model, of) for label, of in texts.items()}
        return cls(model, tokens, texts, clean)

    def rows(self, layer: int, vectors: Mapping[int, Tensor]) -> Iterator[Row]:
        """A row per position: its vector (d_model,) ablated everywhere, and added after `layer` at
        coeff 1; scores prompt by prompt, as `grid` has them.

        A vector of length 0 has no direction: its ablation does nothing, and `norm` says so.
        """
        own = torch.stack(list(vectors.values())).to(self.model.device)
        ablations = [DirectionalAblation(u[None]) for u in torch.nn.functional.normalize(own)]
        additions = [ActivationAddition(v, layer) for v in own]
        ablated = self._effects(ablations, "harmful").refusal
        kl = self._effects(ablations, "harmless").kl
        added = self._effects(additions, "harmless").refusal
        for i, pos in enumerate(vectors):
            yield {
                "layer": layer,
                "pos": pos,
                "token": self.model.template.token(pos),
                "ablated": _numbers(ablated[i]),
                "added": _numbers(added[i]),
                "kl": _numbers(kl[i]),
                "norm": float(own[i].norm()),
            }

    def _effects(self, interventions: Sequence[object], label: str) -> object:
        return effects(self.model, interventions, self.texts[label], self.tokens, self.clean[label])


def scorers(
    model: TracedModel,
    prompts: Mapping[str, Sequence[Prompt]],
    tokens: Sequence[int],
    seed: int,
) -> list[Scorer]:
    """One per round of grid.two_rounds; a single one where there are too few prompts for two."""
    return [Scorer.on(model, part, tokens) for part in grid.halves(prompts, seed)]


def _numbers(scores: Tensor) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in scores.tolist()]
