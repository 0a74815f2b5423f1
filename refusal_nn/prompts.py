"""Prompt sets: what a prompt is, and reading a set with every doubt raised. No heavy import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from refusal_nn.errors import InputError
from refusal_nn.names import user_path
from refusal_nn.prompt_files import HUB_SETS, fetch, read_rows

BUNDLED = Path(__file__).parent.parent / "prompts" / "pairs.jsonl"
SCARY = BUNDLED.with_name("scary.jsonl")
EVERYDAY = BUNDLED.with_name("everyday.jsonl")
LABELS = ("harmful", "harmless")
TEXT_COLUMNS = ("prompt", "text", "goal", "instruction", "behavior", "question")
# What public sets call the classes.
LABEL_WORDS = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "harmless": "harmless",
    "safe": "harmless",
    "benign": "harmless",
}
MAX_CHARACTERS = 20_000
NAMES, MAX_NAME = ("id", "pair", "category", "source"), 1000
FEW = 32
_ASKING = "how what which who whom whose where when why"
_AUXILIARY = "can could would should will may might do does did is are was were has have"
QUESTION_WORDS = frozenset(f"{_ASKING} {_AUXILIARY}".split())


@dataclass(frozen=True)
class Prompt:
    """One request.

    pair: the id that matched twins share. severity: 1-5, of harmful ones. where: file and line.
    """

    id: str
    prompt: str
    label: str
    pair: str | None = None
    category: str | None = None
    severity: int | None = None
    source: str | None = None
    where: str = ""


def load_prompts(spec: str | None = None, notes: list[str] | None = None) -> list[Prompt]:
    """The bundled matched pairs, or the sets named in `spec`, checked, exact repetitions dropped.

    spec: a file that has both classes (JSONL or CSV with a label column), or comma-separated parts,
    each `harmful=FILE` or `harmless=FILE` (JSONL, CSV, TXT with a prompt a line; the words may be
    left out if the file names begin so). A part may also be one of prompt_files.HUB_SETS.
    What was dropped, or is too few, is appended to `notes`. Raises InputError naming file and line.
    """
    prompts: list[Prompt] = []
    for part in (spec or str(BUNDLED)).split(","):
        label, _, name = part.strip().rpartition("=")
        if label not in ("", *LABELS):
            raise InputError(f"PROMPTS part {part!r}: the word before = is harmful or harmless")
        prompts += _read(name, label or None)
    return _checked(prompts, spec or "the bundled set", [] if notes is None else notes)


def _read(name: str, label: str | None) -> list[Prompt]:
    if name in HUB_SETS:
        files = [(fetch(source), label or source.label) for source in HUB_SETS[name]]
    else:
        files = [(user_path(name), label)]
    return [_prompt(row, of, path, line) for path, of in files for line, row in read_rows(path)]


def read_class(path: Path, label: str) -> list[Prompt]:
    """All prompts of one file as of one class. Raises InputError."""
    return _with_unique_ids(_read(str(path), label))


def _prompt(row: Mapping[str, object], label: str | None, path: Path, line: int) -> Prompt:
    where = f"{path}:{line}"
    column = next((name for name in TEXT_COLUMNS if name in row), None)
    if column is None:
        found = ", ".join(map(str, row)) or "none"
        raise InputError(f"{where}: no column {' or '.join(TEXT_COLUMNS)}; found {found}")
    text = row[column]
    # Zero-width characters are no spaces, and no prompt either.
    if not isinstance(text, str) or not any(c.isprintable() and not c.isspace() for c in text):
        raise InputError(f"{where}: the prompt is empty or no text")
    if "\0" in text:
        raise InputError(f"{where}: the prompt holds a NUL")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{where}: {len(text)} characters; a prompt has {MAX_CHARACTERS} at most")
    if not _is_text(text):
        raise InputError(f"{where}: holds half of a surrogate pair, which is no text")
    word = _label(row, label, path, where)
    severity = row.get("severity")
    if severity not in (None, "") and str(severity) not in tuple("12345"):
        raise InputError(f"{where}: severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    names = {k: _name(k, row[k], where) for k in NAMES if row.get(k) not in (None, "")}
    return Prompt(
        id=names.pop("id", f"{path.stem}-{line}"),
        prompt=text.strip(),
        label=word,
        severity=int(str(severity)) if severity not in (None, "") else None,
        where=where,
        **names,
    )


def _name(column: str, value: object, where: str) -> str:
    """What a table can hold and give back: text, or a number as text. Raises InputError."""
    text = str(value) if isinstance(value, (str, int, float)) else ""
    if not 0 < len(text) <= MAX_NAME or "\0" in text or not _is_text(text):
        raise InputError(
            f"{where}: {column} must be text of at most {MAX_NAME} characters, got "
            f"{type(value).__name__} {text[:40]!a}"
        )
    return text


def _is_text(text: str) -> bool:
    """Whether no half of a surrogate pair is in it, which no file can hold."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _label(row: Mapping[str, object], label: str | None, path: Path, where: str) -> str:
    """The class by its column, else as asked for, else by the file's name; all that speak agree."""
    said = str(row.get("label") if row.get("label") is not None else "").strip()
    own = LABEL_WORDS.get(said.lower())
    named = next((word for word in LABELS if path.stem.lower().startswith(word)), None)
    word = own or label or named
    if word is None or (said and own is None):
        found = f"the label {said!r} is no class" if said else "no class"
        raise InputError(
            f"{where}: {found}; give a column label ({', '.join(LABEL_WORDS)}), or "
            "PROMPTS=harmful=FILE,harmless=FILE"
        )
    if label is not None and word != label:
        raise InputError(f"{where}: its label is {said!r}, but the file is given as {label}=")
    return word


def _checked(prompts: list[Prompt], spec: str, notes: list[str]) -> list[Prompt]:
    kept: dict[str, Prompt] = {}
    for prompt in prompts:
        first = kept.setdefault(" ".join(prompt.prompt.split()).casefold(), prompt)
        if first.label != prompt.label:
            raise InputError(
                f"{prompt.where}: the same prompt is {first.label} at {first.where}; remove one"
            )
    if len(kept) < len(prompts):
        notes.append(f"{len(prompts) - len(kept)} exact repetitions dropped")
    counts = {label: sum(p.label == label for p in kept.values()) for label in LABELS}
    if min(counts.values()) < 2:
        raise InputError(
            f"{spec}: at least two prompts a class are needed, found {counts['harmful']} harmful "
            f"and {counts['harmless']} harmless"
        )
    if min(counts.values()) < FEW:
        notes.append(f"only {min(counts.values())} prompts in a class: intervals will be wide")
    return _with_unique_ids(list(kept.values()))


def _with_unique_ids(prompts: list[Prompt]) -> list[Prompt]:
    if len({p.id for p in prompts}) < len(prompts):
        # Two files, one per class, often number their rows alike.
        prompts = [replace(p, id=f"{p.label}-{p.id}") for p in prompts]
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        other = first.setdefault(prompt.id, prompt)
        if other is not prompt:
            raise InputError(f"{prompt.where}: id {prompt.id!r} is taken by {other.where}")
    return prompts


def words(text: str) -> list[str]:
    """Lower-case words, apostrophes inside kept."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def surface(prompt: str) -> dict[str, object]:
    """What of a prompt is form: words, characters, closing punctuation, question form, first
    word."""
    first = next(iter(words(prompt)), "")
    return {
        "length_words": len(words(prompt)),
        "length_characters": len(prompt),
        "closing_punctuation": int(bool(re.search(r"[.?!]\W*$", prompt))),
        "question_form": int(prompt.rstrip().endswith("?") or first in QUESTION_WORDS),
        "first_word": first,
    }
