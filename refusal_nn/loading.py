"""From a name to a model ready to be traced: aliases, Hub ids, local folders, .gguf files, tiny
random models."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
import sys
from pathlib import Path

# Before nnsight, and nnsight before use: see tracing.
import refusal_nn.tracing  # noqa: F401  isort: skip
import torch
from huggingface_hub import errors as hub
from nnsight import TransformersModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from refusal_nn import tiny
from refusal_nn.checks import FAITHFUL, precision_loss, self_tested
from refusal_nn.embedded import embedded_model
from refusal_nn.errors import InputError, ModelError
from refusal_nn.files import sha256
from refusal_nn.gguf_files import parsed_once
from refusal_nn.models import FAMILIES, MODELS, TracedModel
from refusal_nn.templates import read_template

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("cuda", "mps", "cpu")


def load(name: str = "smollm2", *, dtype: str = "auto", device: str = "auto") -> TracedModel:
    """A chat model by alias (refusal_nn.models.MODELS), Hub id, local folder, .gguf path or
    tiny-<family>, self-tested.

    device: cuda, mps, cpu, or auto: the first of them that is there. dtype: float32, bfloat16,
    float16, or auto: bfloat16 where the device computes in it, the self-test passes and it turns no
    direction (checks.precision_loss), else float32. What was chosen, and why, stands in
    model.notes. Raises InputError for an unknown name or option, ModelError for a model that is
    missing, gated or fails its self-test.
    """
    target = _device(device)
    if dtype not in ("auto", *DTYPES):
        raise InputError(f"DTYPE={dtype}; choose auto, {', '.join(DTYPES)}")
    preferred = MODELS[name].dtype if name in MODELS else "auto"
    if dtype == "auto" and preferred == "auto" and _computes_bfloat16(target):
        try:
            return _tested(name, "bfloat16", target, strict=True)
        except ModelError as fault:
            # A model that cannot be loaded at all says so again here.
            return _tested(name, "float32", target, note=f"; bfloat16 was tried: {fault}")
    if dtype == "auto":
        return _tested(name, "float32" if preferred == "auto" else preferred, target)
    return _tested(name, dtype, target)


def _tested(
    name: str, dtype: str, device: str, *, strict: bool = False, note: str = ""
) -> TracedModel:
    model = self_tested(_wrapped(name, DTYPES[dtype], device))
    loss = precision_loss(model)
    if strict and loss.get("cosine_late", 1.0) < FAITHFUL:
        raise ModelError(
            f"its rounding turns directions (cosine {loss['cosine_late']:.4f} with float32's; "
            f"{FAITHFUL} is asked)"
        )
    notes = [f"{device} in {dtype}{note}"]
    if "reason" in loss:
        notes.append(f"the loss by {dtype} was not measured: {loss['reason']}")
    elif loss:
        notes.append(
            f"{dtype} against float32: cosine of directions at least {loss['cosine_early']:.4f}, "
            "from a quarter of the "
            f"depth on {loss['cosine_late']:.4f} (n={loss['n']} prompts)"
        )
    if not model.shares_prefix:
        notes.append("no shared prefix: its cache changes the logits")
    return dataclasses.replace(
        model, notes=tuple(notes), self_test=model.self_test | ({"precision": loss} if loss else {})
    )


def _device(device: str) -> str:
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(d for d in DEVICES if there[d])
    if device.split(":")[0] not in there or not there[device.split(":")[0]]:
        raise InputError(
            f"DEVICE={device} is not here; choose auto, {', '.join(d for d in DEVICES if there[d])}"
        )
    return device


def _computes_bfloat16(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without such instructions a CPU emulates bfloat16, slower than float32.
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _wrapped(name: str, dtype: torch.dtype, device: str) -> TracedModel:
    hf, tokenizer, revision = _fetched(name, dtype)
    if hf.config.model_type not in FAMILIES:
        raise ModelError(
            f"{name} is a {hf.config.model_type} model; known are {', '.join(FAMILIES)}; add a "
            "row to FAMILIES "
            "in refusal_nn/models.py, and the self-test on load will check it"
        )
    hf = hf.to(device).eval().requires_grad_(False)
    rows = hf.get_input_embeddings().num_embeddings
    # Some tokenizer classes bring a pad token of their own that the model has no row for.
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    # The tokenizer is passed even where nnsight could find it: its search fails with this
    # transformers version.
    lm = TransformersModel(hf, task="text-generation", tokenizer=tokenizer)
    return TracedModel(name, lm, read_template(tokenizer), FAMILIES[hf.config.model_type], revision)


def _fetched(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    if name.startswith("tiny-"):
        return (*tiny.build(name.removeprefix("tiny-"), dtype), "random, seed 0")
    spec = MODELS.get(name)
    path = (
        embedded_model()
        if spec and spec.embedded
        else Path(spec.repo if spec else name).expanduser()
    )
    if path.suffix == ".gguf":
        return _read_gguf(path, dtype)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{path} holds no config.json, so it is no model's folder")
        return (*_read(str(path), dtype, name), _folder_revision(path))
    if spec is None and name.count("/") != 1:
        raise InputError(
            f"unknown model {name!r}; choose one of {', '.join(MODELS)}, tiny-<family>, a Hub id "
            "owner/name, a "
            "folder or a .gguf file, or add a row to refusal_nn/models.py"
        )
    repo, revision = (spec.repo, spec.revision) if spec else (name, None)
    hf, tokenizer = _read(repo, dtype, name, revision=revision)
    return hf, tokenizer, getattr(hf.config, "_commit_hash", None) or "unknown"


def _read_gguf(
    path: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    # Its conversion bar writes a line per step into a log file.
    quiet = (
        contextlib.nullcontext()
        if sys.stderr.isatty()
        else contextlib.redirect_stderr(io.StringIO())
    )
    with parsed_once(), quiet:
        try:
            hf, tokenizer = _read(str(path.parent), dtype, str(path), gguf_file=path.name)
        except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
            raise ModelError(
                f"{path} cannot be read as GGUF ({str(error).splitlines()[0]}); fetch the file "
                "again"
            ) from error
    return hf, tokenizer, f"sha256:{sha256(path)}"


def _read(
    source: str,
    dtype: torch.dtype,
    name: str,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options = {"revision": revision or "main", "trust_remote_code": False, "gguf_file": gguf_file}
    # Packed weights would be read by kernels of another precision, and are no plain matrices to
    # reason about.
    packed = {"quantization_config": GgufConfig(dequantize=True)} if gguf_file else {}
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, **options, **packed
        ), tokenizer
    except (OSError, hub.HfHubHTTPError) as error:
        raise _explained(error, name) from error
    except ValueError as error:
        if gguf_file:
            raise
        raise ModelError(f"{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    finally:
        transformers_logging.enable_progress_bar()


def _explained(error: BaseException, name: str) -> ModelError:
    """One message per cause. GatedRepoError is a kind of RepositoryNotFoundError, so it is asked
    for first."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    remedies = (
        (
            hub.GatedRepoError,
            "accept its licence on "
            f"https://huggingface.co/{MODELS[name].repo if name in MODELS else name}, "
            "then run `.venv/bin/hf auth login`",
        ),
        (hub.RevisionNotFoundError, "this revision does not exist there"),
        (
            hub.RepositoryNotFoundError,
            "no such model on the Hub, or it is private: check the name, or log in",
        ),
        (hub.OfflineModeIsEnabled, "unset HF_HUB_OFFLINE to let it be fetched"),
    )
    for kind, remedy in remedies:
        if any(isinstance(cause, kind) for cause in causes):
            return ModelError(f"{name}: {remedy}")
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return ModelError(
        f"{name} could not be fetched or read{offline}: {str(causes[0]).splitlines()[0]} Check "
        "the connection, "
        "or give a local folder or .gguf file as MODEL="
    )


def _folder_revision(path: Path) -> str:
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    return (
        f"sha256:{sha256(weights[0])}"
        if len(weights) == 1
        else f"folder of {len(weights)} weight files"
    )
