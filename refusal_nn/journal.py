"""Rows of a stage at work, written unit by unit, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from refusal_nn.errors import DiskError

Rows = list[dict[str, object]]


class Journal:
    """One line per finished unit of work, on disk before the next begins.

    about: what the rows depend on (settings, versions); rows of anything else are not taken up. A
    torn last line is of an unfinished unit: dropped. The file is readable to its owner only, since
    rows may hold completions.
    """

    def __init__(self, path: Path, about: Mapping[str, object]) -> None:
        self.path = path
        self.key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.done: dict[str, Rows] = {}
        whole = self._read()
        # Written anew without what was torn or foreign, then only appended to.
        self._write([json.dumps({"key": self.key}), *whole], "w")

    def _read(self) -> list[str]:
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(True)
        except FileNotFoundError:
            return []
        entries = [(line.rstrip("\n"), _parsed(line)) for line in lines]
        if not entries or entries[0][1] != {"key": self.key}:
            return []
        whole = [
            (line, e) for line, e in entries[1:] if e is not None and {"unit", "rows"} <= set(e)
        ]
        self.done = {e["unit"]: e["rows"] for _, e in whole}
        return [line for line, _ in whole]

    def add(self, unit: str, rows: Iterable[Mapping[str, object]]) -> Rows:
        """Keep the rows of a finished unit. Raises DiskError if they cannot be written."""
        # As they will be read, so that a resumed run sees just the same numbers.
        line = json.dumps({"unit": unit, "rows": list(rows)}, allow_nan=False)
        self._write([line], "a")
        self.done[unit] = json.loads(line)["rows"]
        return self.done[unit]

    def _write(self, lines: list[str], mode: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if mode == "w" else os.O_APPEND)
        try:
            with os.fdopen(os.open(self.path, flags, 0o600), mode, encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DiskError(
                f"could not write {self.path}: {error.strerror}; make room, then run the same "
                "command again: it goes on where it stopped"
            ) from error


def _parsed(line: str) -> dict[str, object] | None:
    try:
        entry = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
