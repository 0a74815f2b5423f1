"""Generation, chunk by chunk: traces whose cache grows. Shipped as `passes` is, by its rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from refusal_nn.passes import Shared, last  # isort: skip  before nnsight: see there
import nnsight
import torch
from torch import Tensor
from transformers import DynamicCache

from refusal_nn.feeding import Feed
from refusal_nn.interventions import Intervention, apply

# Greedy, with the stop tokens left to the caller so that the number of steps is known, and without
# the repetition penalty that some checkpoints carry in their generation config.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Running:
    """Rows being generated: whole histories (row, pos) with their mask, what of them is cached, and
    the intervention on them."""

    ids: Tensor
    mask: Tensor
    cache: object
    edit: Intervention | None
    config: object

    @classmethod
    def begin(cls, shared: Shared, feed: Feed) -> tuple[Running, Tensor]:
        """A batch one token on, and the logits (row, vocab) that it was chosen by."""
        model, inputs, edit = shared.model, shared.inputs(feed), shared.edit(feed)
        cache = inputs.get("past_key_values") or DynamicCache(config=shared.config)
        inputs |= {"past_key_values": cache, "use_cache": True, "logits_to_keep": last(1)}
        with torch.no_grad(), model.lm.trace(inputs):
            apply(model, edit)
            logits = nnsight.save(model.lm.output.logits[:, -1].clone())
        rest = inputs["input_ids"]
        prefix = torch.tensor(
            [list(shared.prefix)] * len(rest), dtype=rest.dtype, device=rest.device
        )
        mask = inputs["attention_mask"]
        begun = cls(torch.cat([prefix, rest], 1), mask, cache, edit, shared.config)
        chosen = logits.float().argmax(-1, keepdim=True).to(rest.device)
        return begun.extended(torch.cat([begun.ids, chosen], 1)), logits

    def extended(self, ids: Tensor) -> Running:
        """The same rows some tokens later. The cache has grown with them; but in a server's sandbox
        the pass was given a copy, and the next one begins anew."""
        more = self.mask.new_ones(len(ids), ids.shape[1] - self.ids.shape[1])
        grown = self.cache.get_seq_length() >= ids.shape[1] - 1
        cache = self.cache if grown else DynamicCache(config=self.config)
        mask = torch.cat([self.mask, more], 1)
        return dataclasses.replace(self, ids=ids, mask=mask, cache=cache)

    def only(self, rows: list[int]) -> Running:
        """Some of the rows; the others need no more tokens."""
        if len(rows) == len(self.ids):
            return self
        self.cache.batch_select_indices(torch.tensor(rows, device=self.ids.device))
        edit = self.edit and self.edit.take(rows)
        return Running(self.ids[rows], self.mask[rows], self.cache, edit, self.config)


def completions(
    shared: Shared,
    feed: Feed,
    max_new_tokens: int,
    chunk: int,
    scored: bool,
    on_tokens: Callable[[int], object] | None = None,
) -> list[tuple[list[int], Tensor | None]]:
    """New tokens of each row, chunk by chunk; rows that have stopped are not computed on. And, if
    `scored`, the logits of the first, (vocab,) float32 on CPU.

    on_tokens: told what each chunk took; only on this machine.
    """
    state, logits = Running.begin(shared, feed)
    new, rows = state.ids[:, -1:].tolist(), list(range(len(feed.batch.rows)))
    for done in range(1, max_new_tokens, chunk):
        going = [i for i, row in enumerate(rows) if not shared.model.stop_ids & set(new[row])]
        if not going:
            break
        rows, state = [rows[i] for i in going], state.only(going)
        steps = min(chunk, max_new_tokens - done)
        state = _decode(shared, state, steps)
        for row, tokens in zip(rows, state.ids[:, -steps:].tolist(), strict=True):
            new[row] += tokens
        if on_tokens is not None:
            on_tokens(len(rows) * steps)
    first = [row.float().cpu().clone() for row in logits] if scored else [None] * len(new)
    return list(zip(new, first, strict=True))


def _decode(shared: Shared, state: Running, steps: int) -> Running:
    """Exactly `steps` greedy tokens more; the caller looks for stop tokens."""
    model = shared.model
    options = GREEDY | {"max_new_tokens": steps, "pad_token_id": shared.pad_id}
    inputs = {
        "input_ids": state.ids,
        "attention_mask": state.mask,
        "past_key_values": state.cache,
    }
    with torch.no_grad(), model.lm.generate(inputs, **options) as tracer:
        # A loop over steps that asks for nothing would never end.
        if state.edit is not None or model.adapter is not None:
            for _ in tracer.iter[:steps]:
                apply(model, state.edit)
        ids = nnsight.save(tracer.result)
    return state.extended(ids)
