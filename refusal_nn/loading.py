"""From a name to a model ready to be traced, its precision and device chosen openly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

# Before nnsight, and nnsight before use: see tracing.
import refusal_nn.tracing  # noqa: F401  isort: skip
import torch
from nnsight import TransformersModel

from refusal_nn import checks, sites, sources
from refusal_nn.errors import InputError, ModelError
from refusal_nn.memory import free_bytes
from refusal_nn.models import FAMILIES, TracedModel, spec_of
from refusal_nn.names import adapter_file
from refusal_nn.organisms import plant, read_organism
from refusal_nn.templates import read_template, stop_ids

if TYPE_CHECKING:
    from refusal_nn.ndif import Remote

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("cuda", "mps", "cpu")
# What the cosine of directions with float32's must reach, from a quarter of the depth on, for
# DTYPE=auto to compute in less.
FAITHFUL = 0.999


def load(
    name: str = "smollm2",
    *,
    dtype: str = "auto",
    device: str = "auto",
    system: str = "default",
    remote: Remote | str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> TracedModel:
    """A chat model by alias (models.MODELS), Hub id, folder, .gguf path, tiny-<family>,
    planted-<k>-<seed>, organism-<k> or an adapter's .safetensors file, tested.

    device: cuda, mps, cpu, or auto: the first of them that is there. dtype: float32, bfloat16,
    float16, or auto: bfloat16 where the device computes in it, the self-test passes and it turns no
    direction (checks.precision_loss), else float32. What was chosen, and why, is in model.notes.
    system: the system prompt: default (what the template writes by itself), none, or a text.
    remote: an NDIF server, as ndif.Remote says, on which all passes run; or "simulate": packed as
    for a server, run here. say: told what a user must know before prompts leave the machine.
    Raises InputError for an unknown name or option, ModelError for a model that is missing, gated
    or fails its self-test, RemoteFailure for a server that is down or will not do.
    """
    adapter = adapter_file(name)
    if adapter is not None:
        organism = read_organism(adapter)
        options = {"dtype": dtype, "device": device, "system": system}
        base = load(organism.about["base"], **options, remote=remote, say=say)
        return checks.self_tested(plant(base, organism, name, adapter))
    if remote is not None:
        return _served(name, dtype, device, system, remote, say)
    return _here(name, dtype, _device(device), system)


def _served(
    name: str,
    dtype: str,
    device: str,
    system: str,
    remote: Remote | str,
    say: Callable[[str], object],
) -> TracedModel:
    """A model whose passes run on a server, or as if they did."""
    if remote == "simulate":
        from refusal_nn.services import Simulation

        here = _here(name, dtype, _device(device), system)
        service = Simulation(here.device.type, here.dtype)
        note = "simulated: requests are packed as for a server and run here"
        return _noted(dataclasses.replace(here, service=service), [note])
    from refusal_nn.ndif import connect

    if (dtype, device) != ("auto", "auto"):
        raise InputError("DTYPE and DEVICE are the server's with BACKEND=ndif; leave them auto")
    tested = checks.self_tested(connect(name, remote, say, system))
    kept = dataclasses.replace(tested.service, asked_at=None)
    return _noted(dataclasses.replace(tested, service=kept), [])


def _here(name: str, dtype: str, device: str, system: str) -> TracedModel:
    """A model on this machine, in the precision asked for, or in the one that auto finds fit."""
    if dtype not in ("auto", *DTYPES):
        raise InputError(f"DTYPE={dtype}; choose auto, {', '.join(DTYPES)}")
    preferred = spec_of(name).dtype
    chosen = preferred if dtype == "auto" else dtype
    if chosen == "auto":
        chosen = "bfloat16" if computes_bfloat16(device) else "float32"
    if chosen == "float32":
        return _noted(checks.self_tested(_wrapped(name, torch.float32, device, system)), [])
    needed, free = 4 * sources.parameter_count(name), free_bytes(device)
    # The float32 original stays until the narrow copy has passed.
    if 1.6 * needed > free:
        model = checks.self_tested(_wrapped(name, DTYPES[chosen], device, system))
        reason = f"the loss by {chosen} was not measured: float32 takes {1.6 * needed / 1e9:.0f} GB"
        return _noted(model, [reason])
    wide = _wrapped(name, torch.float32, device, system)
    return _narrowed(wide, chosen, may_refuse=dtype == "auto")


def _narrowed(wide: TracedModel, chosen: str, *, may_refuse: bool) -> TracedModel:
    """The model in a narrower dtype with the loss measured, or as it was if that may be refused."""
    exact = checks.probe_directions(wide)
    originals = checks.cast_parameters(wide.module, DTYPES[chosen])
    fault = ""
    try:
        model = checks.self_tested(wide)
        loss = checks.precision_loss(exact, checks.probe_directions(model))
        late = loss["cosine_late"]
        if late < FAITHFUL:
            fault = f"it turns directions (cosine with float32's {late:.4f}, {FAITHFUL} is asked)"
    except ModelError as error:
        if not may_refuse:
            raise
        fault = str(error)
    if fault and may_refuse:
        for parameter, original in zip(wide.module.parameters(), originals, strict=True):
            parameter.data = original
        return _noted(checks.self_tested(wide), [f"{chosen} was tried: {fault}"])
    note = (
        f"{chosen} against float32: cosine of directions at least {loss['cosine_early']:.4f}, from "
        f"a quarter of the depth on {late:.4f} (n={loss['n']} prompts)"
    )
    found = model.self_test | {"precision": loss | {"dtype": chosen}}
    return _noted(dataclasses.replace(model, self_test=found), [note])


def _noted(model: TracedModel, notes: list[str]) -> TracedModel:
    if not model.shares_prefix and model.service is None:
        notes = [*notes, "no shared prefix: its cache changes the logits"]
    where = f"{model.device} in {str(model.dtype).removeprefix('torch.')}"
    if model.service is not None:
        return dataclasses.replace(model, notes=(*model.notes, *notes))
    return dataclasses.replace(model, notes=(where, *notes, *model.notes))


def _device(device: str) -> str:
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(d for d in DEVICES if there[d])
    kind, _, number = device.partition(":")
    counted = not number or (number.isdecimal() and int(number) < torch.cuda.device_count())
    if not there.get(kind) or not counted:
        choice = ", ".join(d for d in DEVICES if there[d])
        raise InputError(f"DEVICE={device} is not here; choose auto, {choice}")
    return device


def computes_bfloat16(device: str) -> bool:
    """Whether a device, as torch names it, computes in bfloat16 by itself."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without such instructions a CPU emulates bfloat16, slower than float32.
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _wrapped(name: str, dtype: torch.dtype, device: str, system: str) -> TracedModel:
    hf, tokenizer, revision = sources.fetch(name, dtype)
    hf = hf.to(device).eval().requires_grad_(False)
    known = FAMILIES.get(hf.config.model_type)
    family = known or sites.infer(name, hf)
    sources.set_pad_token(tokenizer, hf.get_input_embeddings().num_embeddings)
    # Passed even where nnsight could find it: its search fails with transformers 5.
    lm = TransformersModel(hf, task="text-generation", tokenizer=tokenizer)
    template = read_template(tokenizer, system)
    stops = stop_ids(hf.generation_config, template)
    words = spec_of(name).refusal_words
    notes = template.notes if known else (*template.notes, f"write sites were inferred: {family}")
    return TracedModel(
        name, lm, template, family, revision, stops, notes=notes, refusal_words=words
    )
