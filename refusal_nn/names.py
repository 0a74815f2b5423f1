"""Folder names for models; standard library only, since make asks before anything is installed."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

from refusal_nn.errors import InputError

ADAPTERS = Path(__file__).parent / "adapters"


def safe_name(name: str) -> str:
    """A file name for a model: itself if plain, else its cleaned tail and 8 hex digits of its hash.

    Plain: [A-Za-z0-9._-]{1,80}, beginning with a letter, digit or underscore.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name):
        return name
    tail = Path(name.rstrip("/")).name.removesuffix(".gguf")
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip(".-")[:60] or "model"
    return f"{cleaned}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"


def user_path(text: str) -> Path:
    """A path with ~ expanded; one that names an unknown person stays as it is, and is not found."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_file(path: Path) -> bool:
    """Whether a file is there; False, too, for what no file can be called."""
    return os.path.isfile(path)  # noqa: PTH113  Path.is_file raises on a name too long


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False, too, for what no folder can be called."""
    return os.path.isdir(path)  # noqa: PTH112  as above


def adapter_file(model: str) -> Path | None:
    """The file of an organism's adapter that a model's name means: organism-<k>,
    organism-<k>-<seed>, or a path of its own; None if it means another kind of model.

    Raises InputError for an organism that is not bundled.
    """
    found = re.fullmatch(r"organism-(\d+|many)(?:-(\d+))?", model)
    if not found:
        path = user_path(model)
        return path if path.suffix == ".safetensors" and is_file(path) else None
    path = ADAPTERS / f"organism-{found[1]}-{found[2] or 0}.safetensors"
    if not is_file(path):
        there = ", ".join(sorted(p.stem for p in ADAPTERS.glob("*.safetensors")))
        raise InputError(
            f"{model} is not bundled; `make organism K={found[1]}` trains one, whose file is then "
            f"given as MODEL={f'; there are {there}' if there else ''}"
        )
    return path


if __name__ == "__main__":
    print(safe_name(sys.argv[-1]))
