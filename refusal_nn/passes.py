"""The passes of a model: every nnsight trace there is but those of `generation`. They run inside a
session, on this machine or on a server.

What is here is shipped as source, with what it calls: torch, transformers and the standard library
only. Every trace obeys the rules of a remote backend also locally: forward order, containers saved
inside, slices cloned (a saved slice would ship its whole storage), no `.input` of a decoder block.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# nnsight puts `.save` on `object`, which breaks anyio modules that are imported after it.
import anyio.abc._sockets
import anyio.streams.file
import anyio.streams.tls  # noqa: F401
import nnsight
import torch
from torch import Tensor

from refusal_nn.feeding import Feed
from refusal_nn.interventions import Intervention, Reading, apply
from refusal_nn.models import TracedModel


@dataclass(frozen=True)
class Shared:
    """What the feeds of one call share: the model, the intervention (with all its sets), and the
    prefix of every row with its cached keys and values, a row per set (None: no prefix).

    config: the decoder's. pad_id: of its tokenizer. device: where inputs are made; kind: what the
    passes run on. They are given, for in a server's sandbox there may be neither modules nor a
    tokenizer to ask.
    """

    model: TracedModel
    intervention: Intervention | None
    prefix: tuple[int, ...]
    config: object
    pad_id: int
    device: str
    kind: str
    cache: object = None

    @classmethod
    def of(
        cls, model: TracedModel, intervention: Intervention | None, prefix: Sequence[int]
    ) -> Shared:
        """Of a call on this machine's or a server's model."""
        about = (model.text_config, model.lm.tokenizer.pad_token_id)
        where = (str(model.device), model.device_type)
        return cls(model.shipped(), intervention, tuple(prefix), *about, *where)

    def edit(self, feed: Feed) -> Intervention | None:
        """The intervention on a feed's rows."""
        return self.intervention and self.intervention.take(feed.sets)

    def inputs(self, feed: Feed) -> dict[str, object]:
        """What a feed's pass is given, on the model's device."""
        inputs = feed.batch.inputs(torch.device(self.device))
        if self.cache is None:
            return inputs | {"use_cache": False}
        own = copy.deepcopy(self.cache)  # a forward pass appends to the cache it is given
        own.batch_select_indices(torch.tensor(feed.sets))
        return inputs | {"past_key_values": own, "use_cache": True}

    def cached(self) -> Shared:
        """The same with the prefix run, where there is one and it has not been."""
        if not self.prefix or self.cache is not None:
            return self
        return dataclasses.replace(self, cache=prefix_cache(self))


def answers(
    shared: Shared, feeds: Sequence[Feed], body: Callable[..., object], args: Sequence[object]
) -> list[object]:
    """What a session does: what `body`, one of those below, finds of each feed."""
    # A server in half precision autocasts what a block computes, projections in float32 too.
    with torch.autocast(shared.kind, enabled=False):
        own = shared.cached()
        found = [body(own, feed, *args) for feed in feeds]
    return summed(found) if body is moments else found


def about(shared: Shared, feed: None = None) -> tuple[str, str]:
    """Kind of device that the model is on, and its precision."""
    model = shared.model
    with torch.no_grad(), model.lm.trace({"input_ids": torch.tensor([[0]])}) as tracer:
        embedded = nnsight.save(model.embedding.output.clone())
        tracer.stop()
    return embedded.device.type, str(embedded.dtype)


def prefix_cache(shared: Shared) -> object:
    """Keys and values of the prefix: a row per set, since under an intervention it has its own."""
    model, edit = shared.model, shared.intervention
    rows = 1 if edit is None else edit.sets or 1
    ids = torch.tensor([list(shared.prefix)] * rows, device=shared.device)
    inputs = {"input_ids": ids, "use_cache": True, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), model.lm.trace(inputs) as tracer:
        apply(model, edit)
        cache = nnsight.save(model.base.output.past_key_values)
        tracer.stop()
    return cache


def states(shared: Shared, feed: Feed, positions: Sequence[int]) -> Tensor:
    """Residual stream after every block, (layer, row, pos, d_model) float32 on CPU."""
    model, inputs = shared.model, shared.inputs(feed)
    with torch.no_grad(), model.lm.trace(inputs) as tracer:
        stream: list[Tensor] = []
        apply(model, shared.edit(feed), Reading(stream, positions))
        # Not the list itself: in a server's sandbox it would come out of the trace empty.
        found = nnsight.save(torch.stack([after.float() for after in stream]))
        tracer.stop()
    return found.cpu()


# states (layer, row, pos, d_model) float32; finite (layer, row); sums (group, layer, pos, d_model)
# float64, None where they are part of another feed's. No class of ours: a server has none to name.
Moments = tuple[Tensor, Tensor, Tensor | None]


def moments(
    shared: Shared, feed: Feed, post: Sequence[int], positions: Sequence[int], groups: Sequence[int]
) -> Moments:
    """What is kept of the stream at `positions`, and of its sums at `post` over each group's rows.

    groups: of every prompt, numbered from 0.
    """
    found = states(shared, feed, [*post, *positions])
    own = torch.tensor([groups[row] for row in feed.batch.rows])
    sums = [found[:, own == g, : len(post)].double().sum(1) for g in range(max(groups) + 1)]
    finite = found.isfinite().all(-1).all(-1)
    return found[:, :, len(post) :].clone(), finite, torch.stack(sums)


def summed(found: Sequence[Moments]) -> list[Moments]:
    """The same with the sums of all feeds in the last one's place: they are not sent once a
    feed."""
    total = sum(sums for _, _, sums in found)
    return [(*part[:2], total if part is found[-1] else None) for part in found]


def shares(shared: Shared, feed: Feed, basis: Tensor) -> Tensor:
    """|h Bᵀ| / |h| of the stream after every block at all tokens, (token, layer) float32 on CPU;
    rows of B (rank, d_model) orthonormal, on CPU."""
    mask = feed.batch.attention_mask.bool()
    stream = states(shared, feed, range(mask.shape[1]))[:, mask]
    return ((stream @ basis.T).norm(dim=-1) / stream.norm(dim=-1)).T


def last(count: int) -> Tensor:
    """The last positions, as `logits_to_keep`. By a number the model takes a slice, whose rows are
    not side by side; torch then multiplies the head with each row by itself: nine times the time,
    in bfloat16 250 times (64 rows of 576, 49,152 tokens)."""
    return torch.arange(-count, 0)


def logits(shared: Shared, feed: Feed) -> Tensor:
    """After the last token, (row, vocab) float32 on CPU."""
    model, inputs = shared.model, shared.inputs(feed) | {"logits_to_keep": last(1)}
    with torch.no_grad(), model.lm.trace(inputs):
        apply(model, shared.edit(feed))
        found = nnsight.save(model.lm.output.logits[:, -1].clone())
    return found.float().cpu()


def nll(shared: Shared, feed: Feed, lengths: Sequence[int]) -> Tensor:
    """-log p of the last tokens of each row, as many as the longest of `lengths` (of every row of
    ids) among them, (row, token) float32 on CPU."""
    model, kept = shared.model, max(lengths[row] for row in feed.batch.rows)
    inputs = shared.inputs(feed) | {"logits_to_keep": last(kept + 1)}
    targets = inputs["input_ids"][:, -kept:]
    with torch.no_grad(), model.lm.trace(inputs):
        apply(model, shared.edit(feed))
        found = nnsight.save(_nll(model.lm.output.logits, targets))
    return found.float().cpu()


def _nll(logits: Tensor, ids: Tensor) -> Tensor:
    """logits (row, kept + 1, vocab), ids (row, kept): (row, kept)."""
    chosen = logits[:, :-1].gather(-1, ids.to(logits.device)[..., None])[..., 0]
    return logits[:, :-1].float().logsumexp(-1) - chosen.float()
