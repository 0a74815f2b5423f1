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
from transformers.utils import logging as transformers_logging

from refusal_nn.errors import ModelError
from refusal_nn.memory import is_out_of_memory
from refusal_nn.models import MODELS

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
    except BROKEN as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says"
        what = "read as GGUF" if options["gguf_file"] else "loaded"
        raise ModelError(f"{name} cannot be {what}: {reason}; fetch it again") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def _remedy(error: BaseException, name: str) -> str:
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    page = f"https://huggingface.co/{MODELS[name].repo if name in MODELS else name}"
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
