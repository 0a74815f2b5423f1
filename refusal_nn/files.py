"""Files that are whole or not there: atomic writes of text, JSON, CSV and tensors, and reading."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from refusal_nn.errors import DiskError, NotFinite

if TYPE_CHECKING:
    from torch import Tensor


NOT_FINITE = "nothing of it was written; run again with DTYPE=float32"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path, needed: int = 0) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success; else the old file stays.

    needed: bytes that will be written, for the error. Raises DiskError for whatever the disk
    refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # it might be a link to another place
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error, needed) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def not_written(path: Path, error: BaseException, needed: int) -> DiskError:
    """What to say where the disk refuses `needed` bytes at `path`."""
    reason = getattr(error, "strerror", None) or error
    free = f", {free_bytes(path):,} are free there" if path.parent.is_dir() else ""
    size = f" ({needed:,} bytes needed{free})" if needed else ""
    return DiskError(
        f"could not write {path}: {reason}{size}; make room or give another RESULTS= folder, then "
        "run the same command again"
    )


def require_room(folder: Path, needed: int) -> None:
    """Raises DiskError where a folder's disk has fewer free bytes than `needed` and a fifth."""
    if needed * 1.2 > free_bytes(folder / "any"):
        raise not_written(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), needed)


def free_bytes(path: Path) -> int:
    """Bytes that are free on the disk of a file's folder."""
    return shutil.disk_usage(path.parent).free


def write_text(path: Path, text: str) -> None:
    content = text.encode()
    with replacing(path, len(content)) as partial:
        partial.write_bytes(content)


def write_private(path: Path, text: str) -> None:
    """For the owner's eyes only from the first byte on."""
    content = text.encode()
    with replacing(path, len(content)) as partial:
        partial.touch(0o600)
        partial.chmod(0o600)
        partial.write_bytes(content)


def json_text(value: object) -> str:
    """As write_json writes it. Raises NotFinite."""
    try:
        return json.dumps(value, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise NotFinite(f"{error}; {NOT_FINITE}") from None


def write_json(path: Path, value: object) -> None:
    write_text(path, json_text(value))


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as CSV, columns in the first row's order, floats to 10 significant digits; what a
    spreadsheet would take for a formula begins with an apostrophe. Raises NotFinite."""
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise NotFinite(f"{path.name}: {name} of row {number} is {value}; {NOT_FINITE}")
    buffer = io.StringIO()
    # The writer does not quote a bare carriage return, which would end the row when read.
    returns = any(isinstance(v, str) and "\r" in v for row in rows for v in row.values())
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n", quoting=quoting)
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
    write_text(path, buffer.getvalue())


# Spreadsheets compute what begins so, white space before it or not.
FORMULA = re.compile(r"'*\s*[=+\-@\t\r\n＝＋－＠]")


def _cell(value: object) -> object:
    if isinstance(value, str) and FORMULA.match(value):
        return f"'{value}"
    return f"{value:.10g}" if isinstance(value, float) else value


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object], *, finite: bool = True
) -> None:
    """Tensors as safetensors; `about` as canonical JSON under the metadata key refusal_nn. Raises
    NotFinite, unless `finite` is not asked."""
    from safetensors.torch import save_file

    size = sum(t.numel() * t.element_size() for t in tensors.values())
    for name, values in tensors.items():
        if finite and not values.isfinite().all():
            raise NotFinite(f"{path.name}: {name} is not finite everywhere; {NOT_FINITE}")
    with replacing(path, size) as partial:
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
            {k: _text(v) if k in NAMES else _parsed(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def _parsed(text: str) -> object:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        # Only what write_csv makes of a number: an id such as 007 or 1e5 stays text.
        with contextlib.suppress(ValueError):
            number = kind(text)
            if math.isfinite(number) and str(_cell(number)) == text:
                return number
    return _text(text)


def _text(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
