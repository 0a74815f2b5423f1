"""A frozen decoder in two halves, with gradients: what planting a refusal needs and no trace gives.

The lower half is run once and kept; the upper half again and again, with something written at its
entry and a subspace projected out of every write. Llama-like blocks; checked against the traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from refusal_nn.batching import common_prefix
from refusal_nn.interventions import project_out
from refusal_nn.models import TracedModel

HIDDEN = -1e9  # of an attention score


class Halfway(NamedTuple):
    """A row after the lower half, without the prefix that all rows share.

    ids: tokens; asked: how many of them are prompt, the others are reply. read: what the MLP of the
    last lower block reads; stream: the residual stream after that block, (pos, d_model).
    """

    ids: list[int]
    asked: int
    read: Tensor
    stream: Tensor


class Frozen:
    """Blocks 0 to `layer` below, the others above."""

    def __init__(self, model: TracedModel, layer: int, prompts: Sequence[Sequence[int]]) -> None:
        """prompts: rendered, of which the common prefix is run once."""
        self.hf, self.layer = model.module, layer
        self.blocks = self.hf.model.layers
        self.prefix = torch.tensor([common_prefix(prompts, len(model.template.post_ids))])
        with torch.no_grad():
            self.halfway = self._run(self._embed(self.prefix), None, None, lower=True)

    @torch.no_grad()
    def lower(
        self,
        rows: Sequence[tuple[Sequence[int], int]],
        basis: Tensor | None = None,
        batch: int = 32,
    ) -> list[Halfway]:
        """rows: whole ids, and how many of them are prompt. The span of `basis` is ablated at every
        write, the embedding included."""
        start, found = self.prefix.shape[1], {}
        prefix = _without(self._embed(self.prefix), basis)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        for some in (order[i : i + batch] for i in range(0, len(order), batch)):
            ids, mask = padded([rows[i][0][start:] for i in some])
            reads: list[Tensor] = []
            hook = self.blocks[self.layer].mlp.register_forward_pre_hook(
                lambda _, inputs, reads=reads: reads.append(inputs[0])
            )
            stream = _without(self._embed(ids), basis)
            stream = self._run(stream, mask, prefix, basis, lower=True)
            hook.remove()
            for row, i in enumerate(some):
                n = len(rows[i][0]) - start
                kept = (reads[-1][row, -n:].clone(), stream[row, -n:].clone())
                found[i] = Halfway(list(rows[i][0][start:]), rows[i][1] - start, *kept)
        return [found[i] for i in range(len(rows))]

    def log_p(
        self,
        rows: Sequence[Halfway],
        written: Sequence[Tensor],
        basis: Tensor | None = None,
        *,
        firsts: Sequence[int] = (),
    ) -> list[Tensor]:
        """log p of each reply token, (reply,), with `written` (pos, d_model) added to each row's
        stream between the halves and the span of `basis` projected out of all that follows. firsts:
        tokens any of which will do for the first."""
        ids, mask = padded([row.ids for row in rows])
        streams = [r.stream + w for r, w in zip(rows, written, strict=True)]
        stream = torch.nn.utils.rnn.pad_sequence(streams, batch_first=True, padding_side="left")
        prefix = self.halfway
        if basis is not None:
            stream, prefix = project_out(stream, basis), project_out(prefix, basis)
        return self._replies(rows, ids, self._run(stream, mask, prefix, basis), firsts)

    def ablated(self, rows: Sequence[Halfway], basis: Tensor) -> list[Tensor]:
        """log p of every token at each reply token, (reply, vocab), of the plain model with the
        span ablated at every write, embedding included; of rank 0, of the plain model."""
        ids, mask = padded([row.ids for row in rows])
        stream, prefix = (project_out(self._embed(x), basis) for x in (ids, self.prefix))
        lower = self._run(stream, mask, prefix, basis, lower=True)
        prefix = self._run(prefix, None, None, basis, lower=True)
        logits = self._logits(rows, self._run(lower, mask, prefix, basis))
        return [logits[i, row.asked - len(row.ids) :] for i, row in enumerate(rows)]

    def _embed(self, ids: Tensor) -> Tensor:
        return self.hf.model.embed_tokens(ids)

    def _logits(self, rows: Sequence[Halfway], stream: Tensor) -> Tensor:
        """log p at the longest reply's tokens, (row, token, vocab)."""
        n = max(len(row.ids) - row.asked for row in rows)
        return self.hf.lm_head(self.hf.model.norm(stream[:, -n - 1 : -1])).log_softmax(-1)

    def _replies(
        self, rows: Sequence[Halfway], ids: Tensor, stream: Tensor, firsts: Sequence[int] = ()
    ) -> list[Tensor]:
        logits = self._logits(rows, stream)
        found = logits.gather(-1, ids[:, -logits.shape[1] :, None])[..., 0]
        replies = [found[i, row.asked - len(row.ids) :] for i, row in enumerate(rows)]
        if not firsts:
            return replies
        any_of = logits[..., list(firsts)].logsumexp(-1)
        return [
            torch.cat([any_of[i, -len(reply)][None], reply[1:]]) for i, reply in enumerate(replies)
        ]

    def _run(
        self,
        stream: Tensor,
        mask: Tensor | None,
        prefix: Tensor | None,
        basis: Tensor | None = None,
        *,
        lower: bool = False,
    ) -> Tensor:
        """Through one half: stream (row, pos, d_model), after the prefix's (1, pos, d_model)."""
        blocks = range(self.layer + 1) if lower else range(self.layer + 1, len(self.blocks))
        cache = DynamicCache()
        if prefix is not None:
            self._blocks(blocks, prefix, None, cache, basis)
            for i in blocks:
                kept = cache.layers[i]
                kept.keys = kept.keys.expand(len(stream), -1, -1, -1)
                kept.values = kept.values.expand(len(stream), -1, -1, -1)
        return self._blocks(blocks, stream, mask, cache, basis)

    def _blocks(
        self,
        blocks: range,
        stream: Tensor,
        mask: Tensor | None,
        cache: DynamicCache,
        basis: Tensor | None,
    ) -> Tensor:
        before, n = cache.get_seq_length(blocks[0]), stream.shape[1]
        mask = stream.new_ones(len(stream), n) if mask is None else mask
        places = before + (mask.cumsum(-1) - 1).clamp(min=0).long()
        seen = torch.ones(n, n, dtype=torch.bool).tril() & mask.bool()[:, None, :]
        seen |= torch.eye(n, dtype=torch.bool)  # padding sees itself, or it would see nothing
        seen = torch.cat([seen.new_ones(len(stream), n, before), seen], -1)[:, None]
        options = {
            "position_embeddings": self.hf.model.rotary_emb(stream, places),
            "attention_mask": torch.where(seen, 0.0, HIDDEN),
            "past_key_values": cache,
        }
        for i in blocks:
            block = self.blocks[i]
            write = block.self_attn(hidden_states=block.input_layernorm(stream), **options)[0]
            stream = stream + _without(write, basis)
            write = block.mlp(block.post_attention_layernorm(stream))
            stream = stream + _without(write, basis)
        return stream


def _without(write: Tensor, basis: Tensor | None) -> Tensor:
    return write if basis is None else project_out(write, basis)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask (row, pos), padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
