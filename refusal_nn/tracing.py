"""Capture, next-token logits, generation, likelihood: passes over prompts, in sessions that run
here or on a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from refusal_nn import generation, passes  # isort: skip  before nnsight: see there
import torch
from torch import Tensor

from refusal_nn.activations import Activations, require_finite
from refusal_nn.batch_files import BatchFiles
from refusal_nn.feeding import Completion, budget, completion, plan
from refusal_nn.interventions import Intervention
from refusal_nn.models import TracedModel
from refusal_nn.running import answered

# Steps between two looks: of 16, a tenth of the time went to answers that were over (refusals).
CHUNK = 8
# A step of decoding is one token a row: in bfloat16 on a CPU 128 rows at once take 19 s where 45 at
# a time take 25, in float32 as long.
DECODED = 4
# Likelihoods keep the logits of every generated token.
NLL_SHARE = 2
FLOAT = 4  # bytes


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
    names: Sequence[str] | None = None,
    kept: BatchFiles | None = None,
) -> Activations:
    """Residual stream after every block at `positions` (negative, from the end), and streamed means
    per group, clean or under an intervention.

    groups: a name per prompt (default: one group `all`). token_budget: padded tokens per batch.
    on_batch is told the tokens done. names: what an error calls the prompts. kept: batches of this
    very capture that are on disk, and the place for more. Memory is bounded by one batch and the
    positions kept. Raises NotFinite.
    """
    ids = model.template.render(prompts)
    groups = list(groups) if groups is not None else ["all"] * len(ids)
    kinds = list(dict.fromkeys(groups))
    post = list(range(-len(model.template.post_ids), 0))
    reach = max(len(post), -min(positions))
    if max(positions) >= 0 or reach > min(map(len, ids)):
        raise ValueError(
            f"positions count from the end, -1 to -{min(map(len, ids))}; got {list(positions)}"
        )
    states = torch.empty(model.n_layers, len(ids), len(positions), model.d_model)
    sums = torch.zeros(len(kinds), model.n_layers, len(post), model.d_model, dtype=torch.float64)
    todo = plan(
        model, ids, reach, intervention=intervention, token_budget=token_budget, share=share_prefix
    )
    of = [kinds.index(group) for group in groups]
    size = FLOAT * model.n_layers * model.d_model * len(positions)
    about = (post, list(positions), of)
    run = answered(model, todo, intervention, size, passes.moments, *about, kept=kept)
    for feed, (found, finite, added) in run:
        require_finite(finite, feed.batch.rows, model, names)
        states[:, feed.batch.rows] = found
        sums += 0 if added is None else added
        on_batch(feed.batch.input_ids.numel())
    counts = {kind: groups.count(kind) for kind in kinds}
    means = {kind: sums[i] / counts[kind] for i, kind in enumerate(kinds)}
    return Activations(states, tuple(positions), means, counts)


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
    todo = plan(
        model,
        ids,
        intervention=intervention,
        sets=sets,
        token_budget=token_budget,
        share=share_prefix,
    )
    size = FLOAT * model.text_config.vocab_size
    for feed, found in answered(model, todo, intervention, size, passes.logits):
        if intervention is None:  # what an intervention does to them is for the caller to judge
            require_finite(found.isfinite().all(-1), feed.batch.rows, model, what="logits")
        for row, values in zip(feed.batch.rows, found, strict=True):
            logits[row] = values
    return torch.stack(logits)


def shares(
    model: TracedModel,
    prompts: Sequence[str],
    basis: Tensor,
    intervention: Intervention | None = None,
) -> Tensor:
    """How much of the residual stream lies in span(basis) after every block, at all positions of
    all prompts: |h Bᵀ| / |h|, (token, layer) float32. basis: (rank, d_model), orthonormal, on
    CPU."""
    todo = plan(model, model.template.render(prompts), intervention=intervention, share=False)
    size = FLOAT * model.n_layers * max(feed.batch.input_ids.shape[1] for feed in todo.feeds)
    run = answered(model, todo, intervention, size, passes.shares, basis)
    return torch.cat([found for _, found in run])


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
    options = {"token_budget": token_budget, "share": share_prefix, "sets": sets}
    return _generated(
        model, prompts, intervention, (max_new_tokens, chunk, False), on_tokens, **options
    )[0]


def generate_scored(
    model: TracedModel,
    prompts: Sequence[str],
    intervention: Intervention | None = None,
    *,
    max_new_tokens: int = 100,
    sets: Sequence[int] | None = None,
) -> tuple[list[Completion], Tensor]:
    """What generate gives, and what next_token_logits does, by the passes of the first alone."""
    done, logits = _generated(
        model, prompts, intervention, (max_new_tokens, CHUNK, True), None, sets=sets
    )
    return done, torch.stack(logits)


def _generated(
    model: TracedModel,
    prompts: Sequence[str],
    intervention: Intervention | None,
    args: tuple[int, int, bool],
    on_tokens: Callable[[int], object] | None,
    **options: object,
) -> tuple[list[Completion], list[Tensor | None]]:
    """args: of generation.completions; options: of plan."""
    max_new_tokens, _, scored = args
    ids = model.template.render(prompts)
    if model.service is None:  # a server's memory is not ours to fill
        options["token_budget"] = options.get("token_budget") or DECODED * budget(model)
    todo = plan(model, ids, intervention=intervention, new_tokens=max_new_tokens, **options)
    size = FLOAT * (max_new_tokens + scored * model.text_config.vocab_size)
    told = on_tokens if model.service is None else None  # no function of ours is called from afar
    new: list[list[int]] = [[] for _ in ids]
    logits: list[Tensor | None] = [None] * len(ids)
    run = answered(model, todo, intervention, size, generation.completions, *args, told)
    for feed, found in run:
        for row, (tokens, first) in zip(feed.batch.rows, found, strict=True):
            new[row], logits[row] = tokens, first
    return [completion(model, tokens) for tokens in new], logits


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
    lengths = list(map(len, completions))
    todo = plan(
        model,
        ids,
        max(lengths) + 1,
        intervention=intervention,
        token_budget=budget(model) // NLL_SHARE,
    )
    run = answered(model, todo, intervention, FLOAT * max(lengths), passes.nll, lengths)
    for feed, nll in run:
        for row, values in zip(feed.batch.rows, nll, strict=True):
            found[row] = values[-lengths[row] :]
    return found
