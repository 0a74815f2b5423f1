"""The only file that opens nnsight contexts: capture activations, read next-token logits.

Every trace obeys the rules of a remote backend also locally: forward order, containers saved
inside, slices cloned (a saved slice would ship its whole storage), no `.input` of a decoder block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# nnsight puts `.save` on `object`, which breaks anyio modules that are imported after it.
import anyio.abc._sockets
import anyio.streams.file
import anyio.streams.tls  # noqa: F401
import nnsight
import torch
from torch import Tensor

from refusal_nn.batching import Batch, batched, common_prefix
from refusal_nn.errors import ModelError
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.models import TracedModel

TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384, "mps": 8192}
SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Activations:
    """Residual stream after each block. states: (layer, prompt, pos, d_model) float32 on CPU, at
    `positions`.

    means: of each group, (layer, pos, d_model) float64 over every post-instruction position, first
    of them first.
    """

    states: Tensor
    positions: tuple[int, ...]
    means: dict[str, Tensor]
    counts: dict[str, int]

    def at(self, pos: int) -> Tensor:
        """(layer, prompt, d_model) at one captured position."""
        return self.states[:, :, self.positions.index(pos)]


def capture(
    model: TracedModel,
    prompts: Sequence[str],
    positions: Sequence[int] = (-1,),
    *,
    groups: Sequence[str] | None = None,
    token_budget: int | None = None,
    share_prefix: bool = True,
    on_batch: Callable[[int], object] = lambda tokens: None,
) -> Activations:
    """Residual stream after every block at `positions` (negative, from the end), and streamed means
    per group.

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
    for batch, cache in _batches(model, ids, reach, token_budget, share_prefix):
        states = _states(model, _inputs(model, batch, cache), wanted)
        _check_finite(states, batch, model)
        kept[:, batch.rows] = states[:, :, len(post) :]
        for g in counts:
            members = [i for i, row in enumerate(batch.rows) if groups[row] == g]
            sums[g] += states[:, members, : len(post)].double().sum(1)
        on_batch(batch.input_ids.numel())
    return Activations(kept, tuple(positions), {g: sums[g] / counts[g] for g in counts}, counts)


def next_token_logits(
    model: TracedModel,
    prompts: Sequence[str],
    intervention: DirectionalAblation | None = None,
    *,
    token_budget: int | None = None,
    share_prefix: bool = True,
) -> Tensor:
    """Logits after the last token of each prompt, (prompt, vocab) float32 on CPU, clean or under an
    intervention."""
    ids = model.template.render(prompts)
    logits: list[Tensor] = [torch.empty(0)] * len(ids)
    # Under an intervention the prefix's own states change too: it cannot come from a clean cache.
    for batch, cache in _batches(
        model, ids, 1, token_budget, share_prefix and intervention is None
    ):
        rows = _logits(model, _inputs(model, batch, cache) | {"logits_to_keep": 1}, intervention)
        for row, values in zip(batch.rows, rows, strict=True):
            logits[row] = values
    return torch.stack(logits)


def last_states(
    model: TracedModel, prompts: Sequence[str], intervention: DirectionalAblation
) -> Tensor:
    """Residual stream after the last block under an intervention, all positions of all prompts,
    (token, d_model) float32."""
    found = []
    for batch, cache in _batches(model, model.template.render(prompts), 1, None, False):
        with (
            torch.no_grad(),
            model.lm.trace(_inputs(model, batch, cache), remote=model.remote) as tracer,
        ):
            intervention.apply(model)
            stream = nnsight.save(model.blocks[-1].output.clone())
            tracer.stop()
        found.append(stream[batch.attention_mask.bool()].float().cpu())
    return torch.cat(found)


def tokens_to_run(model: TracedModel, prompts: Sequence[str]) -> int:
    """Padded tokens that capturing these prompts will compute, the shared prefix left out."""
    ids = model.template.render(prompts)
    prefix = _prefix(model, ids, len(model.template.post_ids), True)
    return sum(batch.input_ids.numel() for batch in batched(ids, prefix, _budget(model, None), 0))


def _batches(
    model: TracedModel,
    ids: Sequence[Sequence[int]],
    keep: int,
    token_budget: int | None,
    share: bool,
) -> Iterator[tuple[Batch, object | None]]:
    prefix = _prefix(model, ids, keep, share)
    cache = _prefix_cache(model, prefix) if prefix else None
    for batch in batched(
        ids, prefix, _budget(model, token_budget), model.lm.tokenizer.pad_token_id
    ):
        yield batch, cache


def _prefix(model: TracedModel, ids: Sequence[Sequence[int]], keep: int, share: bool) -> list[int]:
    # A window counts cache slots: padding between prefix and prompt would push the prefix out of a
    # short one.
    share = share and model.shares_prefix and max(map(len, ids)) <= model.window
    prefix = common_prefix(ids, keep) if share else []
    return prefix if len(prefix) >= SHORTEST_PREFIX else []


def _budget(model: TracedModel, token_budget: int | None) -> int:
    return token_budget or TOKEN_BUDGET.get(model.device.type, TOKEN_BUDGET["cpu"])


def _inputs(model: TracedModel, batch: Batch, cache: object | None) -> dict[str, object]:
    inputs = batch.inputs(model.device)
    if cache is None:
        return inputs | {"use_cache": False}
    own = copy.deepcopy(cache)  # a forward pass appends to the cache it is given
    own.batch_repeat_interleave(len(batch.rows))
    return inputs | {"past_key_values": own, "use_cache": True}


def _prefix_cache(model: TracedModel, prefix: Sequence[int]) -> object:
    inputs = {
        "input_ids": torch.tensor([prefix], device=model.device),
        "use_cache": True,
        "attention_mask": torch.ones(1, len(prefix), dtype=torch.long, device=model.device),
    }
    with torch.no_grad(), model.lm.trace(inputs, remote=model.remote) as tracer:
        cache = nnsight.save(model.base.output.past_key_values)
        tracer.stop()
    return cache


def _states(model: TracedModel, inputs: dict[str, object], positions: list[int]) -> Tensor:
    with torch.no_grad(), model.lm.trace(inputs, remote=model.remote) as tracer:
        stream = nnsight.save([])
        for block in model.blocks:
            stream.append(block.output[:, positions].clone())
        tracer.stop()
    return torch.stack([states.float().cpu() for states in stream])


def _logits(
    model: TracedModel, inputs: dict[str, object], intervention: DirectionalAblation | None
) -> Tensor:
    with torch.no_grad(), model.lm.trace(inputs, remote=model.remote):
        if intervention is not None:
            intervention.apply(model)
        logits = nnsight.save(model.lm.output.logits[:, -1].clone())
    return logits.float().cpu()


def _check_finite(states: Tensor, batch: Batch, model: TracedModel) -> None:
    bad = (~torch.isfinite(states)).any(-1).any(-1)
    if bad.any():
        layer, row = (int(i) for i in bad.nonzero()[0])
        dtype = str(model.dtype).removeprefix("torch.")
        raise ModelError(
            f"{model.name}: activations after block {layer} are not finite in {dtype} (prompt "
            "number "
            f"{batch.rows[row]}); run again with DTYPE=float32"
        )
