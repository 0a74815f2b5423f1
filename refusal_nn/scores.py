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
    """First token of each word as it stands at the start of an answer; no token twice.

    Raises ModelError if the tokenizer has none of them.
    """
    firsts = [tokenizer.encode(word, add_special_tokens=False)[:1] for word in words]
    found = list(dict.fromkeys(token for first in firsts for token in first))
    if not found:
        raise ModelError(f"the tokenizer has no token for any of {', '.join(words)}")
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
