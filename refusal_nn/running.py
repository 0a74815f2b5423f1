"""Passes feed by feed, here or on a server: batches that are on disk are not run again, those that
do not fit in memory are halved."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from refusal_nn import passes  # isort: skip  before nnsight: see there
import nnsight
import torch

from refusal_nn.batch_files import BatchFiles
from refusal_nn.errors import OutOfMemory
from refusal_nn.feeding import Feed, Plan
from refusal_nn.interventions import Intervention
from refusal_nn.memory import asked_for, free_bytes, is_out_of_memory
from refusal_nn.models import TracedModel

if TYPE_CHECKING:
    from nnsight.tracing.backend import Backend

    from refusal_nn.services import Service


def answered(
    model: TracedModel,
    todo: Plan,
    intervention: Intervention | None,
    row_bytes: int,
    body: Callable[..., object],
    *args: object,
    kept: BatchFiles | None = None,
) -> Iterator[tuple[Feed, object]]:
    """What `body`, one of passes, finds of each feed: a session per feed here, on a server one per
    as many feeds as a request may answer, row_bytes a row."""
    service = model.service
    shared = passes.Shared.of(model, intervention, todo.prefix)
    if service is None:
        yield from _here(shared, todo.feeds, body, args, kept)
        return
    for feeds in service.requests(todo.feeds, row_bytes):
        yield from zip(feeds, _there(service, shared, feeds, body, args, kept), strict=True)


def _session(
    shared: passes.Shared,
    feeds: Sequence[Feed],
    body: Callable[..., object],
    args: Sequence[object],
    backend: Backend | None = None,
) -> list[object]:
    with shared.model.lm.session(backend=backend):
        found = nnsight.save(passes.answers(shared, feeds, body, args))
    return found


def _there(
    service: Service,
    shared: passes.Shared,
    feeds: Sequence[Feed],
    body: Callable[..., object],
    args: Sequence[object],
    kept: BatchFiles | None,
) -> list[object]:
    """One request's answers; asked again unless all are kept, for the last holds sums of all."""
    names = [kept.name(feed, args) for feed in feeds] if kept else []
    found = [kept.read(name) for name in names]
    if not found or None in found:
        found = _session(shared, feeds, body, args, service.job(shared, feeds, body, args))
        for i, name in enumerate(names):
            kept.write(name, found[i])
    return found


def _here(
    shared: passes.Shared,
    feeds: Sequence[Feed],
    body: Callable[..., object],
    args: Sequence[object],
    kept: BatchFiles | None,
) -> Iterator[tuple[Feed, object]]:
    """Feed by feed, those that are kept not run again; halved where memory does not suffice, down
    to one prompt. Raises OutOfMemory."""
    todo, most = list(reversed(feeds)), float("inf")
    while todo:
        feed = todo.pop()
        name = kept and kept.name(feed, args)
        found, fault = kept and kept.read(name), None
        rows = len(feed.sets)
        if found is None and (rows <= most or rows == 1):
            try:
                shared = shared.cached()
                [found] = _session(shared, [feed], body, args)
            except (MemoryError, RuntimeError) as error:
                fault = _shortage(error, shared, feed)
            if kept and fault is None:
                kept.write(name, found)
        if found is not None:
            yield feed, found
        elif rows == 1:
            raise OutOfMemory(fault)
        else:
            most = rows // 2
            todo += reversed(feed.halves())


def _shortage(error: MemoryError | RuntimeError, shared: passes.Shared, feed: Feed) -> str:
    """In words, what a feed lacks; the memory that was used is free then. Raises other errors."""
    if not is_out_of_memory(error):
        raise error
    # The frames of the failed pass hold its tensors.
    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    free = free_bytes(shared.device) / 1e6
    tokens = feed.batch.attention_mask.shape[1]
    return (
        f"one prompt alone ({tokens} tokens) does not fit: {asked_for(error)}, {free:,.0f} MB are "
        f"free on {shared.device}; try DTYPE=bfloat16, DEVICE=cpu or a smaller model"
    )
