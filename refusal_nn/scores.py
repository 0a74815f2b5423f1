"""Numbers read from next-token logits: refusal score and KL. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from refusal_nn.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EPSILON = 1e-8


def refusal_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """Ids of the words that are one token at the start of an answer; a piece of a word would also
    begin others.

    Raises ModelError if none is.
    """
    encoded = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    found = list(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1))
    if not found:
        raise ModelError(f"none of the refusal words {', '.join(words)} is one token here")
    return found


def refusal_score(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Log-odds that the next token is one of `tokens`, from logits (..., vocab): (...,) float64.

    log(P + 1e-8) - log(1 - P + 1e-8), P the sum of their probabilities (Arditi et al. 2024,
    appendix B).
    """
    p = logits.double().softmax(-1)[..., list(tokens)].sum(-1)
    return (p + EPSILON).log() - (1 - p + EPSILON).log()


def kl_divergence(clean: Tensor, intervened: Tensor) -> Tensor:
    """KL(clean ‖ intervened) of the next-token distributions, logits (..., vocab): (...,) nats,
    float64."""
    p, q = (x.double().log_softmax(-1) for x in (clean, intervened))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)
