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
    KL(float32 ‖ bfloat16) of at most SAME_TEXT nats. No copy of a model on a server, of one whose
    steps cost no arithmetic, where the device does not compute in bfloat16 or memory is short.
    `notes` say what was measured.
    """
    wide = model.dtype == torch.float32 and model.service is None and smallness(model) == 1
    if not (wide and computes_bfloat16(str(model.device))):
        return model
    if 0.6e9 * model.gigabytes > free_bytes(str(model.device)):
        return model
    module = copy.deepcopy(model.module)
    checks.cast_parameters(module, torch.bfloat16)
    lm = TransformersModel(module, task="text-generation", tokenizer=model.lm.tokenizer)
    try:
        narrow = checks.self_tested(dataclasses.replace(model, lm=lm))
    except ModelError as error:
        return _noted(model, f"in float32: {error}")
    texts = checks.probe_prompts()
    kl = kl_divergence(*(next_token_logits(m, texts) for m in (model, narrow))).mean().item()
    measured = f"KL of bfloat16 from float32 {kl:.4f} nats, {SAME_TEXT} allowed (n={len(texts)})"
    if kl > SAME_TEXT:
        return _noted(model, f"in float32: {measured}")
    found = narrow.self_test | {"text_kl": {"kl": kl, "n": len(texts)}}
    return _noted(dataclasses.replace(narrow, self_test=found), f"in bfloat16: {measured}")


def _noted(model: TracedModel, note: str) -> TracedModel:
    return dataclasses.replace(model, notes=(f"completions and scores {note}",))
