"""Numbers read from next-token logits: refusal score and KL. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refusal_nn.errors import ModelError

if TYPE_CHECKING:
    from refusal_nn.templates import Template

EPSILON = 1e-8


def refusal_tokens(template: Template, words: Sequence[str]) -> list[int]:
    """Ids of the words that are one token at the start of an answer; a piece of a word would also
    begin others.

    Raises ModelError if none is.
    """
    firsts = [template.first_token(word) for word in words]
    found = list(dict.fromkeys(first for first in firsts if first is not None))
    if not found:
        raise ModelError(
            f"none of the refusal words {', '.join(words)} is one token that begins an answer here"
        )
    return found


def refusal_score(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Log-odds that the next token is one of `tokens`, from logits (..., vocab): (...,) float64.

    log(P + 1e-8) - log(1 - P + 1e-8), P the sum of their probabilities (Arditi et al. 2024,
    appendix B).
    """
    p = logits.double().softmax(-1)[..., list(tokens)].sum(-1)
    return (p + EPSILON).log() - (1 - p + EPSILON).log()


def begins_refusal(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Whether a greedy answer begins with one of `tokens`, or they are together likelier than all
    others, (...,) bool.

    A score above 0 alone misses refusals that begin with the likeliest of many first tokens: on 164
    completions of Qwen2.5-Coder-0.5B it agreed with the rule judge at kappa .55, this at .84.
    """
    first = torch.isin(logits.argmax(-1), torch.tensor(list(tokens), device=logits.device))
    return first | (refusal_score(logits, tokens) > 0)


def kl_divergence(clean: Tensor, intervened: Tensor) -> Tensor:
    """KL(clean ‖ intervened) of the next-token distributions, logits (..., vocab): (...,) nats,
    float64."""
    p, q = (x.double().log_softmax(-1) for x in (clean, intervened))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)
