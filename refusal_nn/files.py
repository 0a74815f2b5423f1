"""Files that are whole or not there: atomic writes of text, JSON, CSV and tensors, and reading."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from refusal_nn.errors import DiskError

if TYPE_CHECKING:
    from torch import Tensor


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success; else the old file stays.

    Raises DiskError for whatever the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DiskError(
            f"could not write {path}: {reason}; make room or give another RESULTS= folder, then "
            "run the same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_private(path: Path, text: str) -> None:
    """For the owner's eyes only from the first byte on."""
    with replacing(path) as partial:
        partial.touch(0o600)
        partial.chmod(0o600)
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as CSV, columns in the first row's order, floats to 10 significant digits."""
    buffer = io.StringIO()
    # The writer does not quote a bare carriage return, which would end the row when read.
    returns = any(isinstance(v, str) and "\r" in v for row in rows for v in row.values())
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n", quoting=quoting)
    writer.writeheader()
    writer.writerows({k: _number(v) for k, v in row.items()} for row in rows)
    write_text(path, buffer.getvalue())


def _number(value: object) -> object:
    return f"{value:.10g}" if isinstance(value, float) else value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> None:
    """Tensors as safetensors; `about` as canonical JSON under the metadata key refusal_nn."""
    from safetensors.torch import save_file

    with replacing(path) as partial:
        save_file(
            {k: v.contiguous() for k, v in tensors.items()},
            partial,
            metadata={"refusal_nn": json.dumps(about, sort_keys=True)},
        )
        partial.chmod(0o644)  # safetensors writes for the owner only, unlike everything else here


# What a person chose as a name is text, even where it looks like a number.
NAMES = ("id", "pair", "category")


def read_csv(path: Path) -> list[dict[str, object]]:
    """Rows of a CSV that write_csv wrote, numbers and booleans parsed, all other text as it was;
    the columns NAMES are always text."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {k: v if k in NAMES else _parsed(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def _parsed(text: str) -> object:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        # Only what write_csv makes of a number: an id such as 007 or 1e5 stays text.
        with contextlib.suppress(ValueError):
            number = kind(text)
            if math.isfinite(number) and str(_number(number)) == text:
                return number
    return text


def read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
