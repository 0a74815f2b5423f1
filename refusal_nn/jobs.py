"""One request to an NDIF server: submitted once, its id kept on disk, looked at until it ends."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import torch
from nnsight.intervention.backends import remote
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.schema.request import RequestModel
from nnsight.schema.response import Status

from refusal_nn.errors import RemoteFailure
from refusal_nn.feeding import Feed
from refusal_nn.files import read_json, write_json

if TYPE_CHECKING:
    from nnsight.tracing.tracer import Tracer

    from refusal_nn.services import Ndif

# Seconds between two looks at a job, and after the first, second, ... fault of the transport.
POLL = 0.3
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)
# Seconds without a byte after which a connection counts as lost: nnsight waits for ten minutes.
SILENCE = 60.0
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
# Looks in a row at which the server does not know a job, until it is taken to have lost it: one
# that was just submitted is not known at once.
LOST_FRESH, LOST_KEPT = 200, 3
# Seconds that a job of an earlier run may stay at one status: it may have died with its server,
# whose store goes on saying that it runs. In a queue there is no saying how long it takes.
STALE = 300.0
QUEUEING = (Status.QUEUED, Status.PROVISIONING, Status.DEPLOYING)


class Job(RemoteBackend):
    """One session on an NDIF server: submitted once, its id kept, looked at until it has ended.

    What the session saved is in its frame after, as with a session here. Raises RemoteFailure.
    """

    def __init__(self, service: Ndif, path: Path, feeds: Sequence[Feed | None]) -> None:
        super().__init__(service.model_key, host=service.host, blocking=False)
        self.display.enabled = False  # a bar that prints what the server says, prompts included
        self.service, self.path, self.feeds = service, path, feeds
        self.fresh = False  # whether this process submitted the job

    def __call__(self, tracer: Tracer) -> Mapping[str, object]:
        self.job_id = self._kept()
        blob = None
        while True:
            if self.job_id is None:
                blob = blob or self._serialize(tracer)
                self._send(blob)
            result = self._awaited()
            if result is not None:
                break
            self.service.told(f"{self.host} has lost job {self.job_id}; it is asked again")
            self.job_id = None
        found = result.get("found") if isinstance(result, dict) else None
        same = isinstance(found, list) and len(found) == len(self.feeds)
        if not same or not all(map(_fits, self.feeds, found)):
            self.path.unlink(missing_ok=True)  # asked again, not taken up again
            raise RemoteFailure(
                f"{self.host} answered job {self.job_id} with something else than was asked for"
            )
        self._push(result, tracer)
        return result

    def _kept(self) -> str | None:
        try:
            return read_json(self.path)["job_id"]
        except (OSError, ValueError, TypeError, KeyError):  # none, or not whole: asked again
            return None

    def _send(self, blob: bytes) -> None:
        """Submit, and keep the id."""
        request = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
        response = self._retried("submitting", lambda: self._post(request, blob))
        self.job_id, self.fresh = response.id, True
        write_json(self.path, {"job_id": self.job_id, "submitted": time.time()})

    def _awaited(self) -> Mapping[str, object] | None:
        """What the session saved; None where the server has lost the job."""
        unknown, before, since = 0, None, time.time()
        while True:
            self.status = None
            result = self._retried(f"job {self.job_id}", self._look)
            if result is not None:
                return result
            if self.status == Status.COMPLETED:
                raise self._unread("nothing")
            unknown = unknown + 1 if self.status is None else 0
            if self.status in QUEUEING or self.status != before:
                before, since = self.status, time.time()
            stuck = not self.fresh and time.time() - since > STALE
            if stuck or unknown > (LOST_FRESH if self.fresh else LOST_KEPT):
                return None
            if time.time() > self.service.deadline:
                raise self._late()
            time.sleep(POLL)

    def download_result(self, url: object) -> object:
        """Raises RemoteFailure for an address that is no more to be trusted than such a host."""
        if isinstance(url, str) and not (self.service.insecure or is_trusted(url)):
            raise RemoteFailure(
                f"{self.host} keeps its answers at {urlsplit(url).netloc}, neither https nor this "
                "machine; INSECURE_HOST=1 fetches them all the same (SECURITY.md)"
            )
        return super().download_result(url)

    def finalize(self, content: bytes) -> object:
        """Unpack an answer. Raises RemoteFailure where it is none."""
        try:
            return super().finalize(content)
        except Exception as error:  # whatever unpickling may raise
            raise self._unread(_first(error)) from error

    def _unread(self, reason: str) -> RemoteFailure:
        self.path.unlink(missing_ok=True)  # asked again, not taken up again
        return RemoteFailure(
            f"{self.host} answered job {self.job_id} with what cannot be read: {reason}"
        )

    def _look(self) -> Mapping[str, object] | None:
        try:
            return self.poll()
        except httpx.HTTPStatusError as error:
            # The address of an old answer runs out; the job can be asked again.
            if not self.fresh and error.response.status_code in (403, 404, 410):
                return None
            raise

    def _late(self) -> RemoteFailure:
        if not self.fresh:
            # Waited for twice: it may have died with its server, and would be waited for for ever.
            self.path.unlink(missing_ok=True)
        after = "the same command takes its answer up" if self.fresh else "it will be asked again"
        return RemoteFailure(
            f"{self.host} had not answered job {self.job_id} by the deadline; {after} "
            "(DEADLINE= gives more minutes)"
        )

    def _retried(self, what: str, ask: Callable[[], object]) -> object:
        """What `ask` gives; faults of the transport are waited out a bounded number of times."""
        waits = iter(WAITS)
        while True:
            left = self.service.deadline - time.time()
            remote._READ_TIMEOUT = min(SILENCE, max(left, 1.0))
            try:
                return ask()
            except (RemoteError, httpx.HTTPError, ValueError) as error:
                reason, wait = _transient(error), next(waits, None)
                if reason is None:
                    raise self._failed(error) from error
                if wait is None or time.time() + wait > self.service.deadline:
                    raise RemoteFailure(
                        f"{self.host}: {reason} ({what}); what was answered is kept: run the same "
                        "command when the server is back"
                    ) from error
            self.service.told(f"{self.host}: {reason}; trying again in {wait:g} s")
            time.sleep(wait)

    def _failed(self, error: Exception) -> RemoteFailure:
        """The server's own words, and where in this package it happened."""
        status = _status(error)
        if status in (401, 403):  # the job is kept: the key is what is wrong
            return RemoteFailure(
                f"{self.host} does not accept this key ({_first(error)}); set NDIF_API_KEY"
            )
        if self.job_id is not None:
            self.path.unlink(missing_ok=True)  # asked again, not taken up again
        if isinstance(error, RemoteError) and self.job_id is not None and status is None:
            return RemoteFailure(f"job {self.job_id} failed on {self.host}: {_last(error)}")
        return RemoteFailure(f"{self.host}: {_first(error)}")


def is_trusted(url: str) -> bool:
    """Whether what comes from there may be unpickled: by https, or from this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


def _fits(feed: Feed | None, answer: object) -> bool:
    """Whether an answer is of a feed's rows; of all tokens' states there are as many as tokens."""
    if feed is None:
        return True
    rows, tokens = len(feed.batch.rows), int(feed.batch.attention_mask.sum())
    if isinstance(answer, tuple):  # states by layer and row, and more
        return answer[0].shape[1] == rows
    return isinstance(answer, (list, torch.Tensor)) and len(answer) in (rows, tokens)


def _status(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code
        error = error.__cause__
    return None


def _transient(error: BaseException) -> str | None:
    """What is the matter, if waiting may help."""
    status = _status(error)
    if status in TRANSIENT:
        return f"answered {status}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, httpx.TransportError):
            return f"no connection ({type(cause).__name__})"
        cause = cause.__cause__
    return None


def _first(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _last(error: BaseException) -> str:
    """The last line of a traceback says what, the last line of ours before it where."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    ours = [line for line in lines if "refusal_nn" in line and "line" in line]
    where = f" ({ours[-1]})" if ours else ""
    return (lines[-1] if lines else type(error).__name__)[:300] + where
