"""A chat model on an NDIF server: looked for and described, its weights never loaded here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import refusal_nn.passes  # noqa: F401  isort: skip  before nnsight: see there
import httpx
import nnsight
import torch
from nnsight import TransformersModel
from nnsight.modeling import huggingface
from nnsight.schema.config import CONFIG
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from refusal_nn import jobs, passes, services, sources
from refusal_nn.embedded import SHA256
from refusal_nn.errors import InputError, RemoteFailure
from refusal_nn.models import MODELS, TracedModel, family_of, spec_of
from refusal_nn.names import is_folder, user_path
from refusal_nn.remedies import explained
from refusal_nn.templates import read_template, stop_ids

MINUTES = 60.0
KEPT = 24 * 3600  # seconds
CRITICAL = ("nnsight", "transformers")


@dataclass(frozen=True)
class Remote:
    """How a server is used. folder: where ids of jobs are kept; minutes: all the waiting of this
    process; insecure: a host that is neither https nor this machine is accepted; mismatch: other
    versions than here are."""

    folder: Path
    minutes: float = MINUTES
    insecure: bool = False
    mismatch: bool = False


def connect(
    name: str,
    remote: Remote,
    say: Callable[[str], object] = lambda line: None,
    system: str = "default",
) -> TracedModel:
    """A model on the server of nnsight's settings (NDIF_HOST, NDIF_API_KEY), without its self-test.

    say is told what a user must know before prompts leave the machine. Raises InputError for a host
    or a name that cannot be used, RemoteFailure where the server is down or of other versions.
    """
    host = CONFIG.API.HOST.rstrip("/")
    require_safe(host, remote.insecure)
    CONFIG.API.HOST = host
    if jobs.is_loopback(urlsplit(host).hostname or ""):
        _no_proxy()
    say(f"BACKEND=ndif: prompts leave this machine for {host}")
    state = _state(host)
    source, revision = _source(name, host)
    say(f"{host} is up; {_standing(state, source)}")
    _require_versions(host, remote.mismatch, say)
    lm, config = _meta(source, name)
    family = family_of(name, config)
    template = read_template(lm.tokenizer, system)
    _forget(remote.folder)
    deadline = time.time() + 60 * remote.minutes
    service = services.Ndif(
        host, lm.to_model_key(), remote.folder, deadline, told=say, insecure=remote.insecure
    )
    stops = stop_ids(_generation_config(source), template)
    words = spec_of(name).refusal_words
    revision, notes = _revision(revision, config, host)
    # A server's sandbox hands out no keys and values of a prefix to go on from.
    model = TracedModel(
        name,
        lm,
        template,
        family,
        revision,
        stops,
        notes=(*notes, *template.notes),
        shares_prefix=False,
        refusal_words=words,
        service=service,
    )
    return described(model)


def _forget(folder: Path) -> None:
    """Ids of jobs whose answers no server keeps so long."""
    for path in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # another run's, ended meanwhile
            if path.stat().st_mtime < time.time() - KEPT:
                path.unlink()


def require_safe(host: str, insecure: bool) -> None:
    """Results are unpickled by nnsight: whoever can change them on their way can run code here.
    Raises InputError for a host that is neither https nor loopback."""
    try:
        parts, _ = urlsplit(host), httpx.URL(host)
        plain = host.startswith(("http://", "https://")) and parts.hostname and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        plain = False
    if not plain or parts.username is not None:
        raise InputError("NDIF_HOST must be as https://api.ndif.us or http://127.0.0.1:8001")
    if jobs.is_trusted(host) or insecure:
        return
    raise InputError(
        f"NDIF_HOST={host}: results are unpickled here, so only https or this machine is trusted; "
        "INSECURE_HOST=1 accepts it all the same (SECURITY.md)"
    )


def _no_proxy() -> None:
    """A proxy of the environment would take what is meant for this machine elsewhere."""
    for name in ("NO_PROXY", "no_proxy"):
        there = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join(dict.fromkeys([*there, "127.0.0.1", "localhost", "::1"]))


def _state(host: str) -> Mapping[str, Mapping[str, object]]:
    """Deployments by name. Raises RemoteFailure where the server does not answer."""
    try:
        headers = {"ndif-api-key": CONFIG.API.APIKEY} if CONFIG.API.APIKEY else {}
        answer = httpx.get(f"{host}/status", timeout=60.0, headers=headers)
        answer.raise_for_status()
        found = dict(answer.json().get("deployments") or {})
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        hint = "; set NDIF_API_KEY" if code in (401, 403) else "; try again later"
        raise RemoteFailure(f"{host} answered {code} when asked for its status{hint}") from error
    except (httpx.HTTPError, ValueError, AttributeError, TypeError) as error:
        raise RemoteFailure(
            f"no NDIF server answers at {host} ({type(error).__name__}); check NDIF_HOST, or run "
            "on this machine with BACKEND=local"
        ) from error
    return found


def _standing(state: Mapping[str, Mapping[str, object]], source: str) -> str:
    for about in state.values():
        if about.get("repo_id") == source:
            level, running = about.get("deployment_level"), about.get("application_state")
            return f"{source} is {level}, {running}"
    there = sorted({str(about.get("repo_id")) for about in state.values()})
    known = f"; there are {', '.join(there[:8])}" if there else ""
    return f"{source} is not loaded there yet, and will be if the server may{known}"


def _require_versions(host: str, mismatch: bool, say: Callable[[str], object]) -> None:
    try:
        found = nnsight.compare().critical_mismatches
    except (httpx.HTTPError, ValueError) as error:
        raise RemoteFailure(f"{host} does not say its versions: {error}") from error
    words = [f"{name} {v['remote']} there, {v['local']} here" for name, v in found.items()]
    if not words:
        say("versions match")
    elif mismatch or not set(CRITICAL) & set(found):
        say(f"versions differ: {', '.join(words)}")
    else:
        raise RemoteFailure(
            f"{host} has other versions: {', '.join(words)}; install those, or VERSION_MISMATCH=1 "
            "goes on all the same"
        )


def _source(name: str, host: str) -> tuple[str, str | None]:
    """The server's name of a model, and its revision where that is known without asking."""
    spec = MODELS.get(name)
    if spec is not None and spec.embedded and jobs.is_loopback(urlsplit(host).hostname or ""):
        return str(sources.embedded_folder(name)), f"sha256:{SHA256}"
    if spec is not None:
        return spec.repo, None
    if is_folder(user_path(name)):
        path = user_path(name).resolve()
        return str(path), sources.folder_revision(path)
    if name.count("/") != 1:
        raise InputError(
            f"MODEL={name} cannot be on a server; choose one of {', '.join(MODELS)}, organism-<k>, "
            "a Hub id owner/name, or a folder that the server can read"
        )
    return name, None


def _revision(known: str | None, config: object, host: str) -> tuple[str, tuple[str, ...]]:
    """The revision, and a note where it is only that of what was read here: a server does not say
    which commit its weights are of."""
    if known is not None:
        return known, ()
    here = getattr(config, "_commit_hash", None) or "main"
    return here, (f"weights: what {host} has; tokenizer and configuration: {here}",)


def _meta(source: str, name: str) -> tuple[TransformersModel, object]:
    """The model's modules without weights, and its configuration."""
    revision = getattr(MODELS.get(name), "revision", None)
    options = {"revision": revision or "main", "trust_remote_code": False}
    with explained(name, options | {"gguf_file": None}):
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
        sources.set_pad_token(tokenizer, config.get_text_config().vocab_size)
        # nnsight would ask the Hub how an id is spelt.
        huggingface._ID_CACHE.setdefault(source, source)
        lm = TransformersModel(
            source, task="text-generation", tokenizer=tokenizer, revision=revision
        )
    return lm, config


def _generation_config(source: str) -> GenerationConfig | None:
    with contextlib.suppress(OSError):  # not every model has one
        return GenerationConfig.from_pretrained(source)
    return None


def described(model: TracedModel) -> TracedModel:
    """The model with the kind of device and the precision that its passes have: one request."""
    model = model.anew()  # of the server as it is now
    about = passes.Shared.of(model, None, ())
    with model.lm.session(backend=model.service.job(about, [None], passes.about, ())):
        found = nnsight.save(passes.answers(about, [None], passes.about, ()))
    device, dtype = found[0]
    known = dataclasses.replace(
        model.service, device=device, dtype=getattr(torch, dtype.removeprefix("torch."))
    )
    note = f"on {model.service.host}, {device} in {dtype.removeprefix('torch.')}"
    return dataclasses.replace(model, service=known, notes=(note, *model.notes))
