"""Batches of a capture at work, on disk as each is done: a killed run loses the batch at hand, on a
server the request at hand."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from refusal_nn.feeding import Feed
from refusal_nn.files import sha256, write_tensors
from refusal_nn.journal import Journal

NAMES = ("states", "finite", "sums")


@dataclass(frozen=True)
class BatchFiles:
    """folder: a file per batch. journal: a unit per batch, its sha256; it knows settings, code, and
    which weights ran on what. A batch is named by its content."""

    folder: Path
    journal: Journal

    def __post_init__(self) -> None:
        if not self.journal.done:
            shutil.rmtree(self.folder, ignore_errors=True)

    def name(self, feed: Feed, args: Sequence[object]) -> str:
        batch = feed.batch
        content = repr((batch.rows, args, batch.input_ids.tolist(), batch.attention_mask.tolist()))
        return hashlib.sha256(content.encode()).hexdigest()[:24]

    def read(self, name: str) -> list[object] | None:
        """What was found of a batch, as it was; None where it is not there or not what was kept."""
        path, rows = self._path(name), self.journal.done.get(name)
        if not rows or not path.is_file() or sha256(path) != rows[0]["sha256"]:
            return None
        kept = load_file(path)
        return [kept.get(part) for part in NAMES]

    def write(self, name: str, found: Sequence[object]) -> None:
        """Keep what was found of a batch, without what is None: sums that are part of another's.
        Raises DiskError."""
        path = self._path(name)
        parts = {k: v for k, v in zip(NAMES, found, strict=True) if v is not None}
        write_tensors(path, parts, {}, finite=False)
        self.journal.add(name, [{"sha256": sha256(path)}])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
