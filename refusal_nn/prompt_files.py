"""Rows of prompt files as they stand: JSONL, CSV, TXT, Parquet, and pinned data sets of the Hub."""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from refusal_nn.errors import InputError

Row = dict[str, object]
MAX_BYTES = 100_000_000


class HubFile(NamedTuple):
    """One file of a data set at one commit. label: its class, None where it has a label column."""

    repo: str
    commit: str
    file: str
    label: str | None


_JBB = ("JailbreakBench/JBB-Behaviors", "886acc352a31533ffbcf4ef22c744658688086fc")
_ALPACA = ("mlabonne/harmless_alpaca", "02c6a92cfcf11bb0c387334f8146d149d65b587f")
_ADVBENCH = ("mlabonne/harmful_behaviors", "01cead01398926d81f7c52bdb790ee8cf77ebba7")
_XSTEST = ("Paul/XSTest", "f600c994b256f12867dfa5b3eb3d545a3e62f8b5")
_TRAIN = "data/train-00000-of-00001.parquet"

HUB_SETS: dict[str, list[HubFile]] = {
    "harmful_behaviors": [HubFile(*_ADVBENCH, _TRAIN, "harmful")],
    "harmless_alpaca": [HubFile(*_ALPACA, _TRAIN, "harmless")],
    "jbb": [
        HubFile(*_JBB, "data/harmful-behaviors.csv", "harmful"),
        HubFile(*_JBB, "data/benign-behaviors.csv", "harmless"),
    ],
    "xstest": [HubFile(*_XSTEST, "xstest_prompts.csv", None)],
}


def fetch(source: HubFile) -> Path:
    """The file's path in the Hub's local cache, fetched if it is not there. Raises InputError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, commit, file, _ = source
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=commit))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{repo} at {commit[:8]} could not be fetched from the Hub ({type(error).__name__}); "
            "check the connection, or give a local file in PROMPTS="
        ) from None


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line, row) of a .jsonl, .csv, .txt or .parquet file. Raises InputError naming file and
    line."""
    readers = {".jsonl": _jsonl, ".csv": _csv, ".txt": _txt, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        known = ", ".join(HUB_SETS)
        raise InputError(
            f"{path}: prompts come as {', '.join(readers)} files, or as one of {known}"
        )
    yield from readers[path.suffix.lower()](path)


def _text(path: Path) -> str:
    try:
        # A device or a pipe would be read for ever.
        plain = stat.S_ISREG(path.stat().st_mode) and path.stat().st_size <= MAX_BYTES
        raw = path.read_bytes() if plain else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if raw is None:
        raise InputError(f"{path}: no plain file of at most {MAX_BYTES // 10**6} MB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 (byte {error.start}); save as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path}:{text[: text.index(chr(0))].count(chr(10)) + 1}: holds a NUL")
    return text


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    for line, content in enumerate(_text(path).split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{line}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{line}: expected an object, got {type(row).__name__}")
        yield line, row


def _once(pairs: list[tuple[str, object]]) -> Row:
    """An object whose keys differ: of two alike one would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is given twice")
    return row


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{path}:{reader.line_num}: two columns are called {twice!r}")
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise InputError(f"{path}:{reader.line_num}: expected {columns} columns as above")
            yield reader.line_num, {key.strip().lower(): value for key, value in row.items()}
    except csv.Error as error:
        # DictReader's own count stands at the row before.
        raise InputError(f"{path}:{reader.reader.line_num}: not CSV ({error})") from None


def _txt(path: Path) -> Iterator[tuple[int, Row]]:
    for line, content in enumerate(_text(path).split("\n"), 1):
        if "\r" in content.rstrip("\r"):
            raise InputError(f"{path}:{line}: holds a bare carriage return; end lines with LF")
        if content.strip():
            yield line, {"prompt": content}


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            f"{path}: Parquet needs pyarrow; run `.venv/bin/pip install pyarrow`, or give a .jsonl"
        ) from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not Parquet ({next(iter(str(error).splitlines()), '')})"
        ) from None
    yield from enumerate(rows, 1)
