"""A finished capture, read back: activations beside the table of prompts they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import safe_open

from refusal_nn.files import read_csv
from refusal_nn.runs import Stage


class Classes(NamedTuple):
    """Activations of one split at one position: harmful, harmless (layer, prompt, d_model);
    clusters, harmful first.

    rows: the prompts' table rows, harmful first.
    """

    harmful: np.ndarray
    harmless: np.ndarray
    clusters: np.ndarray
    rows: list[dict[str, object]]


@dataclass(frozen=True)
class Captured:
    """states: (layer, prompt, pos, d_model) float32. table: a row per prompt. tokens: string of
    each position captured."""

    states: np.ndarray
    table: list[dict[str, object]]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]

    def classes(self, split: str, pos: int) -> Classes:
        """The two classes of one split (fit, val, test) at one captured position."""

        def chosen(label: str) -> list[int]:
            return [
                i
                for i, row in enumerate(self.table)
                if row["split"] == split and row["label"] == label
            ]

        harmful, harmless = chosen("harmful"), chosen("harmless")
        at = self.states[:, :, self.positions.index(pos)]
        rows = [self.table[i] for i in (*harmful, *harmless)]
        return Classes(
            at[:, harmful], at[:, harmless], np.array([row["cluster"] for row in rows]), rows
        )


def read_capture(folder: Path) -> Captured:
    """Read a capture stage's folder, every file's sha256 checked. Raises InputError if unfinished,
    CorruptArtefact."""
    stage = Stage(Path(folder))
    table = read_csv(stage.artefact("prompts.csv"))
    with safe_open(stage.artefact("activations.safetensors"), "np") as file:
        about = json.loads(file.metadata()["refusal_nn"])
        return Captured(
            file.get_tensor("states"), table, tuple(about["positions"]), tuple(about["tokens"])
        )
