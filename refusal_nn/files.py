"""Files that are whole or not there: atomic writes of text, JSON, CSV and tensors, and reading."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_nn.errors import DiskError

if TYPE_CHECKING:
    from torch import Tensor


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success; on failure the old file
    stays. Raises DiskError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DiskError(
            f"could not write {path}: {error.strerror}; free some space and run the same command "
            "again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as CSV, columns in the first row's order, floats to 10 significant digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )
    write_text(path, buffer.getvalue())


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


def read_csv(path: Path) -> list[dict[str, object]]:
    """Rows of a CSV that write_csv wrote, numbers and booleans parsed."""

    def parsed(text: str) -> object:
        if text in ("True", "False"):
            return text == "True"
        with contextlib.suppress(ValueError):
            return int(text)
        with contextlib.suppress(ValueError):
            return float(text)
        return text

    with path.open(newline="", encoding="utf-8") as file:
        return [{k: parsed(v) for k, v in row.items()} for row in csv.DictReader(file)]


def read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))
