"""Which precision which numbers need: completions can be had in half of what directions need."""

from __future__ import annotations

import copy
import dataclasses

# Before nnsight, and nnsight before use: see tracing.
from refusal_nn.tracing import next_token_logits  # isort: skip
import torch
from nnsight import TransformersModel

from refusal_nn import checks
from refusal_nn.errors import ModelError
from refusal_nn.feeding import smallness
from refusal_nn.loading import computes_bfloat16
from refusal_nn.memory import free_bytes
from refusal_nn.models import TracedModel
from refusal_nn.scores import kl_divergence

# Nats, mean over prompts: what bfloat16 may move next-token distributions by. A tenth of what a
# direction may that a verdict still calls little (verdicts.MOST_KL).
SAME_TEXT = 0.01


def for_text(model: TracedModel) -> TracedModel:
    """A copy of the model for completions and next-token logits, in bfloat16 where the model
    itself is in float32 and the copy says the same; else the model as it is.

    Directions of matched pairs turn in bfloat16 (checks.precision_loss) where what the model says
    hardly changes, and completions are most of the work. Asked of the copy: its self-test, and
    KL(float32 ‖ bfloat16) of at most SAME_TEXT nats, mean over prompts. `notes` say what was
    measured. No copy, and no note, of a model on a server, of one whose steps cost no arithmetic,
    or where the device does not compute in bfloat16.
    """
    wide = model.dtype == torch.float32 and model.service is None and smallness(model) == 1
    if not (wide and computes_bfloat16(str(model.device))):
        return model
    if 0.6e9 * model.gigabytes > free_bytes(str(model.device)):
        return _noted(model, f"in float32: a copy in bfloat16 takes {0.6 * model.gigabytes:.1f} GB")
    lm = TransformersModel(
        _narrow(model.module), task="text-generation", tokenizer=model.lm.tokenizer
    )
    texts = checks.probe_prompts()
    try:
        copied = checks.self_tested(dataclasses.replace(model, lm=lm))
        logits = [next_token_logits(m, texts) for m in (model, copied)]
    except ModelError as error:
        return _noted(model, f"in float32: {error}")
    kl = kl_divergence(*logits).mean().item()
    measured = f"KL of bfloat16 from float32 {kl:.4f} nats, {SAME_TEXT} allowed (n={len(texts)})"
    if kl > SAME_TEXT:
        return _noted(model, f"in float32: {measured}")
    found = copied.self_test | {"text_kl": {"kl": kl, "n": len(texts), "allowed": SAME_TEXT}}
    return _noted(dataclasses.replace(copied, self_test=found), f"in bfloat16: {measured}")


def _narrow(module: torch.nn.Module) -> torch.nn.Module:
    """A copy with bfloat16 parameters, tied ones tied, at no moment a second time in float32.
    Buffers, as rotary frequencies are, stay what they are."""
    narrow = {
        id(p): torch.nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False)
        for p in module.parameters()
    }
    return copy.deepcopy(module, narrow)


def _noted(model: TracedModel, note: str) -> TracedModel:
    return dataclasses.replace(model, notes=(f"completions and scores {note}",))
