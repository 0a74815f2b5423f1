"""From token ids to what each pass is fed: batches, the prefix they share, each row's own set of
vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from refusal_nn.batching import Batch, batched, common_prefix
from refusal_nn.errors import InputError
from refusal_nn.interventions import Intervention
from refusal_nn.models import TracedModel
from refusal_nn.thoughts import marks

if TYPE_CHECKING:
    from refusal_nn.templates import Template

TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384, "mps": 8192}
# A model of less width and depth than this one (30 blocks of 576) is given more at once: what a
# step costs there is not arithmetic.
WHOLE, MOST = 30 * 576, 8
SHORTEST_PREFIX = 4


class Feed(NamedTuple):
    """A batch, and which of the intervention's sets each of its rows has."""

    batch: Batch
    sets: list[int]

    def halves(self) -> list[Feed]:
        """The first and the last half of its rows."""
        middle = len(self.sets) // 2
        cuts = (slice(middle), slice(middle, None))
        return [Feed(self.batch.part(cut), self.sets[cut]) for cut in cuts]


class Plan(NamedTuple):
    """Every row once: the prefix that all share, and the batches of what follows it."""

    prefix: list[int]
    feeds: list[Feed]


class Completion(NamedTuple):
    """ids: generated tokens, the stop token included. finished: whether one came."""

    ids: tuple[int, ...]
    text: str
    finished: bool


def completion(model: TracedModel, tokens: Sequence[int]) -> Completion:
    """Generated tokens up to the first that stops, and their text."""
    stop = next((i for i, token in enumerate(tokens) if token in model.stop_ids), None)
    ids = tuple(tokens if stop is None else tokens[: stop + 1])
    return Completion(ids, _text(model.template, ids), stop is not None)


def _text(template: Template, ids: Sequence[int]) -> str:
    """Without special tokens, but for those that mark thoughts: without them thoughts would pass
    for the answer (Magistral, Command A, gpt-oss)."""
    tokenizer, special = template.tokenizer, template.special
    if not any(marks(special[i]) for i in ids if i in special):
        return tokenizer.decode(ids, skip_special_tokens=True)
    return tokenizer.decode([i for i in ids if i not in special or marks(special[i])])


def tokens_to_run(model: TracedModel, prompts: Sequence[str]) -> int:
    """Padded tokens that capturing these prompts will compute, the shared prefix left out."""
    ids = model.template.render(prompts)
    prefix = _prefix(model, ids, len(model.template.post_ids), True)
    return sum(batch.input_ids.numel() for batch in batched(ids, prefix, budget(model, None), 0))


def plan(
    model: TracedModel,
    ids: Sequence[Sequence[int]],
    keep: int = 1,
    *,
    intervention: Intervention | None = None,
    sets: Sequence[int] | None = None,
    token_budget: int | None = None,
    share: bool = True,
    new_tokens: int = 0,
) -> Plan:
    """keep: tokens of each row that must not go into the shared prefix; new_tokens: room that
    generation will need. Raises ValueError where the intervention does not fit."""
    which = _sets(intervention, sets, len(ids))
    if intervention is not None:
        intervention.check(model)
    _require_room(model, ids, new_tokens)
    prefix = _prefix(model, ids, keep, share, new_tokens)
    batches = batched(ids, prefix, budget(model, token_budget), model.lm.tokenizer.pad_token_id)
    return Plan(prefix, [Feed(batch, [which[row] for row in batch.rows]) for batch in batches])


def _require_room(model: TracedModel, ids: Sequence[Sequence[int]], new_tokens: int) -> None:
    # Beyond the positions that it was trained on a model computes on, and says nothing.
    most = getattr(model.module.config, "max_position_embeddings", None) or float("inf")
    row = max(range(len(ids)), key=lambda i: len(ids[i]))
    if len(ids[row]) + new_tokens > most:
        new = f" and {new_tokens} new ones" if new_tokens else ""
        raise InputError(
            f"{model.name} reads {most} tokens at most; prompt number {row + 1} has "
            f"{len(ids[row])}{new}; nothing is cut off: shorten it, or leave it out"
        )


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
    usual = TOKEN_BUDGET.get(model.device_type, TOKEN_BUDGET["cpu"])
    return token_budget or usual * smallness(model)


def smallness(model: TracedModel) -> int:
    """How many times the usual number of rows or tokens a small model is given at once."""
    return min(max(WHOLE // (model.n_layers * model.d_model), 1), MOST)
