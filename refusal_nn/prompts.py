"""Prompt sets: read, check, de-duplicate, cluster and split. No model and no heavy import here."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from refusal_nn.errors import InputError

BUNDLED = Path(__file__).parent.parent / "prompts" / "pairs.jsonl"
LABELS = ("harmful", "harmless")
TEXT_COLUMNS = ("prompt", "text", "goal", "instruction", "behavior", "question")
# Words by which public sets call the classes; XSTest says safe/unsafe, JailbreakBench's two configurations say so too.
LABEL_WORDS = {"harmful": "harmful", "unsafe": "harmful", "1": "harmful", "harmless": "harmless", "safe": "harmless",
               "benign": "harmless", "0": "harmless"}  # fmt: skip
# Sets on the Hub: parts of (repository, commit, file, class), the class None where the file has a label column.
HUB_SETS: dict[str, tuple[tuple[str, str, str, str | None], ...]] = {
    "harmful_behaviors": (("mlabonne/harmful_behaviors", "01cead01398926d81f7c52bdb790ee8cf77ebba7",
                           "data/train-00000-of-00001.parquet", "harmful"),),
    "harmless_alpaca": (("mlabonne/harmless_alpaca", "02c6a92cfcf11bb0c387334f8146d149d65b587f",
                         "data/train-00000-of-00001.parquet", "harmless"),),
    "jbb": (("JailbreakBench/JBB-Behaviors", "886acc352a31533ffbcf4ef22c744658688086fc",
             "data/harmful-behaviors.csv", "harmful"),
            ("JailbreakBench/JBB-Behaviors", "886acc352a31533ffbcf4ef22c744658688086fc",
             "data/benign-behaviors.csv", "harmless")),
    "xstest": (("Paul/XSTest", "f600c994b256f12867dfa5b3eb3d545a3e62f8b5", "xstest_prompts.csv", None),),
}  # fmt: skip
MAX_CHARACTERS = 20_000


@dataclass(frozen=True)
class Prompt:
    """One request. pair: the id that matched twins share. severity: 1-5, of harmful prompts. where: file and line."""

    id: str
    prompt: str
    label: str
    pair: str | None = None
    category: str | None = None
    severity: int | None = None
    source: str | None = None
    where: str = ""


def load_prompts(spec: str | None = None, notes: list[str] | None = None) -> list[Prompt]:
    """The bundled matched pairs, or the sets named in `spec`, checked and without exact repetitions.

    spec: one file that has both classes (JSONL or CSV with a label column), or several comma-separated parts, each
    `harmful=FILE` or `harmless=FILE` (JSONL, CSV, TXT with one prompt a line; the words may be left out if the file names
    begin so). A part may be one of HUB_SETS. What was dropped is appended to `notes`.
    Raises InputError, naming file and line, for anything that cannot be read as such.
    """
    prompts: list[Prompt] = []
    for part in (spec or str(BUNDLED)).split(","):
        label, _, name = part.strip().rpartition("=")
        if label not in ("", *LABELS):
            raise InputError(f"PROMPTS part {part!r}: the word before = must be harmful or harmless")
        prompts += _read(name, label or None)
    return _checked(prompts, [] if notes is None else notes)


def _read(name: str, label: str | None) -> list[Prompt]:
    if name in HUB_SETS:
        return [p for repo, commit, file, own in HUB_SETS[name]
                for p in _read_file(_fetch(repo, commit, file), label or own)]  # fmt: skip
    path = Path(name).expanduser()
    named = next((word for word in LABELS if path.stem.lower().startswith(word)), None)
    return _read_file(path, label or named)


def _read_file(path: Path, label: str | None) -> list[Prompt]:
    if path.suffix.lower() == ".parquet":
        return [_prompt(row, label, path, line) for line, row in enumerate(_parquet_rows(path), 1)]
    readers: dict[str, Callable[[str, Path], Iterable[tuple[int, dict]]]] = {
        ".jsonl": _jsonl_rows, ".csv": _csv_rows, ".txt": _txt_rows}  # fmt: skip
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: prompts come as .jsonl, .csv, .txt or .parquet, or as one of {', '.join(HUB_SETS)}")
    return [_prompt(row, label, path, line) for line, row in readers[path.suffix.lower()](_text(path), path)]


def _fetch(repo: str, commit: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=commit))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{repo} at {commit[:8]} could not be fetched from the Hub ({type(error).__name__}); check the "
                         "connection, or give a local file in PROMPTS=") from None


def _parquet_rows(path: Path) -> list[dict]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow; run `.venv/bin/pip install pyarrow` or give a .jsonl") from None
    return parquet.read_table(path).to_pylist()


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path}:{text[:text.index(chr(0))].count(chr(10)) + 1}: holds a NUL character")
    return text


def _jsonl_rows(text: str, path: Path) -> Iterable[tuple[int, dict]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{line}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{line}: expected one JSON object a line, got {type(row).__name__}")
        yield line, row


def _csv_rows(text: str, path: Path) -> Iterable[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{path}:{reader.line_num}: expected {len(reader.fieldnames)} columns as in the header")
            yield reader.line_num, {key.strip().lower(): value for key, value in row.items()}
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV ({error})") from None


def _txt_rows(text: str, path: Path) -> Iterable[tuple[int, dict]]:
    return ((line, {"prompt": content}) for line, content in enumerate(text.split("\n"), 1) if content.strip())


def _prompt(row: dict, label: str | None, path: Path, line: int) -> Prompt:
    where = f"{path}:{line}"
    column = next((name for name in TEXT_COLUMNS if name in row), None)
    if column is None:
        raise InputError(f"{where}: no column {' or '.join(TEXT_COLUMNS)}; found {', '.join(map(str, row)) or 'none'}")
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: the prompt is empty or no text")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{where}: {len(text)} characters; prompts have at most {MAX_CHARACTERS}")
    word = label or LABEL_WORDS.get(str(row.get("label", "")).strip().lower())
    if word is None:
        raise InputError(f"{where}: no class; give a column label (harmful, harmless) or PROMPTS=harmful=FILE,harmless=FILE")
    severity = row.get("severity")
    if severity not in (None, "") and str(severity) not in tuple("12345"):
        raise InputError(f"{where}: severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    known = {key: str(row[key]) for key in ("pair", "category", "source") if row.get(key) not in (None, "")}
    identity = str(row["id"]) if row.get("id") not in (None, "") else f"{path.stem}-{line}"
    return Prompt(identity, text.strip(), word, severity=int(severity) if severity not in (None, "") else None,
                  where=where, **known)


def _checked(prompts: list[Prompt], notes: list[str]) -> list[Prompt]:
    kept: dict[str, Prompt] = {}
    for prompt in prompts:
        first = kept.setdefault(" ".join(prompt.prompt.split()).casefold(), prompt)
        if first.label != prompt.label:
            raise InputError(f"{prompt.where}: the same prompt is {first.label} at {first.where}; remove one of the two")
    if len(kept) < len(prompts):
        notes.append(f"{len(prompts) - len(kept)} exact repetitions dropped")
    counts = {label: sum(p.label == label for p in kept.values()) for label in LABELS}
    if min(counts.values()) < 2:
        files = ", ".join(sorted({p.where.rpartition(":")[0] for p in prompts})) or "the prompt file"
        raise InputError(f"{files}: needs two prompts a class or more, found {counts['harmful']} harmful and "
                         f"{counts['harmless']} harmless")
    if min(counts.values()) < 32:
        notes.append(f"only {min(counts.values())} prompts in the smaller class: intervals will be wide")
    return _with_unique_ids(list(kept.values()))


def _with_unique_ids(prompts: list[Prompt]) -> list[Prompt]:
    if len({p.id for p in prompts}) < len(prompts):
        # Two files, one per class, often number their rows alike.
        prompts = [replace(p, id=f"{p.label}-{p.id}") for p in prompts]
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        if first.setdefault(prompt.id, prompt) is not prompt:
            raise InputError(f"{prompt.where}: id {prompt.id!r} is taken by {first[prompt.id].where}")
    return prompts


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())
