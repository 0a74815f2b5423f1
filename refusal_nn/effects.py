"""What interventions do to next-token logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from refusal_nn.interventions import Intervention, stacked
from refusal_nn.models import TracedModel
from refusal_nn.scores import begins_refusal, kl_divergence, refusal_score
from refusal_nn.tracing import next_token_logits


class Effects(NamedTuple):
    """What interventions do to next-token logits: a row per arm, a column per prompt. begins:
    whether the answer begins as a refusal."""

    refusal: torch.Tensor
    kl: torch.Tensor
    begins: torch.Tensor


def effects(
    model: TracedModel,
    interventions: Sequence[Intervention],
    prompts: Sequence[str],
    refusal_tokens: Sequence[int],
    clean: torch.Tensor,
) -> Effects:
    """Refusal scores and KL from the clean model of interventions that one trace can hold.

    clean: (prompt, vocab), the clean model's logits. Results (intervention, prompt), float64.
    """
    together = stacked(interventions)
    if together is None:
        raise ValueError("these interventions differ in more than their vectors")
    sets = [i for i in range(len(interventions)) for _ in prompts]
    logits = next_token_logits(model, list(prompts) * len(interventions), together, sets=sets)
    logits = logits.reshape(len(interventions), len(prompts), -1)
    return Effects(
        refusal_score(logits, refusal_tokens),
        torch.stack([kl_divergence(clean, rows) for rows in logits]),
        begins_refusal(logits, refusal_tokens).double(),
    )
