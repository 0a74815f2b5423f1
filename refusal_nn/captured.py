"""A capture on disk: activations and moments beside the table of the prompts they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors import safe_open

from refusal_nn.files import read_csv, write_csv, write_tensors
from refusal_nn.prompts import Prompt, surface
from refusal_nn.runs import Stage
from refusal_nn.splits import near_duplicate_clusters

if TYPE_CHECKING:
    from refusal_nn.templates import Template
    from refusal_nn.tracing import Activations


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


def prompt_table(parts: Mapping[str, Sequence[Prompt]]) -> list[dict[str, object]]:
    """A row per prompt of each split: what is known of it, its cluster and its surface; no text."""
    rows = [(name, prompt) for name, part in parts.items() for prompt in part]
    clusters = near_duplicate_clusters([prompt for _, prompt in rows])
    return [
        {
            "id": prompt.id,
            "label": prompt.label,
            "split": name,
            "category": prompt.category or "",
            "severity": prompt.severity or "",
            "pair": prompt.pair or "",
            "cluster": cluster,
            **surface(prompt.prompt),
        }
        for (name, prompt), cluster in zip(rows, clusters, strict=True)
    ]


def write_capture(
    folder: Path, acts: Activations, template: Template, table: Sequence[Mapping[str, object]]
) -> None:
    """activations.safetensors, moments.safetensors (a mean per group and position), prompts.csv."""
    post = range(-len(template.tokens), 0)
    write_tensors(
        folder / "activations.safetensors",
        {"states": acts.states},
        {
            "positions": acts.positions,
            "tokens": [template.token(pos) for pos in acts.positions],
            "layer": "residual stream after block i, before the final norm",
        },
    )
    write_tensors(
        folder / "moments.safetensors",
        {f"mean.{group}": mean.float() for group, mean in acts.means.items()},
        {"positions": list(post), "tokens": template.tokens, "counts": acts.counts},
    )
    write_csv(folder / "prompts.csv", table)
