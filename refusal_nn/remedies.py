"""What transformers and the Hub raise over a model's files, as one message with its remedy."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
import sys
from collections.abc import Iterator

from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from refusal_nn.errors import ModelError
from refusal_nn.memory import is_out_of_memory
from refusal_nn.models import spec_of

# What a file raises that is cut off, spoilt, or of another model.
BROKEN = (
    *(ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error),
    *(SafetensorError, hub.StrictDataclassError),
)


@contextlib.contextmanager
def explained(name: str, options: dict[str, object]) -> Iterator[None]:
    """Turn what transformers and the Hub may raise into one message with its remedy."""
    # A conversion bar writes a line per step into a log file.
    to_file = options["gguf_file"] and not sys.stderr.isatty()
    quiet = contextlib.redirect_stderr(io.StringIO()) if to_file else contextlib.nullcontext()
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what matters of its reports is in ours
    try:
        with quiet, _gguf_parsed_once() if options["gguf_file"] else contextlib.nullcontext():
            yield
    except (OSError, hub.HfHubHTTPError) as error:
        raise ModelError(_remedy(error, name)) from error
    except ImportError as error:
        raise ModelError(f"{name} needs what is not installed here: {_reason(error)}") from error
    except BROKEN as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(_fault(error, name, options)) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def told_if_quantized(name: str, source: str, options: dict[str, object]) -> Iterator[None]:
    """Tell whatever goes wrong with quantized weights as what it comes from."""
    try:
        yield
    except (ImportError, ModelError, *BROKEN) as error:
        method = None if options["gguf_file"] else _quantized_by(source, options)
        if method is None or is_out_of_memory(error):
            raise
        # Not the library that transformers asks for: with it the weights would stay packed.
        why = f" ({_reason(error)})" if isinstance(error, BROKEN) else ""
        raise ModelError(
            f"the weights of {name} are quantized with {method}, and packed weights are not loaded"
            f"{why}; give the unquantized checkpoint, or a .gguf file, which is unpacked"
        ) from error


def _quantized_by(source: str, options: dict[str, object]) -> str | None:
    """The method that a configuration names for its weights; None: they are plain."""
    config, _ = PreTrainedConfig.get_config_dict(source, **options)
    parts = (config, config.get("text_config") or {})
    keys = ("quantization_config", "quantization")  # MLX has the second, and names no method
    found = [about for part in parts for key in keys if isinstance(about := part.get(key), dict)]
    if not found:
        return None
    about = found[0]
    bits = any(about.get(key) for key in ("load_in_4bit", "load_in_8bit"))
    return about.get("quant_method") or ("bitsandbytes" if bits else "a method it does not name")


def _fault(error: BaseException, name: str, options: dict[str, object]) -> str:
    if "tiktoken" in str(error):  # what transformers tries in place of a sentencepiece not there
        return (
            f"{name} has no tokenizer.json; if it has a tokenizer.model, run "
            "`.venv/bin/pip install sentencepiece protobuf`, which reads that; else fetch it again"
        )
    what = "read as GGUF" if options["gguf_file"] else "loaded"
    return f"{name} cannot be {what}: {_reason(error)}; fetch it again"


def _reason(error: BaseException) -> str:
    """What was raised, as a part of one line."""
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    if "ignore_mismatched_sizes" in reason:
        return "its weights have other shapes than its config.json says"
    return reason


def _remedy(error: BaseException, name: str) -> str:
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    page = f"https://huggingface.co/{spec_of(name).repo}"
    # A gated repository is a kind of missing one, so it is asked for first.
    remedies = {
        hub.GatedRepoError: f"accept its licence on {page}, then run `.venv/bin/hf auth login`",
        hub.RevisionNotFoundError: "this revision does not exist there",
        hub.RepositoryNotFoundError: "no such model on the Hub, or a private one: check the name",
        hub.OfflineModeIsEnabled: "unset HF_HUB_OFFLINE to let it be fetched",
    }
    for kind, remedy in remedies.items():
        if any(isinstance(cause, kind) for cause in causes):
            return f"{name}: {remedy}"
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return (
        f"{name} could not be fetched or read{offline}: {reason}. Check the connection, or give a "
        "local folder with safetensors or a .gguf file as MODEL="
    )


@contextlib.contextmanager
def _gguf_parsed_once() -> Iterator[None]:
    """While it lasts, a GGUF's header and name map are computed once.

    transformers 5.23 does so 4 and 400 times over: 30 s of 46 for a vocabulary of 152,000 tokens.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names}
    for name in names:
        setattr(gguf, name, functools.cache(originals[name]))
    try:
        yield
    finally:
        for name in names:
            setattr(gguf, name, originals[name])
