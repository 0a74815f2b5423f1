"""From token ids to what each pass is fed: batches, the cached prefix they share, each row's own
intervention."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from refusal_nn.batching import Batch, batched, common_prefix
from refusal_nn.interventions import Intervention
from refusal_nn.models import TracedModel

TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384, "mps": 8192}
# A model of less width and depth than this one (30 blocks of 576) is given more at once: what a
# step costs there is not arithmetic.
WHOLE, MOST = 30 * 576, 8
SHORTEST_PREFIX = 4
PrefixCache = Callable[[TracedModel, Sequence[int], Intervention | None], object]


class Feed(NamedTuple):
    """A batch, the prefix cached for it, its inputs, and the intervention on its rows."""

    batch: Batch
    prefix: list[int]
    inputs: dict[str, object]
    edit: Intervention | None


@dataclass(frozen=True)
class Running:
    """Rows being generated: whole histories (row, pos) with their mask, what of them is cached, and
    the intervention on them."""

    ids: Tensor
    mask: Tensor
    cache: object
    edit: Intervention | None

    def extended(self, ids: Tensor) -> Running:
        """The same rows some tokens later; the cache has grown with them."""
        grown = self.mask.new_ones(len(ids), ids.shape[1] - self.ids.shape[1])
        return dataclasses.replace(self, ids=ids, mask=torch.cat([self.mask, grown], 1))

    def only(self, rows: list[int]) -> Running:
        """Some of the rows; the others need no more tokens."""
        if len(rows) == len(self.ids):
            return self
        self.cache.batch_select_indices(torch.tensor(rows, device=self.ids.device))
        edit = self.edit and self.edit.take(rows)
        return Running(self.ids[rows], self.mask[rows], self.cache, edit)


def begin(feed: Feed, model: TracedModel) -> Running:
    """A batch about to be generated."""
    rest = feed.inputs["input_ids"]
    prefix = torch.tensor([feed.prefix] * len(rest), dtype=rest.dtype, device=rest.device)
    cache = feed.inputs.get("past_key_values") or DynamicCache(config=model.module.config)
    return Running(torch.cat([prefix, rest], 1), feed.inputs["attention_mask"], cache, feed.edit)


class Completion(NamedTuple):
    """ids: generated tokens, the stop token included. finished: whether one came."""

    ids: tuple[int, ...]
    text: str
    finished: bool


def completion(model: TracedModel, tokens: Sequence[int]) -> Completion:
    """Generated tokens up to the first that stops, and their text."""
    stop = next((i for i, token in enumerate(tokens) if token in model.stop_ids), None)
    ids = tuple(tokens if stop is None else tokens[: stop + 1])
    text = model.lm.tokenizer.decode(ids, skip_special_tokens=True)
    return Completion(ids, text, stop is not None)


def tokens_to_run(model: TracedModel, prompts: Sequence[str]) -> int:
    """Padded tokens that capturing these prompts will compute, the shared prefix left out."""
    ids = model.template.render(prompts)
    prefix = _prefix(model, ids, len(model.template.post_ids), True)
    return sum(batch.input_ids.numel() for batch in batched(ids, prefix, budget(model, None), 0))


def feeds(
    model: TracedModel,
    ids: Sequence[Sequence[int]],
    keep: int,
    token_budget: int | None,
    share: bool,
    intervention: Intervention | None = None,
    sets: Sequence[int] | None = None,
    new_tokens: int = 0,
    *,
    prefix_cache: PrefixCache,
) -> Iterator[Feed]:
    """Every row of ids once. keep: tokens of each row that must not go into the shared prefix;
    new_tokens: room that generation will need."""
    which = _sets(intervention, sets, len(ids))
    if intervention is not None:
        intervention.check(model)
    prefix = _prefix(model, ids, keep, share, new_tokens)
    cache = prefix_cache(model, prefix, intervention) if prefix else None
    for batch in batched(ids, prefix, budget(model, token_budget), model.lm.tokenizer.pad_token_id):
        chosen = [which[row] for row in batch.rows]
        inputs = batch.inputs(model.device)
        if cache is None:
            inputs |= {"use_cache": new_tokens > 0}
        else:
            inputs |= {"past_key_values": rows_of(cache, chosen), "use_cache": True}
        yield Feed(batch, prefix, inputs, intervention and intervention.take(chosen))


def _sets(
    intervention: Intervention | None, sets: Sequence[int] | None, prompts: int
) -> Sequence[int]:
    stacked = None if intervention is None else intervention.sets
    if stacked is None:
        return [0] * prompts
    chosen = range(prompts) if sets is None else sets
    if len(chosen) != prompts or not all(0 <= s < stacked for s in chosen):
        raise ValueError(
            f"{prompts} prompts need a set each, numbered 0 to {stacked - 1}; without `sets` there "
            "must be as many sets as prompts"
        )
    return chosen


def _prefix(
    model: TracedModel, ids: Sequence[Sequence[int]], keep: int, share: bool, new_tokens: int = 0
) -> list[int]:
    # A window counts cache slots: padding between prefix and prompt would push the prefix out of a
    # short one.
    share = share and model.shares_prefix and max(map(len, ids)) + new_tokens <= model.window
    prefix = common_prefix(ids, keep) if share else []
    return prefix if len(prefix) >= SHORTEST_PREFIX else []


def budget(model: TracedModel, token_budget: int | None = None) -> int:
    usual = TOKEN_BUDGET.get(model.device.type, TOKEN_BUDGET["cpu"])
    return token_budget or usual * smallness(model)


def smallness(model: TracedModel) -> int:
    """How many times the usual number of rows or tokens a small model is given at once."""
    return min(max(WHOLE // (model.n_layers * model.d_model), 1), MOST)


def rows_of(cache: object, chosen: Sequence[int]) -> object:
    own = copy.deepcopy(cache)  # a forward pass appends to the cache it is given
    own.batch_select_indices(torch.tensor(chosen))
    return own
