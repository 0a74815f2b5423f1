"""The only file that opens nnsight contexts: capture, next-token logits, generation, likelihood.

Every trace obeys the rules of a remote backend also locally: forward order, containers saved
inside, slices cloned (a saved slice would ship its whole storage), no `.input` of a decoder block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

# nnsight puts `.save` on `object`, which breaks anyio modules that are imported after it.
import anyio.abc._sockets
import anyio.streams.file
import anyio.streams.tls  # noqa: F401
import nnsight
import torch
from torch import Tensor

from refusal_nn.activations import Activations, check_finite
from refusal_nn.feeding import Completion, Feed, Running, begin, budget, completion, feeds
from refusal_nn.interventions import Intervention, Reading, apply
from refusal_nn.models import TracedModel

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
CHUNK = 16
# Likelihoods keep the logits of every generated token.
NLL_SHARE = 2


def capture(
    model: TracedModel,
    prompts: Sequence[str],
    positions: Sequence[int] = (-1,),
    intervention: Intervention | None = None,
    *,
    groups: Sequence[str] | None = None,
    token_budget: int | None = None,
    share_prefix: bool = True,
    on_batch: Callable[[int], object] = lambda tokens: None,
) -> Activations:
    """Residual stream after every block at `positions` (negative, from the end), and streamed means
    per group, clean or under an intervention.

    groups: a name per prompt (default: one group `all`). token_budget: padded tokens per batch.
    on_batch is told the tokens done. Memory is bounded by one batch and the positions kept. Raises
    ModelError if an activation is not finite.
    """
    ids = model.template.render(prompts)
    groups = list(groups) if groups is not None else ["all"] * len(ids)
    post = list(range(-len(model.template.post_ids), 0))
    reach = max(len(post), -min(positions))
    if max(positions) >= 0 or reach > min(map(len, ids)):
        raise ValueError(
            f"positions count from the end, -1 to -{min(map(len, ids))}; got {list(positions)}"
        )
    kept = torch.empty(model.n_layers, len(ids), len(positions), model.d_model)
    counts = {g: groups.count(g) for g in dict.fromkeys(groups)}
    sums = {
        g: torch.zeros(model.n_layers, len(post), model.d_model, dtype=torch.float64)
        for g in counts
    }
    wanted = [*post, *positions]
    for feed in _feeds(model, ids, reach, token_budget, share_prefix, intervention):
        batch, states = feed.batch, _states(model, feed.inputs, wanted, feed.edit)
        check_finite(states, batch, model)
        kept[:, batch.rows] = states[:, :, len(post) :]
        for g in counts:
            members = [i for i, row in enumerate(batch.rows) if groups[row] == g]
            sums[g] += states[:, members, : len(post)].double().sum(1)
        on_batch(batch.input_ids.numel())
    return Activations(kept, tuple(positions), {g: sums[g] / counts[g] for g in counts}, counts)


def next_token_logits(
    model: TracedModel,
    prompts: Sequence[str],
    intervention: Intervention | None = None,
    *,
    sets: Sequence[int] | None = None,
    token_budget: int | None = None,
    share_prefix: bool = True,
) -> Tensor:
    """Logits after the last token of each prompt, (prompt, vocab) float32 on CPU, clean or under an
    intervention.

    sets: which of the intervention's stacked vectors each prompt has; by default prompt i has set
    i. Raises ValueError where the intervention does not fit the model.
    """
    ids = model.template.render(prompts)
    logits: list[Tensor] = [torch.empty(0)] * len(ids)
    for feed in _feeds(model, ids, 1, token_budget, share_prefix, intervention, sets):
        found = _logits(model, feed.inputs | {"logits_to_keep": 1}, feed.edit)
        for row, values in zip(feed.batch.rows, found, strict=True):
            logits[row] = values
    return torch.stack(logits)


def last_states(
    model: TracedModel, prompts: Sequence[str], intervention: Intervention | None = None
) -> Tensor:
    """Residual stream after the last block, all positions of all prompts, (token, d_model)
    float32."""
    found = []
    ids = model.template.render(prompts)
    for feed in _feeds(model, ids, 1, None, False, intervention):
        with torch.no_grad(), model.lm.trace(feed.inputs, remote=model.remote) as tracer:
            apply(model, feed.edit)
            stream = nnsight.save(model.blocks[-1].output.clone())
            tracer.stop()
        found.append(stream[feed.batch.attention_mask.bool()].float().cpu())
    return torch.cat(found)


def generate(
    model: TracedModel,
    prompts: Sequence[str],
    intervention: Intervention | None = None,
    *,
    max_new_tokens: int = 100,
    sets: Sequence[int] | None = None,
    token_budget: int | None = None,
    share_prefix: bool = True,
    chunk: int = CHUNK,
    on_tokens: Callable[[int], object] = lambda tokens: None,
) -> list[Completion]:
    """Greedy completions, clean or with the intervention at the prompt and at every step.

    sets: as in next_token_logits. No repetition penalty, whatever the checkpoint's generation
    config says. chunk: steps between two looks at which rows have finished and need no more;
    on_tokens is told those that each took. Raises ValueError where the intervention does not fit.
    """
    ids = model.template.render(prompts)
    new: list[list[int]] = [[] for _ in ids]
    room = max_new_tokens
    for feed in _feeds(model, ids, 1, token_budget, share_prefix, intervention, sets, room):
        rows, state = feed.batch.rows, begin(feed, model)
        for done in range(0, max_new_tokens, chunk):
            steps = min(chunk, max_new_tokens - done)
            state = _decode(model, state, steps)
            for row, tokens in zip(rows, state.ids[:, -steps:].tolist(), strict=True):
                new[row] += tokens
            on_tokens(len(rows) * steps)
            going = [i for i, row in enumerate(rows) if not model.stop_ids & set(new[row])]
            if not going:
                break
            rows, state = [rows[i] for i in going], state.only(going)
    return [completion(model, tokens) for tokens in new]


def token_nll(
    model: TracedModel,
    prompts: Sequence[str],
    completions: Sequence[Sequence[int]],
    intervention: Intervention | None = None,
) -> list[Tensor]:
    """-log p of each token of each completion (ids, one at least) after its prompt, nats, float32;
    under the clean model, or an intervention."""
    ids = [
        [*prompt, *new]
        for prompt, new in zip(model.template.render(prompts), completions, strict=True)
    ]
    found: list[Tensor] = [torch.empty(0)] * len(ids)
    longest = max(map(len, completions))
    room = budget(model) // NLL_SHARE
    for feed in _feeds(model, ids, longest + 1, room, True, intervention):
        kept = max(len(completions[row]) for row in feed.batch.rows)
        inputs, targets = (
            feed.inputs | {"logits_to_keep": kept + 1},
            feed.batch.input_ids[:, -kept:],
        )
        with torch.no_grad(), model.lm.trace(inputs, remote=model.remote):
            apply(model, feed.edit)
            nll = nnsight.save(_nll(model.lm.output.logits, targets))
        for row, values in zip(feed.batch.rows, nll.float().cpu(), strict=True):
            found[row] = values[-len(completions[row]) :]
    return found


def _nll(logits: Tensor, ids: Tensor) -> Tensor:
    """logits (row, kept + 1, vocab), ids (row, kept): (row, kept)."""
    chosen = logits[:, :-1].gather(-1, ids.to(logits.device)[..., None])[..., 0]
    return logits[:, :-1].float().logsumexp(-1) - chosen.float()


def _feeds(model: TracedModel, *options: object) -> Iterator[Feed]:
    return feeds(model, *options, prefix_cache=_prefix_cache)


def _prefix_cache(
    model: TracedModel, prefix: Sequence[int], intervention: Intervention | None
) -> object:
    """Keys and values of the prefix: a row per set, since under an intervention it has its own."""
    rows = 1 if intervention is None else intervention.sets or 1
    ids = torch.tensor([prefix] * rows, device=model.device)
    inputs = {"input_ids": ids, "use_cache": True, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), model.lm.trace(inputs, remote=model.remote) as tracer:
        apply(model, intervention)
        cache = nnsight.save(model.base.output.past_key_values)
        tracer.stop()
    return cache


def _decode(model: TracedModel, state: Running, steps: int) -> Running:
    """Exactly `steps` greedy tokens more; the caller looks for stop tokens."""
    options = GREEDY | {"max_new_tokens": steps, "pad_token_id": model.lm.tokenizer.pad_token_id}
    inputs = {
        "input_ids": state.ids,
        "attention_mask": state.mask,
        "past_key_values": state.cache,
    }
    with torch.no_grad(), model.lm.generate(inputs, remote=model.remote, **options) as tracer:
        # A loop over steps that asks for nothing would never end.
        if state.edit is not None or model.adapter is not None:
            for _ in tracer.iter[:steps]:
                apply(model, state.edit)
        ids = nnsight.save(tracer.result)
    return state.extended(ids)


def _states(
    model: TracedModel,
    inputs: dict[str, object],
    positions: list[int],
    intervention: Intervention | None,
) -> Tensor:
    with torch.no_grad(), model.lm.trace(inputs, remote=model.remote) as tracer:
        stream = nnsight.save([])
        apply(model, intervention, Reading(stream, positions))
        tracer.stop()
    return torch.stack([states.float().cpu() for states in stream])


def _logits(
    model: TracedModel, inputs: dict[str, object], intervention: Intervention | None
) -> Tensor:
    with torch.no_grad(), model.lm.trace(inputs, remote=model.remote):
        apply(model, intervention)
        logits = nnsight.save(model.lm.output.logits[:, -1].clone())
    return logits.float().cpu()
