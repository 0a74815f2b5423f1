"""Rows of a stage at work, written unit by unit, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from refusal_nn.errors import DiskError
from refusal_nn.files import not_written, write_private

Rows = list[dict[str, object]]


class Journal:
    """One line per finished unit of work, on disk before the next begins.

    about: what the rows depend on (settings, versions); rows of anything else are not taken up. A
    line that is torn, or is not what its own checksum says, is of no finished unit: dropped. The
    file is readable to its owner only, since rows may hold completions.
    """

    def __init__(self, path: Path, about: Mapping[str, object]) -> None:
        self.path = path
        self.key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.done: dict[str, Rows] = {}
        # By rename: were it written in place, a full disk would cost all that was done.
        write_private(path, "".join([json.dumps({"key": self.key}) + "\n", *self._read()]))

    def _read(self) -> list[str]:
        """Lines of whole units of this key, and the units themselves into `done`."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DiskError(
                f"could not read {self.path}: {error.strerror}; move it away"
            ) from error
        entries = [(line, _parsed(line)) for line in text.splitlines(keepends=True)]
        if not entries or entries[0][1] != {"key": self.key}:
            return []
        whole = [(line, e) for line, e in entries[1:] if e and _is_whole(e)]
        self.done = {e["unit"]: e["rows"] for _, e in whole}
        return [line for line, _ in whole]

    def add(self, unit: str, rows: Iterable[Mapping[str, object]]) -> Rows:
        """Keep the rows of a finished unit and return them as they will be read: not-a-number as
        None. Raises DiskError if they cannot be written."""
        entry = {"unit": unit, "rows": [_plain(row) for row in rows]}
        line = json.dumps(entry | {"sha256": _checksum(entry)}, allow_nan=False)
        before = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(self.path, before)
            fault = not_written(self.path, error, len(line) + 1)
            raise DiskError(f"{fault}: it goes on where it stopped") from error
        self.done[unit] = json.loads(line)["rows"]
        return self.done[unit]


def _plain(row: Mapping[str, object]) -> dict[str, object]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _checksum(entry: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps([entry["unit"], entry["rows"]]).encode()).hexdigest()


def _is_whole(entry: Mapping[str, object]) -> bool:
    known = {"unit", "rows", "sha256"} == set(entry)
    return known and entry["sha256"] == _checksum(entry)


def _parsed(line: str) -> dict[str, object] | None:
    try:
        entry = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
