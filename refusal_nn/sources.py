"""Where weights come from: embedded, a Hub repository, a local folder, a .gguf file, or made here.

Every way of failing ends in one ModelError (or InputError for a name that means nothing).
"""

from __future__ import annotations

import hashlib
import os
import socket
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from refusal_nn import planted, qwen1, tiny
from refusal_nn.embedded import SHA256, cache_folder, embedded_model
from refusal_nn.errors import InputError, ModelError
from refusal_nn.files import sha256, write_text
from refusal_nn.models import MODELS
from refusal_nn.names import is_file, is_folder, user_path
from refusal_nn.remedies import explained, told_if_quantized


class Fetched(NamedTuple):
    """A model on the CPU. revision: a commit, or the sha256 of its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str


def fetch(name: str, dtype: torch.dtype) -> Fetched:
    """Read the model that `name` means, in this dtype. Raises InputError, ModelError."""
    if name.startswith("tiny-"):
        return Fetched(*tiny.build(name.removeprefix("tiny-"), dtype), "random, seed 0")
    if name.startswith("planted-"):
        k, seed = planted.parse(name)
        return Fetched(*planted.build(k, seed, dtype), f"planted, rank {k}, seed {seed}")
    source, options = located(name)
    # Packed weights would be read by kernels of another precision, and are no plain matrices.
    packed = {"quantization_config": GgufConfig(dequantize=True)} if options["gguf_file"] else {}
    with explained(name, options):
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
        # Else a .bin, a pickle, would do where there is no safetensors file.
        safe = {} if options["gguf_file"] else {"use_safetensors": True}
        with told_if_quantized(name, source, options):
            model, loaded = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, output_loading_info=True, **options, **packed, **safe
            )
            _require_whole(name, loaded)
            _require_plain(model)
    return Fetched(model, tokenizer, revision_of(Path(source), options, model))


def _require_whole(name: str, loaded: dict[str, object]) -> None:
    # transformers fills what is missing with random numbers, and leaves out blocks too many.
    missing = sorted(loaded["missing_keys"])
    surplus = sorted(key for key in loaded["unexpected_keys"] if ".layers." in key)
    for keys, what in ((missing, "lacks"), (surplus, "has, and its config.json does not know of,")):
        if keys:
            raise ModelError(
                f"{name} {what} {len(keys)} weights, {keys[0]} the first: its config.json is not "
                "of these weights; fetch the model again"
            )


def _require_plain(model: PreTrainedModel) -> None:
    # Where its library is here: packed weights can be neither cast nor moved as others are.
    if getattr(model, "hf_quantizer", None) is not None:
        raise ModelError("its library leaves them packed")


def embedded_folder(name: str) -> Path:
    """An embedded model as a folder of safetensors in float32, which a server on this machine can
    read: the same weights, made once from the GGUF file. Raises ModelError."""
    folder = cache_folder() / MODELS[name].repo.rpartition("/")[2]
    made_of = folder / "made_of.txt"
    if not is_file(made_of) or made_of.read_text() != SHA256:
        fetched = fetch(name, torch.float32)
        fetched.model.config.quantization_config = None
        fetched.model.save_pretrained(folder)
        fetched.tokenizer.save_pretrained(folder)
        write_text(made_of, SHA256)  # last: the folder is whole
    return folder


def outline(name: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer alone. Raises as fetch does."""
    if name.startswith(("tiny-", "planted-")):
        model, tokenizer, _ = fetch(name, torch.float32)
        return model.config, tokenizer
    source, options = located(name)
    with explained(name, options):
        config = AutoConfig.from_pretrained(source, **options)
        return config, AutoTokenizer.from_pretrained(source, padding_side="left", **options)


def parameter_count(name: str) -> int:
    """How many parameters the model has, from its configuration alone. Raises as fetch does."""
    if name.startswith("tiny-"):
        return sum(p.numel() for p in tiny.build(name.removeprefix("tiny-"))[0].parameters())
    if name.startswith("planted-"):
        return sum(p.numel() for p in planted.build(*planted.parse(name))[0].parameters())
    source, options = located(name)
    with explained(name, options), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, **options)
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def located(name: str) -> tuple[str, dict[str, object]]:
    """Where transformers finds what `name` means, and the options that it is read with. Raises
    InputError, ModelError."""
    spec = MODELS.get(name)
    embedded = spec is not None and spec.embedded
    path = embedded_model() if embedded else user_path(spec.repo if spec else name)
    options = {"revision": "main", "trust_remote_code": False, "gguf_file": None}
    if path.suffix == ".gguf":
        if not is_file(path):
            raise ModelError(f"{path}: no such file")
        return str(path.parent), options | {"gguf_file": path.name}
    if is_folder(path):
        if not (path / "config.json").exists():
            raise ModelError(f"{path} holds no config.json, so it is no model's folder")
        if qwen1.is_qwen1(path):
            return str(_as_qwen2(path.resolve(), folder_revision(path))), options
        return str(path), options
    if spec is None and name.count("/") != 1:
        raise InputError(
            f"unknown model {name!r}; choose one of {', '.join(MODELS)}, tiny-<family>, "
            "planted-<k>-<seed>, a Hub id owner/name, a folder or a .gguf file, or add a row to "
            "refusal_nn/models.py"
        )
    if not _hub_answers():  # asking would take half a minute of retries
        options["local_files_only"] = True
    if spec is None:
        return name, options
    options |= {"revision": spec.revision or "main"}
    if spec.qwen1:
        with explained(name, options):
            files = {"allow_patterns": qwen1.FILES, "revision": options["revision"]}
            path = Path(snapshot_download(spec.repo, **files))
        return str(_as_qwen2(path, f"{spec.repo}@{path.name}")), options
    return spec.repo, options


def _as_qwen2(source: Path, made_of: str) -> Path:
    """A Qwen-1 folder as one that transformers can read, made once and kept."""
    kept = cache_folder() / f"qwen1-{hashlib.sha256(str(source).encode()).hexdigest()[:12]}"
    with explained(str(source), {"gguf_file": None}):
        return qwen1.convert(source, kept, made_of)


def _hub_answers() -> bool:
    """Whether the Hub can be reached; not looked at behind a proxy, or where it is not wanted."""
    if os.environ.get("HF_HUB_OFFLINE") or urllib.request.getproxies():
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def revision_of(source: Path, options: dict[str, object], model: PreTrainedModel) -> str:
    """What identifies the weights that were read: a commit, or their sha256."""
    if options["gguf_file"]:
        return f"sha256:{sha256(source / options['gguf_file'])}"
    if is_file(source / qwen1.MARK):
        return (source / qwen1.MARK).read_text(encoding="utf-8")
    if is_folder(source):
        return folder_revision(source)
    return getattr(model.config, "_commit_hash", None) or "unknown"


def set_pad_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Some tokenizer classes bring none, or one of their own that the model has no row for: then it
    is the end of a text, or another special token that has one. Raises ModelError."""
    named = (tokenizer.pad_token, tokenizer.eos_token, *tokenizer.all_special_tokens)
    special = [token for token in dict.fromkeys(named) if token is not None]
    fit = [token for token in special if tokenizer.convert_tokens_to_ids(token) < rows]
    if not fit:
        raise ModelError(
            "nothing can pad a batch: of its tokenizer's special tokens "
            f"({', '.join(special) or 'none'}) the model has a row for none, it has {rows}; the "
            "tokenizer is of another model, or lacks a pad_token in tokenizer_config.json"
        )
    tokenizer.pad_token = fit[0]


def folder_revision(source: Path) -> str:
    """What identifies the weights in a folder."""
    weights = sorted(source.glob("*.safetensors"))
    whole = f"sha256:{sha256(weights[0])}" if len(weights) == 1 else None
    return whole or f"folder of {len(weights)} safetensors files"
