"""Where passes run if not here: on an NDIF server, or in nnsight's simulation of one.

A request is one session. Its id is on disk before it is waited for, so that a run that was killed
takes up the answers of what it had asked.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import nnsight
import torch
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.schema.config import CONFIG
from nnsight.tracing.backend import Backend

from refusal_nn.feeding import Feed
from refusal_nn.jobs import Job
from refusal_nn.runs import code_hash

if TYPE_CHECKING:
    from refusal_nn.passes import Shared

# What one request may answer, and how many rows it may compute.
REQUEST_BYTES, REQUEST_ROWS = 64_000_000, 512
TOLD_BYTES = 5_000_000
# This package may be installed here and will not be there: its source goes along.
nnsight.register("refusal_nn")


class Service(Protocol):
    """device: kind of device that passes run on, as torch names it. dtype: what weights are in.
    where: what else there is to say of it."""

    device: str
    dtype: torch.dtype

    @property
    def where(self) -> dict[str, str]: ...

    def anew(self) -> Service: ...

    def requests(self, feeds: Sequence[Feed], row_bytes: int) -> list[list[Feed]]: ...

    def job(
        self, shared: Shared, feeds: Sequence[Feed], body: Callable[..., object], args: object
    ) -> Backend: ...


@dataclass(frozen=True)
class Simulation:
    """Requests are packed and unpacked as for a server, and run here: not a server's process, its
    memory, its versions or its transport."""

    device: str
    dtype: torch.dtype

    @property
    def where(self) -> dict[str, str]:
        return {"host": "simulated"}

    def anew(self) -> Simulation:
        """As it is: no answers are kept."""
        return self

    def requests(self, feeds: Sequence[Feed], row_bytes: int) -> list[list[Feed]]:
        """As on a server."""
        return list(_requests(feeds, row_bytes))

    def job(
        self, shared: Shared, feeds: Sequence[Feed], body: Callable[..., object], args: object
    ) -> Backend:
        return LocalSimulationBackend(shared.model.lm)


@dataclass(frozen=True)
class Ndif:
    """An NDIF server.

    model_key: nnsight's name of the model there. folder: where ids of jobs are kept. deadline:
    seconds since 1970 after which nothing is waited for. told: is given what is waited for.
    insecure: answers may come from anywhere. asked_at: set while the server is looked at or timed,
    so that it is not an earlier answer that is taken up.
    """

    host: str
    model_key: str
    folder: Path
    deadline: float
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    told: Callable[[str], object] = field(default=lambda line: None, compare=False)
    insecure: bool = False
    asked_at: float | None = None

    @property
    def where(self) -> dict[str, str]:
        return {"host": self.host, "model_key": self.model_key}

    def anew(self) -> Ndif:
        """The same, asked from now on: no earlier answer is taken up."""
        return dataclasses.replace(self, asked_at=time.time())

    def requests(self, feeds: Sequence[Feed], row_bytes: int) -> list[list[Feed]]:
        """Feeds that one request answers, in order; of much work it is said how much."""
        found = list(_requests(feeds, row_bytes))
        rows = sum(len(feed.batch.rows) for feed in feeds)
        if rows * row_bytes > TOLD_BYTES or len(found) > 1:
            size = rows * row_bytes / 1e6
            self.told(f"{rows} rows in {len(found)} requests, about {size:.0f} MB come back")
        return found

    def job(
        self, shared: Shared, feeds: Sequence[Feed], body: Callable[..., object], args: object
    ) -> Backend:
        """The backend of one session."""
        model = shared.model
        asked = (shared.prefix, shared.intervention, model.adapter, feeds, body.__name__, args)
        name = hashlib.sha256()
        where = (self.host, self.model_key, model.revision, self.device, str(self.dtype))
        how = (CONFIG.API.COMPRESS, sorted(model.stop_ids), _source(), self.asked_at)
        _digest((where, how, asked), name.update)
        return Job(self, self.folder / f"{name.hexdigest()[:32]}.json", feeds)


@functools.cache
def _source() -> str:
    """An answer that other code had asked for is not taken up."""
    return code_hash()


def _requests(feeds: Sequence[Feed], row_bytes: int) -> Iterator[list[Feed]]:
    most = max(1, min(REQUEST_ROWS, REQUEST_BYTES // max(row_bytes, 1)))
    some: list[Feed] = []
    for feed in itertools.chain.from_iterable(_cut(feed, most) for feed in feeds):
        if some and sum(len(f.batch.rows) for f in [*some, feed]) > most:
            yield some
            some = []
        some.append(feed)
    if some:
        yield some


def _cut(feed: Feed, most: int) -> Iterator[Feed]:
    """A feed of more rows than one request may have, in parts."""
    if len(feed.sets) <= most:
        yield feed
        return
    for half in feed.halves():
        yield from _cut(half, most)


def _digest(value: object, update: Callable[[bytes], object]) -> None:
    """Feed a hash with all that a request depends on."""
    update(f"<{type(value).__name__}>".encode())
    if isinstance(value, torch.Tensor):
        update(f"{value.dtype}{tuple(value.shape)}".encode())
        update(value.detach().cpu().contiguous().numpy().tobytes())
    elif dataclasses.is_dataclass(value):
        _digest({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, update)
    elif isinstance(value, dict):
        for key in value:
            update(f"{key}=".encode())
            _digest(value[key], update)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _digest(part, update)
    elif value is None or isinstance(value, (str, int, float, bool)):
        update(json.dumps(value).encode())
    else:
        raise TypeError(f"{type(value).__name__} has no digest")
    update(b";")
